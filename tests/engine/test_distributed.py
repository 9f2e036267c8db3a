"""Devices and groups: what a user asks for, what torchrun and Slurm say."""

from __future__ import annotations

import pytest

from trarctl.engine.distributed import Placement, first_host, plan_placement
from trarctl.errors import DeviceError


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
    import os

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
