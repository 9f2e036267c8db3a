"""CLEVR's files: published and as the engine writes them, what they say of themselves, functions that are unknown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data.preparing import GOLDEN, clevr_question, edit_json, prepare_golden, write_clevr
from trarctl.data.prepare import PrepareReport, PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

FILES = {name: f"questions/CLEVR_{name}_questions.json" for name in ("train", "val", "test")}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "mini_clevr/raw", tmp_path / "raw"))


def _prepare(raw: Path) -> PrepareReport:
    return prepare_golden("clevr", raw.parent / "out", raw=raw)


def _as_the_engine_writes(record: dict[str, Any]) -> None:
    """Turn a published record into what generate_questions.py of the CLEVR engine writes."""
    if "answer" in record:
        answer = record["answer"]
        record["answer"] = {"yes": True, "no": False}.get(answer, int(answer) if answer.isdigit() else answer)
        record["program"] = [{"type": step.pop("function"), **step, "_output": 3} for step in record["program"]]


@pytest.mark.parametrize("has_index", [True, False])
def test_the_engine_s_own_output_gives_the_same_bytes(raw: Path, has_index: bool) -> None:
    _prepare(raw).out.rename(raw.parent / "published")
    counts = {}
    for name, file in FILES.items():

        def change(content: Any) -> None:
            for record in content["questions"]:
                _as_the_engine_writes(record)
                if not has_index:
                    del record["question_index"]

        edit_json(raw / file, change)
        records = json.loads((raw / file).read_text())["questions"]
        answers = [record.get("answer") for record in records]
        counts[name] = [sum(type(answer) is kind for answer in answers) for kind in (bool, int)]
    report = _prepare(raw)
    assert min(counts["val"]) > 5
    for path in sorted((raw.parent / "published").rglob("*")):
        if path.is_file() and path.name not in ("manifest.json", ".lock"):
            assert path.read_bytes() == (report.out / path.relative_to(raw.parent / "published")).read_bytes(), path
    said = ('"answer" that is true or false, read as a text', '"answer" that is an integer, read as a text')
    expected = {
        f"{raw / FILES[n]}: {what}: {c}" for n in ("train", "val") for what, c in zip(said, counts[n], strict=True)
    }
    if not has_index:
        numbered = 'records without a "question_index", numbered from 0 in file order'
        assert f"{raw / FILES['test']}: {numbered}: 100" in report.warnings
    assert {one for one in report.warnings if '"answer"' in one} == expected


def test_some_records_without_an_index(raw: Path) -> None:
    edit_json(raw / FILES["val"], lambda content: content["questions"][3].pop("question_index") and None)
    with pytest.raises(DataError, match='record 3 has no "question_index"'):
        _prepare(raw)


def test_a_copy_of_another_split(raw: Path) -> None:
    shutil.copy(raw / FILES["train"], raw / FILES["val"])
    with pytest.raises(DataError, match=r'is read as val, but says .*"split": "train" \(160 times\)') as error:
        _prepare(raw)
    assert error.value.hint == "is it the file of train? Put that of val there"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["info"].update(split="test"),
        lambda content: content["questions"][7].update(split="test"),
        lambda content: content["questions"][7].update(image_filename="CLEVR_test_000000.png"),
    ],
)
def test_each_place_that_names_a_split_counts(raw: Path, change: Any) -> None:
    edit_json(raw / FILES["val"], change)
    with pytest.raises(DataError, match=r"says of itself .*test"):
        _prepare(raw)


def test_a_split_of_a_name_of_one_s_own_is_one_warning(raw: Path) -> None:
    def change(content: Any) -> None:
        content["info"]["split"] = "new"
        for record in content["questions"]:
            record |= {"split": "new", "image_filename": f"CLEVR_new_{record['image_index']:06d}.png"}

    edit_json(raw / FILES["val"], change)
    (warning,) = _prepare(raw).warnings
    assert '"split": "new" (100 times), "image_filename": "CLEVR_new_" (100 times), "info.split": "new"' in warning


def test_a_picture_s_name_that_contradicts_its_index(raw: Path) -> None:
    edit_json(raw / FILES["val"], lambda content: content["questions"][0].update(image_filename="CLEVR_val_000007.png"))
    with pytest.raises(DataError, match='record 0 has "CLEVR_val_000007.png" as "image_filename", but 0 as "image_ind'):
        _prepare(raw)


def test_a_picture_s_name_that_is_a_number(raw: Path) -> None:
    edit_json(raw / FILES["val"], lambda content: content["questions"][0].update(image_filename=1.5))
    with pytest.raises(DataError, match='record 0 has "1.5" as "image_filename", but 0 as "image_index"'):
        _prepare(raw)


def test_copies_that_do_not_say_so(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    train = json.loads((raw / FILES["train"]).read_text())["questions"]
    (raw / FILES["val"]).write_text(json.dumps({"questions": train}))
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    with pytest.raises(DataError, match="^6 of the 6 questions of val are in train too"):
        prepare(request)
    # The same numbers with other words, or the same words about another image, are other questions.
    train[0]["question"] = "is it another?"
    train[1]["image_index"] = 2
    (raw / FILES["val"]).write_text(json.dumps({"questions": train}))
    assert any(one.startswith("4 of the 6 questions of val are in train too") for one in prepare(request).warnings)


@pytest.mark.parametrize("split", ["train", "val"])
def test_unknown_functions_are_named_and_counted_by_prepare_and_check(raw: Path, split: str) -> None:
    def change(content: Any) -> None:
        for row, name in ((5, "same_colour"), (6, "exists"), (9, "")):
            content["questions"][row]["program"][-1]["function"] = name

    edit_json(raw / FILES[split], change)
    what = ", ".join(
        f'record {row} has a program that ends in "{name}", which CLEVR v1.0 does not have'
        for row, name in ((5, "same_colour"), (6, "exists"), (9, ""))
    )
    with pytest.raises(DataError) as error:
        _prepare(raw)
    assert what in error.value.what
    found = check(PrepareRequest("clevr", raw=raw, without_features=True, vectors="none"))
    assert {row.file: row for row in found.rows}[FILES[split]].verdict == "damaged"
    assert [what in fault.what for fault in found.faults] == [True]


@pytest.mark.parametrize(
    ("answer", "shown"), [(None, "null"), ("", '""'), (2.5, "2.5"), ([], "[]"), (float("nan"), "NaN")]
)
def test_answers_that_are_none(tmp_path: Path, answer: Any, shown: str) -> None:
    raw = write_clevr(tmp_path)
    records = [clevr_question(0, "train"), clevr_question(1, "train", answer=answer)]
    (raw / FILES["train"]).write_text(json.dumps({"questions": records}))
    with pytest.raises(DataError) as error:
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    assert f'record 1 has {shown} as "answer", expected a text that is not empty (of 2 records' in error.value.what


def test_numbers_and_words_of_one_file_are_one_answer(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    answers = [1, "1", True, "yes", False, 0]
    records = [
        clevr_question(row, "train", answer=answer, question=f"number {row}?") for row, answer in enumerate(answers)
    ]
    (raw / FILES["train"]).write_text(json.dumps({"questions": records}))
    prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    truth = open_prepared(tmp_path / "out").split("train").truth()
    assert [truth.strings[code] for code in truth.codes[:, 0].tolist()] == ["1", "1", "yes", "yes", "no", "0"]


@pytest.mark.parametrize("function", ["query_weight", "query_", "equal_weight", "query_color "])
def test_a_function_that_clevr_does_not_have_is_refused(raw: Path, function: str) -> None:
    edit_json(raw / FILES["val"], lambda content: content["questions"][3]["program"][-1].update(function=function))
    with pytest.raises(DataError, match=f'record 3 has a program that ends in "{function}", which CLEVR v1.0'):
        _prepare(raw)
