"""Several models' scores to one: probabilities are averaged, answers matched by their text.

Axes: Q questions, A answers of all models together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trarctl.engine.evaluator import Scores
from trarctl.errors import CheckpointError, DataError

ROWS_AT_ONCE = 16_384  # bounds the memory for temporary probabilities


def probabilities(scores: NDArray[np.float32], *, is_exclusive: bool) -> NDArray[np.float32]:
    """Turn answer logits into probabilities.

    Args:
        scores: logits, [Q, A].
        is_exclusive: one answer holds (softmax, from ``ce`` and ``kld``); otherwise each on its own (sigmoid, ``bce``).
    """
    if not is_exclusive:
        return np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * scores))
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def combine(parts: Sequence[Scores]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Average the probabilities that several models give to each answer; one a model does not know counts as 0.

    Args:
        parts: scores for the same questions.

    Returns:
        Mean probabilities [Q, A], and the answers in the order of their first appearance.

    Raises:
        CheckpointError: if the parts answer different questions.
    """
    first = parts[0]
    answers = tuple(dict.fromkeys(answer for part in parts for answer in part.answers))
    column = {answer: index for index, answer in enumerate(answers)}
    total = np.zeros((len(first.question_id), len(answers)), dtype=np.float32)
    for number, part in enumerate(parts, start=1):
        if not np.array_equal(part.question_id, first.question_id):
            raise CheckpointError(
                f"the scores number {number} answer other questions than the first",
                "score the same split of the same data with each: trarctl submit --split NAME --save-scores FILE",
            )
        columns = np.array([column[answer] for answer in part.answers])
        for start in range(0, len(total), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            total[rows, columns] += probabilities(part.scores[rows], is_exclusive=part.is_exclusive)
    total /= np.float32(len(parts))
    return total, answers


def sayable_answers(scores: NDArray[np.float32], answers: Sequence[str]) -> list[str]:
    """The likeliest answer to each question that is not blank, since a test server rejects blank ones."""
    blank = [index for index, answer in enumerate(answers) if not answer.strip()]
    if blank:
        scores = scores.copy()
        scores[:, blank] = -np.inf
    return [answers[index] for index in scores.argmax(axis=1)]


def load_scores(path: Path, *, is_exclusive: bool) -> Scores:
    """Read what ``--save-scores`` wrote.

    Args:
        path: an ``.npz`` file.
        is_exclusive: what its scores are if the file does not say.

    Raises:
        DataError: if it cannot be read or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            question_id, scores = file["question_id"], file["scores"]
            answers = tuple(str(answer) for answer in file["answers"])
            routes = file["routes"] if "routes" in file else np.zeros((len(question_id), 0, 0), dtype=np.float32)
            exclusive = bool(file["is_exclusive"]) if "is_exclusive" in file else is_exclusive
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"cannot read scores from {path}: {error}", "write them anew with --save-scores") from error
    if scores.shape != (len(question_id), len(answers)):
        raise DataError(
            f"{path} holds scores of shape {list(scores.shape)}, expected [{len(question_id)}, {len(answers)}]",
            "write them anew with --save-scores",
        )
    return Scores(question_id, scores.astype(np.float32, copy=False), routes, answers, exclusive)
