"""What scores say, question by question and in sum: who is right, how sure, confused with what, by which route.

Axes: Q questions, A answers, L layers, K spans, T types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trarctl.data.metrics import Accuracy, commonest
from trarctl.data.prepared import PreparedSplit
from trarctl.engine.evaluator import Scores, likeliest

NUM_BINS = 10


@dataclass(frozen=True)
class Outcome:
    """How each question of a split was answered."""

    right: NDArray[np.float64]  # share of the truth that the answer has, 0 to 1, [Q]
    chosen: NDArray[np.int64]  # index of the likeliest answer, [Q]
    confidence: NDArray[np.float32]  # its probability, [Q]
    type_of: NDArray[np.int64]  # the question's type, an index into ``types``, [Q]
    types: list[str]  # by which accuracy is reported
    detail_of: NDArray[np.int64]  # its finer type, an index into ``details``, [Q]
    details: list[str]  # VQA's question types, CLEVR's last functions; the same as ``types`` for easy-VQA
    truth_of: NDArray[np.int64]  # the true answer, for VQA the annotators' commonest, an index into ``truths``, [Q]
    truths: Sequence[str]  # true answers as they stand in the file


@dataclass(frozen=True)
class CalibrationBin:
    """Questions whose answer's probability lies in one tenth of 0 to 1."""

    low: float
    questions: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """A wrong answer that is given often instead of the true one."""

    type: str
    truth: str
    said: str
    questions: int


@dataclass(frozen=True)
class TypeRow:
    """One finer type: how many, how good (percent), and the share of each span averaged over the layers."""

    name: str
    questions: int
    accuracy: float
    shares: list[float]


def outcome_of(scores: Scores, split: PreparedSplit, accuracy: Accuracy) -> Outcome:
    """Compare scores with the answers of a split, question by question; ``accuracy`` is what they were measured at."""
    truth = split.truth()
    chosen, confidence = likeliest(scores.scores, is_exclusive=scores.is_exclusive)
    return Outcome(
        right=accuracy.right,
        chosen=chosen,
        confidence=confidence,
        type_of=accuracy.type_of,
        types=list(accuracy.types),
        detail_of=truth.question_type.astype(np.int64),
        details=list(truth.question_types),
        truth_of=commonest(truth.codes),
        truths=truth.strings,
    )


def calibration(outcome: Outcome) -> tuple[list[CalibrationBin], float]:
    """Give for each tenth of the probabilities how many answers are right, and the expected calibration error.

    That is the mean distance between probability and accuracy, weighted by questions.

    Source: Guo et al., On calibration of modern neural networks (ICML 2017).
    """
    bin_of = np.minimum((outcome.confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bin_of, minlength=NUM_BINS)
    confidence = np.bincount(bin_of, weights=outcome.confidence, minlength=NUM_BINS) / np.maximum(counts, 1)
    accuracy = np.bincount(bin_of, weights=outcome.right, minlength=NUM_BINS) / np.maximum(counts, 1)
    error = float((counts * np.abs(confidence - accuracy)).sum() / counts.sum())
    found = zip(counts.tolist(), confidence.tolist(), accuracy.tolist(), strict=True)
    return [CalibrationBin(index / NUM_BINS, *one) for index, one in enumerate(found) if one[0]], error


def confusions(outcome: Outcome, answers: Sequence[str], *, limit: int = 60) -> list[Confusion]:
    """The commonest pairs of a true answer and a wholly wrong one, most frequent first."""
    wrong = np.flatnonzero(outcome.right == 0)
    if not len(wrong):
        return []
    keys = np.stack([outcome.type_of[wrong], outcome.truth_of[wrong], outcome.chosen[wrong]])
    sizes = keys.max(axis=1) + 1
    codes, counts = np.unique(np.ravel_multi_index(tuple(keys), tuple(sizes)), return_counts=True)
    best = np.argsort(-counts, kind="stable")[:limit]
    found = np.stack(np.unravel_index(codes[best], tuple(sizes)), axis=1)
    return [
        Confusion(outcome.types[kind], outcome.truths[truth], answers[said], int(count))
        for (kind, truth, said), count in zip(found.tolist(), counts[best], strict=True)
    ]


def routes_by_type(outcome: Outcome, routes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean share of each span in each layer, by type: [T, L, K]; zeros for a type without questions."""
    means = _means(outcome.type_of, len(outcome.types), routes.reshape(len(routes), -1))
    return means.reshape(len(outcome.types), *routes.shape[1:])


def type_rows(outcome: Outcome, routes: NDArray[np.floating]) -> list[TypeRow]:
    """One row for each finer type that has questions, the most frequent first."""
    counts = np.bincount(outcome.detail_of, minlength=len(outcome.details))
    accuracy = _means(outcome.detail_of, len(counts), outcome.right[:, None])[:, 0]
    shares = _means(outcome.detail_of, len(counts), routes.mean(axis=1))
    order = np.argsort(-counts, kind="stable")
    return [
        TypeRow(outcome.details[index], int(counts[index]), 100 * float(accuracy[index]), shares[index].tolist())
        for index in order.tolist()
        if counts[index]
    ]


def _means(type_of: NDArray[np.int64], num_types: int, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of [Q, C] values over the questions of each type: [T, C]."""
    counts = np.maximum(np.bincount(type_of, minlength=num_types), 1)
    sums = [np.bincount(type_of, weights=column, minlength=num_types) for column in values.T]
    return np.stack(sums, axis=1) / counts[:, None] if sums else np.zeros((num_types, 0))
