"""VQA-CP v2: bare and wrapped files, two image folders for both halves, a val cut from train, and its metric."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.datasets.tiny import Run, Tiny, asked
from tests.data.preparing import edit_json
from tests.data.reference_accuracy import adversarial_questions, plain_vqa_accuracy
from trarctl.config import EvaluatorName
from trarctl.registry import DATASETS

IMAGES = {"train": [11, 20, 32, 40, 53], "test": [11, 64, 75]}
SETS = {11: "train2014", 20: "val2014", 32: "val2014", 40: "train2014", 53: "train2014", 64: "val2014", 75: "val2014"}
ANSWERS = ("yes", "no", "2", "red")
IN_VAL = (20, 40)


def _pair(half: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Five questions about each image, the annotations in another order."""
    questions, annotations = [], []
    for image in IMAGES[half]:
        for number in range(5):
            where = {"question_id": image * 1000 + number, "image_id": image, "coco_split": SETS[image]}
            questions.append(where | {"question": f"is the {half} thing {number}?"})
            answer = ANSWERS[(image + number) % 4] if half == "train" else ANSWERS[number % 4]
            given = [answer] * 6 + ["a maybe"] * 4
            annotations.append(
                where
                | {
                    "question_type": "is the",
                    "answer_type": {"2": "number", "red": "other"}.get(answer, "yes/no"),
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer_id": place, "answer": one, "answer_confidence": "yes"}
                        for place, one in enumerate(given, start=1)
                    ],
                }
            )
    return questions, annotations[::-1]


def _files(*, is_wrapped: bool = False) -> dict[str, Any]:
    files = {}
    for half in IMAGES:
        for kind, records in zip(("questions", "annotations"), _pair(half), strict=True):
            files[f"vqacp_v2_{half}_{kind}"] = {"info": {"version": "2"}, kind: records} if is_wrapped else records
    return files


@pytest.fixture
def tiny(tmp_path: Path, trarctl: Run) -> Tiny:
    one = Tiny("vqa-cp", tmp_path, trarctl)
    one.write(**_files())
    for image_set in ("train2014", "val2014"):
        ids = [image for image, own in SETS.items() if own == image_set]
        one.write_features(image_set, [f"COCO_{image_set}_{image:012d}.jpg.npy" for image in ids])
    return one


def _prepare(tiny: Tiny, *options: object) -> str:
    code, out, err = tiny.prepare("--min-answer-count", 0, *options)
    assert code == 0, err
    return out + err


def test_the_way_through(tiny: Tiny) -> None:
    said = _prepare(tiny)
    assert said.count("vqacp_v2_train_questions.json") == 1  # one row, though two splits are cut from it
    assert "reach at most" in said
    tiny.train_two_steps()
    result = tiny.eval()
    assert (result["split"], result["questions"]) == ("val", 10)
    assert set(result["per_answer_type"]) == {"yes/no", "number", "other"}
    answers = {one["question_id"]: one["answer"] for one in tiny.submit()}
    assert list(answers) == [image * 1000 + number for image in IMAGES["test"] for number in range(5)]
    assert set(answers.values()) <= set(tiny.data.answers)
    expected = plain_vqa_accuracy(asked(_pair("test")[1], answers), "official")
    result = tiny.eval("--split", "test")
    assert (result["overall"], result["per_answer_type"]) == (expected["overall"], expected["per_answer_type"])


def test_val_is_the_part_of_train_whose_image_ids_ten_divides(tiny: Tiny) -> None:
    _prepare(tiny)
    train, val, test = map(tiny.data.split, ("train", "val", "test"))
    assert set(val.image_id.tolist()) == set(IN_VAL)
    assert set(train.image_id.tolist()) == set(IMAGES["train"]) - set(IN_VAL)
    assert sorted([*train.question_id, *val.question_id]) == [i * 1000 + n for i in IMAGES["train"] for n in range(5)]
    assert sorted(set(test.image_id.tolist())) == IMAGES["test"]
    for split, half in ((train, "train"), (val, "train"), (test, "test")):
        truth = split.truth()
        chosen = {one["question_id"]: one["multiple_choice_answer"] for one in _pair(half)[1]}
        texts = {one["question_id"]: one["question"] for one in _pair(half)[0]}
        for row, question_id in enumerate(split.question_id.tolist()):
            assert truth.strings[truth.codes[row, 0]] == chosen[question_id]
            assert split.question_text(row) == texts[question_id]
        assert len(split.training_order) == len(split)


@pytest.mark.parametrize("is_said", [True, False])
def test_each_image_is_in_the_folder_that_its_records_name_or_that_has_it(tiny: Tiny, is_said: bool) -> None:
    for half in () if is_said else IMAGES:
        edit_json(tiny.raw / f"vqacp_v2_{half}_questions.json", lambda content: content[-1].pop("coco_split") and None)
    _prepare(tiny)
    data = tiny.data
    assert [part.num_images for part in data.manifest.images.image_sets] == [3, 4]
    code, out, _ = tiny.prepare("--min-answer-count", 0)
    assert (code, "was up to date" in out) == (0, True)
    for name in ("train", "val", "test"):
        split = data.split(name)
        assert [data.features.image_id(int(row)) for row in split.image] == split.image_id.tolist()


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_the_answer_list_is_of_both_parts_of_train_and_never_of_test(tiny: Tiny, is_wrapped: bool) -> None:
    tiny.write(**_files(is_wrapped=is_wrapped))
    edit_json(tiny.raw / "vqacp_v2_test_annotations.json", _all_blue)
    counts = Counter(one["multiple_choice_answer"] for one in _pair("train")[1])
    assert counts == {"yes": 8, "no": 6, "red": 6, "2": 5}  # of the eight, four are val's
    for least in (5, 7):
        code, _, err = tiny.prepare("--min-answer-count", least, "--without-features")
        assert code == 0, err
        assert set(tiny.data.answers) == {answer for answer, count in counts.items() if count > least}
    assert tiny.data.manifest.text.ceilings == {"val": 40.0, "test": 0.0}  # 4 of 10 are yes
    code, _, err = tiny.prepare("--without-features")
    assert (code, "no answer occurs more than 8 times" in err) == (4, True)


def _all_blue(content: Any) -> None:
    for record in content["annotations"] if isinstance(content, dict) else content:
        record["multiple_choice_answer"] = "blue"
        for answer in record["answers"]:
            answer["answer"] = "blue"


def test_wrapped_and_bare_files_give_the_same_data(tiny: Tiny) -> None:
    _prepare(tiny, "--without-features")
    before = {path: path.read_bytes() for path in (tiny.folder / "prepared").rglob("*.npy")}
    tiny.write(**_files(is_wrapped=True))
    _prepare(tiny, "--without-features")
    assert {path: path.read_bytes() for path in before} == before


def test_a_question_without_annotation_is_not_in_val(tiny: Tiny) -> None:
    def leave_out(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [record for record in content if record["question_id"] not in (20000, 32001)]

    edit_json(tiny.raw / "vqacp_v2_train_annotations.json", leave_out)
    assert "has no annotations of the questions" in " ".join(_prepare(tiny).split())
    train, val = map(tiny.data.split, ("train", "val"))
    assert (len(val), len(train), len(train.training_order)) == (9, 16, 14)
    edit_json(tiny.raw / "vqacp_v2_test_annotations.json", lambda content: content[1:])
    code, _, err = tiny.prepare("--min-answer-count", 0)
    assert code == 4
    assert "has no annotations of the questions 75004" in " ".join(err.split())


def test_bad_files_are_named(tiny: Tiny) -> None:
    edit_json(tiny.raw / "vqacp_v2_test_questions.json", lambda content: content[2].update(coco_split="test2015"))
    code, _, err = tiny.prepare()
    assert code == 4
    assert 'record 2 has "test2015" as "coco_split", expected "train2014" or "val2014"' in " ".join(err.split())
    (tiny.raw / "vqacp_v2_train_annotations.json").unlink()
    code, out, err = tiny.prepare("--check")
    said = " ".join(err.split())
    assert code == 4
    assert said.count("no file vqacp_v2_train_annotations.json") == 1
    assert "computing.ece.vt.edu" in said
    assert "missing" in out


def test_an_image_that_its_folder_lacks(tiny: Tiny) -> None:
    next((tiny.folder / "feats/val2014").glob("*32.jpg.npy")).unlink()
    for options in ((), ("--check",)):
        code, _, err = tiny.prepare("--min-answer-count", 0, *options)
        assert code == 4
        said = f"no features for image 32 ({tiny.folder / 'feats/val2014'}): 5 questions of train"
        assert said in " ".join(err.split())


def test_questions_alone_have_their_images_in_both_sets(tiny: Tiny) -> None:
    _prepare(tiny, "--without-features")
    ids = [np.load(tiny.folder / f"prepared/images/{name}.ids.npy").tolist() for name in ("train2014", "val2014")]
    assert ids == [[image for image, own in SETS.items() if own == name] for name in ("train2014", "val2014")]


def test_pictures_of_both_folders(tiny: Tiny) -> None:
    for image, own in SETS.items():
        path = tiny.folder / f"images/{own}/COCO_{own}_{image:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (image, 40, 90)).save(path)
    _prepare(tiny, "--images", tiny.folder / "images", "--extractor", "patches")
    assert tiny.data.features.num_images == len(SETS)


@pytest.mark.parametrize("evaluator", ["official", "upstream"])
def test_the_metric_equals_the_plain_one(evaluator: EvaluatorName) -> None:
    questions = adversarial_questions(2000, seed=11)
    accuracy = DATASETS["vqa-cp"].metric(questions.predictions, questions.truth(), evaluator)
    expected = plain_vqa_accuracy(questions, evaluator)
    assert [round(100 * share, 2) for share in accuracy.right.tolist()] == expected["per_question"]
    assert (accuracy.overall, accuracy.per_type) == (expected["overall"], expected["per_answer_type"])


def test_files_cut_so_far_that_val_is_empty(tiny: Tiny) -> None:
    for kind in ("questions", "annotations"):
        path = tiny.raw / f"vqacp_v2_train_{kind}.json"
        edit_json(path, lambda content: [one for one in content if one["image_id"] not in IN_VAL])
    code, _, err = tiny.prepare("--min-answer-count", 0)
    assert (code, "no question is left for the split val" in err) == (4, True)
