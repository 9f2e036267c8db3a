"""The training loop: epochs, steps, forward and backward; what it knows, it tells an observer and the run folder.

Axes: B samples of one part of a batch on one process, A answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import trarctl
from trarctl.data.dataset import (
    Batch,
    Rows,
    Samples,
    load_batches,
    scoring_samples,
    training_plan,
    training_samples,
)
from trarctl.data.prepared import PreparedData
from trarctl.engine.checkpoint import Description, Progress, save_checkpoint
from trarctl.engine.events import (
    CheckpointSaved,
    EpochDone,
    Observer,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)
from trarctl.engine.losses import answer_loss, mean_elements
from trarctl.engine.processes import World, peak_memory_bytes, seed_step
from trarctl.engine.runs import RunFolder
from trarctl.engine.schedule import learning_rate, temperature
from trarctl.engine.scoring import measure, score_samples
from trarctl.errors import SettingsError
from trarctl.model.trar import TRAR, count_parameters
from trarctl.settings.fields import Settings


@dataclass
class Trainer:
    """One run: a model, its optimizer, its data, and the place it is at.

    Build it with ``Trainer.build``; ``fit`` runs it to its last epoch.
    """

    settings: Settings
    data: PreparedData
    samples: Samples
    run: RunFolder
    world: World
    observe: Observer
    model: TRAR
    optimizer: torch.optim.Adam
    place: Progress
    accuracy: dict[str, object] | None = None

    @classmethod
    def build(
        cls,
        settings: Settings,
        data: PreparedData,
        run: RunFolder,
        *,
        model: TRAR,
        world: World,
        observe: Observer,
        saved: tuple[dict[str, Tensor], Progress] | None = None,
    ) -> Trainer:
        """Put a run together.

        Args:
            settings: resolved and fitted to the data.
            data: prepared data.
            run: where to write.
            model: with its start weights, on the CPU.
            world: device and processes.
            observe: told what happens.
            saved: tensors and place of a checkpoint to go on from.

        Raises:
            SettingsError: if the batch is larger than the training split.
            DataError: if a split is missing.
            CheckpointError: if the checkpoint does not fit the model.
        """
        train = settings.train
        samples = training_samples(data, settings.data.split, train.loss)
        if len(samples) < train.batch_size:
            raise SettingsError(
                f"batch size {train.batch_size} is larger than the {len(samples)} training samples",
                f"--batch-size {len(samples)} or less",
            )
        model.to(world.device)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=train.learning_rate, betas=train.adam_betas, eps=train.adam_epsilon, fused=True
        )
        place = Progress()
        if saved is not None:
            tensors, place = saved
            restore(model, optimizer, tensors, place.step)
        return cls(settings, data, samples, run, world, observe, model, optimizer, place)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; samples that do not fill a batch sit the epoch out."""
        return len(self.samples) // self.settings.train.batch_size

    def fit(self) -> Progress:
        """Train from where the run stands to its last epoch, validating and saving after each."""
        started = time.monotonic()
        self.observe(
            RunStarted(
                name=self.run.name,
                folder=self.run.path,
                device=str(self.world.device),
                num_processes=self.world.size,
                num_parameters=count_parameters(self.model),
                num_samples=len(self.samples),
                steps_per_epoch=self.steps_per_epoch,
                epochs=self.settings.train.epochs,
                start_epoch=self.place.epoch,
                start_step=self.place.step_in_epoch,
            )
        )
        while self.place.epoch < self.settings.train.epochs:
            self._train_epoch()
        self.observe(
            RunFinished(
                self.run.name,
                self.run.path,
                time.monotonic() - started,
                self.place.best_epoch,
                self.place.best_overall,
            )
        )
        return self.place

    def _train_epoch(self) -> None:
        epoch = self.place.epoch
        heat = temperature(self.settings.train, epoch=epoch)
        self.model.train()
        clock = _EpochClock(self.place, self.settings.train.batch_size)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.world.device)
        logged_loss, logged_samples = self.place.loss_sum, self.place.samples_in_epoch
        rate = 0.0
        for parts in self._batches(epoch):
            rate, loss, routes = self._train_step(parts, epoch=epoch, heat=heat)
            loss_sum += loss
            step = self.place.step_in_epoch + 1
            self._advance(step=step)
            is_logged = self.place.step % self.settings.run.log_every == 0 or step == self.steps_per_epoch
            mean_loss = None
            if is_logged:
                self.place = self.place.model_copy(update={"loss_sum": self.place.loss_sum + float(loss_sum)})
                loss_sum.zero_()
                samples = self.place.samples_in_epoch
                mean_loss = (self.place.loss_sum - logged_loss) / (samples - logged_samples)
                logged_loss, logged_samples = self.place.loss_sum, samples
            self._report_step(mean_loss, routes if is_logged else None, rate, heat, clock)
        self._finish_epoch(rate, heat, clock)

    def _advance(self, *, step: int) -> None:
        samples = self.place.samples_in_epoch + self.settings.train.batch_size
        self.place = self.place.model_copy(
            update={"step_in_epoch": step, "step": self.place.step + 1, "samples_in_epoch": samples}
        )

    def _batches(self, epoch: int) -> Iterator[list[Batch]]:
        """The parts of each of the epoch's remaining batches that this process computes."""
        train = self.settings.train
        plan: list[Rows] = []
        for rows in training_plan(
            len(self.samples),
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=epoch,
            shuffle=train.shuffle,
            first_step=self.place.step_in_epoch,
        ):
            plan += list(rows.reshape(train.accumulation, self.world.size, -1)[:, self.world.rank])
        batches = load_batches(
            self.samples,
            plan,
            num_workers=self.settings.data.num_workers,
            pin=self.world.device.type == "cuda",
        )
        parts: list[Batch] = []
        for batch in batches:
            parts.append(batch.to(self.world.device))
            if len(parts) == train.accumulation:
                yield parts
                parts = []

    def _train_step(self, parts: list[Batch], *, epoch: int, heat: float) -> tuple[float, Tensor, Tensor]:
        """One optimizer step over a batch in parts.

        Returns:
            The rate, the loss summed over the samples, and the routes of the last part.
        """
        train = self.settings.train
        step = self.place.step + 1
        seed_step(train.seed, step=step, rank=self.world.rank)
        rate = learning_rate(train, epoch=epoch, step=step, num_samples=len(self.samples))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in parts:
            loss, routes = self._forward_backward(part, heat)
            losses.append(loss)
        if train.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), train.gradient_clip)
        self.optimizer.step()
        return rate, torch.stack(losses).sum(), routes

    def _forward_backward(self, part: Batch, heat: float) -> tuple[Tensor, Tensor]:
        """Add one part's gradient; returns its loss summed over samples, and its mean routes [L, K]."""
        train = self.settings.train
        if part.target is None:
            raise AssertionError("training batches have targets")
        scores, routes = self.model(part.question_tokens, part.cells(), temperature=heat)
        loss = answer_loss(scores, part.target, loss=train.loss).sum()
        if train.loss_reduction == "mean":
            scale = mean_elements(train.batch_size, self.samples.num_answers, loss=train.loss)
            (loss / scale).backward()
        else:
            loss.backward()
        return loss.detach(), routes.detach().mean(dim=0)

    def _report_step(
        self, loss: float | None, routes: Tensor | None, rate: float, heat: float, clock: _EpochClock
    ) -> None:
        place = self.place
        event = StepDone(
            epoch=place.epoch,
            step=place.step_in_epoch,
            steps_per_epoch=self.steps_per_epoch,
            rate=rate,
            temperature=heat,
            samples_per_second=clock.samples_per_second(place),
            loss=loss,
            routes=None if routes is None else [[round(weight, 4) for weight in layer] for layer in routes.tolist()],
            memory_bytes=None if loss is None else peak_memory_bytes(self.world.device),
        )
        self.observe(event)
        if loss is not None and self.world.leads:
            self.run.record(
                {
                    "event": "step",
                    "epoch": place.epoch + 1,
                    "step": place.step,
                    "loss": loss,
                    "learning_rate": rate,
                    "temperature": heat,
                    "routes": event.routes,
                    "samples_per_second": round(event.samples_per_second, 1),
                    "memory_bytes": event.memory_bytes,
                }
            )

    def _finish_epoch(self, rate: float, heat: float, clock: _EpochClock) -> None:
        place = self.place
        seconds = clock.seconds()
        done = EpochDone(
            epoch=place.epoch + 1,
            loss=place.loss_sum / max(place.samples_in_epoch, 1),
            rate=rate,
            temperature=heat,
            seconds=seconds,
            samples_per_second=clock.samples_per_second(place),
        )
        self.place = Progress(
            epoch=place.epoch + 1, step=place.step, best_epoch=place.best_epoch, best_overall=place.best_overall
        )
        if self.world.leads:
            self.run.record(
                {
                    "event": "epoch",
                    "epoch": done.epoch,
                    "step": place.step,
                    "loss": done.loss,
                    "learning_rate": rate,
                    "temperature": heat,
                    "seconds": round(seconds, 3),
                    "samples_per_second": round(done.samples_per_second, 1),
                }
            )
            self.run.log(
                f"epoch {done.epoch}: loss {done.loss:.4f}, rate {rate:.3g}, temperature {heat:.4g}, "
                f"{seconds:.0f} s, {seconds / self.steps_per_epoch:.3f} s a step"
            )
        self.observe(done)
        if self._validates():
            self._validate(heat)
        self.save(self.run.epoch_checkpoint(self.place.epoch), rate=rate, heat=heat)
        self._prune()

    def _validates(self) -> bool:
        every = self.settings.run.validate_every
        if not every or (self.place.epoch % every and self.place.epoch != self.settings.train.epochs):
            return False
        trained_on = self.settings.data.split.split("+")
        return "val" not in trained_on and self.data.has_split("val") and self.data.split("val").is_annotated

    def _validate(self, heat: float) -> None:
        started = time.monotonic()
        scores = score_samples(
            self.model,
            scoring_samples(self.data, "val"),
            answers=self.data.answers,
            temperature=heat,
            world=self.world,
            batch_size=max(self.settings.train.batch_size, 64),
            num_workers=self.settings.data.num_workers,
            observe=self.observe,
            task="validating",
        )
        measured = measure(scores.predictions(), self.data, self.data.split("val"), "official")
        is_best = self.place.best_overall is None or measured.overall > self.place.best_overall
        if is_best:
            self.place = self.place.model_copy(
                update={"best_epoch": self.place.epoch, "best_overall": measured.overall}
            )
        routes = scores.routes.mean(axis=0).round(4).tolist()
        self.accuracy = {"overall": measured.overall, "per_type": measured.per_type, "evaluator": "official"}
        seconds = time.monotonic() - started
        if self.world.leads:
            self.run.record(
                {"event": "validation", "epoch": self.place.epoch, "step": self.place.step, "routes": routes}
                | self.accuracy
            )
            types = ", ".join(f"{name} {value:.2f}" for name, value in measured.per_type.items())
            self.run.log(f"epoch {self.place.epoch}: val {measured.overall:.2f} ({types}), {seconds:.0f} s")
        self.observe(
            Validated(self.place.epoch, measured.overall, measured.per_type, is_best, seconds, routes)
        )

    def save(self, path: Path, *, rate: float, heat: float) -> None:
        """Write a checkpoint of the present place."""
        if not self.world.leads:
            return
        started = time.monotonic()
        description = Description(
            trarctl=trarctl.__version__,
            torch=str(torch.__version__),
            run=self.run.name,
            dataset=self.data.dataset,
            settings=self.settings.model_dump(mode="json"),
            progress=self.place,
            temperature=heat,
            learning_rate=rate,
            accuracy=self.accuracy,
            vocabulary=list(self.data.vocabulary.words),
            answers=list(self.data.answers),
            feature_width=self.data.features.width,
            vectors=self.data.vectors_description,
            backbone=self.data.manifest.backbone,
            data=self.data.identity(),
            num_processes=self.world.size,
        )
        save_checkpoint(path, state_tensors(self.model, self.optimizer), description)
        self.observe(CheckpointSaved(path, self.place.epoch, self.place.step_in_epoch, time.monotonic() - started))

    def _prune(self) -> None:
        keep = self.settings.run.keep
        if not keep or not self.world.leads:
            return
        epochs = [(epoch, file) for epoch, step, file in self.run.saved() if step == 0]
        for epoch, file in epochs[:-keep]:
            if epoch != self.place.best_epoch:
                file.unlink(missing_ok=True)


def state_tensors(model: TRAR, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All tensors of a checkpoint: the weights and Adam's two averages, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            tensors[f"adam.average.{name}"] = state["exp_avg"]
            tensors[f"adam.square.{name}"] = state["exp_avg_sq"]
    return tensors


def restore(model: TRAR, optimizer: torch.optim.Adam, tensors: dict[str, Tensor], step: int) -> None:
    """Put a checkpoint's tensors back; ``step`` is the number of optimizer steps that it has seen."""
    model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    )
    for name, parameter in model.named_parameters():
        if f"adam.average.{name}" not in tensors:
            continue
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), dtype=torch.float32, device=parameter.device),
            "exp_avg": tensors[f"adam.average.{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"adam.square.{name}"].to(parameter.device),
        }


class _EpochClock:
    """Seconds and samples of an epoch; a resumed epoch counts from where it goes on."""

    def __init__(self, place: Progress, batch_size: int) -> None:
        self._started = time.monotonic()
        self._earlier_seconds = place.seconds
        self._earlier_samples = place.samples_in_epoch
        self._batch_size = batch_size

    def seconds(self) -> float:
        """Time spent in this epoch, that before an interruption included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def samples_per_second(self, place: Progress) -> float:
        """Speed since the epoch went on."""
        return (place.samples_in_epoch - self._earlier_samples) / max(time.monotonic() - self._started, 1e-9)
