"""Training jobs: starts and resumes of runs, planned and checked against the data before any process is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from torch import Tensor

from trarctl.config import Precision
from trarctl.config.resolve import Origin
from trarctl.config.settings import CIRCUMSTANCES, Settings, flat, to_text
from trarctl.data.loader import training_samples
from trarctl.data.metrics import refuse_unmeasurable
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import callbacks
from trarctl.engine.callbacks import Callback, Note
from trarctl.engine.checkpoint import MODEL, Description, TrainState, load_checkpoint, load_description, misnamed
from trarctl.engine.distributed import World, plan_placement, use_threads
from trarctl.engine.launch import Job
from trarctl.engine.loading import (
    adopt_shape,
    check_data,
    check_shape,
    fit_to_data,
    model_changes,
    prepared_folder,
    read_weights,
    recorded_data,
    setting_changes,
)
from trarctl.engine.run import RunFolder, find_checkpoint, replaced_settings, saved_settings
from trarctl.engine.sweep import ENDING, Member, Sweep
from trarctl.engine.trainer import (
    Schedule,
    Trainer,
    digest_of_samples,
    is_out_of_patience,
    is_validated,
    split_of_epoch,
)
from trarctl.errors import CheckpointError, SettingsError
from trarctl.groups import num_restarts


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A run to start or to resume; its settings are resolved and fitted to the data, ``run.name`` included."""

    kind: Literal["start", "resume"]
    settings: Settings
    data: Path  # prepared folder
    is_named: bool = True  # by the user; each process of a group makes up another name
    checkpoint: Path | None = None  # to resume from; None for the latest
    init: Path | None = None  # checkpoint to take the start weights of a new run from; None draws them
    seconds_left: float | None = None  # of the sweep's ``run.max_time``; None: all of it

    @classmethod
    def of(cls, settings: Settings, **fields: Any) -> TrainJob:
        """A job with what the settings say of its processes."""
        run = settings.run
        return cls(
            title=f"run {run.name}",
            hint=f"trarctl resume {_run_folder(settings).reference} goes on from its latest checkpoint",
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

        Everything is checked before the first file of the run is written, and the run is locked while it is.

        Returns:
            The state at the end; None if a restart finds nothing left to do.
        """
        data = open_prepared(self.data)
        world.require_equal(self._shared_values(data), "start all of them with the same command, data and version")
        stop = world.stop.defer()
        settings = _named(self.settings, world.broadcast(self.settings.run.name))
        run = _run_folder(settings)
        with ExitStack() as stack:
            stack.enter_context(use_threads(settings.run.num_threads))
            origin: Beginning | None = None
            if world.is_main:
                patience = {"wait_seconds": _RELEASE_SECONDS} if num_restarts() else {}
                if not stack.enter_context(run.claimed(**patience)):
                    callback(Note(f"{run.path} has no locks: nothing keeps another process from writing it too"))
                origin = self._beginning(run, settings, data, callback)
            if not world.broadcast(origin is not None):
                return None
            tensors = world.broadcast_tensors({} if origin is None else origin.tensors)
            state, schedule, precision = world.broadcast(
                (TrainState(), None, None) if origin is None else (origin.state, origin.schedule, origin.precision)
            )
            trainer = Trainer(
                *(settings, data, run, world),
                callback=callback,
                stop=stop,
                tensors=tensors,
                state=state,
                schedule=schedule,
                precision=precision,
                seconds_left=self.seconds_left,
            )
            tensors.clear()
            if origin is not None:
                recorded = callbacks.recorded(run, settings, callback, first_step=state.step)
                trainer.callback = stack.enter_context(recorded)
                _write_beginning(run, settings, data, origin, trainer.callback)
            return trainer.fit()

    def _shared_values(self, data: PreparedData) -> dict[str, object]:
        """What the processes of a group must agree on."""
        values: dict[str, object] = {key: to_text(value) for key, value in flat(self.settings).items()}
        for key in _MAY_DIFFER if self.is_named else (*_MAY_DIFFER, "run.name"):
            del values[key]
        chosen = {"checkpoint": self.checkpoint, "init": self.init}
        return values | {name: path and path.name for name, path in chosen.items()} | data.digests

    def _beginning(
        self, run: RunFolder, settings: Settings, data: PreparedData, callback: Callback
    ) -> Beginning | None:
        """What the training starts from, None if a restart finds nothing left to do; nothing is written."""
        is_restarted = num_restarts() > 0 and bool(run.saved())
        if is_restarted and run.epoch_checkpoint(settings.train.epochs).is_file():
            return None
        if is_restarted:
            callback(Note(f"a process was lost: run {run.name} goes on from its latest checkpoint"))
        splits = settings.data.split, settings.data.later_split or settings.data.split
        if any(is_validated(settings, data, split) for split in splits):
            refuse_unmeasurable(data, data.split("val"), "official")
        if self.kind == "resume" or is_restarted:
            origin = _resumed(run, settings, data, None if is_restarted else self.checkpoint, callback)
            if not is_restarted:
                _refuse_out_of_patience(run, settings, origin.state)
            return origin
        refuse_existing(run)
        weights = {} if self.init is None else read_weights(self.init)
        return Beginning({MODEL + name: tensor for name, tensor in weights.items()}, TrainState())


@dataclass(frozen=True)
class Beginning:
    """What a training starts from: new weights or a checkpoint."""

    tensors: dict[str, Tensor]  # as in a checkpoint's file; empty for new weights
    state: TrainState
    checkpoint: Path | None = None  # of the run itself, None for a new one
    schedule: Schedule | None = None  # of its last step
    precision: Precision | None = None  # that was chosen for it; None if the user chose
    notes: tuple[str, ...] = ()  # what changes from here on


# Settings that may differ between the processes of a group: of where they compute and what they read.
_MAY_DIFFER = ("run.gpus", "run.num_threads", "run.folder", "data.path", "data.num_workers")
# Seconds in which a process that was lost and killed lets go of its run.
_RELEASE_SECONDS = 30.0


def plan_start(settings: Settings, origin: Mapping[str, Origin], *, init: str | None) -> tuple[TrainJob, list[str]]:
    """Plan a new run; ``init`` names a checkpoint whose weights to start with.

    Returns:
        The job, and notes on what was chosen for the user.
    """
    job, notes = fit_start(settings, origin, init=init)
    if not num_restarts():
        refuse_existing(job.run)
    return job, notes


def fit_start(settings: Settings, origin: Mapping[str, Origin], *, init: str | None) -> tuple[TrainJob, list[str]]:
    """Fit the start of a run to its data, as ``plan_start`` does, whether or not the run exists."""
    path = prepared_folder(settings)
    data = open_prepared(path)
    weights: Path | None = None
    odd: list[str] = []
    if init is not None:
        weights, _ = find_checkpoint(init, settings.run.folder)
        settings, odd = adopt_shape(weights, settings, origin, data)
    settings, notes = fit_to_data(settings, data, origin)
    _check_fit(settings, data)
    is_named = settings.run.name is not None
    if not is_named:
        settings = _named(settings, _new_name(data.name))
    return TrainJob.of(settings, kind="start", data=path, is_named=is_named, init=weights), odd + notes


def refuse_existing(run: RunFolder) -> None:
    """Refuse to start a run where one with checkpoints is, or under the name of a sweep."""
    if not run.exists() and run.path.with_name(f"{run.name}{ENDING}").exists():
        raise SettingsError(
            f"{run.name} is the name of a sweep in {run.path.parent}",
            f"trarctl resume {run.reference} goes on with it; --name gives a new run another name",
        )
    if run.saved():
        raise SettingsError(
            f"run {run.name} exists in {run.path.parent}",
            f"trarctl resume {run.reference} goes on with it; --name gives a new one another name",
        )


def plan_resume(
    run: RunFolder, settings: Settings, *, named: str | None, epoch: int | None
) -> tuple[TrainJob, list[str]]:
    """Plan to resume a run, with its settings as the user changed them; otherwise as ``plan_start``.

    ``epoch`` counts the finished epochs to resume from. If it is None and the user ``named`` the run by a checkpoint's
    file, that file it is; otherwise the latest.
    """
    chosen = Path(named) if named is not None and Path(named).is_file() else None
    if epoch is not None:
        if chosen is not None:
            raise SettingsError(f"{chosen} and --epoch {epoch} both say where to go on", "leave out one of them")
        chosen = run.existing_checkpoint(str(epoch), f"trarctl resume {run.reference} --epoch N")
    path = recorded_data(prepared_folder(settings), settings.data.dataset)
    data = open_prepared(path)
    settings, notes = fit_to_data(settings, data, {})
    _check_fit(settings, data)
    return TrainJob.of(settings, kind="resume", data=path, checkpoint=chosen), notes


def plan_member(sweep: Sweep, member: Member) -> tuple[TrainJob | None, list[str]]:
    """Plan what is left of a sweep's run, its start or its resume, as ``plan_start`` does; None if nothing is."""
    settings = member.settings
    if member.is_trained:
        return None, []
    if saved := member.run.saved():
        with suppress(CheckpointError):  # what is damaged, resuming passes over
            if is_out_of_patience(settings, load_description(saved[-1][2]).progress):
                return None, []
        return plan_resume(member.run, settings, named=None, epoch=None)
    return TrainJob.of(settings, kind="start", data=sweep.data, init=sweep.init), []


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
    below = train.batch_size // share * share
    if below != train.batch_size:
        sizes = f"{below} and {below + share}" if below else str(share)
        raise SettingsError(
            f"batch size {train.batch_size} does not divide into {share} equal parts, {train.accumulation} on each of "
            f"{num_processes} processes (nearest that do: {sizes})",
            f"--batch-size {below + share}",
        )
    for split in {settings.data.split, settings.data.later_split or settings.data.split}:
        num_samples = len(training_samples(data, split, train.loss))
        if num_samples < train.batch_size:
            raise SettingsError(
                f"batch size {train.batch_size} is larger than the {num_samples} samples of {split}",
                f"--batch-size {num_samples // share * share or 1} or less",
            )


def _training_notes(settings: Settings, data: PreparedData) -> list[str]:
    """List what is to be known of the splits that are trained on."""
    trained = {*settings.data.split.split("+"), *(settings.data.later_split or "").split("+")}
    notes = [split.training_note for split in data.spec.splits if split.training_note and split.name in trained]
    splits = settings.data.split, settings.data.later_split or settings.data.split
    if settings.train.patience and not any(is_validated(settings, data, split) for split in splits):
        notes.append("train.patience: without effect, since this run validates nothing")
    return notes


def _write_beginning(
    run: RunFolder, settings: Settings, data: PreparedData, beginning: Beginning, callback: Callback
) -> None:
    """Make a new run's files, or bring those of a resumed one back to its checkpoint; the first thing written."""
    state, notes = beginning.state, [*beginning.notes, *_training_notes(settings, data)]
    with run.writable():
        run.remove_torn_files()
    run.log()
    with replaced_settings(run, settings, data.path):
        run.checkpoints.mkdir(exist_ok=True)
        if beginning.checkpoint is None:
            run.metrics_file.unlink(missing_ok=True)
            run.log(f"run {run.name}: {data.name}, {data.path}, {_now()}")
            run.log(orjson.dumps(settings.model_dump(mode="json")).decode())
        else:
            if num_unreadable := run.read_metrics().num_unreadable:
                notes.append(f"unreadable lines of metrics.jsonl, which are left out: {num_unreadable}")
            aside = run.rewind(epoch=state.epoch, step_in_epoch=state.step_in_epoch, step=state.step)
            if aside is not None:
                after = f"what the run did after {beginning.checkpoint.name}"
                notes.append(f"{after} is set aside as a run of its own: {aside}")
            run.log(f"resumed from {beginning.checkpoint.name}, {_now()}")
    for note in notes:
        callback(Note(note))


def _resumed(
    run: RunFolder, settings: Settings, data: PreparedData, chosen: Path | None, callback: Callback
) -> Beginning:
    """Load a checkpoint of a run, and see that the run can go on from it with these settings and this data."""
    path, tensors, description = _load_chosen(run, chosen, callback)
    if differences := check_data(path, description, data):
        raise CheckpointError(differences[0], f"trarctl train --init {path} starts a new run from its weights")
    state, epochs = description.progress, settings.train.epochs
    if state.epoch >= epochs:
        done = f"its {epochs} epochs" if state.epoch == epochs else f"{state.epoch} epochs, more than {epochs}"
        raise SettingsError(
            f"run {run.name} has finished {done}",
            f"trarctl resume {run.reference} --epochs {state.epoch + 1} trains on",
        )
    then = saved_settings(description.settings, path)
    if changes := model_changes(then, settings):
        raise CheckpointError(
            f"{path} is of another model: {', '.join(changes)}",
            f"leave that as it was, with --data {description.data}; trarctl train starts a run with another model",
        )
    samples = training_samples(data, split_of_epoch(settings.data, state.epoch), settings.train.loss)
    is_same_data = description.samples in (None, digest_of_samples(samples))
    if state.step_in_epoch:
        _refuse_within_epoch(run, path, then, settings, state, len(samples) if is_same_data else None)
    notes = []
    if description.run != run.name:
        notes.append(f"{path.name} was written by run {description.run}, under that name")
    # How far to train was just asked for.
    said = [key for key in flat(then) if key not in (*CIRCUMSTANCES, "train.epochs")]
    if changes := setting_changes(then, settings, said):
        notes.append(f"changed from here on: {', '.join(changes)}")
    if settings.model.routing == "hard" and then.train.epochs != epochs:
        notes.append("the temperature schedule depends on the number of epochs: it changes from here on")
    if then.train.epochs != epochs and then.train.decay_epochs == settings.train.decay_epochs:
        decays = to_text(settings.train.decay_epochs)
        notes.append(f"train.decay_epochs stays {decays} in {epochs} epochs; --set train.decay_epochs=LIST changes it")
    if not is_same_data and split_of_epoch(then.data, state.epoch) == split_of_epoch(settings.data, state.epoch):
        notes.append(f"{data.path} has other training questions than those before: they are trained on from here on")
    schedule = description.learning_rate, description.temperature
    precision = description.precision if then.run.precision == "auto" else None
    return Beginning(tensors, state, path, schedule, precision, tuple(notes))


def _load_chosen(
    run: RunFolder, chosen: Path | None, callback: Callback
) -> tuple[Path, dict[str, Tensor], Description]:
    """Load a checkpoint, by default the latest that is whole; damaged ones are named and passed over."""
    if chosen is not None:
        tensors, description = load_checkpoint(chosen)
        if description.candidate is not None:
            raise CheckpointError(
                f"{chosen} is an average of weights ({description.candidate}), which no training goes on from",
                f"trarctl resume {run.reference}, or trarctl train --init {chosen} starts another run from it",
            )
        return chosen, tensors, description
    for _, _, path in reversed(run.saved()):
        try:
            tensors, description = load_checkpoint(path)
            problem = misnamed(path, description)
        except CheckpointError as error:
            problem = error.what
        if problem is None:
            return path, tensors, description
        callback(Note(f"{problem}; taking the one before"))
    raise CheckpointError(f"run {run.name} has no usable checkpoint", run.start_again)


def _refuse_out_of_patience(run: RunFolder, settings: Settings, state: TrainState) -> None:
    """See that a run which ``train.patience`` has ended is not resumed with the same patience."""
    if is_out_of_patience(settings, state):
        count, patience = state.validations_since_best, settings.train.patience
        raise SettingsError(
            f"run {run.name} has ended early, after epoch {state.epoch}: {count} validations were no better than epoch "
            f"{state.best_epoch}, and train.patience is {patience}",
            f"trarctl resume {run.reference} --patience {count + (patience or 0)} trains on; "
            "--set train.patience=none does to the last epoch",
        )


# What may not change within an epoch: which samples are left of it, and what its loss is a mean of.
_OF_AN_EPOCH = ("train.batch_size", "train.seed", "train.shuffle", "train.loss", "train.loss_reduction")


def _refuse_within_epoch(
    run: RunFolder, path: Path, then: Settings, now: Settings, state: TrainState, num_samples: int | None
) -> None:
    """See that the rest of an epoch has the samples and the loss of its beginning; ``num_samples`` None: other ones."""
    changes = setting_changes(then, now, _OF_AN_EPOCH)
    splits = [split_of_epoch(settings.data, state.epoch) for settings in (then, now)]
    if splits[0] != splits[1]:
        changes.append(f"the split is {splits[1]} (was {splits[0]})")
    elif num_samples is None or state.step_in_epoch * then.train.batch_size > num_samples:
        changes.append("the data has other training questions")
    if changes:
        again = f"trarctl resume {run.reference} --epoch {state.epoch} begins that epoch again with the change; "
        raise SettingsError(
            f"{path.name} is within epoch {state.epoch + 1}, whose rest must be like its beginning: "
            + ", ".join(changes),
            f"{again if state.epoch in run.saved_epochs() else ''}without it the run goes on; "
            "trarctl train starts another",
        )


def _now() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
