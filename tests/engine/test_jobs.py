"""Resumes and starts: what is refused changes nothing, what is set aside is kept, and a run has one writer."""

from __future__ import annotations

import hashlib
import importlib.machinery
import os
import re
import resource
import shutil
import signal
import stat
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.programs import program, train_command, wait_for_step
from tests.engine.running import Killed, kill_after, resume, tiny_settings, train, weights
from trarctl.data.loader import training_plan
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.engine.callbacks import Event, Note, StepDone
from trarctl.engine.checkpoint import load_checkpoint, load_description, save_checkpoint
from trarctl.engine.jobs import _training_notes, plan_start
from trarctl.engine.run import RunFolder, read_settings
from trarctl.errors import CheckpointError, DataError, SettingsError, Stopped, TrarError
from trarctl.registry import DATASETS

Run = Callable[..., tuple[int, str, str]]


def content_of(folder: Path) -> dict[str, str]:
    """Every file under a folder with its SHA-256, and every folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def copy(run: RunFolder, folder: Path, name: str = "tiny") -> RunFolder:
    return RunFolder(Path(shutil.copytree(run.path, folder / "runs" / name)))


def notes_of(into: list[str]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            into.append(event.text)

    return on_event


@pytest.fixture(scope="module")
def finished(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three epochs of 7 steps."""
    return train(tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("finished"), train__epochs=3))


@pytest.fixture(scope="module")
def stopped(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same, saved every two steps and killed after step 12, the fifth of the second epoch."""
    settings = tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("stopped"), train__epochs=3, run__save_every=2)
    with pytest.raises(Killed):
        train(settings, on_event=kill_after(lambda event: isinstance(event, StepDone) and event.step == 13))
    run = RunFolder(settings.run.folder / "tiny")
    assert [path.name for *_, path in run.saved()] == [
        "epoch-001.safetensors", "epoch-001-step-000003.safetensors", "epoch-001-step-000005.safetensors"
    ]  # fmt: skip
    return run


SPARE_QUESTION = 31312009


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared data that is not that of the runs: of another grid, in another order, with a question less."""
    folder = tmp_path_factory.mktemp("other")
    made = {}
    for name, grid in (("grid", 5), ("order", 4), ("shorter", 4), ("features", 4)):
        raw = Path(shutil.copytree(GOLDEN / "mini_vqa" / "raw", folder / name / "raw"))
        features = Path(shutil.copytree(GOLDEN / "mini_vqa" / "feats", folder / name / "feats"))
        for file, key in (
            ("v2_OpenEnded_mscoco_train2014_questions.json", "questions"),
            ("v2_mscoco_train2014_annotations.json", "annotations"),
        ):
            document = orjson.loads((raw / file).read_bytes())
            if name == "order":
                document[key] = document[key][::-1]
            if name == "shorter":  # by one that has neither a word nor an answer of its own
                document[key] = [record for record in document[key] if record["question_id"] != SPARE_QUESTION]
            (raw / file).write_bytes(orjson.dumps(document))
        if name == "features":
            for path in features.rglob("*.npy"):
                np.save(path, np.load(path) * 3 + 1)
        out = folder / name / "prepared"
        prepare(PrepareRequest("vqa", out=out, raw=raw, features=features, grid=grid, vectors="none"))
        made[name] = out
    return made


REFUSED: dict[str, tuple[dict[str, Any], type[TrarError], str]] = {
    "another pooling": ({"epochs": 4, "model__pooling": "fc"}, CheckpointError, r"model\.pooling = fc \(was avg\)"),
    "another width": ({"epochs": 4, "model__hidden_size": 32}, CheckpointError, r"model\.hidden_size = 32 \(was 16\)"),
    "other spans": ({"epochs": 4, "model__spans": "0,2"}, CheckpointError, r"model\.spans = \[0, 2\] \(was \[0, 1\]\)"),
    "another routing": ({"epochs": 4, "model__routing": "hard"}, CheckpointError, "routing = hard"),
    "fewer epochs than done": ({"epochs": 1}, SettingsError, "run tiny has finished 3 epochs, more than 1"),
    "as many epochs as done": ({}, SettingsError, "run tiny has finished its 3 epochs"),
    "an epoch that is not there": ({"epoch": 9}, CheckpointError, r"no checkpoint of epoch 9"),
    "a batch larger than the data": ({"epochs": 4, "train__batch_size": 500}, SettingsError, "larger than the"),
    "a batch that does not divide": ({"epochs": 4, "run__gpus": "cpu:3"}, SettingsError, "does not divide"),
    "a logger that is not installed": ({"epochs": 4, "run__loggers": "wandb"}, SettingsError, "not installed"),
    "data of another grid": ({"epochs": 4, "other": "grid"}, CheckpointError, "on a grid of size 4, .* has 5"),
    "data of another order": ({"epochs": 4, "other": "order"}, CheckpointError, "another vocabulary"),
    "other features": ({"epochs": 4, "other": "features"}, CheckpointError, "other features"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_resume_changes_nothing(
    why: str, finished: RunFolder, other_data: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, kind, message = REFUSED[why]
    changes = dict(changes)
    if "other" in changes:
        changes["data__path"] = other_data[changes.pop("other")]
    if "loggers" in "".join(changes):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    run = copy(finished, tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(kind, match=message):
        resume(run, **changes)
    assert content_of(tmp_path) == before


WITHIN: dict[str, tuple[dict[str, Any], str]] = {
    "a smaller batch": ({"train__batch_size": 10}, r"train\.batch_size = 10 \(was 20\)"),
    "a larger batch": ({"train__batch_size": 140}, r"train\.batch_size = 140 \(was 20\)"),
    "another seed": ({"train__seed": 7}, r"train\.seed = 7 \(was 0\)"),
    "another order": ({"train__shuffle": "false"}, r"train\.shuffle = false \(was true\)"),
    "another loss": ({"train__loss": "kld"}, r"train\.loss = kld \(was bce\)"),
    "another mean": ({"train__loss_reduction": "mean"}, r"loss_reduction = mean \(was sum\)"),
    "another split": ({"data__split": "train+val"}, r"the split is train\+val \(was train\)"),
    "a later split that is now": (
        {"data__later_split": "train+val", "data__later_split_epoch": 1}, r"the split is train\+val \(was train\)"
    ),
    "a question less": ({"other": "shorter"}, "the data has other training questions"),
}  # fmt: skip


@pytest.mark.parametrize("why", WITHIN)
def test_within_an_epoch_its_samples_and_its_loss_stay(
    why: str, stopped: RunFolder, other_data: Mapping[str, Path], tmp_path: Path
) -> None:
    changes, message = WITHIN[why]
    changes = dict(changes)
    if "other" in changes:
        changes["data__path"] = other_data[changes.pop("other")]
    run = copy(stopped, tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(SettingsError, match=f"epoch-001-step-000005.* is within epoch 2, .*{message}") as raised:
        resume(run, **changes)
    assert content_of(tmp_path) == before
    assert f"trarctl resume {run.path} --epoch 1 begins that epoch again with the change" in str(raised.value.hint)
    notes: list[str] = []
    resume(run, epoch=1, on_event=notes_of(notes), **changes)
    assert [epoch for epoch, step, _ in run.saved()] == [1, 2, 3]
    assert any(note.startswith(("changed from here on: ", f"{changes.get('data__path')} has other")) for note in notes)


def test_in_the_first_epoch_there_is_none_to_begin_again(golden_data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(
            tiny_settings(golden_data["vqa"], tmp_path, run__save_every=1),
            on_event=kill_after(lambda event: isinstance(event, StepDone) and event.step == 3),
        )
    with pytest.raises(SettingsError, match="is within epoch 1") as raised:
        resume(RunFolder(tmp_path / "runs" / "tiny"), train__seed=1)
    assert raised.value.hint == "without it the run goes on; trarctl train starts another"


def test_what_may_change_within_an_epoch(stopped: RunFolder, finished: RunFolder, tmp_path: Path) -> None:
    """Parts and processes change no sample; what changes a number is said."""
    run, notes = copy(stopped, tmp_path), list[str]()
    resume(
        run, on_event=notes_of(notes), train__accumulation=2, run__keep=2, run__log_every=1, train__learning_rate=1e-5
    )
    assert [epoch for epoch, _, _ in run.saved()][-1] == 3
    assert notes == [
        "changed from here on: train.accumulation = 2 (was 1), train.learning_rate = 1e-05 (was 0.001), "
        "run.log_every = 1 (was 2), run.keep = 2 (was 0)"
    ]
    steps = [entry["step"] for entry in run.metrics() if entry["event"] == "step"]
    assert steps == [2, 4, 6, 7, 8, 10, 12, *range(13, 22)]
    plain = resume(copy(stopped, tmp_path / "plain"))
    assert weights(plain) == weights(finished)


def test_an_old_checkpoint_of_longer_data_is_refused_within_an_epoch(
    stopped: RunFolder, other_data: Mapping[str, Path], tmp_path: Path
) -> None:
    """It does not say which samples it saw; what is known is how many."""
    run = copy(stopped, tmp_path)
    rewrite(run.saved()[-1][2], samples=None, step_in_epoch=200)
    run.saved()[-1][2].rename(run.step_checkpoint(1, 200))
    with pytest.raises(SettingsError, match="the data has other training questions"):
        resume(run)


def rewrite(path: Path, tensors: Mapping[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Change a checkpoint and give it a checksum that holds."""
    held, description = load_checkpoint(path)
    position = {key: value for key, value in changes.items() if key in type(description.progress).model_fields}
    update = {key: value for key, value in changes.items() if key not in position}
    progress = description.progress.model_copy(update=position)
    save_checkpoint(path, held | dict(tensors or {}), description.model_copy(update=update | {"progress": progress}))


@pytest.mark.parametrize("name", ["adam.average.head.weight", "adam.square.head.weight", "adam.step"])
def test_averages_of_another_shape_are_refused(name: str, finished: RunFolder, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    rewrite(run.epoch_checkpoint(3), {name: torch.zeros(3)})
    before = content_of(tmp_path)
    with pytest.raises(CheckpointError, match=rf"the checkpoint's {name} is \[3\], expected \["):
        resume(run, epochs=4)
    assert content_of(tmp_path) == before


def test_a_file_within_an_epoch_is_gone_on_from(stopped: RunFolder, finished: RunFolder, tmp_path: Path) -> None:
    run, notes = copy(stopped, tmp_path), list[str]()
    steps: list[int] = []

    def on_event(event: Event) -> None:
        notes_of(notes)(event)
        if isinstance(event, StepDone):
            steps.append(event.step)

    resume(run, file=run.step_checkpoint(1, 3), on_event=on_event)
    assert steps[0] == 11
    assert weights(run) == weights(finished)
    aside = run.path / "superseded" / "1"
    assert [path.name for path in (aside / "checkpoints").iterdir()] == ["epoch-001-step-000005.safetensors"]
    assert notes == [
        f"what the run did after epoch-001-step-000003.safetensors is set aside as a run of its own: {aside}"
    ]


def test_a_file_and_an_epoch_contradict_each_other(stopped: RunFolder, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path)
    with pytest.raises(SettingsError, match="both say where to go on"):
        resume(run, epoch=1, file=run.step_checkpoint(1, 3))


def test_branches_are_set_aside_one_after_the_other(finished: RunFolder, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    branches = [weights(run)]
    metrics = [run.metrics_file.read_bytes()]
    for rate in (1e-2, 1e-4):
        resume(run, epoch=1, train__learning_rate=rate)
        branches.append(weights(run))
        metrics.append(run.metrics_file.read_bytes())
    assert len({str(branch) for branch in branches}) == 3
    for number in (1, 2):
        aside = RunFolder(run.path / "superseded" / str(number))
        assert [path.name for *_, path in aside.saved()] == ["epoch-002.safetensors", "epoch-003.safetensors"]
        assert weights(aside) == branches[number - 1]
        assert aside.metrics_file.read_bytes() == metrics[number - 1]
    resume(aside, epochs=4)
    assert load_description(aside.epoch_checkpoint(4)).settings["train"]["learning_rate"] == 1e-2


def test_a_checkpoint_under_another_name_is_passed_over(finished: RunFolder, tmp_path: Path) -> None:
    run, notes = copy(finished, tmp_path), list[str]()
    run.epoch_checkpoint(1).rename(run.epoch_checkpoint(5))
    resume(run, epochs=4, on_event=notes_of(notes))
    assert notes[0].endswith("was saved after 1 epochs and 0 steps, not when its name says; taking the one before")
    assert [epoch for epoch, _, _ in run.saved()] == [2, 3, 4]


def test_a_checkpoint_of_another_run_is_named(
    finished: RunFolder, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    other = train(tiny_settings(golden_data["vqa"], tmp_path, run__name="other", train__epochs=4, train__seed=5))
    run, notes = copy(finished, tmp_path), list[str]()
    shutil.copy(other.epoch_checkpoint(4), run.checkpoints)
    resume(run, epochs=5, on_event=notes_of(notes))
    assert notes == [
        "epoch-004.safetensors was written by run other, under that name",
        "changed from here on: train.seed = 0 (was 5)",
        "train.decay_epochs stays [3] in 5 epochs; --set train.decay_epochs=LIST changes it",
    ]


def test_a_run_that_is_moved_while_it_trains_goes_on_where_it_is(
    finished: RunFolder, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 12:
            (tmp_path / "runs" / "tiny").rename(tmp_path / "runs" / "moved")

    with pytest.raises(DataError, match="cannot write .*metrics.jsonl") as raised:
        train(tiny_settings(golden_data["vqa"], tmp_path, train__epochs=3), on_event=on_event)
    assert "moved or removed; where it is now, trarctl resume DIR goes on" in str(raised.value.hint)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["moved"]
    assert weights(resume(RunFolder(tmp_path / "runs" / "moved"))) == weights(finished)


def test_the_order_of_an_epoch_is_as_the_refusals_assume() -> None:
    """In a changed batch size, samples of the epoch come twice and others never: what is refused for a reason."""

    def samples(batch_size: int, first_step: int) -> list[int]:
        plan = training_plan(140, batch_size=batch_size, seed=0, epoch=0, shuffle=True, first_step=first_step)
        return [int(sample) for batch in plan for sample in batch]

    done = samples(16, 0)[:64]
    assert sorted(done + samples(16, 4)) == sorted(samples(16, 0))
    assert len(set(done) & set(samples(8, 4))) == 32


# One writer


@pytest.mark.parametrize("kind", ["train", "resume"])
def test_a_run_has_one_writer(kind: str, stopped: RunFolder, golden_data: dict[str, Path], tmp_path: Path) -> None:
    run = copy(stopped, tmp_path)
    if kind == "train":
        shutil.rmtree(run.checkpoints)
    before = content_of(tmp_path)
    with run.claimed():
        held = content_of(tmp_path)
        with pytest.raises(CheckpointError, match=rf"another process writes run tiny: process {os.getpid()} on "):
            train(tiny_settings(golden_data["vqa"], tmp_path)) if kind == "train" else resume(run)
        assert content_of(tmp_path) == held
    assert content_of(tmp_path) == before


def test_two_trainings_of_one_name_at_once(golden_data: dict[str, Path], tmp_path: Path) -> None:
    command = train_command(golden_data["vqa"], run__folder=tmp_path / "runs", train__epochs=40, run__log_every=1)
    with program(command, tmp_path) as first, program([*command, "--seed", 1], tmp_path) as second:
        codes = {}
        while len(codes) < 1:
            codes = {one: one.process.poll() for one in (first, second) if one.process.poll() is not None}
        (refused,) = codes
        winner = second if refused is first else first
        assert codes[refused] in (3, 5)
        assert len(refused.complaints()) == 1
        assert f"process {winner.process.pid} on " in refused.errors() or "run tiny exists" in refused.errors()
        assert winner.wait() == 0
        run = RunFolder(tmp_path / "runs" / "tiny")
        seeds = {load_description(path).settings["train"]["seed"] for *_, path in run.saved()}
    assert seeds == {0 if winner is first else 1}
    steps = [entry["step"] for entry in run.metrics() if entry["event"] == "step"]
    assert steps == list(range(1, 281))
    assert not (run.path / ".lock").exists()


def test_a_killed_writer_lets_go_and_readers_need_no_lock(
    golden_data: dict[str, Path], tmp_path: Path, trarctl: Run
) -> None:
    folder = tmp_path / "runs"
    command = train_command(golden_data["vqa"], run__folder=folder, train__epochs=200, run__log_every=1)
    with program(command, tmp_path) as writer:
        run = RunFolder(folder / "tiny")
        wait_for_step(writer, run, 9)
        assert trarctl("runs", folder)[0] == 0
        code, _, errors = trarctl("eval", "--ckpt", folder / "tiny", "--gpus", "cpu", "--json", "-")
        assert code == 0, errors
        code, _, errors = trarctl("resume", "tiny", "--set", f"run.folder={folder}")
        assert code == 5
        assert f"process {writer.process.pid} on " in errors
        os.kill(writer.process.pid, signal.SIGKILL)
        writer.process.wait(10)
    last = run.saved()[-1][0]
    resume(run, epochs=last + 1)
    assert run.saved()[-1][0] == last + 1


def test_a_start_that_is_refused_late_leaves_no_folder(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trarctl.engine.trainer.build_model", fail)
    with pytest.raises(TrarError, match="too little memory"):
        train(tiny_settings(golden_data["vqa"], tmp_path))
    assert content_of(tmp_path) == {"runs": ""}


# What is damaged or cannot be written


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_checkpoints_have_the_mode_of_new_files(mask: int, finished: RunFolder, tmp_path: Path) -> None:
    run, before = copy(finished, tmp_path), os.umask(mask)
    try:
        resume(run, epochs=4)
    finally:
        os.umask(before)
    files = (run.epoch_checkpoint(4), run.settings_file, run.metrics_file)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o666 & ~mask] * 3


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff\xfe", b'{"train": {"epochs": -1}}', b'{"new": {}}'])
def test_settings_that_are_damaged_are_in_the_checkpoints(
    content: bytes | None, finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trarctl: Run
) -> None:
    run = copy(finished, tmp_path)
    run.settings_file.unlink() if content is None else run.settings_file.write_bytes(content)
    run.epoch_checkpoint(3).write_bytes(b"cut")
    monkeypatch.chdir(tmp_path)
    code, out, _ = trarctl("runs", "--json", "-")
    assert code == 0
    (row,) = orjson.loads(out)["runs"]
    assert (row["name"], row["dataset"], row["epochs"]) == ("tiny", "vqa", 3)
    code, _, errors = trarctl("resume", "tiny")
    assert code == 0, errors
    assert "; taking the settings from epoch-002.safetensors" in errors
    assert weights(run) == weights(finished)
    assert orjson.loads(run.settings_file.read_bytes()) == orjson.loads(finished.settings_file.read_bytes()) | {
        "run": orjson.loads(finished.settings_file.read_bytes())["run"] | {"folder": "runs"}
    }


@pytest.mark.parametrize("most_bytes", [0, 100, 3000])
def test_a_full_disk_before_the_first_step_changes_nothing(
    most_bytes: int, finished: RunFolder, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    run = copy(finished, tmp_path)
    before = content_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        with pytest.raises(DataError, match=f"cannot write the .*{run.path}") as raised:
            resume(run, epoch=1)
        with pytest.raises(DataError, match=f"cannot write the .*{run.path}2"):
            train(tiny_settings(golden_data["vqa"], tmp_path, run__name="tiny2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(raised.value.hint)
    after = content_of(tmp_path)
    assert {name: digest for name, digest in after.items() if not name.startswith("runs/tiny2")} == before
    assert run.path.exists()


@pytest.mark.parametrize("name", ["settings.json", "metrics.jsonl", "log.txt"])
def test_a_folder_in_a_files_place_is_named_before_anything_changes(
    name: str, finished: RunFolder, tmp_path: Path
) -> None:
    run = copy(finished, tmp_path)
    (run.path / name).unlink()
    (run.path / name).mkdir()
    before = content_of(tmp_path)
    with pytest.raises(DataError, match=f"cannot write {run.path / name}: Is a directory") as raised:
        resume(run, epoch=1)
    assert raised.value.hint == f"move it away; then trarctl resume {run.path} goes on"
    assert content_of(tmp_path) == before


# Noticed before the work


def test_a_logger_that_cannot_begin_is_found_before_the_run_is(
    finished: RunFolder, golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``wandb.init`` without a key does, after it has made its folder."""

    def init(**options: Any) -> None:
        (Path(options["dir"]) / "wandb").mkdir(exist_ok=True)
        raise RuntimeError("api_key not configured (no-tty).\nCall wandb.login")

    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init, fake.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = copy(finished, tmp_path, "resumed")
    (run.path / "wandb").mkdir()
    before = content_of(tmp_path)
    settings = tiny_settings(golden_data["vqa"], tmp_path, run__loggers="wandb")
    for begin in (lambda: train(settings), lambda: resume(run, epochs=4, run__loggers="wandb")):
        with pytest.raises(SettingsError, match=r"run\.loggers: wandb cannot begin: api_key not configured") as raised:
            begin()
        assert content_of(tmp_path) == before
        assert "wandb login" in str(raised.value.hint)


def test_val_that_cannot_be_measured_is_found_before_the_first_epoch(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metric(*_: object) -> None:
        raise DataError("function 'fly' is of no type")

    settings = tiny_settings(golden_data["clevr"], tmp_path, "clevr", run__validate_every=2)
    monkeypatch.setattr("trarctl.data.prepared.PreparedData.spec", replace(DATASETS["clevr"], metric=metric))
    with pytest.raises(DataError, match="function 'fly'"):
        train(settings)
    assert not (tmp_path / "runs" / "tiny").exists()
    train(settings.model_copy(update={"run": settings.run.model_copy(update={"validate_every": 0})}))


@pytest.mark.parametrize("size", ["1000000", "99999999999999999999", "1e20", "-64"])
def test_a_batch_beyond_all_bounds_is_refused_at_once(size: str, trarctl: Run) -> None:
    assert trarctl("train", "vqa", "--set", f"train.batch_size={size}", "--accu", 3)[0] == 3


@pytest.mark.parametrize(("init", "epoch"), [("tiny@1", 1), ("tiny@2", 2), (None, None)])
def test_weights_to_start_from_by_run_and_epoch(
    init: str | None, epoch: int | None, finished: RunFolder, golden_data: dict[str, Path]
) -> None:
    settings = tiny_settings(golden_data["vqa"], finished.path.parent.parent, run__name="other")
    job, _ = plan_start(settings, {}, init=init)
    assert job.init == (None if epoch is None else finished.epoch_checkpoint(epoch))
    assert job.run.path == finished.path.parent / "other"
    assert job.advice() == "nothing was saved: start it again"
    assert replace(job, settings=read_settings(finished)).advice() == job.hint


def test_weights_to_start_from_give_the_model_its_shape(finished: RunFolder, golden_data: dict[str, Path]) -> None:
    settings = tiny_settings(golden_data["vqa"], finished.path.parent.parent, run__name="other", model__hidden_size=32)
    job, _ = plan_start(settings, {}, init="tiny")
    assert (job.settings.model.hidden_size, settings.model.hidden_size) == (16, 32)


def test_a_run_that_torchrun_may_restart_needs_a_name(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, run__name="none")
    for restarts in (None, "0"):
        if restarts is not None:
            monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        job, _ = plan_start(settings, {}, init=None)
        assert re.fullmatch(r"vqa-\d{8}-\d{6}", job.run.name)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    with pytest.raises(SettingsError, match="a run that torchrun may restart needs a name"):
        plan_start(settings, {}, init=None)


def test_settings_from_a_checkpoint_name_the_data_by_its_full_path(finished: RunFolder, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    for epoch, changes in ((2, {"data": {"path": None, "dataset": "vqa"}}), (3, {"new": {}})):
        path = run.epoch_checkpoint(epoch)
        tensors, description = load_checkpoint(path)
        settings = description.settings | changes
        save_checkpoint(path, tensors, description.model_copy(update={"settings": settings, "data": "/some/data"}))
    run.settings_file.unlink()
    notes: list[str] = []
    found = read_settings(run, notes)
    assert found.data.path == Path("/some/data")
    assert (found.run.folder, found.train.epochs) == (run.path.parent, 3)
    assert [note.partition("; ")[2] for note in notes] == ["taking the settings from epoch-002.safetensors"]


def test_a_restart_of_a_whole_group_finds_the_run_that_it_began(
    finished: RunFolder, golden_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(golden_data["vqa"], finished.path.parent.parent)
    with pytest.raises(SettingsError, match="run tiny exists in"):
        plan_start(settings, {}, init=None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    job, _ = plan_start(settings, {}, init=None)
    assert (job.kind, job.is_named, job.run.path) == ("start", True, finished.path)
    job, _ = plan_start(
        settings.model_copy(update={"run": settings.run.model_copy(update={"name": None})}), {}, init=None
    )
    assert not job.is_named


def test_more_epochs_change_the_temperature_of_hard_routing(golden_data: dict[str, Path], tmp_path: Path) -> None:
    run, notes = train(tiny_settings(golden_data["vqa"], tmp_path, model__routing="hard", train__epochs=1)), list[str]()
    resume(run, on_event=notes_of(notes), epochs=2)
    assert notes == [
        "the temperature schedule depends on the number of epochs: it changes from here on",
        "train.decay_epochs stays [3] in 2 epochs; --set train.decay_epochs=LIST changes it",
    ]


def test_settings_from_a_changed_checkpoint_are_not_taken(finished: RunFolder, tmp_path: Path) -> None:
    run = copy(finished, tmp_path)
    content = run.epoch_checkpoint(3).read_bytes()
    here = content.index(rb"\"batch_size\":") + len(rb"\"batch_size\":")
    run.epoch_checkpoint(3).write_bytes(content[:here] + b"9" + content[here + 1 :])
    run.settings_file.write_text("{")
    notes: list[str] = []
    found = read_settings(run, notes)
    assert found.train.batch_size == 20
    assert [note.partition("; ")[2] for note in notes] == ["taking the settings from epoch-002.safetensors"]


def test_an_epoch_has_the_schedule_of_its_last_step(golden_data: dict[str, Path], tmp_path: Path) -> None:
    """Also where a run was stopped after that step, and goes on with another schedule."""
    hard = {"model__routing": "hard", "train__epochs": 3, "train__temperature_policy": 0}

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 13:
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 14"):
        train(tiny_settings(golden_data["vqa"], tmp_path, **hard), on_event=stop)
    run = RunFolder(tmp_path / "runs" / "tiny")
    whole = train(tiny_settings(golden_data["vqa"], tmp_path / "whole", **hard))
    resume(run, epochs=5, train__learning_rate=0.5)
    at_end = [entry for entry in whole.metrics() if entry["step"] == 14]
    found = [entry for entry in run.metrics() if entry["step"] == 14]
    assert [entry["event"] for entry in found] == ["step", "epoch", "validation"]
    clocks = ("seconds", "samples_per_second", "memory_bytes")
    numbers = [[{key: one[key] for key in one if key not in clocks} for one in lines] for lines in (found, at_end)]
    assert numbers[0] == numbers[1]
    ours, theirs = (load_description(one.epoch_checkpoint(2)) for one in (run, whole))
    assert (ours.learning_rate, ours.temperature) == (theirs.learning_rate, theirs.temperature)
    later = [load_description(one.epoch_checkpoint(3)).temperature for one in (run, whole)]
    assert later[0] != later[1]


# What processes compare, and what a run says of its beginning


@pytest.fixture
def vqa(golden_data: dict[str, Path]) -> Path:
    return golden_data["vqa"]


def test_what_the_processes_of_a_group_compare(vqa: Path, tmp_path: Path) -> None:
    settings = tiny_settings(vqa, tmp_path)
    data = open_prepared(vqa)
    job, _ = plan_start(settings, {}, init=None)
    values = job._shared_values(data)
    assert values["train.seed"] == "0"
    assert values["run.name"] == "tiny"
    assert {"run.gpus", "run.num_threads", "run.folder", "data.path", "data.num_workers"}.isdisjoint(values)
    assert data.digests.items() <= values.items()
    assert (values["checkpoint"], values["init"]) == (None, None)
    named = replace(job, is_named=False, checkpoint=tmp_path / "a" / "epoch-1.safetensors", init=tmp_path / "x.pkl")
    other = named._shared_values(data)
    assert "run.name" not in other  # each process would have made up its own
    assert (other["checkpoint"], other["init"]) == ("epoch-1.safetensors", "x.pkl")


def test_the_log_says_what_a_run_began_with(vqa: Path, tmp_path: Path) -> None:
    settings = tiny_settings(vqa, tmp_path, train__epochs=1)
    run = train(settings)
    lines = run.log_file.read_text().splitlines()
    assert lines[0].startswith(f"run tiny: vqa, {vqa}, 20")
    assert orjson.loads(lines[1]) == read_settings(run).model_dump(mode="json")
    with run.metrics_file.open("ab") as file:
        file.write(b"[]\n{\n")
    notes: list[str] = []
    resume(run, epochs=2, on_event=notes_of(notes))
    assert "unreadable lines of metrics.jsonl, which are left out: 2" in notes
    assert any(
        line.startswith("resumed from epoch-001.safetensors, 20") for line in run.log_file.read_text().splitlines()
    )


def test_a_restarted_process_goes_on_and_ends_where_nothing_is_left(
    vqa: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(vqa, tmp_path, train__epochs=2)
    whole = train(tiny_settings(vqa, tmp_path / "whole", train__epochs=2))
    with pytest.raises(Killed):
        train(settings, on_event=kill_after(lambda event: isinstance(event, StepDone) and event.step == 9))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    notes: list[str] = []
    run = train(settings, on_event=notes_of(notes))
    assert weights(run) == weights(whole)
    before = content_of(run.path)
    train(settings, on_event=notes_of(notes))
    assert content_of(run.path) == before
    assert notes == ["a process was lost: run tiny goes on from its latest checkpoint"]


def test_notes_on_the_splits_that_are_trained_on(vqa: Path, tmp_path: Path) -> None:
    split = SimpleNamespace
    spec = split(
        splits=[
            split(name="train", training_note="leaks"),
            split(name="val", training_note=None),
            split(name="more", training_note="is dirty"),
            split(name="test", training_note="is the test"),
        ]
    )
    settings = tiny_settings(vqa, tmp_path, data__split="train+val")
    assert _training_notes(settings, split(spec=spec)) == ["leaks"]
    data = settings.data.model_copy(update={"later_split": "val+more"})
    assert _training_notes(settings.model_copy(update={"data": data}), split(spec=spec)) == ["leaks", "is dirty"]
