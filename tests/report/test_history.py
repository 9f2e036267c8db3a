from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trarctl.engine.run import RunFolder
from trarctl.report.history import MOST_POINTS, read_history


def entry(step: int, epoch: int) -> dict[str, object]:
    routes = [[0.5, 0.5], [step / 1000, 1 - step / 1000]]
    values = {"loss": 1 / step, "learning_rate": 1e-4, "temperature": 1.0, "routes": routes}
    if step > 500:  # as if an early version had written the beginning
        values["gradient_norm"] = 2.0 * epoch
    return {"event": "step", "epoch": epoch, "step": step} | values


def test_curves_are_in_epochs_and_thinned_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in range(1, 1001):
        run.record(entry(step, 1 + (step - 1) // 250))
        if step % 250 == 0:
            run.record({"event": "epoch", "epoch": step // 250, "step": step})
            run.record({"event": "validation", "epoch": step // 250, "overall": step / 10, "per_type": {"a": 1.0}})
    history = read_history(run)
    assert 200 <= len(history.epoch) <= MOST_POINTS
    assert history.epoch[0] == pytest.approx(2.5 / 250)
    assert history.epoch[-1] == pytest.approx(4, abs=0.01)
    assert history.routes.shape == (len(history.epoch), 2, 2)
    assert np.abs(history.routes.sum(axis=2) - 1).max() < 1e-9
    assert history.loss[0] == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4]))
    assert history.gradient_norm[0] != history.gradient_norm[0]  # NaN
    assert history.gradient_norm[[-100, -1]].tolist() == [6.0, 8.0]
    assert history.validations == [(epoch, 25.0 * epoch, {"a": 1.0}) for epoch in (1, 2, 3, 4)]


def test_a_validation_done_again_counts_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for overall in (50.0, 60.0):
        run.record({"event": "validation", "epoch": 1, "overall": overall, "per_type": {}})
    assert read_history(run).validations == [(1, 60.0, {})]


def test_a_run_that_logged_nothing_has_no_curves(tmp_path: Path) -> None:
    history = read_history(RunFolder(tmp_path))
    assert len(history.epoch) == len(history.loss) == len(history.routes) == 0
