"""Model + data -> scores -> answers -> metrics: the one path of validation, eval, submit and predict.

Axes: Q questions, A answers, L layers, K spans.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trarctl.data.loader import Batch, Rows, Samples, load_batches, scoring_plan
from trarctl.engine.callbacks import Callback, Progressed, no_callback
from trarctl.engine.distributed import Precision, World, precision_of
from trarctl.errors import DataError
from trarctl.model.trar import TRAR


@dataclass(frozen=True)
class Scores:
    """What a model says to the questions of a split, in file order.

    Attributes:
        question_id: [Q] int64.
        scores: answer logits, [Q, A] float32.
        routes: span weights before binarizing, [Q, L, K] float32.
        answers: the answer of each index, A of them.
        is_exclusive: probabilities are a softmax over the answers; otherwise a sigmoid of each.
    """

    question_id: NDArray[np.int64]
    scores: NDArray[np.float32]
    routes: NDArray[np.float32]
    answers: tuple[str, ...]
    is_exclusive: bool

    def predictions(self) -> list[str]:
        """The answer with the highest score, for each question."""
        return [self.answers[index] for index in self.scores.argmax(axis=1)]

    def spill(self, folder: Path) -> None:
        """Write the arrays as they are, for ``load_spilled`` in another process.

        Raises:
            DataError: if there is no room.
        """
        try:
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(self, name))
        except OSError as error:
            raise DataError(
                f"cannot keep the scores in {folder} for the other process: {error.strerror or error}",
                "TMPDIR=DIR names a folder with more room; --gpus cpu or a single GPU needs none",
            ) from error

    def save(self, path: Path) -> None:
        """Write all of it as an ``.npz`` file, whole or not at all.

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
                    is_exclusive=np.array(self.is_exclusive),
                )
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DataError(
                f"cannot write the scores to {path}: {error.strerror or error}",
                "choose another file with --save-scores",
            ) from error


_ARRAYS = ("question_id", "scores", "routes")


def load_spilled(folder: Path, answers: Sequence[str], *, is_exclusive: bool) -> Scores:
    """What ``Scores.spill`` wrote; the arrays stay on the disk, also once their files have no name any more."""
    question_id, scores, routes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
    return Scores(question_id, scores, routes, tuple(answers), is_exclusive)


@dataclass(frozen=True)
class Answered:
    """The likeliest answers, without their scores: what a validation needs.

    Attributes:
        answer: index of the answer with the highest score, [Q] int64.
        routes: span weights before binarizing, [Q, L, K] float32.
    """

    answer: NDArray[np.int64]
    routes: NDArray[np.float32]


@dataclass(frozen=True)
class _Scored:
    """One batch: positions in the split [B], question ids [B], scores [B, A] and routes [B, L, K] on the device."""

    rows: Rows
    question_id: NDArray[np.int64]
    scores: Tensor
    routes: Tensor


@dataclass(frozen=True)
class Evaluator:
    """How to run a model over questions without dropout or noise.

    Attributes:
        model: on ``world.device``; left in the mode it came in.
        temperature: of hard routing: that of the last epoch trained.
        world: device and processes; they take turns at the batches.
        precision: of matrix products.
        batch_size: questions scored at once.
        num_workers: threads that read ahead.
        callback: told how far it is, as ``task``.
        task: what to call it.
        check: called after each round of batches, in all processes alike; may raise to end the work.
    """

    model: TRAR
    temperature: float
    world: World
    precision: Precision = "fp32"
    batch_size: int = 64
    num_workers: int = 2
    callback: Callback = no_callback
    task: str = "scoring"
    check: Callable[[], None] | None = None

    def score(self, samples: Samples, answers: Sequence[str], *, is_exclusive: bool) -> Scores:
        """Score all samples; the scores and routes are in the leading process, the others keep none.

        Args:
            samples: Q questions and their features.
            answers: the model's answers in order, A of them.
            is_exclusive: see ``Scores``.
        """
        kept = len(samples) if self.world.is_main else 0
        scores = np.zeros((kept, len(answers)), dtype=np.float32)
        routes = self._room_for_routes(kept)
        share = np.zeros((self.batch_size, len(answers) + math.prod(routes.shape[1:])), dtype=np.float32)
        for turn, scored in enumerate(self._rounds(samples)):
            if scored is not None:
                flat = torch.cat([scored.scores, scored.routes.flatten(1)], dim=1)
                share[: len(flat)] = flat.cpu().numpy()
            # Round by round, so that no process but the lead ever holds more than a batch.
            for rank, rows in enumerate(self.world.gather(share)):
                start = (turn * self.world.size + rank) * self.batch_size
                there = rows[: max(kept - start, 0)]
                scores[start : start + len(there)] = there[:, : len(answers)]
                routes[start : start + len(there)] = there[:, len(answers) :].reshape(-1, *routes.shape[1:])
        return Scores(samples.question_id, scores, routes, tuple(answers), is_exclusive)

    def answer(self, samples: Samples) -> Answered:
        """Choose the likeliest answer of each sample, in memory that does not grow with the number of answers."""
        chosen = np.zeros(len(samples), dtype=np.int64)
        routes = self._room_for_routes(len(samples))
        for scored in self._rounds(samples):
            if scored is not None:
                chosen[scored.rows] = scored.scores.argmax(dim=1).cpu().numpy()
                routes[scored.rows] = scored.routes.cpu().numpy()
        return Answered(self.world.all_reduce(chosen), self.world.all_reduce(routes))

    def _room_for_routes(self, num_samples: int) -> NDArray[np.float32]:
        settings = self.model.settings
        return np.zeros((num_samples, settings.num_layers, len(settings.spans)), dtype=np.float32)

    def _rounds(self, samples: Samples) -> Iterator[_Scored | None]:
        """Rounds in which each process scores a batch; None where this one has none left."""
        world, total = self.world, len(samples)
        plan = scoring_plan(total, batch_size=self.batch_size, rank=world.rank, num_processes=world.size)
        num_rounds = -(-total // (self.batch_size * world.size))
        batches = load_batches(samples, plan, num_workers=self.num_workers, pin=world.device.type == "cuda")
        was_training = self.model.training
        self.model.eval()
        try:
            for turn in range(num_rounds):
                yield self._score_batch(plan[turn], next(batches)) if turn < len(plan) else None
                self.callback(Progressed(self.task, min((turn + 1) * self.batch_size * world.size, total), total))
                if self.check is not None:
                    self.check()
        finally:
            self.model.train(was_training)

    def _score_batch(self, rows: Rows, batch: Batch) -> _Scored:
        there = batch.to(self.world.device)
        with torch.inference_mode(), precision_of(self.world.device, self.precision):
            scores, routes = self.model(there.question_tokens, there.cells(), temperature=self.temperature)
        return _Scored(rows, batch.question_id, scores, routes)
