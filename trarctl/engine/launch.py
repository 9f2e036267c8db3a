"""Doing work in one process or several: starting them, watching them, and bringing back one word on how it ended.

Several processes are started, watched and restarted by PyTorch's elastic launcher; they meet on the loopback address.
In a group that ``torchrun`` or Slurm has started, one process speaks for all.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trarctl.engine.callbacks import Callback, no_callback
from trarctl.engine.distributed import GRACE_SECONDS, LostProcess, Placement, World, joined, plan_placement
from trarctl.engine.reports import asked_to_stop, read_report, write_report
from trarctl.engine.signals import forwarded_signals
from trarctl.errors import DeviceError, Stopped, TrarError

Work = Callable[[World, Callback], Any]
Watch = Callable[[], AbstractContextManager[Callback]]
SHUTDOWN_SECONDS = 30  # for processes that hang once another is lost


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
        What the leading process returned; small, where processes are started for it.

    Raises:
        TrarError: whatever ended the work early.
        SystemExit: in all but one process of a group that was joined; that one speaks for them.
    """
    placement = plan_placement(task.gpus, os.environ)
    if placement.launches:
        with tempfile.TemporaryDirectory(prefix="trarctl-") as folder:
            return _launch(task, placement, watch, Path(folder))
    if placement.rank is None:
        return _work(task, placement, watch)
    return _join(task, placement, watch)


def num_restarts() -> int:
    """How often the launcher has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launch(task: Task, placement: Placement, watch: Watch, folder: Path) -> Any:
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
        signals_to_handle="SIGQUIT",  # the others are forwarded here, so that every process can finish its step
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    # The launcher's own log would say everything a second time, with a traceback.
    logging.disable(logging.CRITICAL)
    failure: TrarError | None = None
    result = None
    try:
        with forwarded_signals(folder) as stop:
            try:
                result = elastic_launch(config, _worker)(task, watch, folder)[0]
            except ChildFailedError as failed:
                failure = _died(task, failed)
    finally:
        logging.disable(logging.NOTSET)
    if report := read_report(folder):
        raise report
    if failure and stop.signal_number:
        raise _stopped_early(task, stop.signal_number)
    if failure:
        raise failure
    return result


def _worker(task: Task, watch: Watch, folder: Path) -> Any:
    """What each started process does; how it ended goes to a file, since exceptions do not cross processes whole."""
    if read_report(folder):
        # Only lost processes are worth another try: what has a known cause would end the same.
        return None
    if number := asked_to_stop(folder):
        write_report(folder, _stopped_early(task, number))
        return None
    placement = plan_placement(task.gpus, os.environ)
    try:
        return _work(task, placement, watch)
    except Stopped as stopped:
        write_report(folder, stopped)
        return None
    except LostProcess:
        # The launcher sees better who was lost and how, and ends this process too.
        time.sleep(GRACE_SECONDS)
        raise SystemExit(DeviceError.exit_code) from None
    except TrarError as error:
        write_report(folder, error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception:  # noqa: BLE001 - a fault of ours: nothing but this would show where
        traceback.print_exc()
        raise SystemExit(1) from None


def _join(task: Task, placement: Placement, watch: Watch) -> Any:
    """Work as one of a group that others have started."""

    def work(world: World, callback: Callback) -> Any:
        try:
            return task.work(world, callback)
        except TrarError as error:
            if world.tells(is_witness=not isinstance(error, LostProcess)):
                raise
            raise SystemExit(error.code if isinstance(error, Stopped) else error.exit_code) from None

    result = _work(replace(task, work=work), placement, watch)
    if placement.rank:
        raise SystemExit(0)
    return result


def _work(task: Task, placement: Placement, watch: Watch) -> Any:
    leads = not placement.rank
    # The observer outlives the group: what it shows last must not wait for other processes.
    with (
        watch() if leads else nullcontext(no_callback) as callback,
        joined(placement, timeout_seconds=task.timeout_seconds) as world,
    ):
        try:
            return task.work(world, callback)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{world.device} has too little memory: {str(error).splitlines()[0]}",
                "split the batch with --accu, or take a smaller --batch-size",
            ) from error


def _stopped_early(task: Task, signal_number: int) -> Stopped:
    name = signal.Signals(signal_number).name
    return Stopped(f"{task.name} was stopped by {name} before its next step", signal_number, task.cure)


def _died(task: Task, failed: ChildFailedError) -> DeviceError:
    rank, failure = failed.get_first_failure()
    how = f"killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
    return DeviceError(f"process {rank} of {task.name} died ({how})", task.cure)
