"""What ends a run before its last epoch: no better validation, or no more time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.running import Killed, kill_after, resume, tiny_settings, train, weights
from trarctl.config.resolve import resolve
from trarctl.config.settings import seconds_of
from trarctl.engine import trainer
from trarctl.engine.callbacks import CheckpointSaved, Event, Note, RunFinished, StepDone
from trarctl.engine.checkpoint import load_description
from trarctl.engine.run import RunFolder
from trarctl.errors import SettingsError, Stopped
from trarctl.report.history import overviews

# So small a rate that no validation after the first is better.
STILL = {"train__learning_rate": 1e-9, "train__epochs": 5}


def test_patience_ends_a_run_and_is_exact_when_resumed(golden_data: dict[str, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    finished: list[RunFinished] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        if isinstance(event, RunFinished):
            finished.append(event)

    patient = tiny_settings(golden_data["vqa"], tmp_path, **STILL, train__patience=2)
    with pytest.raises(Killed):
        train(patient, on_event=kill_after(lambda event: isinstance(event, CheckpointSaved) and event.epoch == 2))
    run = RunFolder(tmp_path / "runs" / "tiny")
    assert load_description(run.epoch_checkpoint(2)).progress.validations_since_best == 1
    resume(run, on_event=on_event)
    assert run.saved_epochs() == [1, 2, 3]
    early = "ended early, after epoch 3 of 5: no better validation than epoch 1 in 2 (train.patience)"
    assert (notes, [event.best_epoch for event in finished]) == ([early], [1])
    assert early in run.log_file.read_text().splitlines()
    (overview,) = overviews(run.path)
    assert (overview.state, overview.state_text) == ("finished", "finished early, after epoch 3")

    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match=r"has ended early, after epoch 3: 2 validations were no better") as raised:
        resume(run)
    assert f"trarctl resume {run.reference} --patience 4 trains on" in str(raised.value.hint)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    resume(run, train__patience="none")
    whole = train(tiny_settings(golden_data["vqa"], tmp_path, **STILL, run__name="whole"))
    assert weights(run) == weights(whole)


def test_patience_without_a_validation_is_said(golden_data: dict[str, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    settings = tiny_settings(golden_data["vqa"], tmp_path, train__epochs=1, train__patience=1, data__split="train+val")
    train(settings, on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    assert "train.patience: without effect, since this run validates nothing" in notes


def test_time_is_up_as_often_as_it_takes(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def tick(event: Event) -> None:
        now[0] += isinstance(event, StepDone)

    settings = tiny_settings(golden_data["vqa"], tmp_path, train__epochs=2, run__max_time="5s")
    with pytest.raises(Stopped) as raised:
        train(settings, on_event=tick)
    run = RunFolder(tmp_path / "runs" / "tiny")
    assert raised.value.exit_code == 142  # 128 + 14, as of an alarm
    assert str(raised.value.what) == (
        "run tiny stopped by run.max_time = 5s after step 6; its state is saved in epoch-000-step-000006.safetensors"
    )
    assert raised.value.hint == f"trarctl resume {run.reference}"
    with pytest.raises(Stopped, match="after step 12"):
        resume(run, on_event=tick)
    resume(run, on_event=tick)
    whole = train(tiny_settings(golden_data["vqa"], tmp_path, train__epochs=2, run__name="whole"))
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h30m", 9000), ("90m", 5400), ("45s", 45), ("1h", 3600), ("10min", 600), ("1h5s", 3605), ("2h30m15s", 9015)],
)
def test_a_time(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
    assert resolve(environ={}, sets=[f"run.max_time={text}"]).settings.run.max_time == text


@pytest.mark.parametrize("text", ["90", "0m", "m", "30m2h", "1.5h", "-5m", "2 h", "1h1h", "\u0665m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(SettingsError, match="must be a time, such as 2h30m, 90m or 45s"):
        resolve(environ={}, options={"run.max_time": (text, "--max-time")})
