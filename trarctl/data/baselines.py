"""What guessing scores: answers from the training split alone, to measure a model against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trarctl.data.prepared import PreparedData, PreparedSplit


def commonest_answer(data: PreparedData, split: PreparedSplit) -> list[str]:
    """The commonest answer of the training split, to every question of ``split``."""
    labels, _ = _training_labels(data)
    return [data.answers[int(np.bincount(labels).argmax())]] * len(split)


def question_prior(data: PreparedData, split: PreparedSplit) -> list[str]:
    """The commonest training answer to the same words, for each question of ``split``; no image is looked at.

    A question that the training split does not have gets the commonest answer of all.
    """
    labels, rows = _training_labels(data)
    train = data.split("train")
    tokens = np.concatenate([train.question_tokens[rows], split.question_tokens])
    _, question = np.unique(tokens, axis=0, return_inverse=True)
    question = question.reshape(-1)
    pairs, counts = np.unique(np.stack([question[: len(rows)], labels]), axis=1, return_counts=True)
    best = np.full(question.max() + 1, int(np.bincount(labels).argmax()))
    order = np.argsort(counts, kind="stable")
    best[pairs[0, order]] = pairs[1, order]
    return [data.answers[index] for index in best[question[len(rows) :]]]


def _training_labels(data: PreparedData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The answer most annotators gave to each training question that has one in the vocabulary, and its row."""
    offsets, answer, count = data.split("train").targets
    lengths = np.diff(offsets)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-count.astype(np.int64), row_of))
    rows, first = np.unique(row_of[order], return_index=True)
    return answer[order][first].astype(np.int64), rows
