"""Jobs: what is to be trained, checked against its data before any process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from trarctl.config.resolve import Origin
from trarctl.config.settings import Settings
from trarctl.data.prepared import open_prepared
from trarctl.engine.callbacks import Callback, Note
from trarctl.engine.distributed import World, plan_placement
from trarctl.engine.launch import Task, Watch, num_restarts, run_task
from trarctl.engine.lifecycle import check_batch, resume_run, start_run
from trarctl.engine.loading import adopt_shape
from trarctl.engine.loggers import check_loggers
from trarctl.engine.run import CHECKPOINT, RunFolder, find_checkpoint, read_settings
from trarctl.engine.setup import fit_to_data
from trarctl.errors import SettingsError


@dataclass(frozen=True)
class Job:
    """A run to start or to go on with, as plain values that can be sent to another process.

    Attributes:
        kind: ``start`` makes a new run, ``resume`` goes on with one.
        settings: resolved and fitted to the data, ``run.name`` included.
        data: the prepared folder.
        epoch: finished epochs to go on from; None for the latest checkpoint.
        init: checkpoint to take the start weights of a new run from; None draws them.
    """

    kind: Literal["start", "resume"]
    settings: Settings
    data: Path
    epoch: int | None = None
    init: Path | None = None

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        if self.settings.run.name is None:
            raise AssertionError("a job's run has a name")
        return RunFolder(self.settings.run.folder / self.settings.run.name)


@dataclass(frozen=True)
class Training:
    """The work of a job, in each of its processes."""

    job: Job

    def __call__(self, world: World, callback: Callback) -> None:
        """Start the run or go on with it; a process that was started again goes on with it."""
        job = replace(self.job, settings=_named(self.job.settings, world.broadcast(self.job.settings.run.name)))
        data = open_prepared(job.data)
        is_restarted = num_restarts() > 0 and bool(world.broadcast(job.run.saved()))
        if job.kind == "start" and not is_restarted:
            start_run(job.settings, data, init=job.init, world=world, callback=callback)
            return
        if is_restarted and world.broadcast(job.run.epoch_checkpoint(job.settings.train.epochs).is_file()):
            return
        if is_restarted:
            callback(Note(f"a process was lost: run {job.run.name} goes on from its latest checkpoint"))
        epoch = None if is_restarted else job.epoch
        resume_run(job.settings, data, epoch=epoch, world=world, callback=callback)


def run_job(job: Job, watch: Watch) -> None:
    """Train in as many processes as the job's settings ask for.

    Args:
        job: what to do.
        watch: see ``trarctl.engine.launch.run_task``.

    Raises:
        TrarError: whatever ended the training early.
    """
    run = job.settings.run
    task = Task(
        Training(job),
        name=f"run {job.run.name}",
        cure=f"trarctl resume {job.run.name} goes on from its latest checkpoint",
        gpus=run.gpus,
        timeout_seconds=run.timeout_seconds,
        max_restarts=run.max_restarts,
    )
    run_task(task, watch)


def plan_start(settings: Settings, origin: Mapping[str, Origin], *, init: str | None) -> tuple[Job, list[str]]:
    """Plan a new run.

    Args:
        settings: as resolved.
        origin: where each dotted key came from.
        init: checkpoint whose weights to start with, as a user names it.

    Returns:
        The job, and notes on what was chosen for the user.

    Raises:
        SettingsError: if the settings do not fit the data or the devices, or a run of that name exists.
        DataError: if the data cannot be used.
        CheckpointError: if ``init`` cannot be used.
        DeviceError: if there is no such device.
    """
    path = prepared_folder(settings)
    data = open_prepared(path)
    start: Path | None = None
    if init is not None:
        start, _ = find_checkpoint(init, settings.run.folder)
        settings = adopt_shape(start, settings, origin, data)
    settings, notes = fit_to_data(settings, data, origin)
    check_loggers(settings)
    check_batch(settings, data, plan_placement(settings.run.gpus, os.environ).num_processes)
    if settings.run.name is None:
        settings = _named(settings, _new_name(data.dataset))
    job = Job("start", settings, path, init=start)
    if job.run.saved() and not num_restarts():
        raise SettingsError(
            f"run {job.run.name} exists in {settings.run.folder}",
            f"trarctl resume {job.run.name} goes on with it; --name gives a new one another name",
        )
    return job, notes


def _new_name(dataset: str) -> str:
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        # Each restart would look for a run of another name.
        raise SettingsError("a run that torchrun may restart needs a name", "--name NAME")
    return f"{dataset}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def _named(settings: Settings, name: str | None) -> Settings:
    return settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})


def plan_resume(run: RunFolder, settings: Settings, *, named: str | None, epoch: int | None) -> tuple[Job, list[str]]:
    """Plan to go on with a run.

    Args:
        run: the run.
        settings: its settings, with what the user changed.
        named: how the user named it; a checkpoint's file decides the epoch.
        epoch: finished epochs to go on from; None for the latest checkpoint.

    Raises:
        DataError: if the data cannot be used.
    """
    notes = []
    match = CHECKPOINT.match(Path(named).name) if named is not None and Path(named).is_file() else None
    if match and epoch is None:
        epoch = int(match[1])
    path = prepared_folder(settings)
    data = open_prepared(path)
    settings, fitting = fit_to_data(settings, data, {})
    check_loggers(settings)
    check_batch(settings, data, plan_placement(settings.run.gpus, os.environ).num_processes)
    if settings.model.routing == "hard" and settings.train.epochs != read_settings(run).train.epochs:
        notes.append("the temperature schedule depends on the number of epochs: it changes from here on")
    return Job("resume", settings, path, epoch=epoch), notes + fitting


def prepared_folder(settings: Settings) -> Path:
    """Where the settings look for prepared data."""
    return settings.data.path or Path("data") / settings.data.dataset / "prepared"
