"""Time both VQA evaluators and the submission file at full size; compare the evaluators with a plain implementation.

Run from the repository: ``python -m benchmarks.score_speed``.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.data.reference_accuracy import adversarial_questions, plain_vqa_accuracy
from trarctl.data.metrics import EvaluatorName, vqa_accuracy
from trarctl.data.submission import JsonAnswers

NUM_VAL_QUESTIONS = 214_354
NUM_COMPARED = 50_000
NUM_TEST_QUESTIONS = 447_793
MOST_SECONDS = 10.0
MOST_SUBMISSION_SECONDS = 5.0
EVALUATORS: tuple[EvaluatorName, ...] = ("official", "upstream")


@dataclass(frozen=True)
class Measured:
    """A line of a table."""

    what: str
    found: str
    limit: str
    is_good: bool


def measure_scoring(num_questions: int = NUM_VAL_QUESTIONS, num_compared: int = NUM_COMPARED) -> list[Measured]:
    """Two lines for each evaluator: whether it is fast enough, and equal to the plain implementation."""
    questions, compared = adversarial_questions(num_questions, seed=0), adversarial_questions(num_compared, seed=1)
    truth, compared_truth = questions.truth(), compared.truth()
    lines = []
    for evaluator in EVALUATORS:
        start = time.perf_counter()
        vqa_accuracy(questions.predictions, truth, evaluator)
        seconds = time.perf_counter() - start
        accuracy = vqa_accuracy(compared.predictions, compared_truth, evaluator)
        expected = plain_vqa_accuracy(compared, evaluator)
        is_equal = expected == {
            "overall": accuracy.overall,
            "per_answer_type": accuracy.per_type,
            "per_question_type": accuracy.per_question_type,
            "per_question": [round(100 * share, 2) for share in accuracy.right.tolist()],
        }
        what = f"{evaluator} evaluator"
        limit = f"at most {MOST_SECONDS:.0f} s"
        lines += [
            Measured(f"{what}: {num_questions:,} answers", f"{seconds:.2f} s", limit, seconds <= MOST_SECONDS),
            Measured(f"{what}: {num_compared:,} adversarial", "equal" if is_equal else "DIFFERENT", "equal", is_equal),
        ]
    return lines


def measure_submission(num_questions: int = NUM_TEST_QUESTIONS) -> list[Measured]:
    """A line: whether a submission was written, read back and found valid in time."""
    question_ids = [262_144_000 + 3 * number for number in range(num_questions)]
    answers = [f"answer {number % 3129}" for number in range(num_questions)]
    split = SimpleNamespace(question_id=np.array(question_ids))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.json"
        start = time.perf_counter()
        size = JsonAnswers().write(path, question_ids, answers, None, split)
        problems = JsonAnswers().problems(path, None, split)
        seconds = time.perf_counter() - start
    what = f"submission: {num_questions:,} rows, {size / 1e6:.1f} MB, written and validated"
    is_good = not problems and seconds <= MOST_SUBMISSION_SECONDS
    return [Measured(what, f"{seconds:.2f} s", f"at most {MOST_SUBMISSION_SECONDS:.0f} s", is_good)]


def show(lines: list[Measured]) -> bool:
    """Print the table; True if every line is good."""
    for line in lines:
        print(f"{'ok  ' if line.is_good else 'FAIL'} {line.what:<66} {line.found:>22}   {line.limit}")
    return all(line.is_good for line in lines)


if __name__ == "__main__":
    raise SystemExit(not show(measure_scoring() + measure_submission()))
