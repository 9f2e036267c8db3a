"""SLAKE in its published form: English alone, nested pictures, empty answers, exact match in small letters."""

from __future__ import annotations

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
from trarctl.data.datasets.slake import SLAKE
from trarctl.data.prepare import PrepareReport, PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

PICTURES = {"train": range(16), "validate": range(16, 20), "test": range(20, 24)}


def _records(part: str) -> list[dict[str, Any]]:
    """Write two English and two Chinese questions about each picture; Chinese ones cross the parts."""
    records: list[dict[str, Any]] = []
    for number in PICTURES[part]:
        for place, (language, question, answer, kind) in enumerate(
            (
                ("en", f"What is in part {number % 3}?", ("Liver", "Spinal Cord", "spinal cord")[number % 3], "OPEN"),
                ("zh", "这是什么?", "肝脏", "OPEN"),
                ("en", "Is it healthy?", ("Yes", "No")[number % 2], "CLOSED"),
                ("zh", "健康吗?", "" if number % 2 else "是", "CLOSED"),
            )
        ):
            image = number if language == "en" else (number + 9) % 24
            records.append(
                {
                    "img_id": image,
                    "img_name": f"xmlab{image}/source.jpg",
                    "question": question,
                    "answer": answer,
                    "q_lang": language,
                    "location": "Abdomen",
                    "modality": "CT",
                    "answer_type": kind,
                    "base_type": "vqa",
                    "content_type": "Organ",
                    "triple": ["vhead", "_", "_"],
                    "qid": 4 * number + place,
                }
            )
    return records


def _write(raw: Path, **changed: list[dict[str, Any]]) -> Path:
    for part in PICTURES:
        write_json(raw / f"{part}.json", changed.get(part) or _records(part))
    for number in range(24):
        folder = raw / "imgs" / f"xmlab{number}"
        write_picture(folder / "source.jpg", number)
        write_picture(folder / "mask.png", number)
        write_json(folder / "detection.json", [])
    return raw


def _prepare(raw: Path, **options: Any) -> PrepareReport:
    return prepare(PrepareRequest("slake", raw=raw, out=raw.parent / "out", vectors="none", **options))


def test_through_every_command(trarctl: Run, tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    measured, file = through_every_command(
        trarctl, tmp_path, "slake", "--raw", raw, grid=8, eval_split="test", submit_split="test"
    )
    answers = {row["qid"]: row["answer"] for row in json.loads(file.read_text())}
    test = [record for record in _records("test") if record["q_lang"] == "en"]
    assert list(answers) == [record["qid"] for record in test]
    pairs = [[record["answer"], answers[record["qid"]]] for record in test]
    counts = plain_exact_match(pairs, [record["answer_type"] for record in test], str.lower)
    assert measured["overall"] == round(100 * counts["overall"][0] / counts["overall"][1], 2)
    told = {name: (one["correct"], one["total"]) for name, one in measured["per_question_type"].items()}
    assert told == {name: counts[name] for name in ("OPEN", "CLOSED")}


def test_english_questions_alone_are_read(tmp_path: Path) -> None:
    _prepare(_write(tmp_path / "raw"))
    data = open_prepared(tmp_path / "out")
    for part, split in (("train", "train"), ("validate", "val"), ("test", "test")):
        english = [record for record in _records(part) if record["q_lang"] == "en"]
        assert data.split(split).question_id.tolist() == [record["qid"] for record in english]
        assert data.split(split).image_id.tolist() == [record["img_id"] for record in english]
        assert sorted(set(data.split(split).image_id.tolist())) == list(PICTURES[part])
    assert data.answers == ("liver", "yes", "spinal cord", "no")
    assert not {word for word in data.vocabulary.words if not word.isascii()}


def test_features_are_those_of_the_nested_pictures(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    report = _prepare(raw)
    data = open_prepared(tmp_path / "out")
    assert (data.features.num_images, data.features.num_cells) == (24, 64)
    (row,) = [one for one in report.checks if one.file == str(raw / "imgs")]
    assert (row.found, row.expected) == (24, 642)
    (raw / "imgs" / "xmlab3" / "source.jpg").unlink()
    with pytest.raises(DataError, match=r"no images for image 3 \(.*imgs\): 2 questions of train$"):
        _prepare(raw)


def test_questions_alone_need_no_picture(trarctl: Run, tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    (raw / "imgs").rename(tmp_path / "elsewhere")
    options = ("--raw", raw, "--vectors", "none", "--out", tmp_path / "out")
    code, _, err = trarctl("prepare", "slake", *options)
    assert code == 4
    assert f"no folder {raw / 'imgs'} with the images of 24 images" in err
    code, out, _ = trarctl("prepare", "slake", *options, "--without-features")
    assert code == 0
    assert out.endswith(f"next: trarctl prepare slake --raw {raw} --vectors none --out {tmp_path / 'out'}\n")
    assert len(open_prepared(tmp_path / "out").split("val")) == 8


def test_the_later_name_of_the_validation_file(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    (raw / "validate.json").rename(raw / "validation.json")
    report = _prepare(raw)
    assert [row.file for row in report.checks][:3] == ["train.json", "validation.json", "test.json"]
    assert len(open_prepared(tmp_path / "out").split("val")) == 8
    (raw / "validation.json").unlink()
    with pytest.raises(DataError, match=r"no file validate.json in") as error:
        _prepare(raw)
    assert "med-vqa.com/slake" in str(error.value.hint)


def test_an_empty_answer_is_left_out_of_train_alone(tmp_path: Path) -> None:
    train, test = _records("train"), _records("test")
    train[2]["answer"] = ""
    raw = _write(tmp_path / "raw", train=train)
    report = _prepare(raw)
    assert f"{raw / 'train.json'}: English questions with an empty answer, which are left out: 1" in report.warnings
    data = open_prepared(tmp_path / "out")
    assert train[2]["qid"] not in data.split("train").question_id.tolist()
    assert len(data.split("train")) == 31
    assert "" not in data.answers
    test[2]["answer"] = " "
    write_json(raw / "test.json", test)
    with pytest.raises(DataError, match="record 2 has an empty answer"):
        _prepare(raw)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no language": (lambda record: record.pop("q_lang"), 'record 4 has no "q_lang"'),
    "another picture": (
        lambda record: record.update(img_name="../xmlab1/source.jpg"),
        'record 4 has "../xmlab1/source.jpg" as "img_name", expected a name such as xmlab1/source.jpg',
    ),
    "other kind": (lambda record: record.update(answer_type=None), 'record 4 has null as "answer_type"'),
    "same id": (lambda record: record.update(qid=0), "qid 0 appears more than once"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_records_are_named(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    records = _records("train")
    change(records[4])
    raw = _write(tmp_path / "raw", train=records)
    (fault,) = check(PrepareRequest("slake", raw=raw, without_features=True, vectors="none")).faults
    assert said in fault.what


def test_a_file_without_english_questions(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw", test=[record for record in _records("test") if record["q_lang"] == "zh"])
    with pytest.raises(DataError, match="test.json holds no questions of test"):
        _prepare(raw)


def test_the_metric_is_the_plain_one() -> None:
    pairs = adversarial_pairs(seed=9, extra=("Left", "left", "LEFT", "left ", "T2", "Atelectasis, Mass", "X-Ray"))
    types = [("CLOSED", "OPEN")[len(true) % 2] for true, _ in pairs]
    measured = SLAKE.metric([one for _, one in pairs], truth_of([true for true, _ in pairs], types), "official")
    expected = plain_exact_match(pairs, types, str.lower)
    assert len(pairs) == 2_000
    assert 200 < expected["overall"][0] < 1_800
    assert measured.counts == expected
