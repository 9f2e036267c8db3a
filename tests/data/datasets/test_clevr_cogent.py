"""CLEVR-CoGenT in its published form: five splits with pictures of their own, accuracy by condition, lines to send."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.data.preparing import write_features
from trarctl.data.datasets.clevr_cogent import CLEVR_COGENT
from trarctl.data.prepare import PrepareReport, PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

SPLITS = {"trainA": 16, "valA": 4, "valB": 4, "testA": 3, "testB": 3}
# The last function of a program and the type that CLEVR's table has for it.
FUNCTIONS = {
    "exist": "exist",
    "count": "count",
    "greater_than": "compare_numbers",
    "less_than": "compare_numbers",
    "equal_integer": "compare_numbers",
    "equal_color": "compare_attribute",
    "query_shape": "query_attribute",
}


def _questions(split: str) -> list[dict[str, Any]]:
    records = []
    for number in range(2 * SPLITS[split]):
        record: dict[str, Any] = {
            "split": split,
            "question_index": number,
            "image_index": number // 2,
            "image_filename": f"CLEVR_{split}_{number // 2:06d}.png",
            "question": f"Is the {('red', 'blue', 'gray')[number % 3]} cube in {split} {number % 5}?",
            "question_family_index": 1,
        }
        if not split.startswith("test"):
            function = list(FUNCTIONS)[number % len(FUNCTIONS)]
            record |= {
                "answer": ("yes", "no", "3", "cube")[number % 4],
                "program": [{"function": "scene", "inputs": []}, {"function": function, "inputs": [0]}],
            }
        records.append(record)
    return records


def _write(folder: Path) -> Path:
    for number, split in enumerate(SPLITS):
        file = folder / "raw/questions" / f"CLEVR_{split}_questions.json"
        write_json(file, {"info": {"split": split, "version": "1.0"}, "questions": _questions(split)})
        for image in range(SPLITS[split]):
            array = np.full((4, 6), 100 * number + image, dtype=np.float32)
            write_features(folder / "feats" / split / f"{image}.npz", array)
    return folder / "raw"


def _prepare(raw: Path, **options: Any) -> PrepareReport:
    given = {"features": raw.parent / "feats", "grid": 2} | options
    return prepare(PrepareRequest("clevr-cogent", raw=raw, out=raw.parent / "out", vectors="none", **given))


def test_through_every_command(trarctl: Run, tmp_path: Path) -> None:
    raw = _write(tmp_path)
    options = ("--raw", raw, "--features", tmp_path / "feats", "--grid", 2)
    measured, file = through_every_command(
        trarctl, tmp_path, "clevr-cogent", *options, grid=2, eval_split="valB", submit_split="testB"
    )
    assert (measured["split"], measured["questions"]) == ("valB", 8)
    assert len(file.read_text().splitlines()) == 6
    # val is another name of valA, on which the run was validated.
    events = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    (validation,) = [one for one in events if one.get("event") == "validation"]
    where = ["--set", f"run.folder={tmp_path / 'runs'}"]
    code, out, _ = trarctl("eval", "--ckpt", "tiny", "--split", "valA", "--json", "-", "-q", *where)
    assert code == 0
    assert json.loads(out)["overall"] == validation["overall"]
    # Answers of another program are scored by their order.
    lines = [record["answer"] for record in _questions("valB")]
    lines[0] = "no"
    file.write_text("".join(f"{line}\n" for line in lines))
    data = ["--data", tmp_path / "prepared", "--split", "valB"]
    code, out, _ = trarctl("eval", "--answers", file, *data, "--json", "-")
    assert (code, json.loads(out)["overall"]) == (0, 87.5)
    file.write_text("yes\n")
    code, _, err = trarctl("submit", "--validate", file, *data)
    assert code != 0
    assert "1 line for 8 questions" in err


def test_each_split_has_pictures_of_its_own(tmp_path: Path) -> None:
    _prepare(_write(tmp_path))
    data = open_prepared(tmp_path / "out")
    first = {name: float(data.features.read(data.split(name).image[:1])[0, 0, 0]) for name in SPLITS}
    assert first == {"trainA": 0, "valA": 100, "valB": 200, "testA": 300, "testB": 400}
    assert data.answers == ("yes", "no", "3", "cube")
    for other, name in (("train", "trainA"), ("val", "valA"), ("test", "testA")):
        assert data.split(other).name == name


def test_pictures_are_found_by_their_names(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    for number, split in enumerate(SPLITS):
        for image in range(SPLITS[split]):
            write_picture(raw / "images" / split / f"CLEVR_{split}_{image:06d}.png", 100 * number + image)
    request = {"raw": raw, "images": raw / "images", "extractor": "patches", "out": tmp_path / "out"}
    assert not check(PrepareRequest("clevr-cogent", vectors="none", grid=2, **request)).faults
    # A picture of valB is none of valA, whatever its number.
    picture = raw / "images/valA/CLEVR_valA_000001.png"
    picture.rename(raw / "images/valA/CLEVR_valB_000001.png")
    with pytest.raises(DataError, match=r"no images for image 1 \(.*images/valA\): 2 questions of valA"):
        prepare(PrepareRequest("clevr-cogent", vectors="none", grid=2, **request))


def test_a_file_of_the_other_condition_is_refused(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    (raw / "questions/CLEVR_valB_questions.json").replace(raw / "questions/CLEVR_valA_questions.json")
    with pytest.raises(DataError, match='is read as valA, but says of itself "split": "valB"') as error:
        _prepare(raw)
    assert error.value.hint == "is it the file of valB? Put that of valA there"


def test_condition_b_and_the_tests_may_be_missing(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    for split in ("valB", "testA", "testB"):
        (raw / f"questions/CLEVR_{split}_questions.json").unlink()
    report = _prepare(raw)
    assert "without the questions of valB and testA and testB the vocabulary lacks their words" in report.warnings
    (raw / "questions/CLEVR_valA_questions.json").unlink()
    with pytest.raises(DataError, match="no file questions/CLEVR_valA_questions.json") as error:
        _prepare(raw)
    assert "CLEVR_CoGenT_v1.0.zip" in str(error.value.hint)


def test_a_copy_of_the_training_questions_is_refused(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    questions = [{key: one[key] for key in one if key not in ("split", "image_filename")} for one in _questions("valA")]
    for split in ("trainA", "valA"):
        write_json(raw / f"questions/CLEVR_{split}_questions.json", {"questions": questions})
    with pytest.raises(DataError, match="8 of the 8 questions of valA are in trainA too") as error:
        _prepare(raw)
    assert "data.split=trainA+valA" in str(error.value.hint)


def test_the_metric_is_the_plain_one() -> None:
    pairs = adversarial_pairs(seed=10, extra=("yes", "no", "3", "cube", "Yes", "cube "))
    draw = random.Random(11)  # noqa: S311 - no secret
    functions = [draw.choice(list(FUNCTIONS)) for _ in pairs]
    truth = truth_of([true for true, _ in pairs], functions)
    measured = CLEVR_COGENT.metric([one for _, one in pairs], truth, "official")
    expected = plain_exact_match(pairs, [FUNCTIONS[name] for name in functions], str)
    assert len(pairs) == 2_000
    assert 200 < expected["overall"][0] < 1_800
    assert measured.counts == expected
