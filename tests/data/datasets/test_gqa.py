"""GQA in its published form: records by id, balanced questions, binary and open ones, what the server takes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
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
from trarctl.data import records
from trarctl.data.datasets.gqa import GQA
from trarctl.data.prepare import PrepareReport, PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

SPLITS = {"train": 16, "val": 4, "testdev": 3, "test": 3}
STRUCTURES = ("verify", "query", "choose", "logical", "compare")
Records = dict[str, dict[str, Any]]


def _image(split: str, number: int) -> str:
    """Give a Visual Genome id, or that of a COCO picture of a test split."""
    start = {"train": 0, "val": 100, "testdev": 161_300, "test": 161_400}[split]
    return f"n{start + number}" if split in ("testdev", "test") else str(2_300_000 + start + number)


def _records(split: str, *, has_unbalanced: bool = False) -> Records:
    """Write two questions about each picture, and one that is not balanced; ids keep their leading zeros."""
    found: Records = {}
    for number in range(3 * SPLITS[split]):
        is_balanced = number % 3 < 2
        if not (is_balanced or has_unbalanced):
            continue
        record: dict[str, Any] = {
            "imageId": _image(split, number // 3),
            "question": f"Is the {('chair', 'table')[number % 2]} in {split} {number % 7} red?",
            "isBalanced": is_balanced,
        }
        if split != "test":
            structural = STRUCTURES[number % 5]
            answer = ("man", "tv stand")[number % 2] if structural == "query" else ("yes", "no")[number % 2]
            record |= {
                "semantic": [{"operation": "select", "dependencies": [], "argument": "chair (123)"}],
                "entailed": [],
                "equivalent": [f"{number:08d}"],
                "groups": {"global": None, "local": "06-chair"},
                "answer": answer,
                "fullAnswer": f"It is {answer}.",
                "types": {"detailed": "existC", "semantic": "obj", "structural": structural},
                "annotations": {"answer": {"0": "123"}, "question": {"2": "123"}, "fullAnswer": {}},
                "semanticStr": "select: chair (123)",
            }
        found[f"{number:08d}{len(split)}"] = record
    return found


def _write(folder: Path) -> Path:
    for split, number in SPLITS.items():
        write_json(folder / "raw" / f"{split}_balanced_questions.json", _records(split))
        for image in range(number):
            name = _image(split, image)
            write_features(folder / "feats/images" / f"{name}.npy", np.full((4, 6), len(split) + image, dtype="f4"))
    return folder / "raw"


def _prepare(raw: Path, **options: Any) -> PrepareReport:
    given = {"features": raw.parent / "feats", "grid": 2} | options
    return prepare(PrepareRequest("gqa", raw=raw, out=raw.parent / "out", vectors="none", **given))


def test_through_every_command(trarctl: Run, tmp_path: Path) -> None:
    raw = _write(tmp_path)
    options = ("--raw", raw, "--features", tmp_path / "feats", "--grid", 2)
    measured, file = through_every_command(
        trarctl, tmp_path, "gqa", *options, grid=2, eval_split="testdev", submit_split="test"
    )
    assert (measured["split"], measured["questions"]) == ("testdev", 6)
    rows = json.loads(file.read_text())
    assert [set(row) for row in rows] == [{"questionId", "prediction"}] * 6
    assert [row["questionId"] for row in rows] == list(_records("test"))
    # Answers of another program, in any order, are scored by their ids.
    val = _records("val")
    answers = [{"questionId": one, "prediction": record["answer"]} for one, record in reversed(val.items())]
    answers[0]["prediction"] += " "
    write_json(file, answers)
    data = ["--data", tmp_path / "prepared", "--split", "val"]
    code, out, _ = trarctl("eval", "--answers", file, *data, "--json", "-")
    assert (code, json.loads(out)["correct"]) == (0, 7)
    pairs = [[val[row["questionId"]]["answer"], row["prediction"]] for row in answers]
    kinds = [_kind(val[row["questionId"]]["types"]["structural"]) for row in answers]
    expected = plain_exact_match(pairs, kinds, str)
    told = json.loads(out)["per_question_type"]
    assert {name: (one["correct"], one["total"]) for name, one in told.items()} == {
        name: expected[name] for name in ("binary", "open")
    }
    write_json(file, [{"questionId": int(row["questionId"]), "prediction": row["prediction"]} for row in answers])
    code, _, err = trarctl("submit", "--validate", file, *data)
    assert code != 0
    assert "8 rows with a questionId that is not text" in err


def _kind(structural: str) -> str:
    return "open" if structural == "query" else "binary"


def test_ids_stay_texts_and_pictures_are_in_one_folder(tmp_path: Path) -> None:
    _prepare(_write(tmp_path))
    data = open_prepared(tmp_path / "out")
    for split in SPLITS:
        part, expected = data.split(split), _records(split)
        assert part.question_id.tolist() == list(expected)
        assert part.image_id.tolist() == [record["imageId"] for record in expected.values()]
        assert [data.features.image_id(int(row)) for row in part.image] == part.image_id.tolist()
        assert [part.question_text(row) for row in range(len(part))] == [one["question"] for one in expected.values()]
    truth = data.split("val").truth()
    kinds = [truth.question_types[code] for code in truth.question_type.tolist()]
    assert kinds == [_kind(record["types"]["structural"]) for record in _records("val").values()]
    answers = [record["answer"] for split in ("train", "val") for record in _records(split).values()]
    assert data.answers == tuple(dict.fromkeys(answers))
    assert not data.split("test").is_annotated


def test_features_are_made_of_the_pictures_of_one_folder(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    for split, number in SPLITS.items():
        for image in range(number):
            write_picture(tmp_path / "photos/images" / f"{_image(split, image)}.jpg", image)
    _prepare(raw, features=None, images=tmp_path / "photos", extractor="patches")
    assert open_prepared(tmp_path / "out").features.num_images == sum(SPLITS.values())


def test_balanced_questions_alone_are_read(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    write_json(raw / "val_balanced_questions.json", _records("val", has_unbalanced=True))
    report = _prepare(raw)
    what = f"{raw / 'val_balanced_questions.json'}: questions that are not balanced, which are left out: 4"
    assert what in report.warnings
    assert open_prepared(tmp_path / "out").split("val").question_id.tolist() == list(_records("val"))


def test_the_file_of_all_questions_is_answered_whole(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    everything: Records = {}
    for split in ("val", "testdev", "test"):
        questions = _records(split, has_unbalanced=True)
        names = ("imageId", "question", "isBalanced")
        everything |= {one: {name: record[name] for name in names} for one, record in questions.items()}
    write_json(raw / "submission_all_questions.json", everything)
    report = _prepare(raw)
    assert open_prepared(tmp_path / "out").split("submission").question_id.tolist() == list(everything)
    assert not [one for one in report.warnings if "are in" in one]


@pytest.mark.parametrize("piece_bytes", [1_000, 1 << 19])
def test_pieces_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    raw = _write(tmp_path)
    defaults = (piece_bytes,)
    monkeypatch.setattr(records.RecordReader.pieces, "__defaults__", defaults)
    # The names of the fields are in "annotations" as well, which must not cost a slow second reading of each piece.
    monkeypatch.setattr(records.RecordReader, "_exact_records", lambda _: pytest.fail("read twice"))
    _prepare(raw, without_features=True, features=None)
    assert open_prepared(tmp_path / "out").split("train").question_id.tolist() == list(_records("train"))


def _change_first(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        content = json.loads(text)
        change(content["00000003" + "5"])
        return json.dumps(content)

    return edit


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "no answer": (_change_first(lambda one: one.pop("answer")), r'record 2 \("000000035"\) has no "answer"'),
    "blank answer": (_change_first(lambda one: one.update(answer=" ")), r'has " " as "answer", expected a text that'),
    "number as image": (_change_first(lambda one: one.update(imageId=7)), r'has 7 as "imageId", expected a text'),
    "no structure": (_change_first(lambda one: one["types"].clear()), r'has null as "structural" of its "types"'),
    "types as a list": (_change_first(lambda one: one.update(types=[])), r'\[\] as "types", expected an object'),
    "balanced as text": (_change_first(lambda one: one.update(isBalanced="yes")), r'has "yes" as "isBalanced"'),
    "same id": (lambda text: text.replace('"000000035":', '"000000005":'), "id 000000005 appears more than once"),
    "field twice": (
        lambda text: text.replace('"isBalanced": true', '"question": "?", "isBalanced": true', 1),
        r'record 0 \("000000005"\) has "question" more than once',
    ),
    "no object": (lambda text: text.replace('"000000035": {', '"extra": 3, "000000035": {', 1), "is not an object"),
    "a list": (lambda text: json.dumps(list(json.loads(text).values())), "does not hold an object of records by their"),
    "cut off": (lambda text: text[: len(text) // 2], "cut off"),
    "broken": (lambda text: text.replace('"imageId": ', '"imageId" ', 1), "not valid JSON near byte .*, in record 0"),
    "a comma too many": (lambda text: text[:-1] + ",}", "not valid JSON"),
    "empty": (lambda _: "{}", "holds no questions"),
    "an empty id": (lambda text: text.replace('"000000035":', '"":', 1), 'stands under ""'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_told(tmp_path: Path, name: str) -> None:
    damage, said = DAMAGE[name]
    raw = _write(tmp_path)
    file = raw / "train_balanced_questions.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    found = check(PrepareRequest("gqa", raw=raw, without_features=True, vectors="none"))
    (fault,) = found.faults
    assert fault.what.startswith(str(file))
    with pytest.raises(DataError, match=said):
        raise fault


def test_an_id_that_comes_again_much_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _write(tmp_path)
    file = raw / "train_balanced_questions.json"
    first, *_, last = _records("train")
    file.write_text(file.read_text().replace(f'"{last}":', f'"{first}":'))
    monkeypatch.setattr(records.RecordReader.pieces, "__defaults__", (1_000,))
    with pytest.raises(DataError, match=f"id {first} appears more than once"):
        _prepare(raw)


def test_answers_that_are_numbers_are_read_and_counted(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    file = raw / "val_balanced_questions.json"
    content = _records("val")
    next(iter(content.values()))["answer"] = 4
    write_json(file, content)
    report = _prepare(raw)
    assert f'{file}: "answer" that is an integer, read as a text: 1' in report.warnings
    assert "4" in open_prepared(tmp_path / "out").answers


def test_missing_files(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    for split in ("testdev", "test"):
        (raw / f"{split}_balanced_questions.json").unlink()
    report = _prepare(raw)
    words = "without the questions of testdev and test and challenge and submission the vocabulary lacks their words"
    assert words in report.warnings
    advice = {row.file: row.advice for row in report.checks}["testdev_balanced_questions.json"]
    assert advice == f"only for the split testdev: trarctl download gqa --raw {raw} (1.4 GB)"
    (raw / "val_balanced_questions.json").unlink()
    with pytest.raises(DataError, match=r"no file val_balanced_questions\.json") as error:
        _prepare(raw)
    assert "questions1.2.zip" in str(error.value.hint)


def test_the_metric_is_the_plain_one() -> None:
    pairs = adversarial_pairs(seed=12, extra=("yes", "no", "Yes", "tv stand", "tv  stand", "man "))
    draw = random.Random(13)  # noqa: S311 - no secret
    kinds = [_kind(draw.choice(STRUCTURES)) for _ in pairs]
    measured = GQA.metric([one for _, one in pairs], truth_of([true for true, _ in pairs], kinds), "official")
    expected = plain_exact_match(pairs, kinds, str)
    assert len(pairs) == 2_000
    assert 200 < expected["overall"][0] < 1_800
    assert measured.counts == expected
