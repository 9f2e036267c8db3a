"""Normalizing answers, and choosing those that count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trarctl.data import text
from trarctl.data.text import build_answers, normalize_answer, soft_scores, strip_punctuation, strip_words

GOLDEN = Path(__file__).parents[1] / "golden"


def _annotated(path: str, part: str, key: str) -> list[str]:
    return [entry[key] for entry in json.loads((GOLDEN / path).read_text(encoding="utf-8"))[part]]


def test_normalizing_is_that_of_the_original() -> None:
    pairs = json.loads((GOLDEN / "answer_normalisation.json").read_text(encoding="utf-8"))
    assert len(pairs) == 300
    wrong = [(raw, normalize_answer(raw), expected) for raw, expected in pairs if normalize_answer(raw) != expected]
    assert wrong == []


@pytest.mark.parametrize(
    ("raw", "stripped"),
    [
        ("a/b", "a b"),
        ("a/ b/c", "a bc"),
        ("a/b (c)", "a b c "),
        ("1,000 a-b", "1000 ab"),
        ("5.5 ft.", "5.5 ft"),
        ("x" + "." * 40, "x" + "." * 8),
        ("don't 10:30", "don't 10:30"),
    ],
)
def test_punctuation_quirks(raw: str, stripped: str) -> None:
    assert strip_punctuation(raw) == stripped


@pytest.mark.parametrize(
    ("raw", "stripped"),
    [
        ("None", "0"),
        ("A", ""),
        ("the Ten  dogs", "10 dogs"),
        ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
        ("its Im ill wed", "its im ill wed"),
        ("somebody'd yall'd've", "somebodyd y'all'd've"),
    ],
)
def test_word_quirks(raw: str, stripped: str) -> None:
    assert strip_words(raw) == stripped


def test_answers_of_the_golden_vqa_cases() -> None:
    files = ("mini_vqa/raw/v2_mscoco_train2014_annotations.json", "mini_vqa/raw/v2_mscoco_val2014_annotations.json")
    answers = build_answers(
        (answer for path in files for answer in _annotated(path, "annotations", "multiple_choice_answer")),
        min_count=8,
    )
    cases = sorted((GOLDEN / "cases").glob("vqa_*.json"))
    assert len(cases) == 8
    for case in cases:
        assert answers == json.loads(case.read_text(encoding="utf-8"))["answers"], case.name


def test_answers_of_the_golden_clevr_cases() -> None:
    files = [f"mini_clevr/raw/questions/CLEVR_{split}_questions.json" for split in ("train", "val")]
    answers = build_answers(
        (answer for path in files for answer in _annotated(path, "questions", "answer")), normalize=str
    )
    cases = sorted((GOLDEN / "cases").glob("clevr_*.json"))
    assert len(cases) == 2
    for case in cases:
        assert answers == json.loads(case.read_text(encoding="utf-8"))["answers"], case.name


def test_a_count_must_lie_above_the_least() -> None:
    answers = ["Yes"] * 8 + ["no"] * 9 + ["yes."] + ["rare"] * 8
    assert build_answers(answers, min_count=8) == ["yes", "no"]
    assert build_answers(answers, min_count=9) == []
    assert build_answers(answers, min_count=0) == ["yes", "no", "rare"]


def test_plain_answers_stay_as_they_are() -> None:
    assert build_answers(["No", "no", "No", "a"], normalize=str) == ["No", "no", "a"]


def test_soft_scores() -> None:
    scores = soft_scores(np.array([[0, 1, 2], [3, 4, 10]], dtype=np.uint8))
    assert scores.dtype == np.float32
    assert np.array_equal(scores, np.array([[0, 0.3, 0.6], [0.9, 1, 1]], dtype=np.float32))


@pytest.mark.parametrize(
    ("contraction", "without"),
    [("don't", ["dont"]), ("shouldn't've", ["shouldnt've", "shouldn'tve"]), ("yes", [])],
)
def test_contractions_lose_one_apostrophe(contraction: str, without: list[str]) -> None:
    assert text._missing_one_apostrophe(contraction) == without


@pytest.mark.parametrize(("raw", "normalized"), [("1,000", "1000"), ("yes, it is", "yes it is")])
def test_commas_go(raw: str, normalized: str) -> None:
    assert normalize_answer(raw) == normalized


def test_of_many_answers_the_commonest_are_kept_in_order_of_appearance() -> None:
    answers = ["rare", "the dog", "cat", "cat", "dog", "owl", "cat", "bat"]
    assert build_answers(answers, most=2) == ["dog", "cat"]
    assert build_answers(answers, most=3) == ["rare", "dog", "cat"]
    assert build_answers(answers, most=9) == ["rare", "dog", "cat", "owl", "bat"]
    assert build_answers(answers, most=9, min_count=2) == ["cat"]
