"""Prepared data to batches: which samples, in which order, and their arrays.

Axes: B batch, T tokens of the batch's longest question, N cells, W feature width, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trarctl.config import Loss
from trarctl.data import in_threads
from trarctl.data.features.resident import ResidentFeatures
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.data.records import Ids
from trarctl.data.text import soft_scores
from trarctl.errors import DataError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Arrays of a few questions."""

    question_id: Ids  # [B], int64 or text as the data set has them
    question_tokens: Tensor  # word indices, 0 after each question, cut to the longest, [B, T] int64
    features: Tensor  # grid features of its images, or of all that a device keeps, each once, [I, N, W] as stored
    image: Tensor | None  # each question's row in features, [B] int64; None: each has its own, in order
    target: Tensor | None  # soft scores [B, A] float32, or for "ce" the answer's index [B] int64; None: no answers

    def __len__(self) -> int:
        return len(self.question_id)

    def to(self, device: torch.device) -> Batch:
        """Copy to a device; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy what is not there yet to page-locked memory, for asynchronous copies to a GPU."""
        return self._each(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        held = self.question_tokens, self.features, self.image, self.target
        return [tensor for tensor in held if tensor is not None]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            self.question_id,
            change(self.question_tokens),
            change(self.features),
            None if self.image is None else change(self.image),
            None if self.target is None else change(self.target),
        )

    def padded(self, num_tokens: int) -> Batch:
        """The same questions with ``num_tokens`` T words, those at the end being padding, which changes no score."""
        missing = num_tokens - self.question_tokens.shape[1]
        return replace(self, question_tokens=functional.pad(self.question_tokens, (0, missing)))

    def cells(self) -> Tensor:
        """Give the features of each question's image, [B, N, W]."""
        if self.image is None:
            return self.features
        return self.features.index_select(0, self.image)


class Samples:
    """Questions of one or more splits, in a fixed order.

    ``parts`` are splits and, of each, the rows to take in order; without ``loss`` there are no targets. A DataError
    says that the features of sampled images have changed since they were prepared.
    """

    def __init__(self, data: PreparedData, parts: Sequence[tuple[PreparedSplit, Rows]], loss: Loss | None) -> None:
        self._data = data
        self._parts = list(parts)
        self._starts = np.cumsum([0] + [len(rows) for _, rows in parts])
        self._loss = loss
        self.num_answers = len(data.answers)
        data.features.verify()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def images(self) -> Rows:
        """Rows of the image table that the samples need, ascending."""
        needed = np.unique(np.concatenate([split.image[rows] for split, rows in self._parts]))
        return needed[needed >= 0].astype(np.int64)

    @property
    def question_id(self) -> Ids:
        """Ids of all samples, in their order."""
        return np.concatenate([split.question_id[rows] for split, rows in self._parts])

    def batch(self, indices: Rows, *, kept: ResidentFeatures | None = None, pin: bool = False) -> Batch:
        """Gather the samples at ``indices`` [B] of this order; DataError if features cannot be read.

        Those in ``kept`` are not read again. ``pin`` puts the batch in page-locked memory, the features without a copy.
        """
        part_of = np.searchsorted(self._starts, indices, side="right") - 1
        chosen = [
            (positions := np.flatnonzero(part_of == part), split, rows[indices[positions] - self._starts[part]])
            for part, (split, rows) in enumerate(self._parts)
        ]
        back = np.argsort(np.concatenate([positions for positions, *_ in chosen]))

        def gather(field: Callable[[PreparedSplit], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([field(split)[rows] for _, split, rows in chosen])[back]

        tokens = gather(lambda split: split.question_tokens).astype(np.int64)
        question_id = gather(lambda split: split.question_id)
        image = gather(lambda split: split.image).astype(np.int64)
        batch = Batch(
            question_id,
            torch.from_numpy(tokens[:, : trimmed_length(tokens)]),
            *self._features(image, kept, pin=pin),
            self._target(chosen, len(indices)) if self._loss is not None else None,
        )
        return batch.pinned() if pin else batch

    def _features(self, image: Rows, kept: ResidentFeatures | None, *, pin: bool) -> tuple[Tensor, Tensor | None]:
        """The features of images [B] of the image table, and the row of each in them, as a batch has both."""
        if kept is not None and kept.on_device is not None:
            return kept.on_device, torch.from_numpy(kept.places(image))
        images, image_of = np.unique(image, return_inverse=True)
        of_each = None
        if len(images) == len(image):
            images = image
        else:
            of_each = torch.from_numpy(image_of.reshape(-1))
        store = self._data.features
        shape = len(images), store.num_cells, store.width
        if pin:
            features = torch.empty(shape, dtype=getattr(torch, store.dtype.name), pin_memory=True)
        else:
            features = torch.from_numpy(np.empty(shape, dtype=store.dtype))
        (store if kept is None else kept).read(images, features.numpy())
        return features, of_each

    def _target(self, chosen: list[tuple[Rows, PreparedSplit, Rows]], size: int) -> Tensor:
        # Scores are made of the few counts that are there: most of a batch's answers have none.
        target = np.zeros((size, self.num_answers), dtype=np.uint8 if self._loss == "ce" else np.float32)
        for positions, split, rows in chosen:
            if not len(positions):
                continue
            offsets, answer, count = split.targets
            first, last = offsets[rows], offsets[rows + 1]
            lengths = last - first
            flat = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
            given: NDArray[Any] = count[flat]
            if self._loss == "bce":
                given = soft_scores(given)
            elif self._loss == "kld":
                given = given.astype(np.float32) / 10
            target[np.repeat(positions, lengths), answer[flat]] = given
        return torch.from_numpy(target.argmax(axis=1) if self._loss == "ce" else target)


def training_samples(data: PreparedData, split: str, loss: Loss) -> Samples:
    """Give the samples to train on, in the order of the annotations; ``split`` may be names joined by ``+``."""
    parts = []
    for name in split.split("+"):
        part = data.split(name)
        if not part.is_annotated:
            raise DataError(f"split {name} of {data.path} has no answers to train on", "choose another with --split")
        rows = np.asarray(part.training_order, dtype=np.int64)
        if loss == "ce" and (num_lost := int((np.diff(part.targets[0])[rows] == 0).sum())):
            lost = f"{num_lost:,} of {len(rows):,} training questions of {name}"
            what = f'{lost} have no answer out of the answer list, which the loss "ce" needs'
            raise DataError(what, "leave these questions out of its file, or choose another with --split")
        parts.append((part, rows))
    return Samples(data, parts, loss)


def scoring_samples(data: PreparedData, split: str) -> Samples:
    """Give the questions of one split in file order, without targets."""
    part = data.split(split)
    return Samples(data, [(part, np.arange(len(part), dtype=np.int64))], None)


def trimmed_length(tokens: NDArray[np.int64]) -> int:
    """Count the columns of [B, T] tokens that hold a word; all T if a question has none: its state is their mean."""
    if not tokens[:, 0].all():
        return int(tokens.shape[1])
    return int(np.flatnonzero(tokens.any(axis=0))[-1]) + 1


def epoch_order(num_samples: int, *, seed: int, epoch: int, shuffle: bool) -> Rows:
    """Give the order of the samples in one epoch: a function of its arguments alone, the same in every process."""
    if not shuffle:
        return np.arange(num_samples, dtype=np.int64)
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples).astype(np.int64)


def training_plan(
    num_samples: int, *, batch_size: int, seed: int, epoch: int, shuffle: bool, first_step: int = 0
) -> list[Rows]:
    """Give the batches of one epoch from a step on; samples that do not fill the last batch are left out of it."""
    num_steps = num_samples // batch_size
    order = epoch_order(num_samples, seed=seed, epoch=epoch, shuffle=shuffle)
    return list(order[: num_steps * batch_size].reshape(num_steps, batch_size)[first_step:])


def scoring_plan(num_samples: int, *, batch_size: int, rank: int = 0, num_processes: int = 1) -> list[Rows]:
    """Give consecutive batches over all samples, each sample once; processes take turns."""
    starts = range(rank * batch_size, num_samples, batch_size * num_processes)
    return [np.arange(start, min(start + batch_size, num_samples), dtype=np.int64) for start in starts]


def load_batches(
    samples: Samples,
    plan: Sequence[Rows],
    *,
    num_workers: int,
    pin: bool = False,
    kept: ResidentFeatures | None = None,
) -> Iterator[Batch]:
    """Assemble the planned batches in order, a few ahead of their use; see ``Samples.batch``.

    ``num_workers`` threads read ahead; with 0 the calling thread reads.
    """
    assemble = partial(samples.batch, kept=kept, pin=pin)
    if num_workers == 0:
        yield from map(assemble, plan)
    else:
        yield from in_threads(assemble, plan, num_workers)
