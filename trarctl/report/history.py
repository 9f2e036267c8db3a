"""What a run has done, from its ``metrics.jsonl``: as curves, and at a glance.

Axes: P points, L layers, K spans.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trarctl.config.settings import Settings
from trarctl.engine.evaluations import Evaluation, kept_in
from trarctl.engine.run import Metrics, RunFolder, list_runs, read_settings
from trarctl.errors import CheckpointError

MOST_POINTS = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """How a run went; all arrays are empty where nothing was logged."""

    epoch: Floats  # epochs done at each logged step, with fractions, [P]
    loss: Floats  # mean loss per sample since the step before, [P]
    rate: Floats  # learning rate, [P]
    temperature: Floats  # of hard routing, [P]
    routes: Floats  # mean span weights, [P, L, K]
    validations: list[tuple[int, float, dict[str, float]]]  # epoch, overall and by type, in percent
    gradient_norm: Floats  # of a batch before clipping, NaN where it was not logged, [P]


def read_history(run: RunFolder) -> History:
    """Read a run's metrics, averaged over groups of steps to no more points than a curve can show."""
    metrics = run.read_metrics()
    shaped = [(entry, np.shape(entry["routes"])) for entry in metrics.steps if entry.get("routes")]
    steps = [entry for entry, shape in shaped if shape == shaped[-1][1]]
    last = (metrics.epochs or steps or [{"step": 1, "epoch": 1}])[-1]
    group = -(-len(steps) // MOST_POINTS) or 1

    def column(name: str) -> Floats:
        # Files of early versions have no norm; that of a fault is no number.
        values = np.array([entry.get(name) for entry in steps], dtype=np.float64)
        starts = range(0, len(values), group)
        return np.stack([values[start : start + group].mean(axis=0) for start in starts]) if len(values) else values

    validated = sorted(metrics.validations.items())
    validations = [(epoch, entry["overall"], entry.get("per_type", {})) for epoch, entry in validated]
    epoch, (loss, rate) = column("step") / (last["step"] / last["epoch"]), map(column, ("loss", "learning_rate"))
    return History(epoch, loss, rate, column("temperature"), column("routes"), validations, column("gradient_norm"))


@dataclass(frozen=True, kw_only=True)
class RunOverview:
    """One run in a table."""

    name: str  # of the run's folder
    dataset: str = ""  # empty where the settings cannot be read, like ``split`` and ``model``
    split: str = ""  # that it trains on
    model: str = ""  # routing, pooling and spans in words
    epochs_done: int = 0  # epochs with a checkpoint, or with an end in the metrics
    epochs: int = 0  # epochs to do
    best: float | None = None  # best validation so far, percent; None without one
    best_epoch: int | None = None  # its epoch, from 1
    best_weights: str = ""  # ``ema`` or ``average`` if that was best; empty for the epoch's own weights
    num_bytes: int  # size on the disk
    state: str  # ``finished``, ``running``, ``stopped`` or ``damaged``
    state_text: str  # the same for people: ``stopped in epoch 3``
    changed: float  # when it last wrote something, seconds since 1970
    num_unreadable: int = 0  # lines of its metrics that cannot be read
    evaluations: list[Evaluation] = field(default_factory=list)  # that it keeps
    num_damaged_evaluations: int = 0  # that were left out


def overviews(folder: Path) -> list[RunOverview]:
    """Look at the runs of a folder, see ``runs_in``."""
    return look_at(runs_in(folder))


def runs_in(folder: Path) -> list[RunFolder]:
    """The runs of a folder, the latest last, or the one that it is; CheckpointError if it is no folder."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder", "name the folder of the runs: trarctl runs DIR")
    itself = RunFolder(folder)
    return [itself] if itself.exists() else list_runs(folder)


def look_at(runs: Sequence[RunFolder]) -> list[RunOverview]:
    """Look at some runs."""
    return [_overview(run, time.time()) for run in runs]


def _overview(run: RunFolder, now: float) -> RunOverview:
    num_bytes, changed = _size_and_time(run.path)
    try:
        settings = read_settings(run)
    except CheckpointError:
        text = "settings.json cannot be read"
        return RunOverview(name=run.name, num_bytes=num_bytes, state="damaged", state_text=text, changed=changed)
    metrics = run.read_metrics()
    evaluations, num_damaged = kept_in(run)
    best = metrics.best()
    ended = [entry["epoch"] for entry in metrics.epochs]
    epochs_done = max([*(epoch for epoch, _, _ in run.saved()), *ended], default=0)
    started = max((entry["epoch"] for entry in metrics.steps), default=epochs_done)
    where = f"in epoch {started}" if started > epochs_done else f"after epoch {epochs_done}"
    if run.is_written():
        state, text = "running", f"running {where}, wrote {now - changed:.0f} s ago"
    elif epochs_done >= settings.train.epochs:
        state, text = "finished", "finished"
    elif is_over_early(metrics, settings):
        state, text = "finished", f"finished early, {where}"
    else:
        state, text = "stopped", f"stopped {where}"
    return RunOverview(
        name=run.name,
        dataset=settings.data.name or settings.data.dataset,
        split=settings.data.split,
        model=model_in_words(settings),
        epochs_done=epochs_done,
        epochs=settings.train.epochs,
        best=None if best is None else best[2],
        best_epoch=None if best is None else best[0],
        best_weights="" if best is None else best[1],
        num_bytes=num_bytes,
        state=state,
        state_text=text,
        changed=changed,
        num_unreadable=metrics.num_unreadable,
        evaluations=evaluations,
        num_damaged_evaluations=num_damaged,
    )


def is_over_early(metrics: Metrics, settings: Settings) -> bool:
    """Whether ``train.patience`` has ended the run."""
    best, patience = metrics.best_epoch(), settings.train.patience
    if best is None or patience is None:
        return False
    return sum(epoch > best for epoch in metrics.validations) >= patience


def model_in_words(settings: Settings) -> str:
    """Say what tells one model from another: ``soft, avg, spans 0 1 2 3``."""
    model = settings.model
    binarize = ", binarize" if model.binarize else ""
    return f"{model.routing}, {model.pooling}{binarize}, spans {' '.join(map(str, model.spans))}"


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of all files and the time of the last change; what vanishes or cannot be read counts as nothing."""
    num_bytes, changed = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):
            status = path.stat()
            if path.is_file():
                num_bytes, changed = num_bytes + status.st_size, max(changed, status.st_mtime)
    return num_bytes, changed
