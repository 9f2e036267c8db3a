"""Loggers: curves go where the settings say, and a missing one is named before anything starts."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from tests.engine.running import Killed, kill_after, resume, tiny_settings, train
from trarctl.config.resolve import resolve
from trarctl.config.settings import DataSettings, Settings, TrainSettings
from trarctl.engine import callbacks
from trarctl.engine.callbacks import (
    EpochDone,
    Event,
    Note,
    RunFinished,
    RunStarted,
    Shielded,
    StepDone,
    Validated,
    numbers_of,
)
from trarctl.engine.run import RunFolder
from trarctl.errors import DataError, SettingsError, told_warnings


def test_tensorboard_gets_the_curves_once(golden_data: dict[str, Path], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = tiny_settings(
        golden_data["vqa"], tmp_path, train__epochs=2, run__loggers="tensorboard", run__log_every=1
    )
    with pytest.raises(Killed):
        train(settings, on_event=kill_after(lambda event: isinstance(event, StepDone) and event.step == 10))
    run = resume(RunFolder(tmp_path / "runs" / "tiny"))
    curves = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    logged = {entry["step"]: entry["loss"] for entry in run.metrics() if entry["event"] == "step"}
    shown = {point.step: point.value for point in curves.Scalars("train/loss")}
    assert shown == pytest.approx(logged)
    assert [point.step for point in curves.Scalars("train/loss")] == list(range(1, 15))
    assert [point.step for point in curves.Scalars("validation/overall")] == [7, 14]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed(golden_data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="run.loggers: wandb is not installed") as raised:
        train(tiny_settings(golden_data["vqa"], tmp_path, run__loggers="wandb"))
    assert raised.value.hint == "pip install 'trarctl[wandb]'"
    assert not (tmp_path / "runs").exists()


FAKE_WANDB = """
import os, sys, types

logged = []
Settings = lambda **values: types.SimpleNamespace(**values)

def init(**values):
    assert not sys.stdin.isatty(), "it would ask for a key"
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return types.SimpleNamespace(log=lambda numbers, step: logged.append(step), finish=lambda: None, url=None)
    if "WANDB_API_KEY" not in os.environ:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")
    assert values["settings"].init_timeout <= 60
    raise ConnectionError("Timed out while retrying: no such host\\nConsider increasing the init_timeout setting")
"""


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "No API key configured. Use `wandb login` to log in."),
        ({"WANDB_API_KEY": "x"}, "Timed out while retrying: no such host"),
        ({"WANDB_MODE": "offline"}, None),
        ({"WANDB_MODE": "disabled"}, None),
    ],
)
def test_wandb_without_a_key_or_a_network_ends_before_the_run_begins(
    environ: Mapping[str, str],
    reason: str | None,
    golden_data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    settings = tiny_settings(golden_data["vqa"], tmp_path, train__epochs=1, run__loggers="wandb", run__log_every=3)
    if reason is None:
        train(settings)
        assert importlib.import_module("wandb").logged == [3, 6, 7, 7, 7]  # steps, the epoch, its validation
    else:
        events: list[Event] = []
        with pytest.raises(SettingsError) as raised:
            train(settings, on_event=events.append)
        assert raised.value.what == f"run.loggers: wandb cannot begin: {reason}"
        assert "WANDB_MODE=offline needs neither key nor network" in str(raised.value.hint)
        assert raised.value.exit_code == 3
        assert not (tmp_path / "runs" / "tiny").exists()
        assert not [event for event in events if isinstance(event, RunStarted | StepDone)]
    assert sys.stdin is terminal


def test_what_is_worth_a_curve() -> None:
    step = StepDone(1, 2, 7, 2, 1e-3, 10.0, 99.0, loss=1.5, routes=[[0.25, 0.75]], gradient_norm=7.5)
    numbers, number = numbers_of(step) or ({}, 0)
    assert number == 2
    assert numbers["train/loss"] == 1.5
    assert numbers["train/gradient_norm"] == 7.5
    assert numbers["routes/layer_0/span_1"] == 0.75
    assert numbers_of(StepDone(1, 2, 7, 2, 1e-3, 10.0, 99.0)) is None
    assert numbers_of(RunFinished("a", Path(), 1.0, None, None)) is None
    assert numbers_of(EpochDone(1, 7, 7, 0.5, 1e-3, 1.0, 2.0, 9.0)) == ({"epoch/loss": 0.5, "epoch/seconds": 2.0}, 7)
    validated = Validated(1, 7, 50.0, {"yes/no": 60.0}, is_best=True, seconds=1.0)
    assert numbers_of(validated) == ({"validation/overall": 50.0, "validation/yes/no": 60.0}, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"later_split": "train+val"}, "later_split needs later_split_epoch"),
        ({"later_split_epoch": 10}, "later_split_epoch needs later_split"),
        ({"later_split": "test", "later_split_epoch": 10}, "later_split 'test' is none that vqa trains on"),
        ({"later_split": "train", "later_split_epoch": 13}, "later_split_epoch 13 is not reached in 13 epochs"),
    ],
)
def test_a_later_split_must_make_sense(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(data=DataSettings.model_validate(data), train=TrainSettings(epochs=13))


def test_a_later_split_is_trained_on_from_its_epoch_on(golden_data: dict[str, Path], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []

    def on_event(event: object) -> None:
        if isinstance(event, EpochDone):
            steps.append((event.epoch, event.steps_per_epoch))

    changes = {"data__split": "train+val+vg", "data__later_split": "train+val", "data__later_split_epoch": 2}
    train(tiny_settings(golden_data["vqa"], tmp_path, **changes, train__epochs=3), on_event=on_event)
    assert steps[0][1] == steps[1][1] > steps[2][1] == 12


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_the_start_of_a_run_says_what_its_display_needs(
    routing: str, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    events: list[Event] = []
    changes = {"model__spans": "0,2", "model__routing": routing, "train__epochs": 1}
    train(tiny_settings(golden_data["vqa"], tmp_path, **changes), on_event=events.append)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    assert (started.spans, started.is_hard) == ((0, 2), routing == "hard")


def test_a_display_or_logger_that_fails_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shown, fed = RunFolder(tmp_path / "run"), [], []
    run.create()

    def write(numbers: Mapping[str, float], step: int) -> None:
        fed.append(step)
        raise ValueError("no connection")

    @contextmanager
    def logger(*_arguments: object) -> Iterator[callbacks.Write]:
        yield write
        raise OSError("gone")

    monkeypatch.setitem(callbacks._LOGGERS, "wandb", logger)

    def show(event: Event) -> None:
        shown.append(event)
        if isinstance(event, StepDone):
            raise OSError(5, "Input/output error")

    settings = resolve(sets=["run.loggers=wandb"], environ={}).settings
    with callbacks.recorded(run, settings, Shielded(show, "the display"), first_step=0) as callback:
        for step in (1, 2):
            callback(StepDone(1, step, 2, step, 0.1, 1.0, 10.0, loss=0.5, routes=[], memory_bytes=1, gradient_norm=1.0))
    assert [entry["step"] for entry in run.metrics()] == fed == [1, 2]
    assert run.log_file.read_text().splitlines() == [
        "the display failed, the run goes on: OSError: [Errno 5] Input/output error",
        "wandb failed, the run goes on: ValueError: no connection",
        "wandb failed at its end: OSError: gone",
    ]
    assert sum(isinstance(event, Note) for event in shown) == 2


def test_a_log_for_people_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.log_file.mkdir()
    callbacks.journal(run)(Note("odd"))
    run.metrics_file.mkdir()
    with pytest.raises(DataError, match="cannot write"):
        callbacks.journal(run)(EpochDone(1, 2, 2, 0.5, 0.1, 1.0, 3.0, 4.0))


def test_warnings_of_libraries_are_told_once_and_counted() -> None:
    told: list[str] = []
    with told_warnings(told.append):
        for _ in range(3):
            warnings.warn("odd\nthing", UserWarning, stacklevel=1)
    assert told == ["odd thing", "2 more times: odd thing"]
