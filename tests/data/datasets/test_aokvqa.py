"""A-OKVQA's direct answers: text ids, images under COCO's names of 2017 and 2014, its answer list, metric and file."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.datasets.tiny import Run, Tiny
from tests.data.preparing import edit_json
from tests.data.reference_accuracy import Questions, adversarial_questions
from trarctl.config import EvaluatorName
from trarctl.errors import DataError
from trarctl.registry import DATASETS

IMAGES = {"train": [7, 19, 23, 42, 77, 131], "val": [55, 300], "test": [9, 8001]}
OF_2014 = {"train2014": [7, 19, 42, 77], "val2014": [23, 131, 55, 300], "test2015": [9, 8001]}
CHOICES = ("dog", "cat", "cow", "owl", "bat")


def _records(split: str) -> list[dict[str, Any]]:
    """Two questions about each image; the second of each is difficult."""
    records = []
    for place, image in enumerate(IMAGES[split]):
        for number in (0, 1):
            record = {
                "split": split,
                "image_id": image,
                "question_id": f"{'0' * number}{split}{image}Q",
                "question": f"what animal is {place}?",
                "choices": [CHOICES[(place + at) % 5] for at in range(4)],
                "difficult_direct_answer": bool(number),
            }
            if split != "test":
                given = [record["choices"][0]] * 6 + ["A Fox"] * 3 + [f"odd {place}"]
                record |= {"correct_choice_idx": 1, "direct_answers": given, "rationales": ["it is", "so", "it was"]}
            records.append(record)
    return records


@pytest.fixture
def tiny(tmp_path: Path, trarctl: Run) -> Tiny:
    one = Tiny("aokvqa", tmp_path, trarctl)
    one.write(**{f"aokvqa_v1p0_{split}": _records(split) for split in IMAGES})
    return one


def _write_features_of_2014(tiny: Tiny) -> None:
    for image_set, ids in OF_2014.items():
        tiny.write_features(image_set, [f"COCO_{image_set}_{image:012d}.jpg.npy" for image in ids])


def _write_features_of_2017(tiny: Tiny) -> None:
    for split, ids in IMAGES.items():
        tiny.write_features(f"{split}2017", [f"{image:012d}.npy" for image in ids])


def _prepare(tiny: Tiny, *options: object) -> str:
    code, out, err = tiny.prepare(*options)
    assert code == 0, err
    return out + err


def test_the_way_through(tiny: Tiny) -> None:
    _write_features_of_2017(tiny)
    assert "they reach at most" in _prepare(tiny)
    tiny.train_two_steps()
    result = tiny.eval()
    assert (result["split"], result["questions"]) == ("val", 2)
    assert set(result["per_answer_type"]) == {"direct answer", "difficult, not counted"}
    said = {name: one["direct_answer"] for name, one in tiny.submit("--split", "val").items()}
    records = _records("val")
    questions = Questions(
        [one["direct_answers"] for one in records], [said[one["question_id"]] for one in records], [], []
    )
    assert result["overall"] == _plain(questions, [one["difficult_direct_answer"] for one in records])[1]
    answers = tiny.submit()
    assert list(answers) == [one["question_id"] for one in _records("test")]
    assert all(list(one) == ["direct_answer"] and one["direct_answer"] in tiny.data.answers for one in answers.values())


def test_answers_of_another_program_are_scored(tiny: Tiny) -> None:
    _prepare(tiny, "--without-features")
    said = {"55": "A Fox", "300": "odd 1"}
    content = {
        one["question_id"]: {"multiple_choice": "dog", "direct_answer": said[str(one["image_id"])]}
        for one in reversed(_records("val"))
    }
    file = tiny.folder / "predictions_val.json"
    tiny.write(**{"../predictions_val": content})
    result = tiny.eval("--answers", file)
    # Three of ten are a match, one of ten a third of one; the mean is over the two that are not difficult.
    assert (result["overall"], result["questions"]) == (66.67, 2)
    assert result["per_answer_type"] == {"direct answer": 66.67, "difficult, not counted": 66.67}
    # The data set's own script takes the answers alone.
    tiny.write(**{"../predictions_val": {one: row["direct_answer"] for one, row in content.items()}})
    assert tiny.eval("--answers", file)["overall"] == 66.67


@pytest.mark.parametrize("write", [_write_features_of_2014, _write_features_of_2017])
def test_features_of_either_year_serve(tiny: Tiny, write: Any) -> None:
    write(tiny)
    assert "warning" not in _prepare(tiny)
    data = tiny.data
    for name, ids in IMAGES.items():
        split = data.split(name)
        assert split.question_id.tolist() == [one["question_id"] for one in _records(name)]
        assert [data.features.image_id(int(row)) for row in split.image] == [image for image in ids for _ in (0, 1)]
    code, out, _ = tiny.prepare("--check")
    assert code == 0
    assert " missing" not in out


def test_features_say_which_image_they_are_of(tiny: Tiny) -> None:
    _write_features_of_2014(tiny)
    _prepare(tiny)
    split = tiny.data.split("train")
    for image, row in zip(split.image_id.tolist(), split.image.tolist(), strict=True):
        folder = next(name for name, ids in OF_2014.items() if image in ids)
        array = np.load(tiny.folder / "feats" / folder / f"COCO_{folder}_{image:012d}.jpg.npy")
        np.testing.assert_array_equal(tiny.data.features.read(np.array([row]))[0], array)


def test_an_image_that_neither_year_has(tiny: Tiny) -> None:
    _write_features_of_2014(tiny)
    (tiny.folder / "feats/val2014/COCO_val2014_000000000131.jpg.npy").unlink()
    code, _, err = tiny.prepare()
    assert (code, "no features for image 131" in " ".join(err.split())) == (4, True)
    shutil.rmtree(tiny.folder / "feats")
    (tiny.folder / "feats").mkdir()
    code, _, err = tiny.prepare("--features", tiny.folder / "feats")
    assert (code, "train2017 with the features of 6 images" in " ".join(err.split())) == (4, True)


def test_pictures_under_their_names_of_2017(tiny: Tiny) -> None:
    for split, ids in IMAGES.items():
        (tiny.folder / "images" / f"{split}2017").mkdir(parents=True)
        for image in ids:
            picture = Image.new("RGB", (32, 32), (image % 256, 40, 90))
            picture.save(tiny.folder / "images" / f"{split}2017" / f"{image:012d}.jpg")
    _prepare(tiny, "--images", tiny.folder / "images", "--extractor", "patches")
    assert tiny.data.features.num_images == 10


def test_the_answer_list_is_the_data_set_s_own(tiny: Tiny) -> None:
    _prepare(tiny, "--without-features")
    train = _records("train")
    choices = Counter(choice for one in train for choice in one["choices"])
    given = Counter(answer for one in train for answer in set(one["direct_answers"]))
    expected = {one["choices"][one["correct_choice_idx"]] for one in train}
    expected |= {text for counts in (choices, given) for text, count in counts.items() if count >= 3}
    assert list(tiny.data.answers) == sorted(expected)
    assert {"A Fox", *CHOICES} == expected
    assert given["odd 0"] == 2

    # What only val says changes nothing, and a correct choice counts however rare it is.
    edit_json(tiny.raw / "aokvqa_v1p0_val.json", lambda content: [one | {"direct_answers": ["x"]} for one in content])
    edit_json(tiny.raw / "aokvqa_v1p0_train.json", lambda content: content[0].update(choices=["dog", "yak"]))
    warned = _prepare(tiny, "--without-features")
    assert list(tiny.data.answers) == sorted({*expected, "yak"})
    assert "questions have other than 10 answers: 4 have 1" in " ".join(warned.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"direct_answers": "['a', 'b']"},
            """has "['a', 'b']" as "direct_answers", expected a list of 1 to 10 texts""",
        ),
        ({"direct_answers": ["a"] * 11}, 'as "direct_answers", expected a list of 1 to 10 texts'),
        ({"direct_answers": []}, 'has [] as "direct_answers", expected a list of 1 to 10 texts'),
        ({"direct_answers": ["a", 3]}, 'has ["a", 3] as "direct_answers", expected a list of 1 to 10 texts'),
        ({"question_id": 7}, 'has 7 as "question_id", expected a text of 1 to 255 characters'),
        ({"correct_choice_idx": 4}, 'has 4 as "correct_choice_idx", but 4 "choices"'),
        ({"choices": []}, 'has [] as "choices", expected a list of 1 or more texts'),
        ({"difficult_direct_answer": "no"}, 'has "no" as "difficult_direct_answer", expected true or false'),
    ],
)
def test_bad_records_are_named(tiny: Tiny, change: dict[str, Any], said: str) -> None:
    edit_json(tiny.raw / "aokvqa_v1p0_train.json", lambda content: content[3].update(change))
    code, _, err = tiny.prepare("--without-features")
    assert code == 4
    assert f"record 3 {said}" in " ".join(err.split()) or said in " ".join(err.split())


def test_the_file_of_another_split_is_refused(tiny: Tiny) -> None:
    shutil.copy(tiny.raw / "aokvqa_v1p0_train.json", tiny.raw / "aokvqa_v1p0_val.json")
    code, _, err = tiny.prepare("--without-features")
    assert (code, 'says of itself "split": "train" (12 times)' in " ".join(err.split())) == (4, True)


def test_a_test_file_that_is_not_there(tiny: Tiny) -> None:
    (tiny.raw / "aokvqa_v1p0_test.json").unlink()
    _prepare(tiny, "--without-features")
    assert tiny.data.split_names == ("train", "val")
    (tiny.raw / "aokvqa_v1p0_val.json").unlink()
    code, _, err = tiny.prepare("--check", "--without-features")
    assert (code, "amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz" in err) == (4, True)


def test_what_the_site_would_reject(tiny: Tiny) -> None:
    _prepare(tiny, "--without-features")
    ids = [one["question_id"] for one in _records("test")]
    good = {one: {"direct_answer": "dog"} for one in ids}
    first = f'"{ids[0]}": {{"direct_answer": "dog"}}'
    whole = ", ".join([first, *(f'"{one}": {{"direct_answer": "cat"}}' for one in ids)])
    for content, said in (
        ([good], "it is not a JSON object but a list"),
        (good | {"new": {"direct_answer": "dog"}}, "1 question_id is not in this split: new"),
        (good | {ids[1]: {"multiple_choice": "dog"}}, "row with a direct_answer that is not text: row 2 has none"),
        (good | {ids[1]: "dog"}, f"1 answer is a text alone, not an object with direct_answer: question {ids[1]}"),
        (good | {ids[1]: ["dog"]}, "row not an object: row 2 is a list"),
        ({ids[0]: {"direct_answer": "dog"}}, "3 of 4 questions have no answer"),
        (good | {ids[2]: {"direct_answer": " "}}, f"1 answer is blank: question {ids[2]}"),
        (f"{{{whole}}}", f"1 question is answered more than once: {ids[0]}"),
        ("{", "it is not valid JSON"),
        ("[" * 1010 + "]" * 1010, "it is not a JSON object"),
        ('{"a": ' * 1010 + "1" + "}" * 1010, "it is nested too deeply"),
    ):
        assert said in tiny.refused(content), said


def _plain(questions: Questions, is_difficult: list[bool]) -> tuple[list[float], float]:
    """Score question by question: how many of the texts are the same, as a share of three."""
    scores = []
    for answers, prediction in zip(questions.answers, questions.predictions, strict=True):
        matches = 0
        for answer in answers:
            if answer == prediction:
                matches += 1
        scores.append(matches / 3 if matches < 3 else 1.0)
    counted = [score for score, difficult in zip(scores, is_difficult, strict=True) if not difficult]
    return scores, round(sum(counted) / len(counted) * 100, 2)


@pytest.mark.parametrize("evaluator", ["official", "upstream"])
def test_the_metric_equals_the_plain_one(evaluator: EvaluatorName) -> None:
    questions = adversarial_questions(2000, seed=13)
    draw = random.Random(5)  # noqa: S311 - no secret
    is_difficult = [draw.random() < 0.25 for _ in questions.predictions]
    names = ["difficult, not counted" if one else "direct answer" for one in is_difficult]
    truth = Questions(questions.answers, questions.predictions, names, questions.question_type).truth()
    accuracy = DATASETS["aokvqa"].metric(questions.predictions, truth, evaluator)
    scores, overall = _plain(questions, is_difficult)
    assert accuracy.right.tolist() == scores
    assert (accuracy.overall, accuracy.questions) == (overall, is_difficult.count(False))
    assert accuracy.note is not None
    assert f"{is_difficult.count(True):,} of 2,000 questions" in accuracy.note
    assert 0.2 < sum(scores) / 2000 < 0.8


def test_only_difficult_questions_cannot_be_scored() -> None:
    questions = adversarial_questions(3, seed=1)
    names = ["difficult, not counted"] * 3
    truth = Questions(questions.answers, questions.predictions, names, questions.question_type).truth()
    with pytest.raises(DataError, match="none of the 3 questions is one that is counted"):
        DATASETS["aokvqa"].metric(questions.predictions, truth, "official")


def test_a_val_of_difficult_questions_is_prepared_but_not_scored(tiny: Tiny) -> None:
    edit_json(tiny.raw / "aokvqa_v1p0_val.json", lambda content: content[1::2])
    _prepare(tiny, "--without-features")
    assert tiny.data.manifest.text.ceilings == {}
    tiny.write(**{"../said": {one: {"direct_answer": "dog"} for one in tiny.data.split("val").question_id.tolist()}})
    code, _, err = tiny.trarctl("eval", "--data", tiny.folder / "prepared", "--answers", tiny.folder / "said.json")
    assert (code, "none of the 2 questions is one that is counted" in err) == (4, True)
