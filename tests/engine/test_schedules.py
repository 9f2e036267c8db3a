"""Learning rate and temperature, against the original's figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import GOLDEN
from trarctl.config.settings import TrainSettings
from trarctl.engine.schedules import learning_rate, temperature

SCHEDULES = json.loads((GOLDEN / "schedules.json").read_text())


@pytest.mark.parametrize("case", SCHEDULES["temperature"], ids=lambda case: f"{case['policy']}-{case['max_epoch']}")
def test_temperature_is_the_originals_but_never_below_the_lowest(case: dict[str, Any]) -> None:
    settings = TrainSettings(
        epochs=case["max_epoch"],
        warmup_epochs=case["warmup_epoch"],
        temperature_policy=case["policy"],
        temperature_max=case["tau_max"],
        temperature_min=case["tau_min"],
    )
    expected = [max(value, case["tau_min"]) for value in case["tau"]]
    ours = [temperature(settings, epoch=epoch) for epoch in range(case["max_epoch"])]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_a_straight_line_ends_at_the_lowest() -> None:
    for epochs, temperatures in ((1, [10.0]), (2, [10.0, 0.1]), (3, [10.0, 5.05, 0.1])):
        settings = TrainSettings(epochs=epochs, temperature_policy=0, temperature_max=10, temperature_min=0.1)
        assert [temperature(settings, epoch=epoch) for epoch in range(epochs)] == pytest.approx(temperatures)


def test_a_policy_that_would_reach_zero_stops_at_the_lowest() -> None:
    settings = TrainSettings(epochs=16, warmup_epochs=3, temperature_policy=1)
    assert temperature(settings, epoch=15) == settings.temperature_min
    for policy in (0, 1, 2):
        for epochs, warmup in ((1, 0), (1, 3), (2, 2), (40, 0)):
            settings = TrainSettings(epochs=epochs, warmup_epochs=warmup, temperature_policy=policy)
            assert all(temperature(settings, epoch=epoch) >= settings.temperature_min for epoch in range(epochs + 5))


@pytest.mark.parametrize("case", SCHEDULES["learning_rate"], ids=lambda case: str(case["data_size"]))
def test_learning_rate_of_every_step(case: dict[str, Any]) -> None:
    settings = TrainSettings(
        learning_rate=case["lr_base"],
        batch_size=case["batch_size"],
        warmup_epochs=case["warmup_epoch"],
        caps_warmup=False,
        decay_epochs=tuple(case["decay_epochs"]),
        decay_factor=case["decay_rate"],
    )
    step = 0
    for epoch, rates in enumerate(case["rate_per_step_by_epoch"]):
        for rate in rates:
            step += 1
            ours = learning_rate(settings, epoch=epoch, step=step, num_samples=case["data_size"])
            assert ours == pytest.approx(rate, rel=1e-12), (epoch, step)


def test_no_stage_of_a_warm_up_exceeds_the_base_rate() -> None:
    for warmup, stages in ((1, (0.5, 1, 1, 1)), (2, (1 / 3, 2 / 3, 1, 1)), (3, (0.25, 0.5, 0.75, 1))):
        settings = TrainSettings(learning_rate=2e-3, batch_size=10, warmup_epochs=warmup, decay_epochs=())
        steps = 40 * (warmup + 1)
        rates = [learning_rate(settings, epoch=0, step=step, num_samples=400) for step in range(1, steps + 1)]
        assert rates == pytest.approx([2e-3 * stage for stage in stages for _ in range(steps // 4)])


def test_without_warm_up_the_rate_is_the_base_at_once() -> None:
    settings = TrainSettings(learning_rate=1e-4, warmup_epochs=0, decay_epochs=(1,))
    assert learning_rate(settings, epoch=0, step=1, num_samples=640) == 1e-4
    assert learning_rate(settings, epoch=1, step=11, num_samples=640) == pytest.approx(2e-5)
