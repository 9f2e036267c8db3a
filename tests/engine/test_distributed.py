"""Devices and groups: what a user asks for, what torchrun and Slurm say."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from tests.engine.programs import free_port
from trarctl.engine.distributed import Placement, first_host, joined, plan_placement, precision_of, use_threads
from trarctl.errors import DeviceError, SettingsError


def test_alone_on_the_cpu() -> None:
    placement = plan_placement("cpu", {})
    assert placement == Placement(("cpu",))
    assert not placement.launches
    assert placement.num_processes == 1


def test_several_processes_are_started() -> None:
    placement = plan_placement("cpu:3", {})
    assert placement.launches
    assert placement.num_processes == 3


TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


def test_torchrun_is_joined() -> None:
    placement = plan_placement("cpu", TORCHRUN)
    assert placement == Placement(("cpu", "cpu"), rank=3, local_rank=1, size=4)
    assert not placement.launches
    assert placement.num_processes == 4


def test_torchrun_with_another_number_of_devices() -> None:
    with pytest.raises(DeviceError, match="--gpus cpu:3 names 3 devices, 2 processes were started") as raised:
        plan_placement("cpu:3", TORCHRUN)
    assert raised.value.hint == "start as many processes as devices: --nproc-per-node 3"


def test_slurm_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    step = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "6",
        "SLURM_STEP_NODELIST": "gpu[03-05]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
        "SLURM_JOB_ID": "12345678",
    }
    assert plan_placement("cpu", step) == Placement(("cpu", "cpu"), rank=5, local_rank=1, size=6)
    assert os.environ["MASTER_ADDR"] == "gpu03"
    assert 10_000 <= int(os.environ["MASTER_PORT"]) < 30_000
    alone = step | {"SLURM_STEP_NUM_TASKS": "1"}
    assert plan_placement("cpu", alone) == Placement(("cpu",))
    batch_script = {name: value for name, value in step.items() if not name.startswith("SLURM_STEP")}
    assert plan_placement("cpu", batch_script | {"SLURM_NTASKS": "6"}) == Placement(("cpu",))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu[03-05,9],cpu1", "gpu03"), ("one", "one"), ("a-1,b-2", "a-1"), ("n[1,5]", "n1")],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("gpus", ["gpu", "0,0", "1.5", "cpu:x", "-1", ""])
def test_what_cannot_be_read(gpus: str) -> None:
    with pytest.raises(DeviceError, match="expected different GPU indices joined by commas") as raised:
        plan_placement(gpus, {})
    assert raised.value.exit_code == 6


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"there is no GPU 97; this machine has"):
        plan_placement("97", {})


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("before", [(True, False), (False, True)])
def test_a_precision_leaves_no_flags_behind(precision: str, before: tuple[bool, bool]) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    at_first = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        with precision_of(torch.device("cuda"), precision):  # type: ignore[arg-type]
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (precision == "tf32",) * 2
        with pytest.raises(KeyError), precision_of(torch.device("cuda"), precision):  # type: ignore[arg-type]
            raise KeyError
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = at_first


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with use_threads(before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def _attempt(number: int, rank: int, port: int, dies: bool) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(number),
    }
    with joined(Placement(("cpu", "cpu"), rank, rank, 2), timeout_seconds=30) as world:
        total = world.all_reduce(np.array([float(rank + 1)]))
        if dies:
            os._exit(9)
        assert total.tolist() == [3.0]


AGREEMENTS: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({"seed": 1, "path": Path("a")}, {"seed": 1, "path": Path("a")}, ""),
    ({}, {}, ""),
    ({"seed": 1, "rate": 0.1}, {"seed": 2, "rate": 0.1}, "seed is 1 in process 0 and 2 in process 1"),
    (
        {"rate": 0.1, "batch": 3},
        {"batch": 64, "rate": 0.10000000000000002},
        "rate is 0.1 in process 0 and 0.10000000000000002 in process 1, batch is 3 in process 0 and 64 in process 1",
    ),
    ({"a": 1}, {"a": 1, "b": ""}, "b is not there in process 0 and empty in process 1"),
    ({"a": "x" * 70}, {}, f"a is {'x' * 60}... in process 0 and not there in process 1"),
]


def _compare(rank: int, port: int, answers: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = []
    with joined(Placement(("cpu", "cpu"), rank, rank, 2), timeout_seconds=30) as world:
        for *values, _ in AGREEMENTS:
            try:
                world.require_equal(values[rank], "start them alike")
            except SettingsError as error:
                found.append((error.exit_code, error.what, error.hint))
            else:
                found.append((0, "", ""))
    answers.put(found)


def test_what_processes_must_agree_on() -> None:
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    port = free_port()
    processes = [context.Process(target=_compare, args=(rank, port, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    expected = [
        (3, f"the processes of this group differ: {what}", "start them alike") if what else (0, "", "")
        for _, _, what in AGREEMENTS
    ]
    assert found == [expected, expected]


def test_processes_started_again_do_not_meet_lost_ones() -> None:
    """One store serves all attempts, as in the elastic launcher; addresses of lost processes stay in it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30), wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    for number, code in ((0, 9), (1, 9), (2, 0)):
        arguments = [(number, rank, store.port, code == 9) for rank in range(2)]
        processes = [context.Process(target=_attempt, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [code, code]


PROGRAM = """
import resource, sys
import numpy as np
from trarctl.engine.distributed import reuse_freed_memory
if sys.argv[1] == "reuse" and not reuse_freed_memory():
    sys.exit(9)
def turn():
    block = np.ones(6_000_000)
    del block
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int | None:
    """Pages that the system had to provide while the same block was taken and freed; None without glibc."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=False)
    return None if ended.returncode == 9 else int(ended.stdout)


def test_a_freed_block_is_used_again() -> None:
    reused, plain = faults("reuse"), faults("plain")
    assert plain is not None
    assert reused is None or reused < 100
    assert reused is None or reused <= plain
