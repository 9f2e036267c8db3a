"""What launchers say of the group that a process belongs to: the variables of torchrun, Slurm and MPI.

Free of torch, since commands ask before it is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from trarctl.errors import DeviceError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Launchers whose groups are not joined: their name, and the variables with the number of processes and the rank.
_FOREIGN = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpirun", "PMI_SIZE", "PMI_RANK"),
    ("mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    ("flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
)
# Variables of a step, and those of its job where a step has none.
_OF_THE_JOB = {
    "SLURM_STEP_NUM_TASKS": "SLURM_NTASKS",
    "SLURM_STEP_NODELIST": "SLURM_JOB_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE": "SLURM_TASKS_PER_NODE",
}
LEFT_BEHIND = "waits for the network"  # name of a thread that nobody waits for any more
FIRST_RESERVED_STEP = 0xFFFFFFF0  # Slurm's ids from here on are batch scripts and shells, not what srun started
FIRST_PORT, NUM_PORTS = 10_000, 20_000
_STEP_STRIDE = 7_919  # a prime: the steps of one job get different ports, whatever the job
_START_WITH = "start the processes with torchrun or srun, which set all of them"


@dataclass(frozen=True)
class Group:
    """Processes that another program has started to work together, as one of them is told."""

    rank: int
    size: int
    local_rank: int  # among the processes on this machine
    local_size: int
    address: str  # where they meet
    port: int
    name: str = ""  # tells apart groups that meet at the same address
    has_agent: bool = False  # whether their launcher keeps the meeting place, and is their parent


def read_group(environ: Mapping[str, str]) -> Group | None:
    """The group that this process was started in; None for a process of its own. Blank variables are not set."""
    told = {name: value.strip() for name, value in environ.items() if value.strip()}
    step = _slurm_step(told, is_told="SLURM_STEP_ID" in environ or "SLURM_STEP_NUM_TASKS" in told)
    if step is None or told.keys() >= set(TORCHRUN):
        if any(name in told for name in TORCHRUN[:4]):
            return _torchrun_group(told)
        _refuse_foreign(told)
        return None
    # Batch scripts often set some of torchrun's variables for the tasks that srun starts.
    for name, expected in zip(TORCHRUN, (step.rank, step.size, step.local_rank, step.local_size), strict=False):
        if name in told and _number(told, name) != expected:
            raise DeviceError(
                f"{name}={told[name]} contradicts {step.name}, for which it is {expected}",
                f"unset {name}, or start with torchrun",
            )
    return step


def is_follower(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a group and is not the first, which alone prints."""
    try:
        group = read_group(environ)
    except DeviceError:
        return False
    return group is not None and group.rank > 0


def num_restarts(environ: Mapping[str, str] = os.environ) -> int:
    """How often the launcher has started this process again."""
    name = "TORCHELASTIC_RESTART_COUNT"
    return _number({name: environ.get(name, "").strip() or "0"}, name)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0]) if match else nodes


def _number(told: Mapping[str, str], name: str, *, below: int | None = None, least: int = 0) -> int:
    value = told[name]
    if not re.fullmatch(r"[0-9]{1,18}", value):
        problem = f"{name}={value!r} is not a number"
    elif int(value) < least:
        problem = f"{name}={value} is out of range: at least {least} here"
    elif below is not None and int(value) >= below:
        problem = f"{name}={value} is out of range: at most {below - 1} here"
    else:
        return int(value)
    raise DeviceError(problem, f"unset {name}, or {_START_WITH}")


def _require(told: Mapping[str, str], names: tuple[str, ...], *, told_by: str) -> None:
    if missing := [name for name in names if name not in told]:
        present = ", ".join(f"{name}={told[name]}" for name in names if name in told)
        raise DeviceError(
            f"{told_by} says that this process is one of several ({present}), but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set or empty",
            f"{_START_WITH}, or unset them for a process of its own",
        )


def _torchrun_group(told: Mapping[str, str]) -> Group | None:
    size = _number(told, "WORLD_SIZE", least=1) if "WORLD_SIZE" in told else None
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if name in told:
            is_size = name == "LOCAL_WORLD_SIZE"
            _number(told, name, least=int(is_size), below=None if size is None else size + is_size)
    if size == 1 and not all(name in told for name in TORCHRUN):
        return None
    _require(told, TORCHRUN, told_by="the environment")
    rank, size, local_rank, local_size = (_number(told, name) for name in TORCHRUN[:4])
    _number(told, "LOCAL_RANK", below=local_size)
    port = _number(told, "MASTER_PORT", least=1, below=65_536)
    run_id = told.get("TORCHELASTIC_RUN_ID")
    name = f"torchrun's run {run_id}" if run_id else "a group told by RANK and WORLD_SIZE"
    has_agent = told.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Group(rank, size, local_rank, local_size, told["MASTER_ADDR"], port, name, has_agent)


def _slurm_step(told: dict[str, str], *, is_told: bool) -> Group | None:
    """The tasks that one ``srun`` started, if they are several; the shell of an allocation is a process of its own."""
    told = {name: told[other] for name, other in _OF_THE_JOB.items() if other in told} | told
    has_task = "SLURM_PROCID" in told and _number(told, "SLURM_PROCID") > 0
    if not has_task and not is_told:
        return None
    if "SLURM_STEP_ID" in told and _number(told, "SLURM_STEP_ID") >= FIRST_RESERVED_STEP:
        return None
    if not has_task and told.get("SLURM_STEP_NUM_TASKS") == "1":
        return None
    needed = ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_STEP_TASKS_PER_NODE")
    _require(told, needed, told_by="Slurm")
    size = _number(told, "SLURM_STEP_NUM_TASKS", least=1)
    rank = _number(told, "SLURM_PROCID", below=size)
    counts = _tasks_per_node(told, size)
    if len(counts) > 1:
        _require(told, ("SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"), told_by="Slurm")
    local_size = counts[_number({"SLURM_NODEID": "0"} | told, "SLURM_NODEID", below=len(counts))]
    local_rank = _number({"SLURM_LOCALID": str(rank)} | told, "SLURM_LOCALID", below=local_size)
    job, step = _number(told, "SLURM_JOB_ID"), _number(told, "SLURM_STEP_ID")
    reserved = re.match(r"[0-9]+", told.get("SLURM_STEP_RESV_PORTS", ""))
    port = reserved[0] if reserved else str(FIRST_PORT + (job + step * _STEP_STRIDE) % NUM_PORTS)
    address = told.get("MASTER_ADDR") or (first_host(told["SLURM_STEP_NODELIST"]) if len(counts) > 1 else "127.0.0.1")
    port_number = _number({"MASTER_PORT": port} | told, "MASTER_PORT", least=1, below=65_536)
    return Group(rank, size, local_rank, local_size, address, port_number, f"Slurm step {job}.{step}")


def _tasks_per_node(told: Mapping[str, str], size: int) -> list[int]:
    """``2(x3),1`` -> [2, 2, 2, 1]."""
    text = told["SLURM_STEP_TASKS_PER_NODE"]
    counts: list[int] = []
    if re.fullmatch(r"[0-9]{1,6}(\(x[0-9]{1,6}\))?(,[0-9]{1,6}(\(x[0-9]{1,6}\))?)*", text):
        for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
            counts += [int(count)] * int(repeat or 1)
    if sum(counts) != size:
        raise DeviceError(
            f"SLURM_STEP_TASKS_PER_NODE={text!r} does not name {size} tasks, as SLURM_STEP_NUM_TASKS does", _START_WITH
        )
    return counts


def _refuse_foreign(told: dict[str, str]) -> None:
    for launcher, size, rank in _FOREIGN:
        if _number({size: "1"} | told, size) > 1 or _number({rank: "0"} | told, rank) > 0:
            shown = ", ".join(f"{name}={told[name]}" for name in (size, rank) if name in told)
            raise DeviceError(
                f"{launcher} has started several processes ({shown}), but {', '.join(TORCHRUN)} are not set: "
                "each would work alone",
                "start the processes with torchrun or srun; on one machine --gpus 0,1 starts them",
            )
