"""Devices and groups: what a user asks for, what torchrun and Slurm say."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

from tests.engine.programs import free_port, program, train_command
from trarctl.engine.distributed import Placement, joined, plan_placement, precision_of, training_precision, use_threads
from trarctl.errors import DeviceError, SettingsError
from trarctl.groups import Group, read_group


def test_alone_on_the_cpu() -> None:
    placement = plan_placement("cpu", {})
    assert placement == Placement(("cpu",))
    assert placement.num_processes == 1


def test_several_processes_are_started() -> None:
    placement = plan_placement("cpu:3", {})
    assert placement.num_processes == 3


TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_torchrun_is_joined() -> None:
    placement = plan_placement("cpu", TORCHRUN)
    assert placement == Placement(("cpu", "cpu"), read_group(TORCHRUN))
    assert placement.num_processes == 4


def test_torchrun_with_another_number_of_devices() -> None:
    with pytest.raises(DeviceError, match="--gpus cpu:3 names 3 devices, 2 processes were started") as raised:
        plan_placement("cpu:3", TORCHRUN)
    assert raised.value.hint == "start as many processes as devices: --nproc-per-node 3"


@pytest.mark.parametrize(
    "gpus",
    [
        "gpu",
        "0,0",
        "1.5",
        "cpu:x",
        "-1",
        "",
        "\u00b2",
        "0,\u00b2",
        "0,,1",
        "0,",
        "0 1",
        "00,0",
        "cpu:\u0663",
        "cpu:0",
        "cpu:",
        "9" * 5000,
    ],
)
def test_what_cannot_be_read(gpus: str) -> None:
    with pytest.raises(DeviceError, match="expected different GPU indices joined by commas") as raised:
        plan_placement(gpus, {})
    assert raised.value.exit_code == 6


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match=r"there is no GPU 97; this machine has"):
        plan_placement("97", {})


@pytest.mark.parametrize(
    ("device", "wanted", "precision"),
    [("cpu", "auto", "fp32"), ("cpu", "bf16", "bf16"), ("cuda", "auto", "bf16"), ("cuda", "tf32", "tf32")],
)
def test_a_precision_is_chosen_by_the_device(
    device: str, wanted: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert training_precision(torch.device(device), wanted) == precision  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert training_precision(torch.device("cuda"), "auto") == "fp32"


@pytest.mark.parametrize(
    ("device", "before", "has_bf16", "precision"),
    [
        ("cuda", "fp32", True, "fp32"),
        ("cuda", "bf16", True, "bf16"),
        ("cuda", "bf16", False, "fp32"),
        ("cpu", "bf16", True, "fp32"),
        ("cpu", "fp32", True, "fp32"),
    ],
)
def test_a_run_keeps_its_precision_on_another_device_that_has_it(
    device: str, before: str, has_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_options: has_bf16)
    place = torch.device(device)
    assert training_precision(place, "auto", before) == precision  # type: ignore[arg-type]
    assert training_precision(place, "tf32", before) == "tf32"  # type: ignore[arg-type]


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
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    group = Group(rank, 2, rank, 2, "127.0.0.1", port, has_agent=True)
    with joined(Placement(("cpu", "cpu"), group), timeout_seconds=30) as world:
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
    ({"a": "x" * 70}, {}, f"a is {'x' * 57}... in process 0 and not there in process 1"),
]


def _compare(rank: int, port: int, answers: Any) -> None:
    found = []
    with joined(Placement(("cpu", "cpu"), Group(rank, 2, rank, 2, "127.0.0.1", port)), timeout_seconds=30) as world:
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


def _join(group: Group, seconds: float, answers: Any, release: Any) -> None:
    """Join as a process of its own; the message, or that all went well."""
    try:
        with joined(Placement(("cpu",) * group.local_size, group), timeout_seconds=seconds) as world:
            answers.put((group.rank, world.all_gather(group.rank)))
            release.wait(60)  # strangers come while the group works
    except DeviceError as error:
        answers.put((group.rank, error.what))


def join_all(groups: list[Group], seconds: float) -> list[tuple[int, Any]]:
    context = multiprocessing.get_context("spawn")
    answers, release = context.Queue(), context.Event()
    processes = [context.Process(target=_join, args=(group, seconds, answers, release)) for group in groups]
    for process in processes:
        process.start()
    found: list[tuple[int, Any]] = [answers.get(timeout=60) for _ in processes]
    release.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return sorted(found, key=str)


def test_strangers_are_refused() -> None:
    port = free_port()
    step = "Slurm step 7.0"
    group = [Group(rank, 2, rank, 2, "127.0.0.1", port, step) for rank in range(2)]
    strangers = [Group(1, 2, 1, 2, "127.0.0.1", port, "Slurm step 7.1"), Group(2, 3, 2, 3, "127.0.0.1", port, step)]
    found = join_all([*group, *strangers, group[1]], 20)
    where = f"another group meets at 127.0.0.1:{port}: Slurm step 7.0 with 2 processes; this process belongs to "
    assert found == [
        (0, [0, 1]),
        (1, where + "Slurm step 7.1 with 2 processes"),
        (1, f"there is already a process 1 of 2 at 127.0.0.1:{port}"),
        (1, [0, 1]),
        (2, where + "Slurm step 7.0 with 3 processes"),
    ]


def test_others_that_never_come() -> None:
    port = free_port()
    ((_, what),) = join_all([Group(0, 2, 0, 2, "127.0.0.1", port)], 3)
    assert what.startswith(f"process 0 of 2 cannot join the others at 127.0.0.1:{port}: ")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "another protocol"])
def test_another_program_at_the_port(
    answer: bytes | None, golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with suppress(OSError):
                while answer is not None:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        for name, value in TORCHRUN.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with program(train_command(golden_data["vqa"], run__timeout_seconds=3), tmp_path) as started:
            # Some seconds to load, and one time-out.
            assert started.wait(30) == 6
            first, hint = started.errors().splitlines()
    assert first.startswith(f"error: process 3 of 4 cannot join the others at 127.0.0.1:{port}: ")
    assert hint.startswith("hint:  check that all machines reach MASTER_ADDR:MASTER_PORT")
