"""Answers to figures: VQA accuracy by either evaluator, CLEVR and plain accuracy by question type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trarctl.data.answers import strip_punctuation, strip_words
from trarctl.data.raw_splits import listed
from trarctl.errors import DataError

EvaluatorName = Literal["official", "upstream"]
Grouping = Literal["official", "upstream"]

CLEVR_TYPES = ("count", "exist", "compare_numbers", "query_attribute", "compare_attribute")
OVERALL = "overall"

# Two decimals, as the VQA team publishes its figures.
_DECIMALS = 2
# So many annotators who agree with a prediction make it fully right.
_ENOUGH_MATCHES = 3
_STATES = _ABSENT, _DIFFERENT, _MATCH = 0, 1, 2


@dataclass(frozen=True)
class GroundTruth:
    """What the annotators said, and of which type each question is.

    Attributes:
        strings: the annotators' answers as they stand in the file.
        codes: position in ``strings`` of each annotator's answer, -1 where there are fewer, [Q, 10].
        answer_type: position in ``answer_types``, [Q].
        answer_types: names, such as ``yes/no``.
        question_type: position in ``question_types``, [Q].
        question_types: names, such as ``how many``.
    """

    strings: Sequence[str]
    codes: npt.NDArray[np.integer]
    answer_type: npt.NDArray[np.integer]
    answer_types: Sequence[str]
    question_type: npt.NDArray[np.integer]
    question_types: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Accuracy:
    """VQA accuracy in percent, rounded to two decimals as the VQA team does.

    Attributes:
        overall: mean over all questions.
        per_answer_type: mean over the questions of each answer type that occurs.
        per_question_type: mean over the questions of each question type that occurs.
        per_question: [Q] float64.
    """

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CountedAccuracy:
    """Right answers by question type, for data sets with one true answer a question.

    Attributes:
        correct: right answers under ``overall`` and each type that occurs.
        total: questions under the same names.
    """

    correct: dict[str, int]
    total: dict[str, int]

    @property
    def percent(self) -> dict[str, float]:
        """Right answers in percent, rounded to two decimals, by the same names."""
        return {name: round(100 * self.correct[name] / total, _DECIMALS) for name, total in self.total.items()}

    @property
    def overall(self) -> float:
        """Right answers among all questions, in percent, rounded to two decimals."""
        return self.percent[OVERALL]


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _clean_and_normalize(text: str) -> str:
    return strip_words(strip_punctuation(_clean(text)))


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class _Rules:
    """How an evaluator rewrites both sides before it compares them, for unanimous and for mixed annotators."""

    unanimous_truth: Callable[[str], str]
    unanimous_prediction: Callable[[str], str]
    mixed_truth: Callable[[str], str]
    mixed_prediction: Callable[[str], str]


_RULES: dict[EvaluatorName, _Rules] = {
    "official": _Rules(_clean, _clean, _clean_and_normalize, _clean_and_normalize),
    "upstream": _Rules(_as_it_is, _clean_and_normalize, strip_punctuation, _clean_and_normalize),
}


def vqa_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Score VQA answers: the mean over the ten leave-one-out sets of min(1, matches / 3).

    Args:
        predictions: an answer for each question, [Q] in the order of ``truth``.
        truth: the annotators' answers; left as it is, like ``predictions``.
        evaluator: ``official`` is the VQA team's current one; ``upstream`` the older one of the published TRAR numbers,
            which always normalizes the prediction, and of the truth only the punctuation.

    Raises:
        DataError: another number of predictions than questions, no question, or a question without any answer.
    """
    _check_lengths(len(predictions), len(truth))
    is_answer = truth.codes >= 0
    if not is_answer.any(axis=1).all():
        row = int(np.flatnonzero(~is_answer.any(axis=1))[0])
        raise DataError(f"question {row + 1} of {len(truth)} has no annotator's answer to score against")
    shares = _shares(_states(predictions, truth, _RULES[evaluator]))
    return Accuracy(
        overall=_mean_percent(shares),
        per_answer_type=_by_type(shares, truth.answer_type, truth.answer_types),
        per_question_type=_by_type(shares, truth.question_type, truth.question_types),
        per_question=np.array([round(100 * share, _DECIMALS) for share in shares.tolist()]),
    )


def clevr_accuracy(
    predictions: Sequence[str], answers: Sequence[str], functions: Sequence[str], grouping: Grouping = "official"
) -> CountedAccuracy:
    """Count right CLEVR answers by question type.

    Args:
        predictions: an answer for each question, [Q].
        answers: the true ones, [Q].
        functions: last function of each question's program, [Q].
        grouping: ``official`` counts ``equal_integer`` among ``compare_numbers``, ``upstream`` among
            ``compare_attribute``, as in the published TRAR numbers.

    Raises:
        DataError: the lengths differ, there is no question, or a function is unknown.
    """
    _check_lengths(len(predictions), len(answers), len(functions))
    types = {function: _clevr_type(function, grouping) for function in dict.fromkeys(functions)}
    unknown = [function for function, name in types.items() if name is None]
    if unknown:
        raise DataError(
            f"programs end in functions that CLEVR v1.0 does not have: {listed(unknown, len(unknown))}",
            "is this a CLEVR v1.0 questions file? It must be the original one",
        )
    counted = plain_accuracy(predictions, answers, [types[function] or "" for function in functions])
    order = [name for name in (OVERALL, *CLEVR_TYPES) if name in counted.total]
    return CountedAccuracy(
        {name: counted.correct[name] for name in order}, {name: counted.total[name] for name in order}
    )


def plain_accuracy(predictions: Sequence[str], answers: Sequence[str], types: Sequence[str]) -> CountedAccuracy:
    """Count right answers by question type, types in order of first appearance.

    Args:
        predictions: an answer for each question, [Q].
        answers: the true ones, [Q]; right is what is equal to the letter.
        types: each question's type, [Q].

    Raises:
        DataError: the lengths differ, or there is no question.
    """
    _check_lengths(len(predictions), len(answers), len(types))
    total = Counter(types)
    correct = Counter(
        name for predicted, answer, name in zip(predictions, answers, types, strict=True) if predicted == answer
    )
    return CountedAccuracy(
        correct={OVERALL: correct.total()} | {name: correct[name] for name in total},
        total={OVERALL: total.total()} | dict(total),
    )


def _check_lengths(num_predictions: int, *lengths: int) -> None:
    for length in lengths:
        if length != num_predictions:
            raise DataError(
                f"{num_predictions:,} answers for {length:,} questions", "score the split they were made for"
            )
    if not num_predictions:
        raise DataError("there is no question to score")


def _clevr_type(function: str, grouping: Grouping) -> str | None:
    if function in ("count", "exist"):
        return function
    if function in ("greater_than", "less_than"):
        return "compare_numbers"
    if function == "equal_integer":
        return "compare_numbers" if grouping == "official" else "compare_attribute"
    if function.startswith("query_"):
        return "query_attribute"
    if function in ("equal_color", "equal_shape", "equal_size", "equal_material"):
        return "compare_attribute"
    return None


class _Numbers:
    """Gives equal strings equal numbers, so that arrays of numbers can be compared instead."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}

    def of(self, rewrite: Callable[[str], str], texts: Iterable[str]) -> npt.NDArray[np.int64]:
        number_of = self._number_of
        return np.fromiter((number_of.setdefault(rewrite(text), len(number_of)) for text in texts), dtype=np.int64)


def _states(predictions: Sequence[str], truth: GroundTruth, rules: _Rules) -> npt.NDArray[np.int8]:
    """Compare every annotator's answer with the prediction: absent, different or match, [Q, 10].

    Each distinct string is rewritten once: real sets repeat few answers over many questions.
    """
    distinct: dict[str, int] = {}
    prediction = np.fromiter((distinct.setdefault(text, len(distinct)) for text in predictions), dtype=np.int64)
    raw, normalized = _Numbers(), _Numbers()
    raw_truth = raw.of(rules.unanimous_truth, truth.strings)[truth.codes]
    raw_prediction = raw.of(rules.unanimous_prediction, distinct)[prediction]
    mixed_truth = normalized.of(rules.mixed_truth, truth.strings)[truth.codes]
    mixed_prediction = normalized.of(rules.mixed_prediction, distinct)[prediction]

    is_answer = truth.codes >= 0
    questions = np.arange(len(truth))
    first = raw_truth[questions, is_answer.argmax(axis=1)]
    is_unanimous = ((raw_truth == first[:, None]) | ~is_answer).all(axis=1)
    is_match = np.where(
        is_unanimous[:, None], raw_truth == raw_prediction[:, None], mixed_truth == mixed_prediction[:, None]
    )
    states = np.where(is_match, _MATCH, _DIFFERENT)
    return np.where(is_answer, states, _ABSENT).astype(np.int8)


def _shares(states: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """Turn states [Q, 10] into each question's accuracy, 0 to 1, [Q].

    A few dozen patterns are all there are, so each is worked out once, by the evaluators' own sum in the annotators'
    order: the result is theirs to the last bit, and so is the rounding of figures that end in a 5.
    """
    codes = states @ (len(_STATES) ** np.arange(states.shape[1]))
    _, example, pattern = np.unique(codes, return_index=True, return_inverse=True)
    return np.array([_share(row) for row in states[example].tolist()])[pattern]


def _share(pattern: list[int]) -> float:
    num_matches = pattern.count(_MATCH)
    others_who_match = [num_matches - (state == _MATCH) for state in pattern if state != _ABSENT]
    leave_one_out = [min(1.0, others / _ENOUGH_MATCHES) for others in others_who_match]
    return sum(leave_one_out) / len(leave_one_out)


def _mean_percent(shares: npt.NDArray[np.float64]) -> float:
    # Python's sum, not numpy's pairwise one: the evaluators' rounding depends on the order of summing.
    total = float(sum(shares.tolist()))
    return round(100 * total / len(shares), _DECIMALS)


def _by_type(
    shares: npt.NDArray[np.float64], type_of_question: npt.NDArray[np.integer], names: Sequence[str]
) -> dict[str, float]:
    by_type = {name: shares[type_of_question == position] for position, name in enumerate(names)}
    return {name: _mean_percent(group) for name, group in by_type.items() if len(group)}
