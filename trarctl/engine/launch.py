"""Do a job in one process or several: start them, watch them, and report once how they ended.

Several processes are started, watched and restarted by PyTorch's elastic launcher, on the loopback address. In a group
that ``torchrun`` or Slurm has started, one process speaks for all.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import trarctl
from trarctl import errors
from trarctl.engine import distributed
from trarctl.engine.callbacks import Callback, Note, Shielded, no_callback
from trarctl.engine.distributed import GRACE_SECONDS, LostProcess, Placement, World, plan_placement
from trarctl.engine.signals import asked_to_stop, ended_with_parent, forwarded_signals, late_signals, stop_requests
from trarctl.errors import DeviceError, Stopped, TrarError, first_line, told_warnings
from trarctl.files import write_bytes
from trarctl.processors import threads_of_each

Watch = Callable[[], AbstractContextManager[Callback]]
SHUTDOWN_SECONDS = 30  # for processes that hang once another is lost


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for one process or several, as plain values that can be sent to another process."""

    title: str  # in messages: ``run tiny``
    hint: str  # the command that continues after it was stopped or lost
    gpus: str | None  # devices, see ``plan_placement``
    timeout_seconds: float = 600.0  # after which a process that waits for a lost one gives up
    max_restarts: int = 0

    def advice(self) -> str:
        """What to do now that it was stopped or a process was lost."""
        return self.hint

    def work(self, world: World, callback: Callback) -> Any:
        """Do the work of one process; called in each of them."""
        raise NotImplementedError


def run_job(job: Job, watch: Watch) -> Any:
    """Do a job, in this process or in as many as there are devices.

    ``watch`` makes the callback in the process of rank 0; a function of a module, so that it can be sent there.

    Returns:
        What ``job.work`` returned in the process of rank 0; small, where processes are started for it.

    Raises:
        SystemExit: in all but one process of a group that was joined; that one speaks for them.
    """
    placement = plan_placement(job.gpus, os.environ)
    if placement.group is None and placement.num_processes > 1:
        with tempfile.TemporaryDirectory(prefix="trarctl-") as folder:
            return _launch(job, placement, watch, Path(folder))
    if placement.group is not None:
        return _join(job, placement, watch)
    with _process(job, placement, watch) as (world, callback):
        return job.work(world, callback)


def _stopped(job: Job, signal_number: int) -> Stopped:
    """What ends a job that was stopped where nothing has to be finished first."""
    return Stopped(f"{job.title} was stopped by {signal.Signals(signal_number).name}", signal_number, job.advice())


@contextmanager
def _process(
    job: Job, placement: Placement, watch: Watch, explain: Callable[[Job, int], BaseException] = _stopped
) -> Iterator[tuple[World, Callback]]:
    """What surrounds the work of each process."""
    # The callback outlives the group: what it shows last must not wait for other processes.
    with (
        stop_requests(functools.partial(explain, job)) as stop,
        nullcontext(no_callback) if placement.rank else watch() as shown,
        distributed.joined(placement, timeout_seconds=job.timeout_seconds) as world,
        distributed.reused_memory(),
        told_warnings(lambda text: callback(Note(text))),
    ):
        callback = Shielded(shown, "the display")
        hint = "split the batch with --accu, or take a smaller --batch-size"
        try:
            with distributed.enough_memory(hint):
                yield dataclasses.replace(world, stop=stop), callback
        except torch.OutOfMemoryError as error:
            what = f"{world.device} has too little memory: {first_line(error)}"
            raise DeviceError(what, hint) from error
        except LostProcess as error:
            raise LostProcess(error.what, job.advice()) from error
        finally:
            stop.defer()


def _work_alike(job: Job, world: World, callback: Callback) -> Any:
    """Work, once all processes agree on what and with which versions: sizes of what they exchange depend on it."""
    world.require_equal(
        {"the work": type(job).__name__, "trarctl": trarctl.__version__, "torch": torch.__version__},
        "start the same command of the same installation in all of them",
    )
    return job.work(world, callback)


def _join(job: Job, placement: Placement, watch: Watch) -> Any:
    """Work as one of a group that others have started."""
    is_watched = placement.group is not None and placement.group.has_agent
    with (
        ended_with_parent() if is_watched else nullcontext(),
        _process(job, placement, watch) as (world, callback),
    ):
        try:
            result = _work_alike(job, world, callback)
        except TrarError as error:
            if world.may_report(knows_cause=not isinstance(error, LostProcess)):
                raise
            raise SystemExit(error.exit_code) from None
    if placement.rank:
        raise SystemExit(0)
    return result


def _launch(job: Job, placement: Placement, watch: Watch, folder: Path) -> Any:
    num_processes = len(placement.devices)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"trarctl-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=job.max_restarts,
        signals_to_handle="",  # they are forwarded here, so that every process can finish its step
        shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(str(folder / "logs")),  # its own choice would stay in the temporary folder
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of_each(num_processes)))
    # The launcher's own log would say everything a second time, with a traceback.
    logging.disable(logging.CRITICAL)
    result, failure = None, None
    try:
        with forwarded_signals(folder) as stop:
            result = elastic_launch(config, _worker)(job, watch, folder)[0]
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        how = f"killed by {first.signal_name()}" if first.exitcode < 0 else f"exit code {first.exitcode}"
        failure = DeviceError(f"process {rank} of {job.title} died ({how})", job.advice())
    finally:
        logging.disable(logging.NOTSET)
    if report := _read_report(folder):
        raise report
    if failure is not None:
        raise _stopped(job, stop.signal_number) if stop.signal_number else failure
    return result


def _worker(job: Job, watch: Watch, folder: Path) -> Any:
    """What each started process does; how it ended goes to a file, since exceptions do not cross processes whole."""
    if _read_report(folder):
        # Only lost processes are worth another try: what has a known cause would end the same.
        return None

    def explain(job: Job, number: int) -> BaseException:
        # The launcher ends this process in the same way if another one dies, which that one explains.
        return _stopped(job, number) if asked_to_stop(folder) else SystemExit(128 + number)

    # Signals are listened to from here on until the report is written.
    with ended_with_parent(), stop_requests(afterwards=late_signals(folder)):
        if number := asked_to_stop(folder):
            _write_report(folder, _stopped(job, number))
            return None
        try:
            with _process(job, plan_placement(job.gpus, os.environ), watch, explain) as (world, callback):
                return _work_alike(job, world, callback)
        except Stopped as stopped:
            _write_report(folder, stopped)
            return None
        except LostProcess:
            # The launcher sees better who was lost and how, and ends this process too.
            time.sleep(GRACE_SECONDS)
            raise SystemExit(DeviceError.exit_code) from None
        except TrarError as error:
            _write_report(folder, error)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        except Exception:  # noqa: BLE001 - a fault of ours: nothing but this would show where
            traceback.print_exc()
            raise SystemExit(1) from None


def _write_report(folder: Path, error: TrarError) -> None:
    """Keep what ended this process: its class, hint and signal too, which torch's ``record`` would lose."""
    report: dict[str, object] = {"kind": type(error).__name__, "what": error.what, "hint": error.hint}
    if isinstance(error, Stopped):
        report["signal_number"] = error.signal_number
    write_bytes(folder / f"{os.getpid()}.json", orjson.dumps(report))


def _read_report(folder: Path) -> TrarError | None:
    """What ended the first process that reported, as it was raised there."""
    reports = sorted(folder.glob("[0-9]*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return None
    report = orjson.loads(reports[0].read_bytes())
    kind: Callable[..., TrarError] = getattr(errors, report.pop("kind"), TrarError)
    return kind(**report)
