"""Keeping a run's state: when to save it, what goes in, which checkpoints stay."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import trarctl
from trarctl.config.settings import Settings
from trarctl.data.prepared import PreparedData
from trarctl.engine.callbacks import Callback, CheckpointSaved
from trarctl.engine.checkpoint import Description, TrainState, save_checkpoint
from trarctl.engine.distributed import World
from trarctl.engine.run import RunFolder
from trarctl.engine.state import state_tensors
from trarctl.engine.stepping import Stepper
from trarctl.errors import DataError

KEPT_WITHIN_EPOCH = 2  # if the latest is damaged there is one before


@dataclass
class Keeper:
    """Writes the checkpoints of a run; only the leading process touches the disk.

    Attributes:
        settings: of the run.
        data: that it is trained on.
        run: where checkpoints go.
        world: device and processes.
        callback: told of each checkpoint.
        stepper: holds what is to be kept.
    """

    settings: Settings
    data: PreparedData
    run: RunFolder
    world: World
    callback: Callback
    stepper: Stepper
    _saved_at: float = field(default_factory=time.monotonic)

    def is_due(self, place: TrainState, *, steps_per_epoch: int) -> bool:
        """Whether ``run.save_every`` asks for a checkpoint; by the clock, only the leading process can say."""
        every = self.settings.run.save_every
        if every is None or place.step_in_epoch == steps_per_epoch:
            return False
        if every.isdigit():
            return place.step % int(every) == 0
        return time.monotonic() - self._saved_at >= 60 * int(every.rstrip("min"))

    def save(self, place: TrainState, *, rate: float, heat: float, accuracy: dict[str, object] | None = None) -> Path:
        """Write a checkpoint, and remove those that it makes superfluous; all processes take part.

        Args:
            place: in the training.
            rate: learning rate of the last step.
            heat: temperature of the last step.
            accuracy: of the epoch that has just ended, if it was validated.

        Raises:
            DataError: in all processes, if it cannot be written.
        """
        run = self.run
        path = (
            run.step_checkpoint(place.epoch, place.step_in_epoch)
            if place.step_in_epoch
            else run.epoch_checkpoint(place.epoch)
        )
        failure: DataError | None = None
        if self.world.is_main:
            started = time.monotonic()
            try:
                tensors = state_tensors(self.stepper.model, self.stepper.optimizer)
                save_checkpoint(path, tensors, self._describe(place, rate, heat, accuracy))
            except DataError as error:
                failure = error
            else:
                self.callback(CheckpointSaved(path, place.epoch, place.step_in_epoch, time.monotonic() - started))
                self._prune(place)
        self._saved_at = time.monotonic()
        problem = self.world.broadcast(None if failure is None else (failure.what, failure.hint))
        if problem is not None:
            raise DataError(*problem)
        return path

    def _describe(self, place: TrainState, rate: float, heat: float, accuracy: dict[str, object] | None) -> Description:
        vectors = self.data.manifest.vectors
        return Description(
            trarctl=trarctl.__version__,
            torch=str(torch.__version__),
            run=self.run.name,
            dataset=self.data.dataset,
            settings=self.settings.model_dump(mode="json"),
            progress=place,
            temperature=heat,
            learning_rate=rate,
            accuracy=accuracy,
            vocabulary=list(self.data.vocabulary.words),
            answers=list(self.data.answers),
            feature_width=self.data.features.width,
            vectors=None if vectors is None else vectors.model_dump(mode="json"),
            backbone=self.data.manifest.images.backbone,
            data=str(self.data.path.resolve()),
            num_processes=self.world.size,
        )

    def _prune(self, place: TrainState) -> None:
        """Remove checkpoints within epochs that are over, older ones within this, and epochs as ``run.keep`` says."""
        saved = self.run.saved()
        within = [(epoch, path) for epoch, step, path in saved if step]
        epochs = [(epoch, path) for epoch, step, path in saved if not step]
        ended = [path for epoch, path in within if epoch < place.epoch]
        older = [path for _, path in within[:-KEPT_WITHIN_EPOCH]]
        keep = self.settings.run.keep
        surplus = [path for epoch, path in epochs[:-keep] if epoch != place.best_epoch] if keep else []
        for path in {*ended, *older, *surplus}:
            path.unlink(missing_ok=True)
