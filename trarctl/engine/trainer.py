"""The training loop: epochs, steps, forward and backward.

What it knows it tells an observer; what must survive it writes to the run's checkpoints.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import Tensor

from trarctl.config.settings import Settings
from trarctl.data.loader import Batch, Rows, Samples, load_batches, scoring_samples, training_plan, training_samples
from trarctl.data.metrics import measure
from trarctl.data.prepared import PreparedData
from trarctl.engine.callbacks import Callback, EpochDone, RunFinished, RunStarted, StepDone, Validated
from trarctl.engine.checkpoint import TrainState
from trarctl.engine.distributed import World, peak_memory_bytes
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.keeping import Keeper
from trarctl.engine.run import RunFolder
from trarctl.engine.schedules import learning_rate, temperature
from trarctl.engine.signals import StopRequest, Word, confer
from trarctl.engine.stepping import LossWindow, Stepper, describe_faults
from trarctl.errors import Stopped, TrarError
from trarctl.model.trar import count_parameters


@dataclass
class Trainer:
    """One run: a model, its optimizer, its data, and the place it is at; ``fit`` takes it to its last epoch.

    Attributes:
        settings: resolved and fitted to the data.
        data: prepared data.
        run: where checkpoints go.
        world: device and processes.
        callback: told what happens, in the leading process.
        stepper: the model and its optimizer.
        place: where the training stands; changes with every step.
        stop: whether somebody asked the run to stop.
    """

    settings: Settings
    data: PreparedData
    run: RunFolder
    world: World
    callback: Callback
    stepper: Stepper
    place: TrainState
    stop: StopRequest
    _samples: dict[str, Samples] = field(default_factory=dict)
    _keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self._keeper = Keeper(self.settings, self.data, self.run, self.world, self.callback, self.stepper)

    def fit(self) -> TrainState:
        """Train from where the run stands to its last epoch, validating and saving after each.

        Raises:
            Stopped: after a signal; the state is saved.
            TrarError: if the loss is not finite; the state is saved.
        """
        started = time.monotonic()
        self.callback(
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
        self.callback(RunFinished(self.run.name, self.run.path, time.monotonic() - started, *best))
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
            result = self.stepper.step(parts, number=number, rate=self._rate(number), heat=self.heat)
            window.add(result, parts)
            self._advance()
            is_logged = number % self.settings.run.log_every == 0 or self.place.step_in_epoch == self.steps_per_epoch
            word = self._confer(window, reads_loss=is_logged or self.world.device.type == "cpu")
            self._report_step(result.routes if is_logged else None, clock)
            if word.signal_number:
                self._stop(word.signal_number)
            if word.is_save_due:
                self._save()
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

    def _confer(self, window: LossWindow, *, reads_loss: bool) -> Word:
        """Hear from all processes whether to stop or to save, and add up the losses; the one meeting of a step.

        Reading the losses waits for the device. Whatever is saved has them in it.
        """
        is_due = self._keeper.is_due(self.place, steps_per_epoch=self.steps_per_epoch)
        loss = window.total() if reads_loss else 0.0
        word = confer(self.world, Word(loss, self.stop.signal_number, is_due))
        if not reads_loss and (word.signal_number or word.is_save_due):
            word = Word(
                float(self.world.all_reduce(np.array([window.total()]))[0]), word.signal_number, word.is_save_due
            )
            reads_loss = True
        if not np.isfinite(word.loss):
            self._give_up(window)
        if reads_loss:
            window.clear()
            place = self.place
            sums = {"loss_sum": place.loss_sum + word.loss, "window_loss_sum": place.window_loss_sum + word.loss}
            self.place = place.model_copy(update=sums)
        return word

    def _mean_loss(self) -> float:
        place = self.place
        self.place = place.model_copy(update={"window_loss_sum": 0.0, "window_samples": 0})
        return place.window_loss_sum / max(place.window_samples, 1)

    def _report_step(self, routes: Tensor | None, clock: _EpochClock) -> None:
        """Tell of a step; of its loss and ``routes`` only where these are logged."""
        is_logged = routes is not None
        loss = self._mean_loss() if is_logged else None
        place = self.place
        self.callback(
            StepDone(
                epoch=place.epoch + 1,
                step_in_epoch=place.step_in_epoch,
                steps_per_epoch=self.steps_per_epoch,
                step=place.step,
                rate=self._rate(place.step),
                temperature=self.heat,
                samples_per_second=clock.samples_per_second(place),
                loss=loss,
                routes=None if routes is None else routes.double().cpu().numpy().round(4).tolist(),
                memory_bytes=peak_memory_bytes(self.world.device) if is_logged else None,
            )
        )

    def _give_up(self, window: LossWindow) -> NoReturn:
        """Save and end, since a loss or a gradient is not finite; the weights are those of before."""
        where = describe_faults(self.world.all_gather(window.fault(self.place.step)))
        path = self._save()
        raise TrarError(
            f"the loss or its gradient is not finite at {where} of run {self.run.name}; "
            f"the state is saved in {path.name}, without that step's update",
            f"trarctl resume {self.run.name} --set train.learning_rate=... or train.gradient_clip=...; "
            "look at the features of these questions",
        )

    def _stop(self, signal_number: int) -> NoReturn:
        path = self._save()
        raise Stopped(
            f"run {self.run.name} stopped by {signal.Signals(signal_number).name} after step {self.place.step}; "
            f"its state is saved in {path.name}",
            signal_number,
            f"trarctl resume {self.run.name}",
        )

    def _save(self) -> Path:
        return self._keeper.save(self.place, rate=self._rate(max(self.place.step, 1)), heat=self.heat)

    def _finish_epoch(self, clock: _EpochClock) -> None:
        place, heat, rate = self.place, self.heat, self._rate(max(self.place.step, 1))
        loss = place.loss_sum / max(place.samples_in_epoch, 1)
        seconds, speed = clock.seconds(), clock.samples_per_second(place)
        ended = EpochDone(place.epoch + 1, place.step, self.steps_per_epoch, loss, rate, heat, seconds, speed)
        validated = self._validate() if self._validates() else None
        best, accuracy = (place.best_epoch, place.best_overall), None
        # What is told is written down before the checkpoint: a resume drops what it finds twice, but cannot know what
        # was never told.
        self.callback(ended)
        if validated is not None:
            self.callback(validated)
            if validated.is_best:
                best = validated.epoch, validated.overall
            accuracy = {
                "overall": validated.overall,
                "per_type": validated.per_type,
                "evaluator": validated.evaluator,
            }
        self.place = TrainState(epoch=place.epoch + 1, step=place.step, best_epoch=best[0], best_overall=best[1])
        self._keeper.save(self.place, rate=rate, heat=heat, accuracy=accuracy)

    def _validates(self) -> bool:
        every, finished = self.settings.run.validate_every, self.place.epoch + 1
        if not every or (finished % every and finished != self.settings.train.epochs):
            return False
        if "val" in self.split.split("+") or "val" not in self.data.split_names:
            return False
        return self.data.split("val").is_annotated

    def _validate(self) -> Validated:
        started = time.monotonic()
        scorer = Evaluator(
            self.stepper.model,
            self.heat,
            self.world,
            precision=self.settings.run.precision,
            batch_size=max(self.settings.train.batch_size // self.settings.train.accumulation // self.world.size, 64),
            num_workers=self.settings.data.num_workers,
            callback=self.callback,
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
            routes=answered.routes.mean(axis=0, dtype=np.float64).round(4).tolist(),
        )

    def _heed_while_validating(self) -> None:
        signal_number = self.world.all_reduce_max(self.stop.signal_number)
        if signal_number:
            self._stop(signal_number)


class _EpochClock:
    """Seconds and samples since an epoch began, or went on."""

    def __init__(self, place: TrainState) -> None:
        self._started = time.monotonic()
        self._earlier_samples = place.samples_in_epoch

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def samples_per_second(self, place: TrainState) -> float:
        return (place.samples_in_epoch - self._earlier_samples) / max(self.seconds(), 1e-9)
