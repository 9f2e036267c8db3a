"""A run that was killed and resumed is the run that was not, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from tests.engine.running import Killed, kill_after, resume, tiny_settings, train, weights
from trarctl.engine import distributed
from trarctl.engine.callbacks import (
    CandidateValidated,
    CheckpointSaved,
    EpochDone,
    Event,
    Note,
    Progressed,
    StepDone,
    Validated,
)
from trarctl.engine.checkpoint import load_description
from trarctl.engine.run import RunFolder
from trarctl.errors import CheckpointError, SettingsError

HARDEST = {"model__routing": "hard", "train__epochs": 4, "train__patience": 4}
HARDEST |= {"train__ema_decay": 0.9, "train__average_epochs": 2}


@pytest.fixture(scope="module")
def undisturbed(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Four epochs of hard routing with dropout, the hardest to go on with: noise and temperature must fit.

    There are averages of weights, too, and patience that counts.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(tiny_settings(golden_data["vqa"], folder, **HARDEST))


def metrics_of(run: RunFolder) -> list[dict[str, object]]:
    """What was measured, without what depends on the clock."""
    timed = ("seconds", "samples_per_second", "memory_bytes")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in run.metrics()]


KILLS: dict[str, Callable[[Event], bool]] = {
    "in the first step": lambda event: isinstance(event, StepDone) and event.step == 1,
    "after the second epoch": lambda event: isinstance(event, CheckpointSaved) and (event.epoch, event.step) == (2, 0),
    "before its average was written": lambda event: isinstance(event, CandidateValidated) and event.epoch == 4,
    "before it was reported": lambda event: isinstance(event, EpochDone) and event.epoch == 2,
    "in the middle of an epoch": lambda event: isinstance(event, StepDone) and event.step == 12,
    "in a validation": lambda event: isinstance(event, Progressed),
    "after a validation": lambda event: isinstance(event, Validated) and event.epoch == 3,
}


@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_resumed(moment: str, undisturbed: RunFolder, golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, **HARDEST, run__save_every=2)
    with pytest.raises(Killed):
        train(settings, on_event=kill_after(KILLS[moment]))
    run = RunFolder(tmp_path / "runs" / "tiny")
    if run.saved():
        resume(run)
    else:
        train(settings)
    assert weights(run) == weights(undisturbed)
    assert metrics_of(run) == metrics_of(undisturbed)
    assert [path.name for _, step, path in run.saved() if step] == []
    assert not (run.path / "superseded").exists()
    averages = undisturbed.saved_candidates()
    assert run.saved_candidates() == averages
    assert [name for _, name in averages].count("ema") == [name for _, name in averages].count("average") == 1
    for one in averages:
        ours, theirs = (weights(each, each.candidate_checkpoint(*one)) for each in (run, undisturbed))
        assert ours == theirs


def test_two_epochs_extended_to_four(golden_data: dict[str, Path], tmp_path: Path) -> None:
    four = train(tiny_settings(golden_data["clevr"], tmp_path, "clevr", **SOFT, train__epochs=4, run__name="four"))
    two = train(tiny_settings(golden_data["clevr"], tmp_path, "clevr", **SOFT, train__epochs=2, run__name="two"))
    with pytest.raises(SettingsError, match="has finished its 2 epochs"):
        resume(two)
    resume(two, epochs=4)
    assert weights(two) == weights(four)


def test_a_precision_that_this_device_does_not_have_is_said_once(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, notes = tiny_settings(golden_data["vqa"], tmp_path, run__validate_every=0, train__epochs=1), list[str]()
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(distributed, "training_precision", lambda *_arguments: "bf16")
        run = train(settings)
    assert load_description(run.epoch_checkpoint(1)).precision == "bf16"

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    resume(run, epochs=2, on_event=on_event)
    stays = "train.decay_epochs stays [3] in {} epochs; --set train.decay_epochs=LIST changes it"
    assert notes == [stays.format(2), "trained in bf16 so far, which cpu does not have: in fp32 from here on"]
    assert load_description(run.epoch_checkpoint(2)).precision == "fp32"
    resume(run, epochs=3, on_event=on_event)
    resume(run, epoch=1, epochs=2, run__precision="fp32", on_event=on_event)
    assert [note.partition(": ")[0] for note in notes[2:]] == [
        stays.format(3),
        "changed from here on",
        stays.format(2),
        f"what the run did after {run.epoch_checkpoint(1).name} is set aside as a run of its own",
    ]


SOFT = {"model__routing": "soft", "model__pooling": "avg", "train__accumulation": 1}


def test_from_an_earlier_epoch(undisturbed: RunFolder, tmp_path: Path) -> None:
    run = copy(undisturbed, tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of epoch 7"):
        resume(run, epoch=7)
    resume(run, epoch=1)
    assert weights(run) == weights(undisturbed)
    assert metrics_of(run) == metrics_of(undisturbed)
    aside = run.path / "superseded" / "1" / "checkpoints"
    found = sorted(path.name for path in aside.iterdir() if path.name.removesuffix(".safetensors")[-1].isdigit())
    assert found == [f"epoch-00{n}.safetensors" for n in (2, 3, 4)]
    assert (aside / "epoch-004-average.safetensors").is_file()


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(undisturbed: RunFolder, tmp_path: Path) -> None:
    run = copy(undisturbed, tmp_path)
    damage(run.epoch_checkpoint(4))
    run.epoch_checkpoint(3).write_bytes(run.epoch_checkpoint(3).read_bytes()[:1000])
    notes: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    resume(run, on_event=on_event)
    assert weights(run) == weights(undisturbed)
    assert [note.partition("checkpoints/")[2][:9] for note in notes[:2]] == ["epoch-004", "epoch-003"]
    assert all(note.endswith("taking the one before") for note in notes[:2])
    aside = run.path / "superseded" / "1"
    assert notes[2:] == [f"what the run did after epoch-002.safetensors is set aside as a run of its own: {aside}"]
    damage(run.epoch_checkpoint(4))
    with pytest.raises(CheckpointError, match=r"epoch-004\.safetensors is damaged"):
        resume(run, epoch=4)


def test_left_over_temporary_files_go(undisturbed: RunFolder, tmp_path: Path) -> None:
    run = copy(undisturbed, tmp_path)
    torn = run.checkpoints / ".epoch-005.safetensors.77.tmp"
    torn.write_bytes(b"half")
    resume(run, epochs=5)
    assert not torn.exists()
    assert run.epoch_checkpoint(5).is_file()


def test_a_run_of_that_name_is_not_overwritten(undisturbed: RunFolder, golden_data: dict[str, Path]) -> None:
    settings = tiny_settings(golden_data["vqa"], undisturbed.path.parent.parent)
    with pytest.raises(SettingsError, match="run tiny exists in"):
        train(settings)


def test_only_the_latest_and_the_best_are_kept(golden_data: dict[str, Path], tmp_path: Path) -> None:
    run = train(tiny_settings(golden_data["vqa"], tmp_path, train__epochs=5, run__keep=2, train__learning_rate=1e-9))
    best = run.read_metrics().best_epoch(run.saved_epochs())
    assert best == 1
    assert [epoch for epoch, _, _ in run.saved()] == [1, 4, 5]


def copy(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(run.path, folder / "runs" / run.name)))


def damage(path: Path) -> None:
    """Flip one bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_settings_beside_the_run_say_where_its_data_is(undisturbed: RunFolder, golden_data: dict[str, Path]) -> None:
    settings = orjson.loads(undisturbed.settings_file.read_bytes())
    assert settings["data"]["path"] == str(golden_data["vqa"].resolve())
