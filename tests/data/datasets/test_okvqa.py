"""OK-VQA: stemmed answers given twice, the answer list counted over all annotators, topics, and its metric."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.datasets.tiny import Run, Tiny, asked
from tests.data.preparing import edit_json
from tests.data.reference_accuracy import adversarial_questions, plain_vqa_accuracy
from trarctl.config import EvaluatorName
from trarctl.registry import DATASETS

IMAGES = {"train": [12, 25, 31, 47, 58, 69, 73, 84], "val": [91, 102, 113]}
# What five people typed, and the stem that is scored.
TYPED = [("surfing", "surf"), ("surf", "surf"), ("swimming", "swim"), ("wetsuits", "wetsuit"), ("suit", "suit")]
QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_{}2014_questions", "mscoco_{}2014_annotations"


def _pair(split: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two questions about each image; each of five answers is stored twice."""
    questions, annotations = [], []
    for place, image in enumerate(IMAGES[split]):
        for number in (5, 6):
            where = {"image_id": image, "question_id": image * 10 + number}
            questions.append(where | {"question": f"what is {place} for?"})
            given = TYPED if place % 4 else [TYPED[0]] * 5
            answers = [
                {"answer_id": 2 * at + twice, "raw_answer": typed, "answer_confidence": "no", "answer": stem}
                for at, (typed, stem) in enumerate(given)
                for twice in (0, 1)
            ]
            kind = {"question_type": ("one", "ten", "other")[place % 3], "answer_type": "other", "confidence": 3}
            annotations.append(where | kind | {"answers": answers})
    return questions, annotations[::-1]


def _files() -> dict[str, Any]:
    files = {}
    for split in IMAGES:
        head = {"info": {"version": "1.1"}, "license": {}, "data_type": "mscoco", "data_subtype": f"{split}2014"}
        questions, annotations = _pair(split)
        files[QUESTIONS.format(split)] = head | {"task_type": "Open-Ended", "questions": questions}
        files[ANNOTATIONS.format(split)] = head | {"annotations": annotations}
    return files


@pytest.fixture
def tiny(tmp_path: Path, trarctl: Run) -> Tiny:
    one = Tiny("okvqa", tmp_path, trarctl)
    one.write(**_files())
    for split, images in IMAGES.items():
        one.write_features(f"{split}2014", [f"COCO_{split}2014_{image:012d}.jpg.npy" for image in images])
    return one


def test_the_way_through(tiny: Tiny) -> None:
    code, out, err = tiny.prepare()
    assert code == 0, err
    assert "those of more than 9 annotations" in out
    # None of the files' own fields is odd: no multiple_choice_answer, but confidence and raw_answer.
    assert "warning" not in out + err
    tiny.train_two_steps()
    result = tiny.eval()
    assert (result["split"], result["questions"]) == ("val", 6)
    assert set(result["per_question_type"]) == {"vehicles and transportation", "weather and climate", "other"}
    assert tiny.eval("--split", "test")["overall"] == result["overall"]
    answers = {one["question_id"]: one["answer"] for one in tiny.submit()}
    assert list(answers) == [image * 10 + number for image in IMAGES["val"] for number in (5, 6)]
    expected = plain_vqa_accuracy(asked(_pair("val")[1], answers), "official")
    assert (result["overall"], result["per_answer_type"]) == (expected["overall"], expected["per_answer_type"])


def test_answers_are_the_stems(tiny: Tiny) -> None:
    tiny.prepare()
    for name in IMAGES:
        split = tiny.data.split(name)
        truth = split.truth()
        stems = {one["question_id"]: [answer["answer"] for answer in one["answers"]] for one in _pair(name)[1]}
        for row, question_id in enumerate(split.question_id.tolist()):
            assert [truth.strings[code] for code in truth.codes[row].tolist()] == stems[question_id]


def test_the_answer_list_counts_every_annotator_of_train(tiny: Tiny) -> None:
    def change(content: Any) -> None:
        # Of 24 times "suit" ten become "keel", and five something else each.
        given = [answer for one in content["annotations"] for answer in one["answers"] if answer["answer"] == "suit"]
        for number, answer in enumerate(given[:15]):
            answer["answer"] = "keel" if number < 10 else f"other {number}"

    edit_json(tiny.raw / f"{ANNOTATIONS.format('train')}.json", change)
    edit_json(tiny.raw / f"{ANNOTATIONS.format('val')}.json", _all_anchors)
    tiny.prepare()
    truth = tiny.data.split("train").truth()
    counts = Counter(truth.strings[code] for code in truth.codes.ravel().tolist())
    assert (counts["keel"], counts["suit"], counts["surf"]) == (10, 9, 88)
    assert set(tiny.data.answers) == {answer for answer, count in counts.items() if count >= 10}
    assert tiny.data.manifest.text.ceilings == {"val": 0.0}


def _all_anchors(content: Any) -> None:
    for one in content["annotations"]:
        for answer in one["answers"]:
            answer["answer"] = "anchor"


def test_exchanged_and_missing_files(tiny: Tiny) -> None:
    paths = [tiny.raw / f"{ANNOTATIONS.format(name)}.json" for name in IMAGES]
    paths[1].write_bytes(paths[0].read_bytes())
    code, _, err = tiny.prepare()
    assert code == 4
    assert 'mscoco_val2014_annotations.json is read as val, but says of itself "data_subtype": "train2014"' in err
    paths[1].unlink()
    code, _, err = tiny.prepare("--check")
    assert (code, "https://okvqa.allenai.org/static/data/" in err) == (4, True)


@pytest.mark.parametrize("evaluator", ["official", "upstream"])
def test_the_metric_equals_the_plain_one(evaluator: EvaluatorName) -> None:
    questions = adversarial_questions(2000, seed=12)
    accuracy = DATASETS["okvqa"].metric(questions.predictions, questions.truth(), evaluator)
    expected = plain_vqa_accuracy(questions, evaluator)
    assert [round(100 * share, 2) for share in accuracy.right.tolist()] == expected["per_question"]
    assert (accuracy.overall, accuracy.per_question_type) == (expected["overall"], expected["per_question_type"])


@pytest.mark.parametrize(("matches", "share"), [(0, 0), (2, 60), (4, 100), (10, 100)])
def test_two_equal_answers_of_five_people_are_worth_what_the_evaluator_gives(matches: int, share: int) -> None:
    questions = adversarial_questions(1, seed=1)
    questions.answers[0][:] = ["surf"] * matches + ["swim"] * (10 - matches)
    assert DATASETS["okvqa"].metric(["surf"], questions.truth(), "official").overall == share
