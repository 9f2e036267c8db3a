"""Words of a question, and their indices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trarctl.data.text import PAD, UNK, Vocabulary, encode, longest_question, tokenize, tokenize_all

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARY = Vocabulary(("PAD", "UNK", "CLS", "what", "is", "this"))


def test_words_are_those_of_the_original() -> None:
    pairs = json.loads((GOLDEN / "question_tokens.json").read_text(encoding="utf-8"))
    assert len(pairs) > 50
    assert [tokenize(question) for question, _ in pairs] == [words for _, words in pairs]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Cat's toy?", ["cats", "toy"]),
        ("black-and/white", ["black", "and", "white"]),
        ("  \t\n ", []),
        ("\u00c9clair @ 5%", ["\u00e9clair", "@", "5%"]),
        ("left\u3000right\x00x", ["left", "right\x00x"]),
    ],
)
def test_words_of_odd_questions(question: str, words: list[str]) -> None:
    assert tokenize(question) == words


def test_many_questions_are_split_like_one() -> None:
    greek = f"{chr(913)}{chr(931)}"
    questions = [f"What's no. {number} - the {greek}?{chr(10) * (number % 3)}{greek}" for number in range(9000)]
    questions += ["", "\n", "end", "one\r\ntwo\u2028three\x1cfour"]
    assert list(tokenize_all(questions)) == [tokenize(question) for question in questions]


def test_known_unknown_and_missing_words() -> None:
    rows = encode(["What is THAT?", "", "this", "What is THAT?"], VOCABULARY, max_words=4)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[3, 4, UNK, PAD], [PAD] * 4, [5, PAD, PAD, PAD], [3, 4, UNK, PAD]]


def test_long_questions_are_cut() -> None:
    assert encode(["this is what this is"], VOCABULARY, max_words=3).tolist() == [[5, 4, 3]]


def test_no_questions_keep_the_width() -> None:
    assert encode([], VOCABULARY, max_words=7).shape == (0, 7)


def test_length_of_the_longest_question() -> None:
    assert longest_question(["one two", "a-b, c/d", ""]) == 4
    assert longest_question([]) == 0


def test_questions_of_every_golden_case_get_their_indices() -> None:
    case = json.loads((GOLDEN / "cases" / "vqa_soft_avg.json").read_text(encoding="utf-8"))
    expected = np.load(GOLDEN / "cases" / "vqa_soft_avg.npz")["question_tokens"]
    raw = GOLDEN / "mini_vqa" / "raw" / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions = [question["question"] for question in json.loads(raw.read_text(encoding="utf-8"))["questions"]]
    vocabulary = Vocabulary(tuple(case["token_to_ix"]))
    assert np.array_equal(encode(questions, vocabulary, expected.shape[1]), expected)


@pytest.mark.parametrize("questions", [["what\nis it"], ["a", "what\nis it", "b"], ["a\nb", "c\n\nd"]])
def test_a_line_end_parts_words_and_not_questions(questions: list[str]) -> None:
    assert list(tokenize_all(questions)) == [question.split() for question in questions]
