"""What the engine tells whoever watches: plain facts, no rendering.

An observer is any callable that takes an event; it is called in the process of rank 0 only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RunStarted:
    """The model stands and the data is open."""

    name: str
    folder: Path
    device: str
    num_processes: int
    num_parameters: int
    num_samples: int
    steps_per_epoch: int
    epochs: int
    start_epoch: int
    start_step: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step; ``loss``, ``routes`` and ``memory_bytes`` are there only on the steps that are logged.

    Attributes:
        epoch: number from 1.
        step_in_epoch: steps done in this epoch.
        steps_per_epoch: of how many.
        step: steps done in all.
        rate: learning rate of the step.
        temperature: of hard routing.
        samples_per_second: over the epoch so far.
        loss: mean loss per sample since the last logged step.
        routes: mean span weights of the last part of the batch, one list of K per layer.
        memory_bytes: peak memory of the device in this process.
    """

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    step: int
    rate: float
    temperature: float
    samples_per_second: float
    loss: float | None = None
    routes: list[list[float]] | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Progressed:
    """A long task (validation, scoring) has come some way; ``total`` is None while nobody knows it."""

    task: str
    done: int
    total: int | None


@dataclass(frozen=True)
class EpochDone:
    """An epoch of training is over; ``epoch`` counts from 1, ``loss`` is the mean per sample."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    rate: float
    temperature: float
    seconds: float
    samples_per_second: float


@dataclass(frozen=True)
class Validated:
    """Accuracy on the validation split after an epoch, in percent."""

    epoch: int
    step: int
    overall: float
    per_type: dict[str, float]
    is_best: bool
    seconds: float
    routes: list[list[float]] = field(default_factory=list)
    evaluator: str = "official"


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on the disk, after ``epoch`` finished epochs and ``step`` steps of the next."""

    path: Path
    epoch: int
    step: int
    seconds: float


@dataclass(frozen=True)
class Note:
    """Something that the user should know but need not act on."""

    text: str


@dataclass(frozen=True)
class RunFinished:
    """The last epoch is done."""

    name: str
    folder: Path
    seconds: float
    best_epoch: int | None
    best_overall: float | None


Event = RunStarted | StepDone | EpochDone | Progressed | Validated | CheckpointSaved | Note | RunFinished
Callback = Callable[[Event], None]


def no_callback(event: Event) -> None:
    """The observer that looks away."""


def both(first: Callback, second: Callback) -> Callback:
    """An observer that passes each event on to two."""

    def callback(event: Event) -> None:
        first(event)
        second(event)

    return callback
