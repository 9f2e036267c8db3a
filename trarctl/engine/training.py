"""The training loop: epochs, steps, forward and backward.

What it knows it tells an observer; what must survive it writes to the run's checkpoints.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import trarctl
from trarctl.data.dataset import Batch, Rows, Samples, load_batches, scoring_samples, training_plan, training_samples
from trarctl.data.prepared import PreparedData
from trarctl.engine.checkpoint import Description, Progress, save_checkpoint
from trarctl.engine.events import CheckpointSaved, EpochDone, Observer, RunFinished, RunStarted, StepDone, Validated
from trarctl.engine.processes import World, peak_memory_bytes
from trarctl.engine.runs import RunFolder
from trarctl.engine.schedule import learning_rate, temperature
from trarctl.engine.scoring import Scorer, measure
from trarctl.engine.state import state_tensors
from trarctl.engine.stepping import LossWindow, Stepper
from trarctl.engine.stopping import StopRequest
from trarctl.errors import DataError, Stopped, TrarError
from trarctl.model.trar import count_parameters
from trarctl.settings.fields import Settings


@dataclass
class Trainer:
    """One run: a model, its optimizer, its data, and the place it is at; ``fit`` takes it to its last epoch.

    Attributes:
        settings: resolved and fitted to the data.
        data: prepared data.
        run: where checkpoints go.
        world: device and processes.
        observe: told what happens, in the leading process.
        stepper: the model and its optimizer.
        place: where the training stands; changes with every step.
        stop: whether somebody asked the run to stop.
    """

    settings: Settings
    data: PreparedData
    run: RunFolder
    world: World
    observe: Observer
    stepper: Stepper
    place: Progress
    stop: StopRequest
    accuracy: dict[str, object] | None = None
    _samples: dict[str, Samples] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)

    def fit(self) -> Progress:
        """Train from where the run stands to its last epoch, validating and saving after each.

        Raises:
            Stopped: after a signal; the state is saved.
            TrarError: if the loss is not finite; the state is saved.
        """
        started = time.monotonic()
        self.observe(
            RunStarted(
                name=self.run.name,
                folder=self.run.path,
                device=str(self.world.device),
                num_processes=self.world.size,
                num_parameters=count_parameters(self.stepper.model),
                num_samples=len(self.samples),
                steps_per_epoch=self.steps_per_epoch,
                epochs=self.settings.train.epochs,
                start_epoch=self.place.epoch,
                start_step=self.place.step_in_epoch,
            )
        )
        while self.place.epoch < self.settings.train.epochs:
            self._train_epoch()
        best = self.place.best_epoch, self.place.best_overall
        self.observe(RunFinished(self.run.name, self.run.path, time.monotonic() - started, *best))
        return self.place

    @property
    def split(self) -> str:
        """The splits that the present epoch trains on."""
        data = self.settings.data
        if data.later_split is not None and data.later_split_epoch is not None:
            return data.later_split if self.place.epoch >= data.later_split_epoch else data.split
        return data.split

    @property
    def samples(self) -> Samples:
        """The samples of the present epoch."""
        return self._samples_of(self.split)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the present epoch; samples that do not fill a batch sit it out."""
        return len(self.samples) // self.settings.train.batch_size

    @property
    def heat(self) -> float:
        """The temperature of the present epoch."""
        return temperature(self.settings.train, epoch=self.place.epoch)

    def _samples_of(self, split: str) -> Samples:
        if split not in self._samples:
            self._samples[split] = training_samples(self.data, split, self.settings.train.loss)
        return self._samples[split]

    def _rate(self, step: int) -> float:
        # Warm-up is measured in epochs of the split that the run began with.
        num_samples = len(self._samples_of(self.settings.data.split))
        return learning_rate(self.settings.train, epoch=self.place.epoch, step=step, num_samples=num_samples)

    def _train_epoch(self) -> None:
        clock = _EpochClock(self.place)
        window = LossWindow()
        self.stepper.network.train()
        for parts in self._batches():
            number = self.place.step + 1
            loss, routes = self.stepper.step(parts, number=number, rate=self._rate(number), heat=self.heat)
            window.add(loss, parts)
            self._advance()
            step, is_last = self.place.step, self.place.step_in_epoch == self.steps_per_epoch
            is_logged = step % self.settings.run.log_every == 0 or is_last
            fault = 0
            if is_logged or self.world.device.type == "cpu":
                fault = self._absorb(window)
            mean_loss = self._mean_loss() if is_logged else None
            self._report_step(mean_loss, routes, clock)
            self._heed(window, fault)
            self._save_within_epoch()
        self._finish_epoch(clock)

    def _batches(self) -> Iterator[list[Batch]]:
        """The parts, on the device, of each of the epoch's remaining batches that this process computes."""
        train = self.settings.train
        plan: list[Rows] = []
        for rows in training_plan(
            len(self.samples),
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=self.place.epoch,
            shuffle=train.shuffle,
            first_step=self.place.step_in_epoch,
        ):
            plan += list(rows.reshape(train.accumulation, self.world.size, -1)[:, self.world.rank])
        pin = self.world.device.type == "cuda"
        batches = load_batches(self.samples, plan, num_workers=self.settings.data.num_workers, pin=pin)
        parts: list[Batch] = []
        for batch in batches:
            parts.append(batch.to(self.world.device))
            if len(parts) == train.accumulation:
                yield parts
                parts = []

    def _advance(self) -> None:
        place = self.place
        self.place = place.model_copy(
            update={
                "step_in_epoch": place.step_in_epoch + 1,
                "step": place.step + 1,
                "samples_in_epoch": place.samples_in_epoch + self.settings.train.batch_size,
                "window_samples": place.window_samples + self.settings.train.batch_size,
            }
        )

    def _absorb(self, window: LossWindow) -> int:
        """Add the losses since the last time to the place; 1 if one of them is not finite."""
        loss = window.total()
        if self.world.size > 1:
            loss = float(self.world.total(np.array([loss]))[0])
        if not np.isfinite(loss):
            return 1
        window.clear()
        place = self.place
        self.place = place.model_copy(
            update={"loss_sum": place.loss_sum + loss, "window_loss_sum": place.window_loss_sum + loss}
        )
        return 0

    def _mean_loss(self) -> float:
        place = self.place
        self.place = place.model_copy(update={"window_loss_sum": 0.0, "window_samples": 0})
        return place.window_loss_sum / max(place.window_samples, 1)

    def _report_step(self, loss: float | None, routes: Tensor, clock: _EpochClock) -> None:
        place, is_logged = self.place, loss is not None
        self.observe(
            StepDone(
                epoch=place.epoch + 1,
                step_in_epoch=place.step_in_epoch,
                steps_per_epoch=self.steps_per_epoch,
                step=place.step,
                rate=self._rate(place.step),
                temperature=self.heat,
                samples_per_second=clock.samples_per_second(place),
                loss=loss,
                routes=[[round(weight, 4) for weight in layer] for layer in routes.tolist()] if is_logged else None,
                memory_bytes=peak_memory_bytes(self.world.device) if is_logged else None,
            )
        )

    def _heed(self, window: LossWindow, fault: int) -> None:
        """Stop where a signal or a loss that is not finite says so, in all processes after the same step."""
        signal_number = self.world.any(self.stop.signal_number)
        if fault:
            path = self._save_here()
            raise TrarError(
                f"the loss is not finite at {window.describe_fault(self.place.step)} of run {self.run.name}; "
                f"the state is saved in {path.name}",
                f"trarctl resume {self.run.name} --set train.learning_rate=... or train.gradient_clip=...; "
                "look at the features of these questions",
            )
        if signal_number:
            self._absorb(window)
            self._stop(signal_number)

    def _stop(self, signal_number: int) -> None:
        path = self._save_here()
        raise Stopped(
            f"run {self.run.name} stopped by {signal.Signals(signal_number).name} after step {self.place.step}; "
            f"its state is saved in {path.name}",
            signal_number,
            f"trarctl resume {self.run.name}",
        )

    def _save_here(self) -> Path:
        path = self.run.step_checkpoint(self.place.epoch, self.place.step_in_epoch)
        self._save(path)
        return path

    def _save_within_epoch(self) -> None:
        every = self.settings.run.save_every
        if every is None or self.place.step_in_epoch == self.steps_per_epoch:
            return
        if every.isdigit():
            is_due = self.place.step % int(every) == 0
        else:
            is_due = time.monotonic() - self._saved_at >= 60 * int(every.rstrip("min"))
        if is_due:
            self._save_here()
            self._prune()

    def _finish_epoch(self, clock: _EpochClock) -> None:
        place, heat, rate = self.place, self.heat, self._rate(max(self.place.step, 1))
        seconds, speed = clock.seconds(), clock.samples_per_second(place)
        steps_per_epoch = self.steps_per_epoch
        validated = self._validate() if self._validates() else None
        best = place.best_epoch, place.best_overall
        self.accuracy = None
        if validated is not None:
            if validated.is_best:
                best = validated.epoch, validated.overall
            self.accuracy = {
                "overall": validated.overall,
                "per_type": validated.per_type,
                "evaluator": validated.evaluator,
            }
        self.place = Progress(epoch=place.epoch + 1, step=place.step, best_epoch=best[0], best_overall=best[1])
        self._save(self.run.epoch_checkpoint(self.place.epoch), rate=rate, heat=heat)
        loss = place.loss_sum / max(place.samples_in_epoch, 1)
        self.observe(EpochDone(self.place.epoch, place.step, steps_per_epoch, loss, rate, heat, seconds, speed))
        if validated is not None:
            self.observe(validated)
        self._prune()

    def _validates(self) -> bool:
        every, finished = self.settings.run.validate_every, self.place.epoch + 1
        if not every or (finished % every and finished != self.settings.train.epochs):
            return False
        if "val" in self.split.split("+") or "val" not in self.data.split_names:
            return False
        return self.data.split("val").is_annotated

    def _validate(self) -> Validated:
        started = time.monotonic()
        scorer = Scorer(
            self.stepper.model,
            self.heat,
            self.world,
            precision=self.settings.run.precision,
            batch_size=max(self.settings.train.batch_size // self.settings.train.accumulation // self.world.size, 64),
            num_workers=self.settings.data.num_workers,
            observe=self.observe,
            task="validating",
            check=self._heed_while_validating,
        )
        answered = scorer.answer(scoring_samples(self.data, "val"))
        predictions = [self.data.answers[index] for index in answered.answer]
        measured = measure(predictions, self.data, self.data.split("val"), "official")
        best = self.place.best_overall
        return Validated(
            epoch=self.place.epoch + 1,
            step=self.place.step,
            overall=measured.overall,
            per_type=measured.per_type,
            is_best=best is None or measured.overall > best,
            seconds=time.monotonic() - started,
            routes=answered.routes.mean(axis=0).round(4).tolist(),
        )

    def _heed_while_validating(self) -> None:
        signal_number = self.world.any(self.stop.signal_number)
        if signal_number:
            self._stop(signal_number)

    def _save(self, path: Path, *, rate: float | None = None, heat: float | None = None) -> None:
        """Write a checkpoint of the present place; all processes hear of it if that fails."""
        failure: DataError | None = None
        if self.world.leads:
            started = time.monotonic()
            try:
                tensors = state_tensors(self.stepper.model, self.stepper.optimizer)
                save_checkpoint(path, tensors, self._describe(rate, heat))
                seconds = time.monotonic() - started
                self.observe(CheckpointSaved(path, self.place.epoch, self.place.step_in_epoch, seconds))
            except DataError as error:
                failure = error
        self._saved_at = time.monotonic()
        if self.world.any(int(failure is not None)):
            raise failure or DataError(f"run {self.run.name} cannot write its checkpoint", "see the leading process")

    def _describe(self, rate: float | None, heat: float | None) -> Description:
        vectors = self.data.manifest.vectors
        return Description(
            trarctl=trarctl.__version__,
            torch=str(torch.__version__),
            run=self.run.name,
            dataset=self.data.dataset,
            settings=self.settings.model_dump(mode="json"),
            progress=self.place,
            temperature=self.heat if heat is None else heat,
            learning_rate=self._rate(max(self.place.step, 1)) if rate is None else rate,
            accuracy=self.accuracy,
            vocabulary=list(self.data.vocabulary.words),
            answers=list(self.data.answers),
            feature_width=self.data.features.width,
            vectors=None if vectors is None else vectors.model_dump(mode="json"),
            backbone=self.data.manifest.images.backbone,
            data=str(self.data.path.resolve()),
            num_processes=self.world.size,
        )

    def _prune(self) -> None:
        """Remove checkpoints that nobody needs: within an epoch all but the latest two, epochs as ``run.keep`` says."""
        if not self.world.leads:
            return
        saved = self.run.saved()
        within = [path for _, step, path in saved if step]
        epochs = [(epoch, path) for epoch, step, path in saved if not step]
        ended = [path for epoch, step, path in saved if step and epoch < self.place.epoch]
        keep = self.settings.run.keep
        surplus = [path for epoch, path in epochs[:-keep] if epoch != self.place.best_epoch] if keep else []
        for path in {*within[:-2], *ended, *surplus}:
            path.unlink(missing_ok=True)


class _EpochClock:
    """Seconds and samples since an epoch began, or went on."""

    def __init__(self, place: Progress) -> None:
        self._started = time.monotonic()
        self._earlier_samples = place.samples_in_epoch

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def samples_per_second(self, place: Progress) -> float:
        return (place.samples_in_epoch - self._earlier_samples) / max(self.seconds(), 1e-9)
