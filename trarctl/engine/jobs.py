"""Training jobs: starts and resumes of runs, planned and checked against the data before any process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from torch import Tensor

from trarctl.config.resolve import Origin
from trarctl.config.settings import Settings
from trarctl.data.loader import training_samples
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import callbacks
from trarctl.engine.callbacks import Callback, Note
from trarctl.engine.checkpoint import MODEL, Description, TrainState, load_checkpoint
from trarctl.engine.distributed import World, num_restarts, plan_placement, use_threads
from trarctl.engine.launch import Job
from trarctl.engine.loading import adopt_shape, check_shape, check_words, fit_to_data, prepared_folder, read_weights
from trarctl.engine.run import CHECKPOINT, RunFolder, find_checkpoint, read_settings, write_settings
from trarctl.engine.trainer import Trainer
from trarctl.errors import CheckpointError, SettingsError


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A run to start or to resume; its settings are resolved and fitted to the data, ``run.name`` included."""

    kind: Literal["start", "resume"]
    settings: Settings
    data: Path  # prepared folder
    epoch: int | None = None  # finished epochs to resume from; None for the latest checkpoint
    init: Path | None = None  # checkpoint to take the start weights of a new run from; None draws them

    @classmethod
    def of(cls, settings: Settings, **fields: Any) -> TrainJob:
        """A job with what the settings say of its processes."""
        run = settings.run
        return cls(
            title=f"run {run.name}",
            hint=f"trarctl resume {run.name} goes on from its latest checkpoint",
            gpus=run.gpus,
            timeout_seconds=run.timeout_seconds,
            max_restarts=run.max_restarts,
            settings=settings,
            **fields,
        )

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return _run_folder(self.settings)

    def advice(self) -> str:
        """The command that continues the run, if it has a checkpoint to continue from."""
        return self.hint if self.run.saved() else "nothing was saved: start it again"

    def work(self, world: World, callback: Callback) -> TrainState | None:
        """Start the run or resume it, and train to its last epoch; a process that was started again resumes it.

        Returns:
            The state at the end; None if a restart finds nothing left to do.

        Raises:
            TrarError: whatever ends the training early.
        """
        stop = world.stop.defer()
        settings = _named(self.settings, world.broadcast(self.settings.run.name))
        run, data = _run_folder(settings), open_prepared(self.data)
        is_restarted = num_restarts() > 0 and bool(world.broadcast(run.saved()))
        if is_restarted and world.broadcast(run.epoch_checkpoint(settings.train.epochs).is_file()):
            return None
        if is_restarted:
            callback(Note(f"a process was lost: run {run.name} goes on from its latest checkpoint"))
        tensors: dict[str, Tensor] = {}
        state = TrainState()
        if world.is_main:
            if self.kind == "start" and not is_restarted:
                tensors = _start(run, settings, data, self.init)
            else:
                epoch = None if is_restarted else self.epoch
                tensors, state = _resume(run, settings, data, epoch, callback)
        tensors, state = world.broadcast_tensors(tensors), world.broadcast(state)
        recorded = callbacks.recorded(run, settings, callback, first_step=state.step)
        log = recorded if world.is_main else nullcontext(callback)
        with use_threads(settings.run.num_threads), log as callback:
            trainer = Trainer(settings, data, run, world, callback=callback, stop=stop, tensors=tensors, state=state)
            del tensors
            return trainer.fit()


def plan_start(settings: Settings, origin: Mapping[str, Origin], *, init: str | None) -> tuple[TrainJob, list[str]]:
    """Plan a new run; ``init`` names a checkpoint whose weights to start with.

    Returns:
        The job, and notes on what was chosen for the user.

    Raises:
        TrarError: if settings, data, devices and checkpoint do not fit together, or a run of that name exists.
    """
    path = prepared_folder(settings)
    data = open_prepared(path)
    weights: Path | None = None
    if init is not None:
        weights, _ = find_checkpoint(init, settings.run.folder)
        settings = adopt_shape(weights, settings, origin, data)
    settings, notes = fit_to_data(settings, data, origin)
    _check_fit(settings, data)
    if settings.run.name is None:
        settings = _named(settings, _new_name(data.dataset))
    job = TrainJob.of(settings, kind="start", data=path, init=weights)
    if job.run.saved() and not num_restarts():
        raise SettingsError(
            f"run {job.run.name} exists in {settings.run.folder}",
            f"trarctl resume {job.run.name} goes on with it; --name gives a new one another name",
        )
    return job, notes


def plan_resume(
    run: RunFolder, settings: Settings, *, named: str | None, epoch: int | None
) -> tuple[TrainJob, list[str]]:
    """Plan to resume a run, with its settings as the user changed them; otherwise as ``plan_start``.

    ``epoch`` counts the finished epochs to resume from, None for the latest checkpoint. If it is None and the user
    ``named`` the run by a checkpoint's file, that file decides.
    """
    notes = []
    match = CHECKPOINT.match(Path(named).name) if named is not None and Path(named).is_file() else None
    if match and epoch is None:
        epoch = int(match[1])
    path = prepared_folder(settings)
    data = open_prepared(path)
    settings, fitting = fit_to_data(settings, data, {})
    _check_fit(settings, data)
    if settings.model.routing == "hard" and settings.train.epochs != read_settings(run).train.epochs:
        notes.append("the temperature schedule depends on the number of epochs: it changes from here on")
    return TrainJob.of(settings, kind="resume", data=path, epoch=epoch), notes + fitting


def _run_folder(settings: Settings) -> RunFolder:
    if settings.run.name is None:
        raise AssertionError("a job's run has a name")
    return RunFolder(settings.run.folder / settings.run.name)


def _named(settings: Settings, name: str | None) -> Settings:
    return settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})


def _new_name(dataset: str) -> str:
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        # Each restart would look for a run of another name.
        raise SettingsError("a run that torchrun may restart needs a name", "--name NAME")
    return f"{dataset}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def _check_fit(settings: Settings, data: PreparedData) -> None:
    """See that loggers are installed, the model takes its shape, and batches divide among parts and can be filled."""
    callbacks.check_loggers(settings)
    check_shape(settings.model)
    train = settings.train
    num_processes = plan_placement(settings.run.gpus, os.environ).num_processes
    share = train.accumulation * num_processes
    if train.batch_size % share:
        below, above = train.batch_size // share * share, (train.batch_size // share + 1) * share
        sizes = f"{below} and {above}" if below else str(above)
        raise SettingsError(
            f"batch size {train.batch_size} does not divide into {share} equal parts, {train.accumulation} on each of "
            f"{num_processes} processes (nearest that do: {sizes})",
            f"--batch-size {above}",
        )
    for split in {settings.data.split, settings.data.later_split or settings.data.split}:
        num_samples = len(training_samples(data, split, train.loss))
        if num_samples < train.batch_size:
            raise SettingsError(
                f"batch size {train.batch_size} is larger than the {num_samples} samples of {split}",
                f"--batch-size {num_samples // share * share or 1} or less",
            )


def _start(run: RunFolder, settings: Settings, data: PreparedData, init: Path | None) -> dict[str, Tensor]:
    """Make the run's folder; the tensors that it starts from, if any."""
    run.create()
    run.metrics_file.unlink(missing_ok=True)
    write_settings(run, settings, data.path)
    run.log(f"run {run.name}: {data.dataset}, {data.path}, {_now()}")
    run.log(orjson.dumps(settings.model_dump(mode="json")).decode())
    return {} if init is None else {MODEL + name: tensor for name, tensor in read_weights(init).items()}


def _resume(
    run: RunFolder, settings: Settings, data: PreparedData, epoch: int | None, callback: Callback
) -> tuple[dict[str, Tensor], TrainState]:
    """Bring the run's folder back to where a checkpoint was written, as if it had gone no further."""
    path, tensors, description = _choose_checkpoint(run, epoch, callback)
    check_words(path, description, data)
    state = description.progress
    if state.epoch >= settings.train.epochs:
        raise SettingsError(
            f"run {run.name} has finished its {settings.train.epochs} epochs",
            f"trarctl resume {run.name} --epochs {settings.train.epochs + 1} trains on",
        )
    run.rewind(epoch=state.epoch, step_in_epoch=state.step_in_epoch, step=state.step)
    write_settings(run, settings, data.path)
    run.log(f"resumed from {path.name}, {_now()}")
    return tensors, state


def _choose_checkpoint(
    run: RunFolder, epoch: int | None, callback: Callback
) -> tuple[Path, dict[str, Tensor], Description]:
    """Load the checkpoint of an epoch, or the latest that is whole; damaged ones are named and passed over."""
    if epoch is not None:
        path = run.epoch_checkpoint(epoch)
        if not path.is_file():
            kept = ", ".join(map(str, run.saved_epochs())) or "none"
            raise CheckpointError(
                f"run {run.name} has no checkpoint of epoch {epoch} (there are: {kept})",
                f"trarctl resume {run.name} --epoch N",
            )
        return path, *load_checkpoint(path)
    for _, _, path in reversed(run.saved()):
        try:
            return path, *load_checkpoint(path)
        except CheckpointError as error:
            callback(Note(f"{error.what}; taking the one before"))
    raise CheckpointError(f"run {run.name} has no usable checkpoint", "start again: trarctl train")


def _now() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
