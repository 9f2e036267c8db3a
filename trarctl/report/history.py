"""A run's metrics as curves.

Axes: P points, L layers, K spans.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trarctl.engine.run import RunFolder

MOST_POINTS = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """How a run went; all arrays are empty where nothing was logged.

    Attributes:
        epoch: place in the training in epochs, of the logged steps, [P].
        loss: mean loss per sample since the step before, [P].
        rate: learning rate, [P].
        temperature: of hard routing, [P].
        routes: mean span weights, [P, L, K].
        validations: (epoch, overall, by type) of each validation, percent.
    """

    epoch: Floats
    loss: Floats
    rate: Floats
    temperature: Floats
    routes: Floats
    validations: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)


def read_history(run: RunFolder) -> History:
    """Read a run's ``metrics.jsonl``, thinned out to what a curve can show."""
    entries = list(run.metrics())
    steps = [entry for entry in entries if entry.get("event") == "step" and entry.get("routes")]
    ends = [entry for entry in entries if entry.get("event") == "epoch"]
    validations = {
        entry["epoch"]: (entry["epoch"], entry["overall"], entry["per_type"])
        for entry in entries
        if entry.get("event") == "validation"
    }
    last = (ends or steps or [{"step": 1, "epoch": 1}])[-1]
    steps_per_epoch = last["step"] / last["epoch"]
    group = -(-len(steps) // MOST_POINTS) or 1

    def column(name: str) -> Floats:
        return _thinned(np.array([entry[name] for entry in steps], dtype=np.float64), group)

    return History(
        column("step") / steps_per_epoch,
        column("loss"),
        column("learning_rate"),
        column("temperature"),
        _thinned(np.array([entry["routes"] for entry in steps], dtype=np.float64), group),
        [validations[epoch] for epoch in sorted(validations)],
    )


def _thinned(values: Floats, group: int) -> Floats:
    """Average every ``group`` points to one."""
    if group == 1:
        return values
    return np.stack([values[start : start + group].mean(axis=0) for start in range(0, len(values), group)])
