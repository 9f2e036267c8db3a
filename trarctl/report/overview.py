"""The runs of a folder at a glance: what each is, how far it came and how good it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trarctl.config.settings import Settings
from trarctl.engine.run import RunFolder, list_runs, read_settings
from trarctl.errors import CheckpointError

# Nothing on the disk says for certain that a run is going on: it is taken to be if it wrote something lately, that is
# within a minute and three times as long as it takes from one line of metrics to the next.
_SILENT_SECONDS = 60.0
_SILENT_LINES = 3


@dataclass(frozen=True)
class RunOverview:
    """One run in a table.

    Attributes:
        name: of the run's folder.
        dataset: empty where the settings cannot be read, like ``split`` and ``model``.
        split: that it trains on.
        model: routing, pooling and spans in words.
        epochs_done: epochs with a checkpoint, or that the metrics tell of.
        epochs: epochs to do.
        best: best validation so far, percent; None without one.
        best_epoch: its epoch, from 1.
        num_bytes: size on the disk.
        state: ``finished``, ``running``, ``stopped`` or ``damaged``.
        state_text: the same for people: ``stopped in epoch 3``.
        changed: when it last wrote something, seconds since 1970.
    """

    name: str
    dataset: str
    split: str
    model: str
    epochs_done: int
    epochs: int
    best: float | None
    best_epoch: int | None
    num_bytes: int
    state: str
    state_text: str
    changed: float


def overviews(folder: Path, *, now: float | None = None) -> list[RunOverview]:
    """Look at all runs of a folder, the most recently started or changed last.

    Args:
        folder: of the runs; one that is missing holds none.
        now: seconds since 1970; None for the clock's.
    """
    return [overview(run, now=time.time() if now is None else now) for run in list_runs(folder)]


def overview(run: RunFolder, *, now: float) -> RunOverview:
    """Look at one run."""
    num_bytes, changed = _size_and_time(run.path)
    try:
        settings = read_settings(run)
    except CheckpointError:
        return RunOverview(
            run.name, "", "", "", 0, 0, None, None, num_bytes, "damaged", "settings.json cannot be read", changed
        )
    entries = list(run.metrics())
    scores = {entry["epoch"]: entry["overall"] for entry in entries if entry.get("event") == "validation"}
    best_epoch = max(scores, key=lambda epoch: (scores[epoch], -epoch)) if scores else None
    ended = [entry["epoch"] for entry in entries if entry.get("event") == "epoch"]
    epochs_done = max([*(epoch for epoch, _, _ in run.saved()), *ended], default=0)
    begun = max((entry["epoch"] for entry in entries if entry.get("event") == "step"), default=epochs_done)
    is_lively = now - changed < _SILENT_SECONDS + _SILENT_LINES * _seconds_a_line(settings, entries)
    state, text = _state(epochs_done, begun, settings.train.epochs, is_lively=is_lively, silent=now - changed)
    return RunOverview(
        run.name,
        settings.data.dataset,
        settings.data.split,
        model_in_words(settings),
        epochs_done,
        settings.train.epochs,
        None if best_epoch is None else scores[best_epoch],
        best_epoch,
        num_bytes,
        state,
        text,
        changed,
    )


def model_in_words(settings: Settings) -> str:
    """What tells one recipe from another: ``soft, avg, spans 0 1 2 3``."""
    model = settings.model
    binarize = ", binarize" if model.binarize else ""
    return f"{model.routing}, {model.pooling}{binarize}, spans {' '.join(map(str, model.spans))}"


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of all files and the time of the last change; files may vanish while a run goes on."""
    num_bytes, changed = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.is_file():
                num_bytes, changed = num_bytes + status.st_size, max(changed, status.st_mtime)
    return num_bytes, changed


def _seconds_a_line(settings: Settings, entries: Sequence[Mapping[str, Any]]) -> float:
    speeds = [entry["samples_per_second"] for entry in entries if entry.get("event") == "step"]
    return settings.run.log_every * settings.train.batch_size / max(speeds[-1], 1e-3) if speeds else 0.0


def _state(epochs_done: int, begun: int, epochs: int, *, is_lively: bool, silent: float) -> tuple[str, str]:
    if epochs_done >= epochs:
        return "finished", "finished"
    where = f"in epoch {begun}" if begun > epochs_done else f"after epoch {epochs_done}"
    if is_lively:
        return "running", f"running? {where}, wrote {silent:.0f} s ago"
    return "stopped", f"stopped {where}"
