"""VQA-RAD in its published form: parts, odd values, pictures that are missing, exact match by kind of answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.datasets.public import (
    Run,
    adversarial_pairs,
    plain_exact_match,
    through_every_command,
    truth_of,
    write_json,
    write_picture,
)
from tests.data.reference_accuracy import _punctuation, _without_breaks, _words
from trarctl.data.datasets.vqa_rad import VQA_RAD, normalize_medical_answer
from trarctl.data.prepare import PrepareReport, PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError
from trarctl.registry import DATASETS

FILE = "VQA_RAD Dataset Public.json"
PHRASES = ("freeform", "para", "freeform", "test_freeform", "test_para")


def _is_val(picture: str) -> bool:
    return int(hashlib.sha256(picture.encode()).hexdigest()[:16], 16) % 10 == 0


def _records(num_pictures: int = 20) -> list[dict[str, Any]]:
    """Write five questions about each picture, of which two are of the test part; every other has a template."""
    records: list[dict[str, Any]] = []
    for number in range(num_pictures):
        for place, phrase in enumerate(PHRASES):
            is_open = place % 2
            records.append(
                {
                    "qid": len(records),
                    "phrase_type": phrase,
                    "qid_linked_id": f"link {number}",
                    "image_name": f"synpic{1000 + 7 * number}.jpg",
                    "image_organ": "HEAD",
                    "question": f"What is at {place}?" if is_open else f"Is {place} normal?",
                    "question_rephrase": "NULL",
                    "question_frame": f"Is/Are {place} normal?" if place % 2 == 0 else "NULL",
                    "question_type": "PRES",
                    "answer": ("the Left lung", "X-ray", "Ring")[number % 3] if is_open else ("Yes", "no")[number % 2],
                    "answer_type": "OPEN" if is_open else "CLOSED",
                }
            )
    return records


def _write(folder: Path, records: list[dict[str, Any]], file: str = FILE, images: str = "VQA_RAD Image Folder") -> Path:
    write_json(folder / file, records)
    for seed, name in enumerate({record["image_name"]: None for record in records}):
        write_picture(folder / images / name, seed)
    return folder


def _prepare(raw: Path, out: Path, **options: Any) -> PrepareReport:
    return prepare(PrepareRequest("vqa-rad", raw=raw, out=out, vectors="none", **options))


def test_through_every_command(trarctl: Run, tmp_path: Path) -> None:
    records = _records()
    raw = _write(tmp_path / "raw", records)
    measured, file = through_every_command(
        trarctl, tmp_path, "vqa-rad", "--raw", raw, grid=8, eval_split="test", submit_split="test"
    )
    answers = {row["qid"]: row["answer"] for row in json.loads(file.read_text())}
    test = [record for record in records if record["phrase_type"].startswith("test")]
    assert list(answers) == [record["qid"] for record in test]
    # The file's answers, scored the plain way, are the figures of eval.
    pairs = [[record["answer"], answers[record["qid"]]] for record in test]
    counts = plain_exact_match(pairs, [record["answer_type"] for record in test], _plain_clean)
    assert measured["overall"] == round(100 * counts["overall"][0] / counts["overall"][1], 2)
    code, out, _ = trarctl("eval", "--answers", file, "--data", tmp_path / "prepared", "--split", "test")
    assert code == 0
    assert "CLOSED" in out
    assert "OPEN" in out


def test_parts_are_by_phrase_type_and_picture(tmp_path: Path) -> None:
    records = _records()
    report = _prepare(_write(tmp_path / "raw", records), tmp_path / "out")
    data = open_prepared(tmp_path / "out")
    expected: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for record in records:
        is_test = record["phrase_type"].startswith("test")
        expected["test" if is_test else "val" if _is_val(record["image_name"]) else "train"].append(record["qid"])
    assert expected["val"]
    assert data.split_names == ("train", "val", "test")
    for part, ids in expected.items():
        assert data.split(part).question_id.tolist() == ids
    assert set(data.split("val").image_id.tolist()).isdisjoint(data.split("train").image_id.tolist())
    assert report.warnings == ()


def test_the_common_split_leaks_and_says_so(trarctl: Run, tmp_path: Path) -> None:
    records = _records()
    records[3]["answer"] = "of the test part alone"
    for record in records:
        if record["phrase_type"] == "test_freeform":
            record["question_frame"] = f"What is/are at {record['qid']}?"
    raw = _write(tmp_path / "raw", records)
    out = tmp_path / "prepared"
    code, _, err = trarctl("prepare", "vqa-rad-frames", "--raw", raw, "--vectors", "none", "--out", out)
    assert code == 0
    data = open_prepared(out)
    # The rule of the common split: every row has the next number, and its template, if there is one, the one after.
    numbered: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    number = 0
    for record in records:
        number += 1
        numbered["test" if "test" in record["phrase_type"] else "train"].append((number, record["question"]))
        if record["question_frame"] != "NULL":
            number += 1
            numbered["train"].append((number, record["question_frame"]))
    for part, splits in (("train", ("train", "val")), ("test", ("test",))):
        found = []
        for split in map(data.split, splits):
            found += [(int(one), split.question_text(row)) for row, one in enumerate(split.question_id)]
        assert sorted(found) == numbered[part]
    assert set(data.split("val").image_id.tolist()).isdisjoint(data.split("train").image_id.tolist())
    # The answer list has answers that only the test part gives, which vqa-rad's has not.
    assert "of test part alone" in data.answers
    _prepare(raw, tmp_path / "clean")
    assert "of test part alone" not in open_prepared(tmp_path / "clean").answers
    is_val = {name: _is_val(name) for name in (record["image_name"] for record in records)}
    for split, wanted in (("train", False), ("val", True)):
        leaking = [
            record
            for record in records
            if record["phrase_type"].startswith("test")
            and record["question_frame"] != "NULL"
            and is_val[record["image_name"]] is wanted
        ]
        said = f"{len(leaking)} of the {len(data.split(split))} questions of {split} reword questions of test"
        assert leaking
        assert said in err
    sets = ["--set", f"run.folder={tmp_path / 'runs'}", "--set", "model.num_layers=1", "--set", "train.batch_size=16"]
    code, stdout, stderr = trarctl("train", "vqa-rad-frames", "--data", out, "--epochs", 1, "--gpus", "cpu", *sets)
    assert code == 0
    assert "vqa-rad-frames trains on rewordings of test questions" in stdout + stderr


def test_odd_values_are_read_and_counted(tmp_path: Path) -> None:
    records = _records()
    records[0]["qid"] = "0"
    records[0]["answer_type"] = "CLOSED "
    records[1]["answer"] = 3
    records[2]["answer"] = " Yes\t"
    for record in records[3:5]:
        del record["question_rephrase"]
    raw = _write(tmp_path / "raw", records, "vqa_rad.json", "images")
    report = _prepare(raw, tmp_path / "out")
    path = raw / "vqa_rad.json"
    for what in (
        '"qid" that is a text, read as an integer: 1',
        '"answer" that is an integer, read as a text: 1',
        '"answer" with tabs, or with blanks around it, which do not count: 1',
        '"answer_type" with blanks or small letters, which do not count: 1',
    ):
        assert [one for one in report.warnings if one == f"{path}: {what}"], what
    data = open_prepared(tmp_path / "out")
    assert set(data.answers) == {"yes", "no", "left lung", "xray", "ring", "3"}
    assert set(data.split("train").truth().question_types) == {"CLOSED", "OPEN"}


def test_questions_about_missing_pictures_are_left_out(tmp_path: Path) -> None:
    records = _records()
    raw = _write(tmp_path / "raw", records)
    pictures = [record["image_name"] for record in records if record["qid"] in (0, 5)]
    for name in pictures:
        (raw / "VQA_RAD Image Folder" / name).rename(tmp_path / name)
    found = check(PrepareRequest("vqa-rad", raw=raw, out=tmp_path / "out", vectors="none"))
    assert not found.faults
    report = _prepare(raw, tmp_path / "out")
    there = [record for record in records if record["image_name"] not in pictures]
    data = open_prepared(tmp_path / "out")
    held = [one for name in ("train", "val", "test") for one in data.split(name).question_id.tolist()]
    assert sorted(held) == [record["qid"] for record in there]
    shown = ", ".join(name.removesuffix(".jpg") for name in sorted(pictures))
    folder = raw / "VQA_RAD Image Folder"
    what = f"4 of the 40 questions of test are left out: {folder} lacks their images {shown}"
    assert what in report.warnings
    assert what in found.warnings
    # Questions alone need no picture.
    _prepare(raw, tmp_path / "texts", without_features=True)
    assert len(open_prepared(tmp_path / "texts").split("test")) == 40
    # A picture that comes later is not left out of what was prepared before.
    (tmp_path / pictures[0]).rename(folder / pictures[0])
    assert not _prepare(raw, tmp_path / "out").was_current
    assert len(open_prepared(tmp_path / "out").split("test")) == 38
    assert _prepare(raw, tmp_path / "out").was_current


def test_a_set_that_has_lost_a_split_is_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _write(tmp_path / "raw", _records())
    _prepare(raw, tmp_path / "out")
    fewer = dataclasses.replace(VQA_RAD, splits=VQA_RAD.splits[:2])
    monkeypatch.setitem(DATASETS._items, "vqa-rad", fewer)
    assert not _prepare(raw, tmp_path / "out").was_current
    assert open_prepared(tmp_path / "out").split_names == ("train", "val")


def test_no_picture_at_all_stops_the_preparation(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw", _records())
    (raw / "VQA_RAD Image Folder").rename(raw / "elsewhere")
    with pytest.raises(DataError, match="no folder") as error:
        _prepare(raw, tmp_path / "out")
    assert "osf.io" in str(error.value.hint)


def test_check_lists_the_file_once(trarctl: Run, tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw", _records())
    code, out, _ = trarctl("prepare", "vqa-rad", "--raw", raw, "--vectors", "none", "--check")
    assert code == 0
    (line,) = [line for line in out.splitlines() if FILE in line]
    assert "100" in line
    assert "2,248" in line
    (raw / FILE).unlink()
    code, out, err = trarctl("prepare", "vqa-rad", "--raw", raw, "--vectors", "none", "--check")
    assert code == 4
    assert "missing" in out
    assert "osf.io/89kps" in out + err


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no answer": (lambda record: record.pop("answer"), 'record 3 has no "answer"'),
    "null answer": (lambda record: record.update(answer=None), 'record 3 has null as "answer"'),
    "NULL answer": (lambda record: record.update(answer="NULL"), 'record 3 has "NULL" as "answer"'),
    "empty question": (lambda record: record.update(question=" "), 'record 3 has " " as "question"'),
    "other kind": (lambda record: record.update(answer_type="HALF"), 'expected "CLOSED" or "OPEN"'),
    "a path": (lambda record: record.update(image_name="../a.jpg"), 'record 3 has "../a.jpg" as "image_name"'),
    "same id": (lambda record: record.update(qid=1), "qid 1 appears more than once"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_records_are_named(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    records = _records()
    change(records[3])
    write_json(tmp_path / "raw" / FILE, records)
    found = check(PrepareRequest("vqa-rad", raw=tmp_path / "raw", without_features=True, vectors="none"))
    (fault,) = found.faults
    assert said in fault.what


def test_a_part_without_questions(tmp_path: Path) -> None:
    records = [record for record in _records() if not record["phrase_type"].startswith("test")]
    raw = _write(tmp_path / "raw", records)
    report = _prepare(raw, tmp_path / "out")
    assert f"{raw / FILE} holds no questions of test" in report.warnings
    write_json(raw / FILE, [record for record in _records() if record["phrase_type"].startswith("test")])
    with pytest.raises(DataError, match="holds no questions of train"):
        _prepare(raw, tmp_path / "out")


def _plain_clean(text: str) -> str:
    cleaned = _words(_punctuation(_without_breaks(text))).replace(",", "")
    return cleaned.replace("x ray", "xray")


def test_the_metric_is_the_plain_one() -> None:
    pairs = adversarial_pairs(seed=8, extra=("x ray", "X-Ray", "xray", "an x-ray", "CT", "left\tlung", "Left lung "))
    types = [("CLOSED", "OPEN")[len(true) % 2] for true, _ in pairs]
    measured = VQA_RAD.metric([one for _, one in pairs], truth_of([true for true, _ in pairs], types), "official")
    expected = plain_exact_match(pairs, types, _plain_clean)
    assert len(pairs) == 2_000
    assert 200 < expected["overall"][0] < 1_800
    assert measured.counts == expected
    right = [_plain_clean(true) == _plain_clean(prediction) for true, prediction in pairs]
    assert measured.right.tolist() == right


@pytest.mark.parametrize(
    ("answer", "cleaned"), [("Chest X-ray", "chest xray"), ("Yes", "yes"), ("the Lungs.", "lungs"), ("3", "3")]
)
def test_answers_as_the_list_has_them(answer: str, cleaned: str) -> None:
    assert normalize_medical_answer(answer) == cleaned
