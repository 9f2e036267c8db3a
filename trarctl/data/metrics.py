"""Answers to figures: VQA accuracy by either evaluator, and plain accuracy by question type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from trarctl.config import EvaluatorName
from trarctl.data.records import NUM_ANNOTATORS, StringTable
from trarctl.data.text import strip_punctuation, strip_words
from trarctl.errors import DataError, SettingsError

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData, PreparedSplit


OVERALL = "overall"

# Two decimals, as the VQA team publishes its figures.
_DECIMALS = 2
# With this many annotators who agree, a prediction is fully right.
_ENOUGH_MATCHES = 3
_ROWS_AT_ONCE = 4096  # of which the votes stay in the cache
_STATES = _ABSENT, _DIFFERENT, _MATCH = 0, 1, 2


@dataclass(frozen=True)
class GroundTruth:
    """What the annotators said, and of which type each question is."""

    strings: Sequence[str]  # the annotators' answers as they stand in the file
    codes: npt.NDArray[np.integer]  # index into strings of each annotator's answer, -1 where there are fewer, [Q, 10]
    answer_type: npt.NDArray[np.integer]  # index into answer_types, [Q]
    answer_types: Sequence[str]  # such as "yes/no"
    question_type: npt.NDArray[np.integer]  # index into question_types, [Q]
    question_types: Sequence[str]  # such as "how many"

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a set of answers, in percent rounded to two decimals as the data sets' own evaluators print it."""

    overall: float
    per_type: dict[str, float]  # by the types that the data set is reported by: VQA's answer types, or question types
    per_question_type: dict[str, float]  # by VQA's question types; empty elsewhere
    counts: dict[str, tuple[int, int]]  # right and all by type, and OVERALL; empty for VQA's partly right answers
    questions: int
    evaluator: EvaluatorName
    right: npt.NDArray[np.float64]  # share of the truth that each answer has, 0 to 1, [Q]
    type_of: npt.NDArray[np.int64]  # each question's type, an index into types, [Q]
    types: tuple[str, ...]  # all of them occur
    note: str | None = None  # by which rule, where it is not the usual one

    def __repr__(self) -> str:
        types = ", ".join(f"{name} {value:.2f}" for name, value in sorted(self.per_type.items()))
        return f"<Accuracy {self.overall:.2f} % of {self.questions:,} questions, {self.evaluator}: {types}>"


Metric = Callable[[Sequence[str], GroundTruth, EvaluatorName], Accuracy]
"""Compares an answer for each question, [Q], with the truth."""


def measure(predictions: Sequence[str], data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName) -> Accuracy:
    """Compare an answer for each question of a split, in file order, with its ground truth by the data set's rules.

    A DataError says that there are no answers to compare with, a SettingsError that there is no such evaluator.
    """
    if evaluator not in get_args(EvaluatorName):
        names = " or ".join(get_args(EvaluatorName))
        raise SettingsError(f"there is no evaluator {evaluator!r}", f"choose {names}")
    if not split.is_annotated:
        hint = f"trarctl submit --split {split.name} writes its answers; trarctl eval --split val measures"
        raise DataError(f"split {split.name} of {data.path} has no answers to compare with", hint)
    return data.spec.metric(predictions, split.truth(), evaluator)


def refuse_unmeasurable(data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName) -> None:
    """See, before the work, that ``measure`` will be able to compare answers to a split; it raises what that would."""
    measure([""] * len(split), data, split, evaluator)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def clean_and_normalize(text: str) -> str:
    """Rewrite an answer as the VQA team's evaluators do before they compare it."""
    return strip_words(strip_punctuation(_clean(text)))


@dataclass(frozen=True)
class ComparisonRules:
    """How an evaluator rewrites both sides before it compares them, for unanimous and for mixed annotators."""

    unanimous_truth: Callable[[str], str]
    unanimous_prediction: Callable[[str], str]
    mixed_truth: Callable[[str], str]
    mixed_prediction: Callable[[str], str]


_RULES: dict[EvaluatorName, ComparisonRules] = {
    "official": ComparisonRules(_clean, _clean, clean_and_normalize, clean_and_normalize),
    "upstream": ComparisonRules(str, clean_and_normalize, strip_punctuation, clean_and_normalize),
}


def vqa_accuracy(
    predictions: Sequence[str],
    truth: GroundTruth,
    evaluator: EvaluatorName = "official",
    rules: ComparisonRules | None = None,
) -> Accuracy:
    """Score VQA answers [Q]: the mean over the ten leave-one-out sets of min(1, matches / 3).

    With K annotators it is min(1, matches / min(3, K)), averaged over the leave-one-out sets where K is 3 or more.
    A DataError says that predictions and truth do not fit together, or that a question has no answer.

    The evaluator ``official`` is the VQA team's current one; ``upstream`` the older one of the published TRAR numbers,
    which always normalizes the prediction, and of the truth only the punctuation. ``rules`` stand in for both.
    """
    _check(predictions, truth)
    right = _shares(_states(predictions, truth, rules or _RULES[evaluator]))
    type_of, types = _used(truth.answer_type, truth.answer_types)
    return Accuracy(
        overall=_mean_percent(right),
        per_type=_by_type(right, type_of, types),
        per_question_type=_by_type(right, *_used(truth.question_type, truth.question_types)),
        counts={},
        questions=len(truth),
        evaluator=evaluator,
        right=right,
        type_of=type_of,
        types=types,
        note=_annotators_note(truth),
    )


def _annotators_note(truth: GroundTruth) -> str | None:
    """Say how many questions have how many annotators, and what that means; None if all have ten."""
    counts = Counter((truth.codes >= 0).sum(axis=1).tolist())
    if set(counts) == {NUM_ANNOTATORS}:
        return None
    held = ", ".join(f"{questions:,} have {number}" for number, questions in sorted(counts.items()))
    best = "; three who agree make 66.67 %" if _ENOUGH_MATCHES in counts else ""
    return (
        f"of {len(truth):,} questions {held} of {NUM_ANNOTATORS} annotators' answers: with K an answer scores"
        f" min(1, matches / min(3, K)), averaged over the leave-one-out sets where K is 3 or more{best}"
    )


def plain_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Count right answers by question type; errors as in ``count_right``."""
    return count_right(predictions, truth, truth.question_type, truth.question_types, evaluator)


def matched_thirds(
    predictions: Sequence[str],
    truth: GroundTruth,
    is_counted: npt.NDArray[np.bool_],
    evaluator: EvaluatorName = "official",
    note: str | None = None,
) -> Accuracy:
    """Score answers [Q] by min(1, matches / 3), to the letter and with every annotator: A-OKVQA's rule.

    The mean is over the questions that are counted, [Q]; by type all are shown. A DataError says that predictions and
    truth do not fit together, or that no question is counted.
    """
    _check(predictions, truth)
    if not is_counted.any():
        raise DataError(f"none of the {len(truth):,} questions is one that is counted")
    code_of = {answer: code for code, answer in enumerate(truth.strings)}
    codes = np.fromiter((code_of.get(answer, -2) for answer in predictions), dtype=np.int64, count=len(predictions))
    right = np.minimum(1.0, (truth.codes == codes[:, None]).sum(axis=1) / _ENOUGH_MATCHES)
    type_of, types = _used(truth.answer_type, truth.answer_types)
    return Accuracy(
        overall=_mean_percent(right[is_counted]),
        per_type=_by_type(right, type_of, types),
        per_question_type={},
        counts={},
        questions=int(is_counted.sum()),
        evaluator=evaluator,
        right=right,
        type_of=type_of,
        types=types,
        note=note,
    )


def exact_match(normalize: Callable[[str], str]) -> Metric:
    """Make the metric that counts answers equal to the true one once both are normalized, by question type."""

    def accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
        return count_right(predictions, truth, truth.question_type, truth.question_types, evaluator, normalize)

    return accuracy


def count_right(
    predictions: Sequence[str],
    truth: GroundTruth,
    type_of: npt.NDArray[np.integer],
    types: Sequence[str],
    evaluator: EvaluatorName,
    normalize: Callable[[str], str] = str,
) -> Accuracy:
    """Count answers that equal the true one to the letter, by types [Q]; DataError if they do not fit the questions.

    ``normalize`` rewrites both sides before they are compared.
    """
    _check(predictions, truth)
    table, distinct = StringTable(), StringTable()
    prediction = distinct.codes(predictions)
    true = table.codes([*map(normalize, truth.strings)])[truth.codes[:, 0]]
    is_right = table.codes([*map(normalize, distinct)])[prediction] == true
    type_of, types = _used(type_of, types)
    correct = np.bincount(type_of[is_right], minlength=len(types)).tolist()
    total = np.bincount(type_of, minlength=len(types)).tolist()
    by_type = dict(zip(types, zip(correct, total, strict=True), strict=True))
    counts = {OVERALL: (int(is_right.sum()), len(truth))} | by_type
    percent = {name: round(100 * right / number, _DECIMALS) for name, (right, number) in counts.items()}
    return Accuracy(
        overall=percent.pop(OVERALL),
        per_type=percent,
        per_question_type={},
        counts=counts,
        questions=len(truth),
        evaluator=evaluator,
        right=is_right.astype(np.float64),
        type_of=type_of,
        types=types,
    )


def _used(type_of: npt.NDArray[np.integer], types: Sequence[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Leave out the types that no question has."""
    used, renumbered = np.unique(type_of, return_inverse=True)
    return renumbered.reshape(-1).astype(np.int64), tuple(types[code] for code in used.tolist())


def _check(predictions: Sequence[str], truth: GroundTruth) -> None:
    if len(predictions) != len(truth):
        what = f"{len(predictions):,} answers for {len(truth):,} questions"
        raise DataError(what, "score the split they were made for")
    if not len(truth):
        raise DataError("there is no question to score")
    is_answered = (truth.codes >= 0).any(axis=1)
    if not is_answered.all():
        row = int(is_answered.argmin())
        raise DataError(f"question {row + 1} of {len(truth)} has no annotator's answer to score against")


def _states(predictions: Sequence[str], truth: GroundTruth, rules: ComparisonRules) -> npt.NDArray[np.int8]:
    """Compare every annotator's answer with the prediction: absent, different or match, [Q, 10].

    Each distinct string is rewritten once: real sets repeat few answers over many questions.
    """
    distinct, raw, normalized = StringTable(), StringTable(), StringTable()
    prediction = distinct.codes(predictions)
    raw_truth = raw.codes([*map(rules.unanimous_truth, truth.strings)])[truth.codes]
    raw_prediction = raw.codes([*map(rules.unanimous_prediction, distinct)])[prediction]
    mixed_truth = normalized.codes([*map(rules.mixed_truth, truth.strings)])[truth.codes]
    mixed_prediction = normalized.codes([*map(rules.mixed_prediction, distinct)])[prediction]
    is_answer = truth.codes >= 0
    first = raw_truth[np.arange(len(truth)), is_answer.argmax(axis=1)]
    is_unanimous = ((raw_truth == first[:, None]) | ~is_answer).all(axis=1)
    is_raw_match, is_mixed_match = raw_truth == raw_prediction[:, None], mixed_truth == mixed_prediction[:, None]
    states = np.where(np.where(is_unanimous[:, None], is_raw_match, is_mixed_match), _MATCH, _DIFFERENT)
    return np.where(is_answer, states, _ABSENT).astype(np.int8)


def _shares(states: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """Turn states [Q, 10] into each question's accuracy, 0 to 1, [Q].

    Each of a few dozen patterns is worked out once, by the evaluators' own sum: the result is theirs to the last bit.
    """
    codes = states @ (len(_STATES) ** np.arange(states.shape[1]))
    _, example, pattern = np.unique(codes, return_index=True, return_inverse=True)
    return np.array([_share(row) for row in states[example].tolist()])[pattern]


def _share(pattern: list[int]) -> float:
    num_matches, num_annotators = pattern.count(_MATCH), len(pattern) - pattern.count(_ABSENT)
    if num_annotators < _ENOUGH_MATCHES:
        return num_matches / num_annotators
    others_who_match = [num_matches - (state == _MATCH) for state in pattern if state != _ABSENT]
    leave_one_out = [min(1.0, others / _ENOUGH_MATCHES) for others in others_who_match]
    return sum(leave_one_out) / len(leave_one_out)


def _mean_percent(shares: npt.NDArray[np.float64]) -> float:
    # Python's sum, not numpy's pairwise one: the evaluators' rounding depends on the order of summing.
    total = float(sum(shares.tolist()))
    return round(100 * total / len(shares), _DECIMALS)


def _by_type(shares: npt.NDArray[np.float64], type_of: npt.NDArray[np.int64], types: Sequence[str]) -> dict[str, float]:
    return {name: _mean_percent(shares[type_of == index]) for index, name in enumerate(types)}


def ceiling(metric: Metric, truth: GroundTruth, answers: Sequence[str], index: npt.NDArray[np.int32]) -> float:
    """Measure what the best choice out of an answer list reaches, in percent: the limit of every model with that list.

    ``index`` has the place in the list of each of the truth's strings, -1 for those that it leaves out.
    """
    best = commonest(np.where(truth.codes < 0, -1, index[truth.codes]))
    return metric([answers[max(one, 0)] for one in best.tolist()], truth, "official").overall


def commonest(codes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Give the commonest of each question's codes [Q, 10], the first of equals, or -1 where all are, [Q]."""
    best = np.empty(len(codes), dtype=np.int64)
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        rows = codes[start : start + _ROWS_AT_ONCE]
        votes = ((rows[:, :, None] == rows[:, None, :]) & (rows >= 0)[:, :, None]).sum(axis=2)
        best[start : start + len(rows)] = rows[np.arange(len(rows)), votes.argmax(axis=1)]
    return best


def baselines(
    data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName
) -> tuple[list[tuple[str, Accuracy]], str]:
    """Measure what guessing scores on a split; empty where training has no answers to guess by.

    Returns:
        Names with accuracies: the question without its image, and the commonest answer; and by which rules, in words,
        the former was guessed.
    """
    if "train" not in (*data.split_names, *data.manifest.aliases) or not data.split("train").is_annotated:
        return [], ""
    guess, rule = question_prior(data, split)
    guesses = {"question alone": guess, "commonest answer": commonest_answer(data, split)}
    return [(name, measure(one, data, split, evaluator)) for name, one in guesses.items()], rule


def commonest_answer(data: PreparedData, split: PreparedSplit) -> list[str]:
    """Give the commonest answer of the training split to every question of ``split``."""
    labels, _ = _training_labels(data)
    return [data.answers[int(np.bincount(labels).argmax())] if len(labels) else ""] * len(split)


def question_prior(data: PreparedData, split: PreparedSplit) -> tuple[list[str], str]:
    """Guess each question's answer without its image: the commonest training answer to the same words.

    Where training has not asked in these words, it is that to the same question type, else to the same first two words,
    else the commonest of all. Also says what share each rule gave: ``same words 22 %, same question type 78 %``.
    """
    labels, rows = _training_labels(data)
    if not len(labels):
        return [""] * len(split), "no training answer at all"
    train = data.split("train")
    words, asked_words = train.question_tokens[rows], split.question_tokens
    rules = {"same words": (words, asked_words)}
    if split.is_annotated and not data.spec.types_tell_answers:
        names = StringTable()
        types = [names.codes(truth.question_types)[truth.question_type] for truth in (train.truth(), split.truth())]
        if len(names) > 1:
            rules["same question type"] = (types[0][rows, None], types[1][:, None])
    rules["same first words"] = (words[:, :2], asked_words[:, :2])
    rules["commonest answer"] = (words[:, :0], asked_words[:, :0])
    guess = np.full(len(split), -1, dtype=np.int64)
    shares = []
    for name, (known, asked) in rules.items():
        is_open = guess < 0
        guess[is_open] = _commonest_by(known, labels, asked[is_open])
        number = int((is_open & (guess >= 0)).sum())
        shares += [f"{name} {100 * number / len(split):.0f} %"] if number else []
    return [data.answers[index] for index in guess.tolist()], ", ".join(shares)


def _commonest_by(
    known: npt.NDArray[np.integer], labels: npt.NDArray[np.int64], asked: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Give the commonest of the ``labels`` [N] of keys ``known`` [N, K] for each key in ``asked`` [Q, K], or -1."""
    if not known.shape[1]:
        return np.full(len(asked), int(np.bincount(labels).argmax()), dtype=np.int64)
    _, group = np.unique(np.concatenate([known, asked]), axis=0, return_inverse=True)
    group = group.reshape(-1)
    pairs, counts = np.unique(np.stack([group[: len(known)], labels]), axis=1, return_counts=True)
    best = np.full(int(group.max()) + 1, -1, dtype=np.int64)
    order = np.argsort(counts, kind="stable")
    best[pairs[0, order]] = pairs[1, order]
    return best[group[len(known) :]]


def _training_labels(data: PreparedData) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The answer most annotators gave to each training question that has one in the vocabulary, and its row."""
    offsets, answer, count = data.split("train").targets
    lengths = np.diff(offsets)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-count.astype(np.int64), row_of))
    rows, first = np.unique(row_of[order], return_index=True)
    return answer[order][first].astype(np.int64), rows
