"""VQA accuracy the plain way, one question after the other, and answers that try hard to be scored wrongly."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np

from trarctl.data.metrics import GroundTruth
from trarctl.data.text import _ARTICLES, _DIGITS, _EXPANDED

_MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
_PIECES = [
    *(
        "yes",
        "Yes",
        "YES!",
        "no",
        "none",
        "two",
        "2",
        "Ten",
        "a",
        "The",
        "an apple",
        "red-white",
        "black/white",
        "3 cats",
    ),
    *("dont", "don't", "couldn'tve", "somebody'd", "im", "its", "Yall'll", "o'clock", "5 oclock", "wi-fi", "wi - fi"),
    *("1,000", "1,2", "1.5 ft.", "10:30 a.m.", "u.s.a.", ".5", "....", "x" + "." * 40, "#7", "$5", "@home", "`tick`"),
    *(
        "ta\tb",
        "ye\ns",
        "\r",
        "\u00a0",
        "caf\u00e9",
        "na\u00efve",
        "\u65e5\u672c",
        "\u0661,\u0662",
        "\u2019twas",
        "\u0130",
        "",
    ),
]
_JOINTS = ["", " ", "  ", ",", ", ", " ,", ".", "/", "-", " - ", "!", "?", "\n", "\t"]


@dataclass(frozen=True)
class Questions:
    """Questions with their annotators' answers, a prediction and types, [Q] each."""

    answers: list[list[str]]
    predictions: list[str]
    answer_type: list[str]
    question_type: list[str]

    def truth(self) -> GroundTruth:
        """Write the same as arrays."""
        strings = list(dict.fromkeys(answer for row in self.answers for answer in row))
        code = {answer: position for position, answer in enumerate(strings)}
        codes = np.full((len(self.answers), 10), -1, dtype=np.int32)
        for row, answers in enumerate(self.answers):
            codes[row, : len(answers)] = [code[answer] for answer in answers]
        answer_types, question_types = sorted(set(self.answer_type)), sorted(set(self.question_type))
        return GroundTruth(
            strings=strings,
            codes=codes,
            answer_type=np.array([answer_types.index(name) for name in self.answer_type]),
            answer_types=answer_types,
            question_type=np.array([question_types.index(name) for name in self.question_type]),
            question_types=question_types,
        )


def adversarial_questions(num_questions: int, seed: int) -> Questions:
    """Draw questions whose answers differ in case, spaces, marks, articles, numbers and contractions."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    answers: list[list[str]] = []
    predictions: list[str] = []
    for _ in range(num_questions):
        favorite, other = _answer(draw), _answer(draw)
        num_answers = 10 if draw.random() < 0.95 else draw.randint(1, 9)
        num_others = draw.choice([0, 0, 1, 2, 3, 5, 8])
        row = [_vary(draw, other if place < num_others else favorite) for place in range(num_answers)]
        if draw.random() < 0.3:
            row = [favorite] * num_answers
        draw.shuffle(row)
        answers.append(row)
        predictions.append(_vary(draw, draw.choice([*row, favorite, favorite, other, _answer(draw)])))
    answer_type = draw.choices(["yes/no", "number", "other"], k=num_questions)
    question_type = draw.choices([f"what {number}" for number in range(65)], k=num_questions)
    return Questions(answers, predictions, answer_type, question_type)


def _answer(draw: random.Random) -> str:
    answer = draw.choice(_PIECES)
    for _ in range(draw.choice([0, 0, 1, 1, 2])):
        answer += draw.choice(_JOINTS) + draw.choice(_PIECES)
    return answer


def _vary(draw: random.Random, answer: str) -> str:
    if draw.random() < 0.7:
        return answer
    variant = draw.choice(["{} ", " {}", "the {}", "{}.", "{}?", "{} ,x", "\t{}", "{}\n", "{} a"]).format(answer)
    return draw.choice([str.upper, str.lower, str.title, str])(variant)


def plain_vqa_accuracy(questions: Questions, evaluator: str) -> dict[str, object]:
    """Score as the VQA team's scripts go about it: question by question, answer by answer."""
    scores: list[float] = []
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    for row, (answers, prediction) in enumerate(zip(questions.answers, questions.predictions, strict=True)):
        score = _score(list(answers), prediction, evaluator)
        scores.append(score)
        by_answer_type.setdefault(questions.answer_type[row], []).append(score)
        by_question_type.setdefault(questions.question_type[row], []).append(score)
    return {
        "overall": _percent(scores),
        "per_answer_type": {name: _percent(group) for name, group in by_answer_type.items()},
        "per_question_type": {name: _percent(group) for name, group in by_question_type.items()},
        "per_question": [round(100 * score, 2) for score in scores],
    }


def _percent(scores: list[float]) -> float:
    return round(100 * float(sum(scores)) / len(scores), 2)


def _score(answers: list[str], prediction: str, evaluator: str) -> float:
    prediction = _without_breaks(prediction)
    if evaluator == "official":
        answers = [_without_breaks(answer) for answer in answers]
        if len(set(answers)) > 1:
            answers = [_words(_punctuation(answer)) for answer in answers]
            prediction = _words(_punctuation(prediction))
    else:
        prediction = _words(_punctuation(prediction))
        if len(set(answers)) > 1:
            answers = [_punctuation(answer) for answer in answers]
    if len(answers) < 3:
        # The team's scripts know ten annotators only; this is the rule for one and two.
        return answers.count(prediction) / len(answers)
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(1, float(others.count(prediction)) / 3))
    return float(sum(scores)) / len(scores)


def _without_breaks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    result = text
    for mark in _MARKS:
        touches_space = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if touches_space or re.search(r"(\d)(\,)(\d)", text) else " ")
    for _ in range(32):
        result = re.sub(r"\.(?!\d)", "", result, count=1)
    return result


def _words(text: str) -> str:
    kept = []
    for word in text.lower().split():
        digit = _DIGITS.get(word, word)
        if digit not in _ARTICLES:
            kept.append(_EXPANDED.get(digit, digit))
    return " ".join(kept)
