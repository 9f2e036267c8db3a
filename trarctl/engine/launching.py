"""Doing work in one process or several: starting them, watching them, and bringing back one word on how it ended.

Several processes are started, watched and restarted by PyTorch's elastic launcher; they meet on the loopback address.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trarctl import errors
from trarctl.engine.events import Observer, unobserved
from trarctl.engine.processes import Placement, World, joined, plan_placement
from trarctl.errors import DeviceError, Stopped, TrarError

Work = Callable[[World, Observer], Any]
Watch = Callable[[], AbstractContextManager[Observer]]
SHUTDOWN_SECONDS = 600  # a step and the saving of a checkpoint must fit before a process is killed


@dataclass(frozen=True)
class Task:
    """Work for one process or several, as it can be sent to another process.

    Attributes:
        work: called with the world and an observer in each process; must be picklable.
        name: what to call it in messages.
        cure: the command that goes on after it was stopped or lost.
        gpus: devices, see ``plan_placement``.
        timeout_seconds: after which a process that waits for a lost one gives up.
        max_restarts: times that lost processes are started again.
    """

    work: Work
    name: str
    cure: str
    gpus: str | None
    timeout_seconds: float = 600.0
    max_restarts: int = 0


def run_task(task: Task, watch: Watch) -> Any:
    """Do the work, in this process or in as many as there are devices.

    Args:
        task: what to do.
        watch: makes the observer, in the process of rank 0; a function of a module, so that it can be sent there.

    Returns:
        What the leading process returned; None in the others of a group that was joined.

    Raises:
        TrarError: whatever ended the work early.
    """
    placement = plan_placement(task.gpus, os.environ)
    if not placement.launches:
        return _work(task, placement, watch)
    with tempfile.TemporaryDirectory(prefix="trarctl-") as folder:
        return _launch(task, placement, watch, Path(folder))


def num_restarts() -> int:
    """How often the launcher has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launch(task: Task, placement: Placement, watch: Watch, folder: Path) -> Any:
    # The launcher's own log would say everything a second time, with a traceback.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    num_processes = len(placement.devices)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"trarctl-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=task.max_restarts,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1,SIGHUP",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    try:
        return elastic_launch(config, _worker)(task, watch, folder)[0]
    except SignalException as stopped:
        raise _reported(folder) or Stopped(f"{task.name} was stopped", int(stopped.sigval), task.cure) from None
    except ChildFailedError as failed:
        raise _reported(folder) or _died(task, failed) from None


def _worker(task: Task, watch: Watch, folder: Path) -> Any:
    """What each started process does; how it ended goes to a file, since exceptions do not cross processes whole."""
    placement = plan_placement(task.gpus, os.environ)
    try:
        return _work(task, placement, watch)
    except TrarError as error:
        report: dict[str, Any] = {"kind": type(error).__name__, "what": error.what, "hint": error.hint}
        if isinstance(error, Stopped):
            report["signal"] = error.signal_number
        (folder / f"{placement.rank}-{num_restarts()}.json").write_bytes(orjson.dumps(report))
        raise SystemExit(error.code if isinstance(error, Stopped) else error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _work(task: Task, placement: Placement, watch: Watch) -> Any:
    leads = not placement.rank
    # The observer outlives the group: what it shows last must not wait for other processes.
    with (
        watch() if leads else nullcontext(unobserved) as observe,
        joined(placement, timeout_seconds=task.timeout_seconds) as world,
    ):
        try:
            return task.work(world, observe)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{world.device} has too little memory: {str(error).splitlines()[0]}",
                "split the batch with --accu, or take a smaller --batch-size",
            ) from error


def _reported(folder: Path) -> TrarError | None:
    """The first error that a process wrote down, as it was."""
    reports = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return None
    report = orjson.loads(reports[0].read_bytes())
    if report["kind"] == "Stopped":
        return Stopped(report["what"], report["signal"], report["hint"])
    kind: type[TrarError] = getattr(errors, report["kind"])
    return kind(report["what"], report["hint"])


def _died(task: Task, failed: ChildFailedError) -> DeviceError:
    rank, failure = failed.get_first_failure()
    if failure.exitcode < 0:
        how = f"killed by {failure.signal_name()}"
    else:
        how = f"exit code {failure.exitcode}: {str(failure.message).strip().splitlines()[-1][:500]}"
    return DeviceError(f"process {rank} of {task.name} died ({how})", task.cure)
