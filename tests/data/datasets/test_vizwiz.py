"""VizWiz-VQA: no ids but the names of images, answers that are empty, its answer list, metric and answer file."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data import reference_accuracy as plain
from tests.data.datasets.tiny import Run, Tiny, asked
from tests.data.preparing import edit_json
from tests.data.reference_accuracy import Questions, adversarial_questions
from trarctl.config import EvaluatorName
from trarctl.data.datasets.vizwiz import VIZWIZ
from trarctl.registry import DATASETS

SIZES = {"train": 12, "val": 5, "test": 4}
KINDS = ("other", "unanswerable", "yes/no", "number")
ANSWERS = ("soap", "unanswerable", "yes", "2")


def _name(split: str, number: int) -> str:
    return f"VizWiz_{split}_{number:08d}.jpg"


def _records(split: str) -> list[dict[str, Any]]:
    """One question about each image, the last image first."""
    records = []
    for number in reversed(range(SIZES[split])):
        record = {"image": _name(split, number), "question": f"Hi, what is number {number}? Thank you."}
        if split != "test":
            given = [ANSWERS[number % 4]] * 5 + ["unanswerable"] * 3 + ["The soap", f"brand {number}"]
            answers = [{"answer_confidence": "maybe", "answer": one} for one in given]
            record |= {"answers": answers, "answer_type": KINDS[number % 4], "answerable": int(number % 4 != 1)}
        records.append(record)
    return records


@pytest.fixture
def tiny(tmp_path: Path, trarctl: Run) -> Tiny:
    one = Tiny("vizwiz", tmp_path, trarctl)
    one.write(**{split: _records(split) for split in SIZES})
    return one


def _prepare(tiny: Tiny, *options: object) -> str:
    code, out, err = tiny.prepare(*options)
    assert code == 0, err
    return out + err


@pytest.mark.parametrize("name", ["VizWiz_{}_{:08d}.npy", "VizWiz_{}_{:08d}.jpg.npy", "{1}.npz"])
def test_names_that_features_may_have(tiny: Tiny, name: str) -> None:
    for split, size in SIZES.items():
        tiny.write_features(split, [name.format(split, number) for number in range(size)])
    assert "warning" not in _prepare(tiny)
    data = tiny.data
    split = data.split("val")
    for image_id, row in zip(split.image_id.tolist(), split.image.tolist(), strict=True):
        (mean,) = data.features.read(np.array([row])).mean(axis=(1, 2))
        assert abs(mean - image_id) < 1  # as ``write_features`` makes them


def test_the_way_through(tiny: Tiny) -> None:
    for split, size in SIZES.items():
        tiny.write_features(split, [f"VizWiz_{split}_{number:08d}.npy" for number in range(size)])
    said = _prepare(tiny)
    assert ("they reach at most" in said, "warning" in said) == (True, False)
    tiny.train_two_steps()
    result = tiny.eval()
    assert (result["split"], result["questions"]) == ("val", 5)
    assert set(result["per_answer_type"]) == set(KINDS)
    code, _, err = tiny.trarctl("eval", "--data", tiny.folder / "prepared", "--split", "test", "--ckpt", "tiny",
                                "--set", f"run.folder={tiny.folder / 'runs'}")  # fmt: skip
    assert (code, "trarctl submit --split test" in " ".join(err.split())) == (4, True)
    said = {one["image"]: one["answer"] for one in tiny.submit("--split", "val")}
    scores = _plain_vizwiz(asked(_records("val"), said, "image"))
    assert result["overall"] == round(100 * float(sum(scores)) / 5, 2)
    answers = tiny.submit()
    assert [one["image"] for one in answers] == [one["image"] for one in _records("test")]
    assert all(set(one) == {"image", "answer"} and one["answer"] in tiny.data.answers for one in answers)


def test_images_are_known_by_their_names(tiny: Tiny) -> None:
    for split, size in SIZES.items():
        (tiny.folder / "images" / split).mkdir(parents=True)
        for number in range(size):
            Image.new("RGB", (32, 32), (number, 40, 90)).save(tiny.folder / "images" / split / _name(split, number))
    _prepare(tiny, "--images", tiny.folder / "images", "--extractor", "patches")
    data = tiny.data
    for name in SIZES:
        split = data.split(name)
        assert split.question_id.tolist() == [one["image"] for one in _records(name)]
        numbers = [data.features.image_id(int(row)) for row in split.image]
        assert [_name(name, number) for number in numbers] == split.question_id.tolist()


def test_the_answer_list_is_train_s_commonest(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(tiny.raw / "val.json", lambda content: content[0]["answers"][0].update(answer="only in val"))
    _prepare(tiny)
    counts = Counter(
        answer["answer"].lower().removeprefix("the ") for one in _records("train") for answer in one["answers"]
    )
    assert len(tiny.data.answers) == len(counts)
    assert set(tiny.data.answers) == set(counts)
    # Of more answers the commonest stay, of equally common ones the first.
    monkeypatch.setitem(DATASETS._items, "vizwiz", _limited(6))
    _prepare(tiny, "--rebuild")
    assert [counts[answer] for answer in ("unanswerable", "soap", "yes", "2")] == [51, 27, 15, 15]
    assert set(tiny.data.answers) == {*ANSWERS, "brand 11", "brand 10"}


def _limited(max_answers: int) -> Any:
    from dataclasses import replace

    assert VIZWIZ.max_answers == 3_000
    return replace(VIZWIZ, max_answers=max_answers)


def test_empty_answers_are_counted_and_never_learned(tiny: Tiny) -> None:
    def change(content: Any) -> None:
        content[0]["answers"][0]["answer"] = ""
        for record in content:
            record["answers"][9]["answer"] = "the"

    edit_json(tiny.raw / "train.json", change)
    said = " ".join(_prepare(tiny).split())
    assert "answers of annotators that are empty: 1" in said
    assert set(tiny.data.answers) == set(ANSWERS)
    truth = tiny.data.split("train").truth()
    assert truth.strings[truth.codes[0, 0]] == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": 7}, 'record 3 has 7 as "image", expected a text'),
        (
            {"image": "VizWiz_train_00000003.png"},
            'record 3 has "VizWiz_train_00000003.png" as "image", expected a name',
        ),
        ({"image": "VizWiz_train_00000011.jpg"}, "image VizWiz_train_00000011.jpg appears more than once"),
        ({"image": "VizWiz_train_000000000003.jpg"}, "expected a name like VizWiz_train_00000003.jpg"),
        ({"image": "VizWiz_val_00000003.jpg"}, 'says of itself "image": "VizWiz_val_"'),
        ({"answers": []}, "record 3 has 0 answers, expected 1 to 10"),
        ({"question": None}, 'record 3 has null as "question"'),
    ],
)
def test_bad_records_are_named(tiny: Tiny, change: dict[str, Any], said: str) -> None:
    edit_json(tiny.raw / "train.json", lambda content: content[3].update(change))
    code, _, err = tiny.prepare()
    assert (code, said in " ".join(err.split())) == (4, True), err


def test_files_of_another_task_or_split_are_refused(tiny: Tiny) -> None:
    kept = (tiny.raw / "train.json").read_bytes()
    # Captions have files of the same names.
    tiny.write(train={"info": {}, "images": [{"file_name": _name("train", 0), "id": 0}], "annotations": []})
    code, _, err = tiny.prepare()
    assert (code, "does not hold a list: it holds info" in " ".join(err.split())) == (4, True)
    (tiny.raw / "train.json").write_bytes(kept)
    shutil.copy(tiny.raw / "train.json", tiny.raw / "val.json")
    code, _, err = tiny.prepare()
    assert (code, '"image": "VizWiz_train_" (12 times)' in " ".join(err.split())) == (4, True)
    (tiny.raw / "val.json").unlink()
    code, _, err = tiny.prepare("--check")
    assert (code, "https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip" in err) == (4, True)


def test_what_the_site_would_reject(tiny: Tiny) -> None:
    _prepare(tiny)
    good = [{"image": _name("test", number), "answer": "soap"} for number in range(4)]
    for content, said in (
        (good[:3], "1 of 4 questions have no answer: VizWiz_test_00000003.jpg"),
        (good + good[:1], "1 question is answered more than once: VizWiz_test_00000000.jpg"),
        ([*good, {"image": "new.jpg", "answer": "soap"}], "1 image is not in this split: new.jpg"),
        ([*good[:3], {"image": 3, "answer": "soap"}], "1 row with an image that is not text: row 4 has 3"),
        ([*good[:3], {"question_id": _name("test", 3), "answer": "soap"}], 'their other fields: "question_id"'),
        (
            [*good[:3], {"image": _name("test", 3), "answer": ""}],
            "1 answer is blank: question VizWiz_test_00000003.jpg",
        ),
    ):
        assert said in tiny.refused(content), said


def test_answers_of_another_program_are_scored(tiny: Tiny) -> None:
    _prepare(tiny)
    content = [{"image": one["image"], "answer": "Unanswerable!"} for one in _records("val")][::-1]
    tiny.write(**{"../results": content})
    result = tiny.eval("--answers", tiny.folder / "results.json")
    # Three of ten say so, which is .9 (one of them left out: 2/3), and eight of ten where it is the answer: 1.
    assert result["overall"] == round((4 * 90 + 100) / 5, 2)


def _plain_vizwiz(questions: Questions) -> list[float]:
    """Score question by question, leaving out each annotator by position; only the prediction is rewritten."""
    scores = []
    for answers, prediction in zip(questions.answers, questions.predictions, strict=True):
        said = plain._words(plain._punctuation(plain._without_breaks(prediction)))
        if len(answers) < 3:
            scores.append(answers.count(said) / len(answers))
            continue
        shares = []
        for left_out in range(len(answers)):
            matches = [one for place, one in enumerate(answers) if place != left_out and one == said]
            shares.append(min(1, float(len(matches)) / 3))
        scores.append(float(sum(shares)) / len(shares))
    return scores


@pytest.mark.parametrize("evaluator", ["official", "upstream"])
def test_the_metric_equals_the_plain_one(evaluator: EvaluatorName) -> None:
    questions = adversarial_questions(2000, seed=14)
    accuracy = DATASETS["vizwiz"].metric(questions.predictions, questions.truth(), evaluator)
    scores = _plain_vizwiz(questions)
    assert accuracy.right.tolist() == scores
    assert accuracy.overall == round(100 * float(sum(scores)) / 2000, 2)
    for name in ("yes/no", "number", "other"):
        own = [score for score, kind in zip(scores, questions.answer_type, strict=True) if kind == name]
        assert accuracy.per_type[name] == round(100 * float(sum(own)) / len(own), 2)
    assert 0.1 < sum(scores) / 2000 < 0.8


@pytest.mark.parametrize(
    ("answers", "prediction", "share"),
    [
        (["Coke"] * 10, "Coke", 0),  # what is predicted is lower-cased, what was said is not
        (["coke"] * 10, "Coke!", 100),
        (["the coke"] * 10, "the coke", 0),
        (["two"] * 10, "2", 0),
        (["2"] * 10, "two", 100),
        (["unanswerable"] * 2 + ["coke"] * 8, "unanswerable", 60),
    ],
)
def test_what_the_metric_rewrites(answers: list[str], prediction: str, share: float) -> None:
    questions = Questions([answers], [prediction], ["other"], [""])
    assert DATASETS["vizwiz"].metric([prediction], questions.truth(), "official").overall == share
