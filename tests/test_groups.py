"""Groups: what torchrun, Slurm and MPI tell a process, in full, in part, and wrongly."""

from __future__ import annotations

import pytest

from trarctl.errors import DeviceError
from trarctl.groups import Group, first_host, is_follower, num_restarts, read_group

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
STEP = {
    "SLURM_JOB_ID": "12345678",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
ON_ONE_NODE = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_PROCID": "1",
}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def test_torchrun() -> None:
    told = Group(3, 4, 1, 2, "10.0.0.1", 29500, "a group told by RANK and WORLD_SIZE")
    assert read_group(TORCHRUN) == told
    agent = TORCHRUN | {"TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert read_group(agent) == Group(3, 4, 1, 2, "10.0.0.1", 29500, "torchrun's run abc", has_agent=True)


def test_slurm() -> None:
    assert read_group(STEP) == Group(5, 6, 1, 2, "gpu03", 15678, "Slurm step 12345678.0")
    assert read_group(ON_ONE_NODE) == Group(1, 2, 1, 2, "127.0.0.1", 10007, "Slurm step 7.0")


def test_steps_of_one_job_meet_at_ports_of_their_own() -> None:
    ports = set()
    for step in range(300):
        group = read_group(STEP | {"SLURM_STEP_ID": str(step)})
        assert group is not None
        assert 10_000 <= group.port < 30_000
        ports.add(group.port)
    assert len(ports) == 300


@pytest.mark.parametrize(
    ("more", "port"),
    [
        ({"SLURM_STEP_RESV_PORTS": "12001-12006"}, 12001),
        ({"SLURM_STEP_RESV_PORTS": "12001", "MASTER_PORT": "29512"}, 29512),
    ],
)
def test_the_port_that_slurm_or_the_user_chose(more: dict[str, str], port: int) -> None:
    group = read_group(STEP | more)
    assert group is not None
    assert group.port == port


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "", "RANK": " ", "SLURM_NTASKS": "", "SLURM_JOB_ID": ""},
        # An address says nothing of several processes: batch scripts set it for tasks that they start later.
        {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        # A batch script, and the shell of salloc, within an allocation of several tasks.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "3(x2)"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967291"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": "1", "PMI_RANK": "0"},
    ],
)
def test_a_process_of_its_own(environ: dict[str, str]) -> None:
    assert read_group(environ) is None
    assert not is_follower(environ)


def test_a_batch_script_may_set_some_variables_for_its_tasks() -> None:
    group = read_group(ON_ONE_NODE | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "29500"})
    assert group == Group(1, 2, 1, 2, "127.0.0.2", 29500, "Slurm step 7.0")
    with pytest.raises(DeviceError, match=r"WORLD_SIZE=4 contradicts Slurm step 7\.0, for which it is 2"):
        read_group(ON_ONE_NODE | {"WORLD_SIZE": "4"})


def test_torchrun_within_a_step_of_slurm() -> None:
    group = read_group(STEP | TORCHRUN)
    assert group is not None
    assert group.rank == 3


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        *[(without(TORCHRUN, name), f"{name} is not set or empty") for name in TORCHRUN],
        *[(TORCHRUN | {name: ""}, f"{name} is not set or empty") for name in TORCHRUN],
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ({"LOCAL_RANK": "0"}, "(LOCAL_RANK=0), but RANK, WORLD_SIZE"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4 is out of range: at most 3 here"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1 is out of range: at most 0 here"),
        (TORCHRUN | {"RANK": "-1"}, "RANK='-1' is not a number"),
        (TORCHRUN | {"RANK": "\u00b2"}, "RANK='\u00b2' is not a number"),
        (TORCHRUN | {"WORLD_SIZE": "4.0"}, "WORLD_SIZE='4.0' is not a number"),
        (TORCHRUN | {"WORLD_SIZE": "9" * 5000}, "is not a number"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is out of range: at least 1 here"),
        (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is out of range: at most 1 here"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5 is out of range: at most 4 here"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is out of range: at most 65535 here"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT='http' is not a number"),
        (STEP | {"SLURM_PROCID": "6"}, "SLURM_PROCID=6 is out of range: at most 5 here"),
        (STEP | {"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is not set or empty"),
        (STEP | {"SLURM_STEP_ID": ""}, "SLURM_STEP_ID is not set or empty"),
        (without(STEP, "SLURM_STEP_ID"), "SLURM_STEP_ID is not set or empty"),
        (without(STEP, "SLURM_STEP_ID") | {"SLURM_PROCID": "0"}, "SLURM_STEP_ID is not set or empty"),
        (without(STEP, "SLURM_JOB_ID"), "SLURM_JOB_ID is not set or empty"),
        (STEP | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set or empty"),
        (STEP | {"SLURM_STEP_NODELIST": " "}, "SLURM_STEP_NODELIST is not set or empty"),
        (STEP | {"SLURM_NODEID": "3"}, "SLURM_NODEID=3 is out of range: at most 2 here"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE='two' does not name 6 tasks"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, "SLURM_STEP_TASKS_PER_NODE='2(x2)' does not name 6 tasks"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "six"}, "SLURM_STEP_NUM_TASKS='six' is not a number"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun has started several processes"),
        ({"PMI_RANK": "1"}, "mpirun has started several processes (PMI_RANK=1), but RANK, WORLD_SIZE"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        ({"JSM_NAMESPACE_SIZE": "4"}, "jsrun has started several processes"),
    ],
)
def test_a_group_that_is_told_in_part_or_wrongly(environ: dict[str, str], what: str) -> None:
    with pytest.raises(DeviceError) as raised:
        read_group(environ)
    assert what in raised.value.what
    assert raised.value.hint is not None
    assert "torchrun" in raised.value.hint


def test_only_the_first_of_a_group_prints() -> None:
    assert is_follower(TORCHRUN)
    assert not is_follower(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"})
    assert is_follower(STEP)
    # Each process that stands alone has to say what is wrong.
    assert not is_follower({"RANK": "1", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("environ", "number"), [({}, 0), ({"TORCHELASTIC_RESTART_COUNT": ""}, 0), ({"TORCHELASTIC_RESTART_COUNT": "2"}, 2)]
)
def test_restarts(environ: dict[str, str], number: int) -> None:
    assert num_restarts(environ) == number


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("one", "one"),
        ("a-1,b-2", "a-1"),
        ("n[1,5]", "n1"),
        ("rack[1-2]node[3,4]", "rack1node3"),
        ("gpu[3-5]-ib,x", "gpu3-ib"),
    ],
)
def test_the_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host
