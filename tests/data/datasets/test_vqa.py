"""VQA-v2's files: what they say of themselves, answers that are missing, and questions that two splits share."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, edit_json, prepare_golden
from trarctl.data.prepare import PrepareReport
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

TRAIN_Q, VAL_Q = (f"v2_OpenEnded_mscoco_{name}2014_questions.json" for name in ("train", "val"))
TRAIN_A, VAL_A = (f"v2_mscoco_{name}2014_annotations.json" for name in ("train", "val"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "mini_vqa/raw", tmp_path / "raw"))


def _prepare(raw: Path) -> PrepareReport:
    return prepare_golden("vqa", raw.parent / "out", raw=raw, min_answer_count=0, features=None, without_features=True)


def _same_as_golden(raw: Path) -> bool:
    golden = raw.parent / "golden"
    prepare_golden("vqa", golden, min_answer_count=0, features=None, without_features=True)
    names = [
        "answers.json",
        "vocabulary.json",
        *(f"{one}/{two}" for one in ("train", "val") for two in _arrays(golden)),
    ]
    return all((raw.parent / "out" / name).read_bytes() == (golden / name).read_bytes() for name in names)


def _arrays(folder: Path) -> list[str]:
    return [path.name for path in (folder / "val").iterdir()]


def test_files_of_another_split(raw: Path) -> None:
    shutil.copy(raw / VAL_Q, raw / TRAIN_Q)
    shutil.copy(raw / VAL_A, raw / TRAIN_A)
    with pytest.raises(DataError, match='is read as train, but says of itself "data_subtype": "val2014"') as error:
        _prepare(raw)
    assert error.value.hint == "is it the file of val? Put that of train there"


def test_annotations_of_another_split(raw: Path) -> None:
    edit_json(raw / VAL_A, lambda content: content.update(data_subtype="test2015"))
    with pytest.raises(DataError, match='is read as val, .*"test2015".* where "val" or "val2014" is expected'):
        _prepare(raw)


@pytest.mark.parametrize(
    ("field", "value"), [("data_subtype", "minival"), ("data_type", "abstract_v002"), ("task_type", "Multiple-Choice")]
)
def test_a_head_that_is_unknown_is_a_warning(raw: Path, field: str, value: str) -> None:
    edit_json(raw / VAL_Q, lambda content: content.update({field: value}))
    (warning,) = [one for one in _prepare(raw).warnings if "says of itself" in one]
    assert f'{VAL_Q} is read as val, but says of itself "{field}": "{value}"' in warning
    assert _same_as_golden(raw)


def test_visual_genome_may_say_that_it_is_val(raw: Path) -> None:
    edit_json(raw / "VG_questions.json", lambda content: content.update(data_subtype="val2014"))
    assert any("VG_questions.json is read as vg, but says" in warning for warning in _prepare(raw).warnings)


def test_copies_that_do_not_say_so(raw: Path) -> None:
    for source, copy in ((VAL_Q, TRAIN_Q), (VAL_A, TRAIN_A)):
        shutil.copy(raw / source, raw / copy)
        edit_json(raw / copy, lambda content: content.pop("data_subtype") and None)
    with pytest.raises(DataError, match="^100 of the 100 questions of val are in train too, about the same image"):
        _prepare(raw)


def test_some_questions_in_two_splits(raw: Path) -> None:
    questions = json.loads((raw / VAL_Q).read_text())["questions"][:3]
    annotations = json.loads((raw / VAL_A).read_text())["annotations"]
    ids = {record["question_id"] for record in questions}
    added = [record for record in annotations if record["question_id"] in ids]
    # Other ids do not hide them.
    for record in questions + added:
        record["question_id"] += 10**9
    edit_json(raw / TRAIN_Q, lambda content: content["questions"].extend(questions))
    edit_json(raw / TRAIN_A, lambda content: content["annotations"].extend(added))
    report = _prepare(raw)
    assert [one for one in report.warnings if "in train too" in one] == [
        "3 of the 100 questions of val are in train too, about the same image in the same words:"
        " an accuracy on val counts answers that were learned by heart"
    ]


def test_sound_files_have_no_warning(raw: Path) -> None:
    assert _prepare(raw).manifest.text.warnings == ()


def test_exchanged_files(raw: Path) -> None:
    (raw / VAL_Q).rename(raw / "x")
    (raw / VAL_A).rename(raw / VAL_Q)
    (raw / "x").rename(raw / VAL_A)
    with pytest.raises(DataError, match=f'{VAL_Q} has no list "questions": it holds annotations') as error:
        _prepare(raw)
    assert error.value.hint == "is it the file of annotations, exchanged?"


@pytest.mark.parametrize("missing", [None, "", "  ", "no field"])
def test_no_chosen_answer_takes_the_commonest(raw: Path, missing: str | None) -> None:
    def change(content: Any) -> None:
        for record in content["annotations"]:
            record["answers"] = [{"answer": text} for text in ["b", "", "c", "b", "c", "b", "", "", "", ""]]
            record["multiple_choice_answer"] = missing
            if missing == "no field":
                del record["multiple_choice_answer"]

    edit_json(raw / TRAIN_A, change)
    edit_json(raw / VAL_A, change)
    (raw / "VG_questions.json").unlink()
    (raw / "VG_annotations.json").unlink()
    report = _prepare(raw)
    # Of ten, five are empty: "b" is the commonest that says something.
    assert open_prepared(raw.parent / "out").answers == ("b",)
    rest = 'records without a "multiple_choice_answer", for which the commonest of their answers stands in: 140'
    assert f"{raw / TRAIN_A}: {rest}" in report.warnings
    assert f"{raw / TRAIN_A}: answers of annotators that are empty: {5 * 140}" in report.warnings


def test_only_empty_answers(raw: Path) -> None:
    empty = {"answers": [{"answer": ""}, {"answer": " "}], "multiple_choice_answer": None}
    edit_json(raw / VAL_A, lambda content: content["annotations"][9].update(empty))
    with pytest.raises(DataError, match=r"record 9 has only empty answers \(of 100 records"):
        _prepare(raw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["yes", None]}, 'record 4 has null among its "answers", expected {"answer": TEXT}'),
        ({"answers": [{"answer": None}]}, 'record 4 has {"answer": null} among its "answers"'),
        ({"answers": [{"confidence": "yes"}]}, 'record 4 has {"confidence": "yes"} among its "answers"'),
        ({"answers": None}, 'record 4 has null as "answers", expected a list'),
    ],
)
def test_answers_of_another_form(raw: Path, change: dict[str, Any], message: str) -> None:
    edit_json(raw / VAL_A, lambda content: content["annotations"][4].update(change))
    with pytest.raises(DataError, match=message):
        _prepare(raw)


def test_other_than_ten_annotators_are_counted(raw: Path) -> None:
    def change(content: Any) -> None:
        for number, record in enumerate(content["annotations"]):
            record["answers"] = record["answers"][: 1 if number < 20 else 3]

    edit_json(raw / VAL_A, change)
    warnings = _prepare(raw).warnings
    assert f"{raw / VAL_A}: questions have other than 10 answers: 20 have 1, 80 have 3" in warnings


# What Python, Windows and archives make of JSON

_FORMS: dict[str, Callable[[str], bytes]] = {
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end first, no mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "CRLF": lambda text: json.dumps(json.loads(text), indent=1).replace("\n", "\r\n").encode(),
    "NaN in the head": lambda text: text.replace('"license"', '"x": [NaN, -Infinity], "license"', 1).encode(),
}


@pytest.mark.parametrize("form", _FORMS)
def test_forms_that_are_read_as_they_are(raw: Path, form: str) -> None:
    path = raw / VAL_Q
    path.write_bytes(_FORMS[form](path.read_text()))
    warnings = _prepare(raw).warnings
    assert _same_as_golden(raw)
    odd = f"{path}: numbers that JSON does not have (NaN, Infinity), in fields that are not used: 2"
    assert (odd in warnings) == (form == "NaN in the head")


def test_half_a_surrogate_pair(raw: Path) -> None:
    edit_json(raw / VAL_Q, lambda content: content["questions"][7].update(question="what \ud83d?"))
    report = _prepare(raw)
    assert open_prepared(raw.parent / "out").split("val").question_text(7) == "what \ufffd?"
    odd = f"{raw / VAL_Q}: halves of surrogate pairs in its texts, read as the unknown character U+FFFD: 1"
    assert odd in report.warnings


def test_latin1_is_named_with_its_place_and_cured(raw: Path) -> None:
    path = raw / VAL_Q
    edit_json(path, lambda content: content["questions"][70].update(question="what café?"))
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    path.write_bytes(text.encode("latin-1"))
    place = text.encode("latin-1").index(b"\xe9")
    with pytest.raises(DataError, match=f"is not UTF-8 text near byte {place:,}, in record 70: 0xe9") as error:
        _prepare(raw)
    command, _, rest = str(error.value.hint).partition(", and ")
    assert rest == "put NEW in its place"
    subprocess.run(["sh", "-c", command], cwd=raw, check=True)
    (raw / "NEW").replace(path)
    _prepare(raw)
    assert open_prepared(raw.parent / "out").split("val").question_text(70) == "what café?"


@pytest.mark.parametrize(
    ("write", "message", "hint"),
    [
        (lambda text: text[:5000], "is cut off: it ends inside its list, after 5,000 bytes", "download it again"),
        (lambda text: text[:-1], "not valid JSON near .*seems to be cut off", "download it again"),
        (
            lambda text: text.replace('"question_id": 34488002', '"question_id": }', 1),
            "in record 2: Expecting value",
            "",
        ),
        (lambda _: '{"question_id": 1}\n{"question_id": 2}\n', "holds one JSON object a line", "the layout is"),
        (lambda text: json.dumps(json.loads(text)["questions"]), "it is a list of 100 elements with the fields", ""),
        (lambda _: "<!DOCTYPE html><html>", "it begins with '<!DOCTYPE html><html>'", ""),
        (lambda _: '{"questions": []}', "holds no questions", "the layout is"),
        (lambda _: "PK\x03\x04 and so on", "is a zip archive", "unpack it"),
        (lambda text: text.replace('"question_id": 3', '"question_id": 7, "question_id": 3', 1), "more than once", ""),
        (lambda text: text.replace('"question_id"', '"id"'), 'record 0 has no "question_id", only image_id', ""),
    ],
)
def test_what_is_no_question_file(raw: Path, write: Callable[[str], str], message: str, hint: str) -> None:
    path = raw / VAL_Q
    path.write_text(write(path.read_text()))
    with pytest.raises(DataError, match=message) as error:
        _prepare(raw)
    assert hint in str(error.value.hint)
    assert ("download" in str(error.value.hint)) == ("cut off" in error.value.what)


def test_visual_genome_in_its_own_layout(raw: Path) -> None:
    own = [{"id": 1, "qas": [{"qa_id": 5, "image_id": 1, "question": "Where?", "answer": "Here."}]}]
    (raw / "VG_questions.json").write_text(json.dumps(own))
    with pytest.raises(DataError, match='no list "questions": it is a list of 1 elements .* id, qas') as error:
        _prepare(raw)
    assert "openvqa's, in VQA-v2's layout with COCO's image ids" in str(error.value.hint)
    (raw / "VG_annotations.json").unlink()
    with pytest.raises(DataError, match="no file VG_annotations.json") as error:
        _prepare(raw)
    assert "visualqa.org" not in str(error.value.hint)
    (raw / "VG_questions.json").unlink()
    assert "vg" not in _prepare(raw).manifest.text.splits


def test_large_ids_are_shown_as_they_stand(raw: Path) -> None:
    def change(content: Any) -> None:
        for row, number in ((2, 18446744073709551616), (4, -5), (5, 10**30 + 1)):
            content["questions"][row]["question_id"] = number

    edit_json(raw / TRAIN_Q, change)
    with pytest.raises(DataError) as error:
        _prepare(raw)
    limits = 'as "question_id", expected an integer from 0 to 9223372036854775807'
    numbers = ((2, "18446744073709551616"), (4, "-5"), (5, "1000000000000000000000000000001"))
    assert ", ".join(f"record {row} has {number} {limits}" for row, number in numbers) in error.value.what


def test_ten_of_many_records_are_named(raw: Path) -> None:
    edit_json(raw / TRAIN_Q, lambda content: [record.pop("image_id") for record in content["questions"]] and None)
    with pytest.raises(DataError, match=r'record 9 has no "image_id".* and 130 more \(of 140 records') as error:
        _prepare(raw)
    assert error.value.what.count('has no "image_id"') == 10


def test_order_of_annotations_does_not_matter_to_the_truth(raw: Path) -> None:
    edit_json(raw / VAL_A, lambda content: content["annotations"].reverse())
    _prepare(raw)
    truth = open_prepared(raw.parent / "out").split("val").truth()
    answers = {
        one["question_id"]: one["answers"][0]["answer"] for one in json.loads((raw / VAL_A).read_text())["annotations"]
    }
    questions = [one["question_id"] for one in json.loads((raw / VAL_Q).read_text())["questions"]]
    assert [truth.strings[code] for code in truth.codes[:, 0].tolist()] == [answers[number] for number in questions]
    assert np.array_equal(truth.codes >= 0, np.ones((100, 10), dtype=bool))


def test_types_that_are_missing_are_counted(raw: Path) -> None:
    edit_json(raw / VAL_A, lambda content: [one.pop("answer_type") for one in content["annotations"][:7]] and None)
    (warning,) = _prepare(raw).warnings
    assert warning == f'{raw / VAL_A}: records without "answer_type", by which accuracy is reported: 7'


def _every(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    """Change every record of a list."""

    def changed(content: Any) -> None:
        for record in content[name]:
            change(record)

    return changed


OTHER_TYPES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "ids as text": (
        VAL_Q,
        _every("questions", lambda r: r.update(question_id=str(r["question_id"]))),
        '"question_id" that is a text, read as an integer: 100',
    ),
    "ids with a point": (
        TRAIN_A,
        _every("annotations", lambda r: r.update(image_id=float(r["image_id"]))),
        '"image_id" that is a number with a decimal point, read as an integer: 140',
    ),
    "answers alone": (
        VAL_A,
        _every("annotations", lambda r: r.update(answers=[one["answer"] for one in r["answers"]])),
        'records whose "answers" are not all {"answer": TEXT}, read as text: 100',
    ),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_values_of_another_type_are_read_and_counted(raw: Path, kind: str) -> None:
    name, change, said = OTHER_TYPES[kind]
    edit_json(raw / name, change)
    warnings = _prepare(raw).manifest.text.warnings
    assert [one for one in warnings if name in one] == [f"{raw / name}: {said}"]
    assert _same_as_golden(raw)


@pytest.mark.parametrize("number", ['"05"', "5.5", "1e300", '"\u0665"', '"9223372036854775808"', "true"])
def test_ids_that_would_lose_something_are_refused(raw: Path, number: str) -> None:
    text = (raw / VAL_Q).read_text()
    (raw / VAL_Q).write_text(text.replace('"question_id": 34488000', f'"question_id": {number}', 1))
    with pytest.raises(DataError, match='as "question_id", expected an integer from 0 to'):
        _prepare(raw)


def test_a_name_twice_in_one_answer_is_refused(raw: Path) -> None:
    text = (raw / VAL_A).read_text()
    (raw / VAL_A).write_text(text.replace('{"answer": "yes", ', '{"answer": "no", "answer": "yes", ', 1))
    with pytest.raises(DataError, match='record 0 has "answer" more than once in one object of "answers"'):
        _prepare(raw)


def test_questions_of_visual_genome_without_an_image_are_not_trained_on(raw: Path) -> None:
    for name, key in (("VG_questions.json", "questions"), ("VG_annotations.json", "annotations")):
        edit_json(raw / name, lambda content, key=key: content[key][3].update(image_id=999_999))
    lost = json.loads((raw / "VG_questions.json").read_text())["questions"][3]["question_id"]
    report = prepare_golden("vqa", raw.parent / "out", raw=raw)
    said = "1 of the 20 questions of vg are left out: no image set has their images 999999"
    assert said in report.warnings
    split = open_prepared(report.out).split("vg")
    trained = split.question_id[split.training_order].tolist()
    assert (len(trained), lost in trained) == (19, False)
    assert sorted(trained) == sorted(set(split.question_id.tolist()) - {lost})
    data = open_prepared(report.out)
    with pytest.raises(DataError, match="has no features for questions that were left out of training"):
        data.features.read(split.image)
