"""Faults, through the program: what dies, fills up or is asked to stop ends soon, says why once, and loses nothing."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.programs import (
    Program,
    free_port,
    processes_of,
    program,
    train_command,
    wait_for_step,
    wait_until,
)
from tests.engine.running import resume, tiny_settings, train, weights
from tests.engine.test_nonfinite import own_features, spoil
from trarctl.engine.checkpoint import load_checkpoint
from trarctl.engine.run import RunFolder

# Long enough to be hit in the middle, short enough to go to its end.
RUN = {"train__epochs": 12, "run__log_every": 1, "run__validate_every": 4}


def run_in(folder: Path) -> RunFolder:
    return RunFolder(folder / "runs" / "tiny")


@pytest.fixture(scope="module")
def data(golden_data: dict[str, Path]) -> Path:
    return golden_data["vqa"]


Undisturbed = Callable[[str], dict[str, bytes]]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Final weights of the run on the devices asked for."""

    @functools.cache
    def train_undisturbed(gpus: str) -> dict[str, bytes]:
        return weights(train(tiny_settings(data, tmp_path_factory.mktemp("undisturbed"), **RUN, run__gpus=gpus)))

    return train_undisturbed


def assert_nothing_is_left(started: Program) -> None:
    wait_until(lambda: not processes_of(started.process.pid), 10)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "code", "gpus"),
    [
        pytest.param(signal.SIGTERM, 143, "cpu", id="SIGTERM, one process"),
        pytest.param(signal.SIGINT, 130, "cpu", id="SIGINT, one process", marks=SLOW),
        pytest.param(signal.SIGUSR1, 138, "cpu", id="SIGUSR1, one process", marks=SLOW),
        pytest.param(signal.SIGTERM, 143, "cpu:2", id="SIGTERM, two processes"),
        pytest.param(signal.SIGINT, 130, "cpu:2", id="SIGINT, two processes", marks=SLOW),
        pytest.param(signal.SIGUSR1, 138, "cpu:2", id="SIGUSR1, two processes", marks=SLOW),
        pytest.param(signal.SIGHUP, 129, "cpu", id="SIGHUP, one process", marks=SLOW),
        pytest.param(signal.SIGHUP, 129, "cpu:2", id="SIGHUP, two processes", marks=SLOW),
        pytest.param(signal.SIGQUIT, 131, "cpu:2", id="SIGQUIT, two processes", marks=SLOW),
        pytest.param(signal.SIGXCPU, 152, "cpu:2", id="SIGXCPU, two processes", marks=SLOW),
    ],
)
def test_a_signal_stops_after_the_step(
    number: signal.Signals, code: int, gpus: str, data: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    run = run_in(tmp_path)
    with program(train_command(data, "vqa", **RUN, run__gpus=gpus), tmp_path) as started:
        seen = wait_for_step(started, run, 9)
        os.kill(started.process.pid, number)
        assert started.wait() == code
        assert_nothing_is_left(started)
        complaints = started.complaints()
    assert len(complaints) == 1
    assert complaints[0].startswith(f"stopped: run tiny stopped by {number.name} after step ")
    place = load_checkpoint(run.saved()[-1][2])[1].progress
    # Between reading the log and the signal's arrival some steps go by, each of a few milliseconds.
    assert seen <= place.step <= seen + 12
    assert max(entry["step"] for entry in run.metrics()) == place.step
    assert weights(resume(run_in(tmp_path))) == undisturbed(gpus)


@SLOW
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_to_all_processes(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 9)
        os.killpg(started.process.pid, number)
        assert started.wait() == 128 + number
        assert_nothing_is_left(started)
        assert len(started.complaints()) == 1, started.errors()
    assert run_in(tmp_path).saved()


def test_a_second_signal_changes_nothing(data: Path, tmp_path: Path) -> None:
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 9)
        for _ in range(5):
            os.kill(started.process.pid, signal.SIGTERM)
            time.sleep(0.1)
        assert started.wait() == 143
        (complaint,) = started.complaints()
        assert complaint.startswith("stopped: run tiny stopped by SIGTERM after step ")
        assert "hint:  trarctl resume tiny" in started.errors()


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_starting(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    command = train_command(data, "vqa", **RUN, run__gpus="cpu:2")
    with program(command, tmp_path) as started:
        wait_until(lambda: len(started.workers()) == 2)
        os.killpg(started.process.pid, number)
        assert started.wait(60) == 128 + number
        assert_nothing_is_left(started)
        assert started.complaints() == [f"stopped: run tiny was stopped by {number.name}"], started.errors()
        assert "hint:  nothing was saved: start it again" in started.errors()
    with program(command, tmp_path) as again:
        wait_for_step(again, run_in(tmp_path), 1)


def test_lost_by_its_launcher(data: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        seen = wait_for_step(started, run, 9)
        started.process.kill()
        wait_until(lambda: not started.members(), 20)
        assert "Traceback" not in started.errors()
    assert load_checkpoint(run.saved()[-1][2])[1].progress.step >= seen
    assert weights(resume(run_in(tmp_path))) == undisturbed("cpu:2")


@SLOW
def test_lost_by_its_launcher_while_another_process_hangs(data: Path, tmp_path: Path) -> None:
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 9)
        hanging, other = started.workers()
        os.kill(hanging, signal.SIGSTOP)
        started.process.kill()
        wait_until(lambda: other not in started.members(), 60)


@SLOW
def test_a_second_interrupt_stops_at_once(data: Path, tmp_path: Path) -> None:
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 3)
        for worker in started.workers():
            os.kill(worker, signal.SIGSTOP)  # a step that never ends
        os.kill(started.process.pid, signal.SIGINT)
        time.sleep(1)
        os.kill(started.process.pid, signal.SIGINT)
        assert started.wait(20) == 130
        assert_nothing_is_left(started)


@SLOW
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_one_message(victim: int, data: Path, tmp_path: Path) -> None:
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 9)
        os.kill(started.workers()[victim], signal.SIGKILL)
        assert started.wait(30) == 6
        assert_nothing_is_left(started)
        assert len(started.complaints()) == 1
        assert f"error: process {victim} of run tiny died (killed by SIGKILL)" in started.complaints()[0]
        assert "hint:  trarctl resume tiny goes on from its latest checkpoint" in started.errors()


def test_a_killed_process_is_started_again(data: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    command = train_command(data, "vqa", **RUN, run__gpus="cpu:2", run__max_restarts=1, run__save_every=3)
    with program(command, tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 12)
        os.kill(started.workers()[1], signal.SIGKILL)
        assert started.wait() == 0, started.errors()
        assert not started.complaints()
        assert "note:  a process was lost: run tiny goes on from its latest checkpoint" in started.errors()
        assert_nothing_is_left(started)
    assert weights(run_in(tmp_path)) == undisturbed("cpu:2")


@SLOW
@pytest.mark.parametrize("gpus", ["cpu", "cpu:2"])
def test_killed_outright_and_resumed(gpus: str, data: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with program(train_command(data, "vqa", **RUN, run__gpus=gpus, run__save_every=2), tmp_path) as started:
        wait_for_step(started, run, 17)
        for pid in started.members():
            os.kill(pid, signal.SIGKILL)
        assert started.wait() == 137
    assert weights(resume(run_in(tmp_path))) == undisturbed(gpus)


@SLOW
def test_two_launchers_train_together(data: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    port = free_port()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1", "-m"]
    # One process on a machine gets all cores, one of two gets half of them; sums depend on the number of threads.
    share = max(1, (os.cpu_count() or 1) // 2)
    command = [*torchrun, *train_command(data, "vqa", **RUN, run__num_threads=share)[2:]]
    with program(command, tmp_path) as first, program(command, tmp_path) as second:
        assert (first.wait(), second.wait()) == (0, 0), first.errors() + second.errors()
        said = first.errors() + second.errors()
    assert said.count("finished run tiny") == 1
    assert weights(run_in(tmp_path)) == undisturbed("cpu:2")


@pytest.mark.parametrize("gpus", ["cpu", pytest.param("cpu:2", marks=SLOW)])
def test_no_room_for_a_checkpoint(gpus: str, data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    command = train_command(data, "vqa", **RUN, run__gpus=gpus)
    with program(command, tmp_path) as started:
        wait_until(lambda: len(run.saved()) >= 2)
        # Nothing that a run writes but a checkpoint is that large.
        for pid in started.members():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        assert started.wait(60) == 4, started.errors()
        assert_nothing_is_left(started)
        complaints = started.complaints()
        assert len(complaints) == 1
        assert complaints[0].startswith("error: cannot write the checkpoint ")
        assert "earlier checkpoints are untouched" in started.errors()
    for _, _, path in run.saved():
        load_checkpoint(path)
    assert not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize("gpus", ["cpu", pytest.param("cpu:2", marks=SLOW)])
def test_features_that_cannot_be_read(gpus: str, tmp_path: Path) -> None:
    data, features = own_features(tmp_path)
    path = sorted(features.glob("*.npy"))[5]
    path.write_bytes(path.read_bytes()[:-7])
    with program(train_command(data, "vqa", **RUN, run__gpus=gpus, run__max_restarts=1), tmp_path) as started:
        assert started.wait(60) == 4
        assert_nothing_is_left(started)
        assert len(started.complaints()) == 1
        assert path.name in started.complaints()[0]


@SLOW
def test_a_loss_that_is_not_finite_in_one_of_two(tmp_path: Path) -> None:
    data, features = own_features(tmp_path)
    with program(train_command(data, "vqa", **RUN, run__gpus="cpu:2"), tmp_path) as started:
        wait_for_step(started, run_in(tmp_path), 2)
        spoil(features)
        assert started.wait(60) == 7
        assert len(started.complaints()) == 1
        assert "error: the loss or its gradient is not finite at step " in started.complaints()[0]


@SLOW
def test_scores_are_the_same_whatever_the_number_of_processes(data: Path, tmp_path: Path) -> None:
    train(tiny_settings(data, tmp_path, train__epochs=1))
    found = []
    for gpus in ("cpu", "cpu:3"):
        command = [sys.executable, "-m", "trarctl", "eval", "--ckpt", "tiny", "--gpus", gpus]
        with program([*command, "--save-scores", f"{gpus}.npz", "--set", "train.batch_size=16"], tmp_path) as started:
            assert started.wait() == 0, started.errors()
        with np.load(tmp_path / f"{gpus}.npz") as saved:
            found.append({name: saved[name] for name in saved.files})
    one, three = found
    assert len(one["question_id"]) == len(set(one["question_id"].tolist())) == 100
    assert one.keys() == three.keys()
    assert all(np.array_equal(one[name], three[name]) for name in one)


@SLOW
def test_four_processes_add_in_an_order_of_their_own(data: Path, tmp_path: Path) -> None:
    run = train(tiny_settings(data, tmp_path, train__epochs=2, run__gpus="cpu:4"))
    expected = weights(run)
    assert weights(resume(run, epoch=1)) == expected
