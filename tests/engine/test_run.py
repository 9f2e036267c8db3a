"""How a user names a run or one of its checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trarctl.engine.run import RunFolder, find_checkpoint, find_run, list_runs, read_settings, saved_settings
from trarctl.errors import CheckpointError, DataError, SettingsError
from trarctl.report.history import overviews


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs: ``old`` with a best epoch 2 of 3, and ``new`` with nothing but a step checkpoint."""
    old, new = RunFolder(tmp_path / "runs" / "old"), RunFolder(tmp_path / "runs" / "new")
    for run in (old, new):
        run.checkpoints.mkdir(parents=True)
        run.settings_file.write_text("{}")
    for epoch, overall in ((1, 50.0), (2, 61.5), (3, 61.5)):
        old.epoch_checkpoint(epoch).write_bytes(b"")
        old.record({"event": "validation", "epoch": epoch, "overall": overall})
    new.step_checkpoint(0, 40).write_bytes(b"")
    for age, run in ((100, old), (0, new)):
        for file in filter(Path.is_file, run.path.rglob("*")):
            os.utime(file, (1_000_000_000 - age, 1_000_000_000 - age))
    return tmp_path / "runs"


def test_a_run_by_name_folder_or_checkpoint(folder: Path) -> None:
    assert find_run("old", folder).path == folder / "old"
    assert find_run(str(folder / "old"), Path("elsewhere")).path == folder / "old"
    assert find_run(str(folder / "old/checkpoints/epoch-002.safetensors"), folder).path == folder / "old"
    assert find_run(None, folder).name == "new"
    assert [run.name for run in list_runs(folder)] == ["old", "new"]


def test_a_checkpoint_by_run_epoch_or_file(folder: Path) -> None:
    assert find_checkpoint("old", folder) == (
        folder / "old/checkpoints/epoch-002.safetensors",
        "run old, its best epoch 2",
    )
    assert find_checkpoint("old@3", folder) == (folder / "old/checkpoints/epoch-003.safetensors", "run old, epoch 3")
    file = folder / "old/checkpoints/epoch-001.safetensors"
    assert find_checkpoint(str(file), folder) == (file, "the file given")
    path, how = find_checkpoint(None, folder)
    assert path.name == "epoch-000-step-000040.safetensors"
    assert how == "the latest run, its latest checkpoint (no validation to choose the best by)"


def test_the_best_of_all_that_was_validated(folder: Path) -> None:
    run = RunFolder(folder / "old")
    for epoch, name, overall in ((1, "ema", 60.0), (2, "ema", 63.0), (3, "ema", 62.0), (3, "average", 61.5)):
        run.record({"event": "candidate", "name": name, "epoch": epoch, "step": epoch, "overall": overall})
        run.candidate_checkpoint(epoch, name).write_bytes(b"")
    run.record({"event": "candidate", "name": "median", "epoch": 3, "step": 3, "overall": 99.0})
    assert run.read_metrics().num_unreadable == 1
    assert run.read_metrics().best() == (2, "ema", 63.0)
    told = "run old (unreadable lines of its metrics.jsonl: 1)"
    assert find_checkpoint("old", folder) == (run.candidate_checkpoint(2, "ema"), f"{told}, its best: ema of epoch 2")
    assert find_checkpoint("old@average", folder)[0] == run.candidate_checkpoint(3, "average")
    run.prune(epoch=3, best_epoch=2, keep=1)
    assert run.saved_candidates() == [(2, "ema"), (3, "average")]
    assert run.saved_epochs() == [2, 3]
    (overview,) = (one for one in overviews(folder) if one.name == "old")
    assert (overview.best, overview.best_epoch, overview.best_weights) == (63.0, 2, "ema")
    run.candidate_checkpoint(2, "ema").unlink()
    # Of equals the epoch's own weights are taken.
    assert find_checkpoint("old", folder)[1] == f"{told}, its best epoch 2"
    with pytest.raises(CheckpointError, match="run old has no checkpoint of epoch ema") as raised:
        find_checkpoint("old@ema", folder)
    assert str(raised.value.hint).startswith("there are: 2, 3, average; ")


def test_averages_of_later_epochs_go_with_them(folder: Path) -> None:
    run = RunFolder(folder / "old")
    for epoch in (1, 3):
        run.candidate_checkpoint(epoch, "ema").write_bytes(b"")
    aside = run.rewind(epoch=2, step_in_epoch=0, step=0)
    assert aside is not None
    assert (run.saved_candidates(), RunFolder(aside).saved_candidates()) == ([(1, "ema")], [(3, "ema")])
    # That of an epoch which has no checkpoint yet is made again with it.
    run.candidate_checkpoint(3, "ema").write_bytes(b"")
    assert run.rewind(epoch=2, step_in_epoch=0, step=0) is None
    assert run.saved_candidates() == [(1, "ema")]


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run 'young' in .*runs \(latest: old, new\)"):
        find_checkpoint("young", folder)
    with pytest.raises(CheckpointError, match="run old has no checkpoint of epoch 9") as raised:
        find_checkpoint("old@9", folder)
    assert raised.value.hint == f"there are: 1, 2, 3; --ckpt {folder}/old@EPOCH, or without @EPOCH the best"
    for epoch in ("x", "\u00b2", "\u0661", "-1"):
        with pytest.raises(CheckpointError, match=f"run old has no checkpoint of epoch {epoch}"):
            find_checkpoint(f"old@{epoch}", folder)
    with pytest.raises(CheckpointError, match="no runs in"):
        find_run(None, tmp_path / "nothing")
    RunFolder(folder / "new").step_checkpoint(0, 40).unlink()
    with pytest.raises(CheckpointError, match="run new has no checkpoint yet"):
        find_checkpoint("new", folder)


def test_metrics_that_a_crash_cut_off(folder: Path) -> None:
    run = RunFolder(folder / "old")
    with run.metrics_file.open("ab") as file:
        file.write(b'{"event": "valid')
    assert run.read_metrics().best_epoch(run.saved_epochs()) == 2
    assert len(list(run.metrics())) == 3


def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DataError, match="cannot write the run folder") as raised:
        RunFolder(tmp_path / "runs" / "new").create()
    assert "--set run.folder=DIR" in str(raised.value.hint)


UNREADABLE = (
    '{"event":"validation","epoch":2}',
    '{"event":"validation","epoch":4,"step":16,"overall":null,"per_type":{}}',
    '{"event":"validation","epoch":4,"overall":true}',
    '{"event":"validation","epoch":4,"overall":99.0,"per_type":[1]}',
    '{"event":"validation","epoch":"4","overall":99.0}',
    '{"event":"epoch","epoch":0,"step":3}',
    '{"event":"epoch","epoch":1,"step":0}',
    '{"event":"epoch","epoch":1.5,"step":2}',
    '{"event":"step","epoch":2,"step":16}',
    '{"event":"step","epoch":2,"step":"16","loss":1.0,"learning_rate":1.0,"temperature":1.0}',
    '{"event":"step","epoch":2,"step":1,"loss":1,"learning_rate":1,"temperature":1,"routes":[[1],[1,2]]}',
    '{"event":"step","epoch":2,"step":1,"loss":1,"learning_rate":1,"temperature":1,"samples_per_second":"fast"}',
    '{"event":["step"]}',
    '{"event":"something"}',
    "[1]",
    "null",
    "",
    "\x00\x00",
)


def test_lines_that_lack_something_are_left_out_and_counted(folder: Path) -> None:
    run = RunFolder(folder / "old")
    run.metrics_file.write_text(
        "\n".join([*UNREADABLE[:9], run.metrics_file.read_text() + UNREADABLE[9], *UNREADABLE[10:], ""])
    )
    metrics = run.read_metrics()
    assert metrics.num_unreadable == len(UNREADABLE)
    assert {epoch: entry["overall"] for epoch, entry in metrics.validations.items()} == {1: 50.0, 2: 61.5, 3: 61.5}
    assert metrics.steps == metrics.epochs == []
    assert find_checkpoint("old", folder)[1] == "run old (unreadable lines of its metrics.jsonl: 18), its best epoch 2"


def test_metrics_that_are_no_file_count_as_one_line(folder: Path) -> None:
    run = RunFolder(folder / "new")
    run.metrics_file.mkdir()
    assert run.read_metrics().num_unreadable == 1


def test_a_run_without_settings_is_one_if_it_has_checkpoints(folder: Path) -> None:
    (folder / "old" / "settings.json").unlink()
    (folder / "nothing").mkdir()
    (folder / "file").write_text("")
    assert [run.name for run in list_runs(folder)] == ["old", "new"]
    assert find_run("old", folder).path == folder / "old"


def test_the_best_epoch_is_one_that_is_still_there(folder: Path) -> None:
    run = RunFolder(folder / "old")
    run.epoch_checkpoint(2).unlink()
    assert run.read_metrics().best_epoch(run.saved_epochs()) == 3
    assert find_checkpoint("old", folder)[1] == "run old, its best epoch 3"
    run.epoch_checkpoint(3).unlink()
    assert run.read_metrics().best_epoch(run.saved_epochs()) == 1
    run.epoch_checkpoint(1).unlink()
    assert run.read_metrics().best_epoch(run.saved_epochs()) is None
    with pytest.raises(CheckpointError, match="run old has no checkpoint of epoch 1") as raised:
        find_checkpoint("old@1", folder)
    assert str(raised.value.hint).startswith("there are: none")


def test_a_run_named_by_where_one_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "old" / "checkpoints")
    assert find_run("..", Path("nowhere")).path == folder / "old"
    monkeypatch.chdir(folder / "old")
    assert find_run(".", Path("nowhere")).path == folder / "old"
    with pytest.raises(CheckpointError, match=r"no run 'young' in nowhere \(latest: none\)"):
        find_run("young", Path("nowhere"))
    for no_run in (folder / "old" / "settings.json", folder / "old" / "checkpoints" / "missing"):
        with pytest.raises(CheckpointError, match="no run '.*old"):
            find_run(str(no_run), Path("nowhere"))


def test_the_latest_of_three_runs_and_of_many(folder: Path) -> None:
    for number in range(5):
        run = RunFolder(folder / f"r{number}")
        run.checkpoints.mkdir(parents=True)
        run.settings_file.write_text("{}")
        os.utime(run.settings_file, (2_000_000_000 + number, 2_000_000_000 + number))
    assert find_run(None, folder).name == "r4"
    with pytest.raises(CheckpointError, match=r"\(latest: r0, r1, r2, r3, r4\)"):
        find_run("young", folder)


def test_a_name_may_hold_an_at(folder: Path) -> None:
    (folder / "old").rename(folder / "old@home")
    assert find_checkpoint("old@home@3", folder)[1] == "run old@home, epoch 3"


def checkpoints_of(run: RunFolder) -> list[tuple[int, int]]:
    return [(epoch, step) for epoch, step, _ in run.saved()]


@pytest.mark.parametrize(
    ("epoch", "best", "keep", "left"),
    [
        (3, 2, 0, [(1, 0), (2, 0), (3, 0), (3, 2), (3, 4)]),
        (3, 1, 1, [(1, 0), (3, 0), (3, 2), (3, 4)]),
        (3, 3, 2, [(2, 0), (3, 0), (3, 2), (3, 4)]),
        (3, None, 2, [(2, 0), (3, 0), (3, 2), (3, 4)]),
        (2, 2, 3, [(1, 0), (2, 0), (3, 0), (3, 2), (3, 4)]),
        (4, 2, 1, [(2, 0), (3, 0)]),
    ],
)
def test_what_a_new_checkpoint_makes_superfluous(
    epoch: int, best: int | None, keep: int, left: list[tuple[int, int]], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    for path in (*map(run.epoch_checkpoint, (1, 2, 3)), *(run.step_checkpoint(3, step) for step in (1, 2, 4))):
        path.write_bytes(b"")
    run.step_checkpoint(1, 7).write_bytes(b"")
    run.prune(epoch=epoch, best_epoch=best, keep=keep)
    assert checkpoints_of(run) == left


@pytest.mark.parametrize(
    ("epoch", "in_epoch", "step", "kept", "aside"),
    [
        (1, 0, 2, ["step 1", "step 2", "epoch 2"], [(1, 1), (2, 0), (2, 1)]),
        (1, 1, 3, ["step 1", "step 2", "epoch 2", "step 3"], [(2, 0), (2, 1)]),
        (1, 2, 4, ["step 1", "step 2", "epoch 2", "step 3", "step 4"], [(2, 0), (2, 1)]),
        (2, 0, 4, ["step 1", "step 2", "epoch 2", "step 3", "step 4", "epoch 4"], [(2, 1)]),
        (2, 1, 5, ["step 1", "step 2", "epoch 2", "step 3", "step 4", "epoch 4", "step 5"], []),
    ],
)
def test_what_came_after_the_point_of_resuming_is_set_aside(
    epoch: int, in_epoch: int, step: int, kept: list[str], aside: list[tuple[int, int]], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.settings_file.write_text("{}")
    for number in range(1, 6):
        common = {"epoch": (number + 1) // 2, "step": number, "loss": 1.0, "learning_rate": 0.1, "temperature": 1.0}
        run.record({"event": "step", **common})
        if number in (2, 4):
            run.record({"event": "epoch", **common, "seconds": 1.0, "samples_per_second": 1.0})
    every = [(1, 0), (1, 1), (2, 0), (2, 1)]
    for one, steps in every:
        (run.step_checkpoint(one, steps) if steps else run.epoch_checkpoint(one)).write_bytes(f"{one} {steps}".encode())
    before = run.metrics_file.read_bytes()
    for number in (1, 2):
        there = run.rewind(epoch=epoch, step_in_epoch=in_epoch, step=step)
        assert [f"{entry['event']} {entry['step']}" for entry in run.metrics()] == kept
        if number == 2 or not aside:
            assert there is None
            break
        assert there == run.path / "superseded" / "1"
        moved = RunFolder(there)
        assert checkpoints_of(moved) == aside
        assert [path.read_text() for *_, path in moved.saved()] == [f"{one} {steps}" for one, steps in aside]
        assert moved.metrics_file.read_bytes() == before
        assert moved.settings_file.read_text() == "{}"
    assert checkpoints_of(run) == [place for place in every if place not in aside]
    run.epoch_checkpoint(9).write_bytes(b"")
    assert run.rewind(epoch=epoch, step_in_epoch=in_epoch, step=step) == run.path / "superseded" / (
        "2" if aside else "1"
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "settings.json"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / "old" / name).unlink(missing_ok=True)
    os.mkfifo(folder / "old" / name)
    run = RunFolder(folder / "old")
    if name == "metrics.jsonl":
        assert run.read_metrics().num_unreadable == 1
        with pytest.raises(DataError, match=r"cannot write .*metrics\.jsonl"):
            run.record({"event": "step"})
    else:
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_settings(run)


def test_the_latest_run_is_the_one_that_was_written_last(folder: Path) -> None:
    """By its latest checkpoint as well: ``settings.json`` is as old as the run."""
    old = RunFolder(folder / "old")
    for epoch, seconds in ((3, 50), (2, -50)):
        os.utime(old.epoch_checkpoint(epoch), (1_000_000_000 + seconds,) * 2)
    assert [run.name for run in list_runs(folder)] == ["new", "old"]
    os.utime(old.epoch_checkpoint(3), (1_000_000_000 - 100,) * 2)
    os.utime(old.epoch_checkpoint(2), (1_000_000_000 + 50,) * 2)
    assert [run.name for run in list_runs(folder)] == ["old", "new"]


def test_metrics_without_steps_stay_when_a_run_goes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for epoch in (1, 2):
        run.record({"event": "validation", "epoch": epoch, "overall": 50.0 + epoch})
    run.rewind(epoch=0, step_in_epoch=0, step=0)
    assert [entry["epoch"] for entry in run.metrics()] == [1, 2]
    run.rewind(epoch=0, step_in_epoch=1, step=1)
    assert [entry["overall"] for entry in run.metrics()] == [51.0, 52.0]


@pytest.mark.parametrize(
    ("values", "caps"),
    [
        ({"train": {"epochs": 3}}, False),  # of a version that had no such setting
        ({"train": {"epochs": 3, "caps_warmup": True}}, True),
        ({"train": {"epochs": 3, "caps_warmup": False}}, False),
    ],
)
def test_old_runs_keep_the_warm_up_of_their_version(values: dict[str, dict[str, object]], caps: bool) -> None:
    train = saved_settings(values, Path("settings.json")).train
    assert (train.epochs, train.caps_warmup) == (3, caps)
    assert "caps_warmup" not in values["train"] or values["train"]["caps_warmup"] is caps


def test_old_runs_keep_all_checkpoints() -> None:
    assert saved_settings({"run": {}}, Path("settings.json")).run.keep == 0
    assert saved_settings({"run": {"keep": 3}}, Path("settings.json")).run.keep == 3


def test_saved_settings_name_the_file_that_holds_what_is_wrong(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"a/settings\.json: train\.epochs must be"):
        saved_settings({"train": {"epochs": "many"}}, Path("a/settings.json"))
    run = RunFolder(folder / "old")
    run.settings_file.write_text('{"train": {"epochs": "many"}}')
    with pytest.raises(CheckpointError, match=rf"{run.settings_file}: train\.epochs must be"):
        read_settings(run)
    run.settings_file.write_text("[]")
    with pytest.raises(CheckpointError, match=f"cannot read {run.settings_file}: it holds no settings$"):
        read_settings(run)
    run.settings_file.unlink()
    with pytest.raises(CheckpointError, match=f"cannot read {run.settings_file}: No such file or directory$"):
        read_settings(run)
