"""Time both VQA evaluators and the submission file at full size; compare the evaluators with a plain implementation.

Run from the repository: ``python -m benchmarks.score_speed``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.data.reference_accuracy import adversarial_questions, plain_vqa_accuracy
from trarctl.data.accuracy import Evaluator, vqa_accuracy
from trarctl.data.submission import validate_vqa, write_vqa

NUM_VAL_QUESTIONS = 214_354
NUM_COMPARED = 50_000
NUM_TEST_QUESTIONS = 447_793
MOST_SECONDS = 10.0
MOST_SUBMISSION_SECONDS = 5.0
EVALUATORS: tuple[Evaluator, ...] = ("official", "upstream")


def measure_scoring(num_questions: int, num_compared: int) -> bool:
    """Print a line for each evaluator; True if it was fast enough and equal to the plain implementation."""
    questions, compared = adversarial_questions(num_questions, seed=0), adversarial_questions(num_compared, seed=1)
    truth, compared_truth = questions.truth(), compared.truth()
    print(f"{len(truth.strings):,} distinct annotators' answers, {len(set(questions.predictions)):,} predictions")
    is_good = True
    for evaluator in EVALUATORS:
        start = time.perf_counter()
        vqa_accuracy(questions.predictions, truth, evaluator)
        seconds = time.perf_counter() - start
        accuracy = vqa_accuracy(compared.predictions, compared_truth, evaluator)
        expected = plain_vqa_accuracy(compared, evaluator)
        is_equal = expected == {
            "overall": accuracy.overall,
            "per_answer_type": accuracy.per_answer_type,
            "per_question_type": accuracy.per_question_type,
            "per_question": accuracy.per_question.tolist(),
        }
        verdict = "equal" if is_equal else "DIFFERENT"
        print(
            f"{evaluator:9} {num_questions:,} answers in {seconds:.2f} s (at most {MOST_SECONDS:.0f}); "
            f"{num_compared:,} adversarial answers: {verdict} to the plain implementation"
        )
        is_good = is_good and is_equal and seconds <= MOST_SECONDS
    return is_good


def measure_submission(num_questions: int) -> bool:
    """Print a line; True if a submission was written, read back and found valid in time."""
    question_ids = [262_144_000 + 3 * number for number in range(num_questions)]
    answers = [f"answer {number % 3129}" for number in range(num_questions)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.json"
        start = time.perf_counter()
        size = write_vqa(path, question_ids, answers, question_ids)
        problems = validate_vqa(path, question_ids)
        seconds = time.perf_counter() - start
    print(
        f"submission of {num_questions:,} rows, {size / 1e6:.1f} MB, written and validated in {seconds:.2f} s "
        f"(at most {MOST_SUBMISSION_SECONDS:.0f}); problems: {problems or 'none'}"
    )
    return not problems and seconds <= MOST_SUBMISSION_SECONDS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=NUM_VAL_QUESTIONS, help="answers to time")
    parser.add_argument("--compared", type=int, default=NUM_COMPARED, help="answers to compare")
    arguments = parser.parse_args()
    verdicts = [measure_scoring(arguments.questions, arguments.compared), measure_submission(NUM_TEST_QUESTIONS)]
    raise SystemExit(0 if all(verdicts) else 1)
