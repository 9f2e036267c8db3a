"""The training of a run: ``Trainer.fit`` -> ``train_epoch`` -> ``train_step`` -> ``forward_backward``.

Axes: B batch, A answers, L layers, K spans.
"""

from __future__ import annotations

import functools
import hashlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import trarctl
from trarctl.config import Cache, Loss, Precision
from trarctl.config.settings import DataSettings, Settings, seconds_of
from trarctl.data.features.resident import ResidentFeatures
from trarctl.data.loader import Batch, Rows, Samples, load_batches, scoring_samples, training_plan, training_samples
from trarctl.data.metrics import baselines, measure
from trarctl.data.prepared import PreparedData
from trarctl.data.records import bytes_of
from trarctl.engine import checkpoint, distributed, feeding, graph
from trarctl.engine.averaging import MovingAverage, exchanged, mean_of
from trarctl.engine.callbacks import (
    Callback,
    CandidateValidated,
    CheckpointSaved,
    EpochDone,
    Note,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)
from trarctl.engine.checkpoint import Description, TrainedOn, TrainState
from trarctl.engine.distributed import PackedGradients, World
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.graph import RecordedStep, Step
from trarctl.engine.loading import build_model, describe_data, load_weights
from trarctl.engine.run import RunFolder
from trarctl.engine.schedules import learning_rate, temperature
from trarctl.engine.signals import STOPPING, StopRequest
from trarctl.errors import CheckpointError, DataError, DivergenceError, Stopped, listed
from trarctl.model.trar import count_parameters

STEPS_BETWEEN_REQUESTS = 16  # of several GPUs: they hear of a signal or a due save then, and where a step is logged

Schedule = tuple[float, float]
"""Learning rate and temperature of a step."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step; the tensors are on the device and may not be computed yet."""

    step: int
    question_id: NDArray[Any]  # of the questions that this process computed
    loss: Tensor  # of this process, summed over its samples
    gradient_norm: Tensor  # of the whole batch, before clipping; where it is not finite, nothing was updated
    routes: Tensor  # mean span weights of this process's last part, [L, K]


class Trainer:
    """One run: a model, its optimizer, its data, and how far it has come.

    Args:
        settings: resolved and fitted to the data.
        tensors: of a checkpoint to start from, as in its file; empty for new weights.
        state: how far that checkpoint had come.
        schedule: learning rate and temperature of the last step; None before the first.
        precision: that was chosen for the training so far; None if none was.
        seconds_left: after which to stop, saved; None: as ``run.max_time`` says.
    """

    def __init__(
        self,
        settings: Settings,
        data: PreparedData,
        run: RunFolder,
        world: World,
        *,
        callback: Callback,
        stop: StopRequest,
        tensors: Mapping[str, Tensor],
        state: TrainState,
        schedule: Schedule | None = None,
        precision: Precision | None = None,
        seconds_left: float | None = None,
    ) -> None:
        self.settings, self.data, self.run, self.world = settings, data, run, world
        self.callback, self.stop, self.state = callback, stop, state  # the callback may be changed before ``fit``
        self.model = build_model(settings, data)
        if tensors:
            load_weights(self.model, checkpoint.model_tensors(tensors), run.path)
        self.model.to(world.device)
        self.precision = distributed.training_precision(world.device, settings.run.precision, precision)
        self._precision_before = precision
        train = settings.train
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=train.learning_rate, betas=train.adam_betas, eps=train.adam_epsilon, fused=True
        )
        checkpoint.restore_optimizer(self.model, self.optimizer, tensors)
        self._ema = None if train.ema_decay is None else MovingAverage(self.model, train.ema_decay, tensors)
        recorder = graph.recorder_for(world.device, settings.run.compile)
        self._recorded = None if recorder is None else RecordedStep(self, recorder, self._note)
        self._packed: PackedGradients | None = None
        self.network: nn.Module = self.model
        if recorder is None:
            self.network = distributed.share_gradients(self.model, world, is_accumulated=train.accumulation > 1)
        elif world.size > 1:
            # A recording holds no collective: gradients are exchanged between the two halves of a step.
            self._packed = PackedGradients(self.model, world)
            distributed.share_weights(self.model)
        self._temperature: float | Tensor = self.temperature
        if self._recorded is not None:
            # A recorded step reads them from their place in memory.
            self._temperature = torch.tensor(self.temperature, device=world.device)
            self.optimizer.param_groups[0]["lr"] = torch.tensor(train.learning_rate, device=world.device)
        if settings.run.compile == "on":
            self.network.compile()
        self._samples_of = functools.cache(lambda split: training_samples(data, split, train.loss))
        self._digest_of = functools.cache(lambda split: digest_of_samples(self._samples_of(split)))
        self._copies = feeding.copies_to(world.device)
        self._kept: ResidentFeatures | None = None
        self._schedule: Schedule = schedule or (self._learning_rate(1), self.temperature)
        self._unread: list[StepResult] = []  # steps whose losses were not read yet
        self._started = self._saved_at = self._epoch_started = time.monotonic()
        most = settings.run.max_time
        self._seconds_left = seconds_of(most) if seconds_left is None and most is not None else seconds_left
        self._samples_before = 0  # of the epoch, by an earlier process

    def fit(self) -> TrainState:
        """Train to the run's last epoch, or as far as ``train.patience`` goes, validating and saving after each.

        Raises:
            Stopped: after a signal, or ``run.max_time``; the state is saved.
            DivergenceError: if the loss is not finite; the state is saved.
        """
        run, started = self.run, time.monotonic()
        if note := self._precision_note():
            self._note(note)
        wanted, num_threads = self.settings.data.cache, self.settings.data.num_workers
        self._kept = feeding.keep_features(
            self.data, self._images, wanted, self.world, self.callback, num_threads=num_threads
        )
        self.callback(self._run_started())
        with distributed.tf32_allowed(self.world.device, self.precision):
            while self.state.epoch < self.settings.train.epochs and not is_out_of_patience(self.settings, self.state):
                self.train_epoch()
        best = self.state.best_epoch, self.state.best_overall
        if self.state.epoch < (epochs := self.settings.train.epochs):
            ended = (
                f"ended early, after epoch {self.state.epoch} of {epochs}: no better validation than epoch {best[0]}"
            )
            self._note(f"{ended} in {self.state.validations_since_best} (train.patience)")
        if self.world.is_main and (found := run.read_metrics().best()) and found[1]:
            epoch, name, overall = found
            self._note(f"the best of all is {name} of epoch {epoch}, {overall:.2f} %: --ckpt {run.reference} takes it")
        self.callback(RunFinished(run.name, run.path, time.monotonic() - started, *best))
        return self.state

    def train_epoch(self) -> None:
        """Do the remaining steps of the current epoch, then validate and save."""
        self._epoch_started = time.monotonic()
        self._samples_before = self.state.samples_in_epoch
        self.network.train()
        for parts in self._batches():
            self._schedule = self._learning_rate(self.state.step + 1), self.temperature
            result = self.train_step(parts, learning_rate=self._schedule[0])
            self._finish_step(result)
        self._finish_epoch()

    def train_step(self, parts: Sequence[Batch], *, learning_rate: float) -> StepResult:
        """Learn from one batch, of which this process computes ``parts``."""
        step = self.state.step + 1
        distributed.seed_step(self.settings.train.seed, step=step, rank=self.world.rank)
        self._set_rates(learning_rate)
        if self._ema is not None:
            self._ema.begin_step()
        halves: Step = self
        if self._recorded is not None and self._recorded.begin(parts):
            halves = self._recorded
        losses = []
        for number, part in enumerate(parts, start=1):
            loss, routes = halves.forward_backward(part, is_first=number == 1, is_last=number == len(parts))
            losses.append(loss)
        if self._packed is not None:
            self._packed.average()
        gradient_norm = halves.update()
        question_id = np.concatenate([part.question_id for part in parts])
        return StepResult(step, question_id, torch.stack(losses).sum(), gradient_norm, routes)

    def forward_backward(self, part: Batch, *, is_first: bool, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add one part's gradient, the first to none; with the last, processes exchange them or pack them for that.

        Returns:
            The loss, summed over the part, and the mean span weights, [L, K].
        """
        train = self.settings.train
        if part.target is None:
            raise AssertionError("training batches have targets")
        # Processes average their gradients: the factor makes that the sum over the whole batch.
        scale = float(self.world.size)
        if train.loss_reduction == "mean":
            scale /= train.batch_size * (1 if train.loss == "ce" else len(self.data.answers))
        if is_first:
            self.optimizer.zero_grad(set_to_none=True)
        is_local = isinstance(self.network, DistributedDataParallel) and not is_last
        with self.network.no_sync() if is_local else nullcontext():  # type: ignore[operator]
            with distributed.precision_of(self.world.device, self.precision):
                scores, routes = self.network(part.question_tokens, part.cells(), temperature=self._temperature)
            loss = answer_loss(scores, part.target, loss=train.loss).sum()
            with distributed.collective():
                (loss * scale).backward()
        if self._packed is not None and is_last:
            self._packed.pack()
        return loss.detach(), routes.detach().mean(dim=0)

    def update(self) -> Tensor:
        """Clip the gradient and change the weights.

        Returns:
            The gradient's norm before clipping; where it is not finite, nothing was changed.
        """
        clip, optimizer = self.settings.train.gradient_clip, self.optimizer
        if self._packed is not None:
            self._packed.unpack()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, gradient_norm)
        # Decided on the device, without waiting for it; processes share their gradients, so all decide alike. The fused
        # optimizer leaves weights, averages and its count of steps alone where found_inf is 1.
        optimizer.found_inf = (~gradient_norm.isfinite()).float()  # type: ignore[attr-defined]
        # torch asks for the mark while it records, and warns of it at any other time.
        optimizer.param_groups[0]["capturable"] = graph.is_recording()
        optimizer.step()
        if self._ema is not None:
            self._ema.update()
        return gradient_norm

    def _note(self, text: str) -> None:
        self.callback(Note(text))

    @property
    def _cache(self) -> Cache:
        """Where the features are kept."""
        return "none" if self._kept is None else "ram" if self._kept.on_device is None else "device"

    def _images(self) -> Rows:
        """Rows of the image table that the run needs, ascending."""
        data = self.settings.data
        splits = {data.split, data.later_split or data.split}
        samples = [self._samples_of(split) for split in splits]
        if any(is_validated(self.settings, self.data, split) for split in splits):
            samples.append(scoring_samples(self.data, "val"))
        return np.unique(np.concatenate([one.images for one in samples]))

    def _precision_note(self) -> str | None:
        """Say that a run goes on in another precision than before, or than this device would get; None if neither."""
        before, wanted, device = self._precision_before, self.settings.run.precision, self.world.device
        if wanted != "auto" or before is None:
            return None
        if before != self.precision:
            return f"trained in {before} so far, which {device} does not have: in {self.precision} from here on"
        if (usual := distributed.training_precision(device, wanted)) != before:
            return f"trained in {before} as so far; --set run.precision={usual} is what {device} has as well"
        return None

    def _set_rates(self, learning_rate: float) -> None:
        group = self.optimizer.param_groups[0]
        if isinstance(self._temperature, Tensor):
            group["lr"].fill_(learning_rate)
            self._temperature.fill_(self.temperature)
        else:
            group["lr"], self._temperature = learning_rate, self.temperature

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        """What validates; kept, with what it has recorded, from one epoch to the next."""
        temperature, world = self._schedule[1], self.world
        return Evaluator(
            *(self.model, self.settings, temperature, world, self.callback, "validating", self._stop_if_asked),
            kept=self._kept,
        )

    @property
    def split(self) -> str:
        """The splits that the current epoch trains on."""
        return split_of_epoch(self.settings.data, self.state.epoch)

    @property
    def samples(self) -> Samples:
        """The samples of the current epoch."""
        return self._samples_of(self.split)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the current epoch; samples that do not fill a batch are left out of it."""
        return len(self.samples) // self.settings.train.batch_size

    @property
    def temperature(self) -> float:
        """Of hard routing, in the current epoch."""
        return temperature(self.settings.train, epoch=self.state.epoch)

    def _run_started(self) -> RunStarted:
        return RunStarted(
            name=self.run.name,
            folder=self.run.path,
            device=str(self.world.device),
            num_processes=self.world.size,
            num_parameters=count_parameters(self.model),
            num_samples=len(self.samples),
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.settings.train.epochs,
            start_epoch=self.state.epoch,
            start_step=self.state.step_in_epoch,
            num_threads=torch.get_num_threads(),
            spans=self.settings.model.spans,
            grid_size=self.settings.model.grid_size,
            is_hard=self.settings.model.routing == "hard",
            precision=self.precision,
            is_recorded=self._recorded is not None,
            is_compiled=self.settings.run.compile == "on",
            cache=self._cache,
        )

    def _learning_rate(self, step: int) -> float:
        # Warm-up is measured in epochs of the split that the run began with.
        num_samples = len(self._samples_of(self.settings.data.split))
        return learning_rate(self.settings.train, epoch=self.state.epoch, step=step, num_samples=num_samples)

    def _batches(self) -> Iterator[list[Batch]]:
        """The parts, on the device, of each of the epoch's remaining batches that this process computes."""
        train = self.settings.train
        plan: list[Rows] = []
        for rows in training_plan(
            len(self.samples),
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=self.state.epoch,
            shuffle=train.shuffle,
            first_step=self.state.step_in_epoch,
        ):
            plan += list(rows.reshape(train.accumulation, self.world.size, -1)[:, self.world.rank])
        pin = self.world.device.type == "cuda"
        num_workers = self.settings.data.num_workers
        batches = load_batches(self.samples, plan, num_workers=num_workers, pin=pin, kept=self._kept)
        parts: list[Batch] = []
        for part in feeding.on_device(batches, self.world.device, self._copies):
            parts.append(part if self._recorded is None else part.padded(self.data.manifest.text.max_words))
            if len(parts) == train.accumulation:
                yield parts
                parts = []

    def _update_state(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)

    def _finish_step(self, result: StepResult) -> None:
        """Count the step, report it, and do what was asked for: stop or save."""
        state, batch_size = self.state, self.settings.train.batch_size
        self._update_state(
            step_in_epoch=state.step_in_epoch + 1,
            step=state.step + 1,
            samples_in_epoch=state.samples_in_epoch + batch_size,
            window_samples=state.window_samples + batch_size,
        )
        self._unread.append(result)
        is_end = self.state.step_in_epoch == self.steps_per_epoch
        is_logged = result.step % self.settings.run.log_every == 0 or is_end
        reads_loss = is_logged or self.world.device.type == "cpu"
        signal_number, is_save_due = 0, False
        if reads_loss or self._is_asked():
            signal_number, is_save_due = self._synchronize(reads_loss=reads_loss)
        self._report_step(result, is_logged=is_logged)
        if signal_number:
            self._stop(signal_number)
        if is_save_due:
            self._save()

    def _synchronize(self, *, reads_loss: bool) -> tuple[int, bool]:
        """Add up the losses, and learn from all processes whether to stop or to save, by one all-reduce.

        Reading the losses waits for the device. Whatever is saved has them in it.

        Returns:
            The signal that asks to stop, 0 for none, and whether to save.
        """
        loss = self._unread_loss() if reads_loss else 0.0
        # By the clock, only the main process can say whether to save.
        wants_save = float(self.world.is_main and self._is_save_due())
        self._look_at_clock()
        asked = [float(self.stop.signal_number == number) for number in STOPPING]
        loss, is_save_due, *asked = self.world.all_reduce(np.array([loss, wants_save, *asked])).tolist()
        signal_number = next((int(number) for number, count in zip(STOPPING, asked, strict=True) if count), 0)
        if not reads_loss and (signal_number or is_save_due):
            loss, reads_loss = float(self.world.all_reduce(np.array([self._unread_loss()]))[0]), True
        if not np.isfinite(loss):
            self._give_up()
        if reads_loss:
            self._unread.clear()
            sums = self.state.loss_sum + loss, self.state.window_loss_sum + loss
            self._update_state(loss_sum=sums[0], window_loss_sum=sums[1])
        return signal_number, bool(is_save_due)

    def _look_at_clock(self) -> None:
        """Ask for a stop, as an alarm does, once ``run.max_time`` is over; the main process does so for all."""
        most = self._seconds_left
        if most is None or not self.world.is_main or self.stop.signal_number:
            return
        if time.monotonic() - self._started >= most:
            self.stop.handle(signal.SIGALRM, None)

    def _unread_loss(self) -> float:
        return float(_losses(self._unread).double().sum()) if self._unread else 0.0

    def _is_asked(self) -> bool:
        """Whether this is a step after which processes tell each other of requests; the same in all of them."""
        step, every = self.state.step, self.settings.run.save_every
        is_counted = every is not None and every.isdigit() and step % int(every) == 0
        return self.world.size == 1 or step % STEPS_BETWEEN_REQUESTS == 0 or is_counted

    def _is_save_due(self) -> bool:
        """Whether ``run.save_every`` asks for a checkpoint; the end of an epoch has one anyway."""
        every = self.settings.run.save_every
        if every is None or self.state.step_in_epoch == self.steps_per_epoch:
            return False
        if every.isdigit():
            return self.state.step % int(every) == 0
        return time.monotonic() - self._saved_at >= 60 * int(every.rstrip("min"))

    def _report_step(self, result: StepResult, *, is_logged: bool) -> None:
        state, logged = self.state, {}
        if is_logged:
            logged = {
                "loss": state.window_loss_sum / max(state.window_samples, 1),
                "gradient_norm": float(result.gradient_norm),
                "routes": result.routes.double().cpu().numpy().round(4).tolist(),
                "memory_bytes": distributed.peak_memory_bytes(self.world.device),
            }
            self._update_state(window_loss_sum=0.0, window_samples=0)
        where = state.epoch + 1, state.step_in_epoch, self.steps_per_epoch, state.step
        self.callback(StepDone(*where, *self._schedule, self._samples_per_second(), **logged))

    def _samples_per_second(self) -> float:
        """Over the epoch, as far as this process has computed it."""
        seconds = time.monotonic() - self._epoch_started
        return (self.state.samples_in_epoch - self._samples_before) / max(seconds, 1e-9)

    def _give_up(self) -> NoReturn:
        """Save and end, since a loss or a gradient is not finite; the weights are those from before."""
        where = describe_faults(self.world.all_gather(_first_fault(self._unread)))
        path, epoch = self._save(), self.state.epoch
        lower = f"--set train.learning_rate={min(self.settings.train.learning_rate / 10, 1e-4):g}"
        again = f"trarctl train --name NAME {lower} starts another run"
        if epoch and self.run.epoch_checkpoint(epoch).is_file():
            # From the last epoch's end, since later weights may be ruined.
            again = f"trarctl resume {self.run.reference} --epoch {epoch} {lower} goes back to before"
        raise DivergenceError(
            f"the loss or its gradient is not finite at {where} of run {self.run.name}; "
            f"the state is saved in {path.name}, without that step's update",
            f"look at the features of these questions; if they are sound, {again}",
        )

    def _stop(self, signal_number: int) -> NoReturn:
        path, most = self._save(), self.settings.run.max_time
        is_by_clock = most is not None and signal_number == signal.SIGALRM
        by = f"run.max_time = {most}" if is_by_clock else signal.Signals(signal_number).name
        raise Stopped(
            f"run {self.run.name} stopped by {by} after step {self.state.step}; its state is saved in {path.name}",
            signal_number,
            f"trarctl resume {self.run.reference}",
        )

    def _stop_if_asked(self) -> None:
        self._look_at_clock()
        if signal_number := max(self.world.all_gather(self.stop.signal_number)):
            raise _StopAsked(signal_number)

    def _finish_epoch(self) -> None:
        state = self.state
        loss = state.loss_sum / max(state.samples_in_epoch, 1)
        speed = time.monotonic() - self._epoch_started, self._samples_per_second()
        ended = EpochDone(state.epoch + 1, state.step, self.steps_per_epoch, loss, *self._schedule, *speed)
        is_due = self._is_validation_due()
        try:
            validated = self._validate() if is_due else None
            candidates = self._average(validated, is_due=is_due)
        except _StopAsked as asked:  # only now the model has its own weights again, whatever was validated
            self._stop(asked.signal_number)
        # Events are written down before the checkpoint: a resume drops what it finds twice, but cannot know what was
        # never written.
        self.callback(ended)
        if validated is not None:
            self.callback(validated)
        self.state = _after_epoch(state, validated)
        self._save(_accuracy(validated), candidates)

    def _is_validation_due(self) -> bool:
        every, finished = self.settings.run.validate_every, self.state.epoch + 1
        is_due = bool(every) and (finished % every == 0 or finished == self.settings.train.epochs)
        return is_due and is_validated(self.settings, self.data, self.split)

    def _average(self, validated: Validated | None, *, is_due: bool) -> list[_Candidate]:
        """The averages of weights that belong beside the epoch's own: validated where those are, else at the end."""
        train, after = self.settings.train, _after_epoch(self.state, validated)
        is_last = after.epoch == train.epochs or is_out_of_patience(self.settings, after)
        averages: dict[str, Mapping[str, Tensor]] = {}
        if self._ema is not None and self._ema.num_steps and (is_due or is_last):
            averages["ema"] = self._ema.weights
        if train.average_epochs is not None and is_last and (mean := self._mean_of_epochs(train.average_epochs)):
            averages["average"] = mean
        found = []
        for name, weights in averages.items():
            with exchanged(self.model, weights):
                measured = self._validate() if is_due else None
                tensors = {key: tensor.cpu().clone() for key, tensor in self.model.state_dict().items()}
            found.append(_Candidate(name, tensors, measured))
        return found

    def _mean_of_epochs(self, count: int) -> dict[str, Tensor]:
        """The mean of the weights after this epoch and those before it, ``count`` in all; empty without one before."""
        mean: dict[str, Tensor] = {}
        if self.world.is_main:
            states: list[Mapping[str, Tensor]] = [self.model.state_dict()]
            finished = self.state.epoch + 1
            for epoch in range(max(finished - count, 0) + 1, finished):
                try:
                    states.append(
                        checkpoint.model_tensors(checkpoint.load_checkpoint(self.run.epoch_checkpoint(epoch))[0])
                    )
                except CheckpointError as error:
                    self._note(f"left out of the average: {error.what}")
            mean = mean_of(states) if len(states) > 1 else {}
        return self.world.broadcast_tensors(mean)

    def _validate(self) -> Validated:
        started = time.monotonic()
        self._evaluator.temperature = self._schedule[1]
        chosen, routes = self._evaluator.answer(self.data, "val")
        predictions = [self.data.answers[index] for index in chosen]
        measured = measure(predictions, self.data, self.data.split("val"), "official")
        best = self.state.best_overall
        return Validated(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            overall=measured.overall,
            per_type=measured.per_type,
            evaluator=measured.evaluator,
            is_best=best is None or measured.overall > best,
            seconds=time.monotonic() - started,
            routes=routes.mean(axis=0, dtype=np.float64).round(4).tolist(),
        )

    def _save(self, accuracy: dict[str, Any] | None = None, candidates: Sequence[_Candidate] = ()) -> Path:
        """Write a checkpoint and remove those that it makes superfluous; all processes take part, and fail together.

        Averages of weights are written before it: a resume makes those of an epoch without checkpoint again.
        """
        run, state = self.run, self.state
        at, is_end = (state.epoch, state.step_in_epoch), not state.step_in_epoch
        path = run.epoch_checkpoint(state.epoch) if is_end else run.step_checkpoint(*at)
        problem: tuple[str, str | None] | None = None
        if self.world.is_main:
            started = time.monotonic()
            description = self._describe(accuracy)
            tensors = checkpoint.state_tensors(self.model, self.optimizer)
            tensors |= {} if self._ema is None else self._ema.tensors()
            # An average at the end needs the epochs before it.
            keep = self.settings.run.keep and max(self.settings.run.keep, (self.settings.train.average_epochs or 1) - 1)
            try:
                for candidate in candidates:
                    self._save_candidate(candidate, description)
                checkpoint.save_checkpoint(path, tensors, description)
                self.callback(CheckpointSaved(path, *at, time.monotonic() - started))
                run.prune(epoch=state.epoch, best_epoch=state.best_epoch, keep=keep)
            except DataError as error:
                problem = error.what, error.hint
        self._saved_at = time.monotonic()
        if problem := self.world.broadcast(problem):
            raise DataError(*problem)
        return path

    def _save_candidate(self, candidate: _Candidate, description: Description) -> None:
        """Report an average of weights, and write it unless an earlier one of its kind is as good."""
        name, tensors, measured = candidate
        epoch, metrics = self.state.epoch, self.run.read_metrics()
        if measured is not None:
            shown = ("overall", "per_type", "seconds", "evaluator")
            values: dict[str, Any] = {key: getattr(measured, key) for key in shown}
            self.callback(CandidateValidated(name, epoch, self.state.step, **values))
            best = metrics.best_candidate(self.run.saved_candidates(name))
            if best is not None and metrics.candidates[best]["overall"] >= measured.overall:
                return
        accuracy = _accuracy(measured)
        accuracy = accuracy and accuracy | self._measured_on
        described = description.model_copy(update={"accuracy": accuracy, "candidate": name})
        held = {checkpoint.MODEL + key: tensor for key, tensor in tensors.items()}
        checkpoint.save_checkpoint(self.run.candidate_checkpoint(epoch, name), held, described)

    def _describe(self, accuracy: dict[str, Any] | None) -> Description:
        if accuracy is not None:
            accuracy = accuracy | self._measured_on
        return Description(
            trarctl=trarctl.__version__,
            torch=str(torch.__version__),
            run=self.run.name,
            settings=self.settings.model_dump(mode="json"),
            progress=self.state,
            learning_rate=self._schedule[0],
            temperature=self._schedule[1],
            accuracy=accuracy,
            num_processes=self.world.size,
            samples=self._digest_of(self.split),
            precision=self.precision,
            cache=self._cache,
            trained_on=TrainedOn(
                name=self.data.name,
                title=self.data.spec.title,
                split=self.split,
                questions=len(self.samples),
                type_label=self.data.spec.type_label,
            ),
            **describe_data(self.data),
        )

    @functools.cached_property
    def _measured_on(self) -> dict[str, Any]:
        """What an accuracy is to be compared with: the questions, and what guessing scores there."""
        split = self.data.split("val")
        found, _ = baselines(self.data, split, "official")
        guessed = {name: {"overall": one.overall, "per_type": one.per_type} for name, one in found}
        return {"split": split.name, "questions": len(split), "baselines": guessed}


class _StopAsked(Exception):
    """A signal asks to stop; what was being done is left first, then the state is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class _Candidate(NamedTuple):
    """An average of weights beside an epoch's own."""

    name: str
    tensors: dict[str, Tensor]  # under the model's names, on the CPU
    measured: Validated | None  # None where the epoch is not validated


def _accuracy(validated: Validated | None) -> dict[str, Any] | None:
    """What a checkpoint says of its validation."""
    names = ("overall", "per_type", "evaluator")
    return None if validated is None else {name: getattr(validated, name) for name in names}


def _after_epoch(state: TrainState, validated: Validated | None) -> TrainState:
    """The state once an epoch is over."""
    best, num_since = (state.best_epoch, state.best_overall), state.validations_since_best
    if validated is not None:
        best, num_since = ((validated.epoch, validated.overall), 0) if validated.is_best else (best, num_since + 1)
    return TrainState(
        epoch=state.epoch + 1,
        step=state.step,
        best_epoch=best[0],
        best_overall=best[1],
        validations_since_best=num_since,
    )


def is_out_of_patience(settings: Settings, state: TrainState) -> bool:
    """Whether ``train.patience`` ends the run here."""
    return settings.train.patience is not None and state.validations_since_best >= settings.train.patience


def split_of_epoch(settings: DataSettings, epoch: int) -> str:
    """The splits that an epoch, counted from 0, trains on."""
    is_later = settings.later_split_epoch is not None and epoch >= settings.later_split_epoch
    return settings.later_split if is_later and settings.later_split is not None else settings.split


def is_validated(settings: Settings, data: PreparedData, split: str) -> bool:
    """Whether epochs on a split are followed by a validation: on val, if it has answers and is not trained on."""
    val = data.spec.split_name("val")
    has_val = val in data.split_names and val not in split.split("+")
    return settings.run.validate_every > 0 and has_val and data.split("val").is_annotated


def digest_of_samples(samples: Samples) -> str:
    """SHA-256 of the ids of training questions in their order, hexadecimal."""
    return hashlib.sha256(bytes_of(samples.question_id)).hexdigest()


def answer_loss(scores: Tensor, target: Tensor, *, loss: Loss) -> Tensor:
    """The loss of each sample, summed over the answers, [B].

    ``target`` holds soft scores [B, A] for ``bce`` and ``kld``, answer indices [B] for ``ce``.
    """
    if loss == "ce":
        return functional.cross_entropy(scores, target, reduction="none")
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(dim=1)
    return functional.kl_div(scores.log_softmax(dim=1), target, reduction="none").sum(dim=1)


class Fault(NamedTuple):
    """A step whose loss or gradient is not finite, as one process sees it."""

    step: int
    question_id: NDArray[Any]
    is_own: bool  # whether this process's own loss is not finite


def _losses(results: Sequence[StepResult]) -> Tensor:
    """The loss of each step, NaN where the gradient is not finite."""
    norms = torch.stack([result.gradient_norm for result in results])
    return torch.stack([result.loss for result in results]).masked_fill(~norms.isfinite(), torch.nan)


def _first_fault(results: Sequence[StepResult]) -> Fault | None:
    for result, is_finite in zip(results, _losses(results).isfinite().tolist(), strict=True):
        if not is_finite:
            return Fault(result.step, result.question_id, not bool(result.loss.isfinite()))
    return None


def describe_faults(faults: Sequence[Fault | None]) -> str:
    """The first faulty step of all processes and its questions, in words."""
    known = [fault for fault in faults if fault is not None]
    step = min(fault.step for fault in known)
    first = [fault for fault in known if fault.step == step]
    own = [fault for fault in first if fault.is_own] or first
    questions = np.concatenate([fault.question_id for fault in own]).tolist()
    return f"step {step} (questions {listed(questions, most=8)})"
