"""Model + data -> scores -> answers -> metrics: the one path of validation, eval, submit and predict.

Axes: Q questions, A answers, L layers, K spans.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trarctl.data.accuracy import clevr_accuracy, plain_accuracy, vqa_accuracy
from trarctl.data.dataset import Samples, load_batches, scoring_plan
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.engine.events import Observer, Progressed, unobserved
from trarctl.engine.processes import World
from trarctl.errors import DataError
from trarctl.model.trar import TRAR

Evaluator = Literal["official", "upstream"]


@dataclass(frozen=True)
class Scores:
    """What a model says to the questions of a split, in file order.

    Attributes:
        question_id: [Q] int64.
        scores: answer logits, [Q, A] float32.
        routes: span weights before binarizing, [Q, L, K] float32.
        answers: the answer of each index, A of them.
    """

    question_id: NDArray[np.int64]
    scores: NDArray[np.float32]
    routes: NDArray[np.float32]
    answers: tuple[str, ...]

    def predictions(self) -> list[str]:
        """The answer with the highest score, for each question."""
        return [self.answers[index] for index in self.scores.argmax(axis=1)]

    def save(self, path: Path) -> None:
        """Write ``question_id``, ``scores``, ``routes`` and ``answers`` as an ``.npz`` file, whole or not at all.

        Raises:
            DataError: if it cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file,
                    question_id=self.question_id,
                    scores=self.scores,
                    routes=self.routes,
                    answers=np.array(self.answers, dtype=np.str_),
                )
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(
                f"cannot write the scores to {path}: {error.strerror or error}", "choose another file with --save-scores"
            ) from error


@dataclass(frozen=True)
class Measured:
    """Accuracy of a set of answers, in percent rounded to two decimals as the data sets' own evaluators print it.

    Attributes:
        overall: over all questions.
        per_type: by answer type (VQA), by question type (CLEVR, easy-VQA).
        per_question_type: by VQA's question types; empty elsewhere.
        counts: correct and total by type, ``overall`` included; empty for VQA, whose answers are partly right.
        questions: how many.
        evaluator: whose rules.
    """

    overall: float
    per_type: dict[str, float]
    per_question_type: dict[str, float]
    counts: dict[str, tuple[int, int]]
    questions: int
    evaluator: Evaluator


@torch.inference_mode()
def score_samples(
    model: TRAR,
    samples: Samples,
    *,
    answers: Sequence[str],
    temperature: float,
    world: World,
    batch_size: int = 64,
    num_workers: int = 2,
    observe: Observer = unobserved,
    task: str = "scoring",
) -> Scores:
    """Score every sample once, without dropout or noise.

    Args:
        model: on ``world.device``; left in the mode it came in.
        samples: questions and their features, Q of them.
        answers: the model's answers in order, A of them.
        temperature: of hard routing: that of the last epoch trained.
        world: device and processes.
        batch_size: questions scored at once.
        num_workers: threads that read ahead.
        observe: told how far it is.
        task: what to call it.

    Returns:
        The scores of all samples.
    """
    was_training = model.training
    model.eval()
    num_samples = len(samples)
    plan = scoring_plan(num_samples, batch_size=batch_size, rank=world.rank, num_processes=world.size)
    question_id = np.zeros(num_samples, dtype=np.int64)
    scores = np.zeros((num_samples, len(answers)), dtype=np.float32)
    routes = np.zeros((num_samples, model.settings.num_layers, len(model.settings.spans)), dtype=np.float32)
    done = 0
    pin = world.device.type == "cuda"
    for rows, batch in zip(plan, load_batches(samples, plan, num_workers=num_workers, pin=pin), strict=True):
        there = batch.to(world.device)
        answer_scores, span_weights = model(there.question_tokens, there.cells(), temperature=temperature)
        question_id[rows] = batch.question_id
        scores[rows] = answer_scores.cpu().numpy()
        routes[rows] = span_weights.cpu().numpy()
        done += len(rows) * world.size
        observe(Progressed(task, min(done, num_samples), num_samples))
    model.train(was_training)
    return Scores(question_id, scores, routes, tuple(answers))


def measure(predictions: Sequence[str], data: PreparedData, split: PreparedSplit, evaluator: Evaluator) -> Measured:
    """Compare answers with a split's ground truth by the data set's rules.

    Args:
        predictions: one answer for each question of the split, in file order.
        data: whose data set decides the rules.
        split: annotated.
        evaluator: VQA: current or older evaluator; CLEVR: the correct or the published grouping of question types.

    Raises:
        DataError: if the split has no answers.
    """
    if not split.is_annotated:
        raise DataError(
            f"split {split.name} of {data.path} has no answers to compare with",
            f"trarctl submit --split {split.name} writes its answers; trarctl eval --split val measures",
        )
    truth = split.truth()
    if data.dataset == "vqa":
        accuracy = vqa_accuracy(predictions, truth, evaluator)
        return Measured(
            accuracy.overall,
            accuracy.per_answer_type,
            accuracy.per_question_type,
            {},
            len(predictions),
            evaluator,
        )
    answers = [truth.strings[code] for code in truth.codes[:, 0]]
    types = [truth.question_types[code] for code in truth.question_type]
    if data.dataset == "clevr":
        counted = clevr_accuracy(predictions, answers, types, evaluator)
    else:
        counted = plain_accuracy(predictions, answers, types)
    counts = {name: (counted.correct[name], counted.total[name]) for name in counted.total}
    percent = {name: round(100 * right / total, 2) if total else 0.0 for name, (right, total) in counts.items()}
    overall = percent.pop("overall")
    return Measured(overall, percent, {}, counts, len(predictions), evaluator)
