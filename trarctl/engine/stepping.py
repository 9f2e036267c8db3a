"""One optimizer step: forward and backward over the parts of a batch, then the update.

Axes: L layers, K spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trarctl.config.settings import Settings
from trarctl.data.loader import Batch
from trarctl.engine.distributed import World, collective, precision_of, seed_step
from trarctl.engine.losses import answer_loss, mean_elements
from trarctl.model.trar import TRAR


@dataclass(frozen=True)
class Stepper:
    """A model, the way it is called in training, and its optimizer.

    Attributes:
        settings: of the run.
        world: device and processes.
        model: on the device.
        network: ``model`` compiled, and sharing gradients between processes, as far as the settings ask for it.
        optimizer: fused Adam over the model's parameters.
        num_answers: answers A.
    """

    settings: Settings
    world: World
    model: TRAR
    network: nn.Module
    optimizer: torch.optim.Adam
    num_answers: int

    def step(self, parts: Sequence[Batch], *, number: int, rate: float, heat: float) -> StepResult:
        """Learn from one batch.

        Args:
            parts: of the batch, those that this process computes, on the device.
            number: of the step, from 1; seeds dropout and noise.
            rate: learning rate.
            heat: temperature of hard routing.

        Raises:
            LostProcess: if another process has gone.
        """
        train = self.settings.train
        seed_step(train.seed, step=number, rank=self.world.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, part in enumerate(parts):
            loss, routes = self._forward_backward(part, heat, shares_gradient=index == len(parts) - 1)
            losses.append(loss)
        if train.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), train.gradient_clip)
        return StepResult(torch.stack(losses).sum(), self._update_unless_broken(), routes)

    def _forward_backward(self, part: Batch, heat: float, *, shares_gradient: bool) -> tuple[Tensor, Tensor]:
        """Add one part's gradient; only the last part of a batch meets the other processes."""
        train = self.settings.train
        if part.target is None:
            raise AssertionError("training batches have targets")
        # Processes average their gradients: the factor makes that the sum over the whole batch.
        scale = float(self.world.size)
        if train.loss_reduction == "mean":
            scale /= mean_elements(train.batch_size, self.num_answers, loss=train.loss)
        waits = isinstance(self.network, DistributedDataParallel) and not shares_gradient
        with self.network.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with precision_of(self.world.device, self.settings.run.precision):
                scores, routes = self.network(part.question_tokens, part.cells(), temperature=heat)
            loss = answer_loss(scores, part.target, loss=train.loss).sum()
            with collective():
                (loss * scale).backward()
        return loss.detach(), routes.detach().mean(dim=0)

    def _update_unless_broken(self) -> Tensor:
        """Update the weights, unless the gradient is not finite; decided on the device, without waiting for it."""
        ends = (self.model.head.bias, self.model.adapter.bias, self.model.reader.get_parameter("bias_ih_l0"))
        # What is not finite anywhere in the model reaches its ends on the way back. Processes share their gradients, so
        # that all of them decide alike.
        is_broken = ~torch.stack([end.grad.sum() for end in ends if end.grad is not None]).sum().isfinite()
        # The fused optimizer leaves weights, averages and its count of steps alone where this is 1.
        self.optimizer.found_inf = is_broken.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        return is_broken


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, on the device; it may not be computed yet.

    Attributes:
        loss: of this process, summed over its samples.
        is_broken: whether the gradient was not finite, and the weights stayed as they were; the same in all processes.
        routes: mean span weights of this process's last part, [L, K].
    """

    loss: Tensor
    is_broken: Tensor
    routes: Tensor


@dataclass(frozen=True)
class Fault:
    """A step whose loss or gradient is not finite, as one process sees it.

    Attributes:
        step: number from 1.
        questions: that this process computed in it.
        is_here: whether this process's own loss is not finite.
    """

    step: int
    questions: tuple[int, ...]
    is_here: bool


class LossWindow:
    """The losses since they were last looked at, on the device, and whose they are."""

    def __init__(self) -> None:
        self._results: list[StepResult] = []
        self._questions: list[tuple[int, ...]] = []

    def clear(self) -> None:
        """Forget them."""
        self._results.clear()
        self._questions.clear()

    def add(self, result: StepResult, parts: Sequence[Batch]) -> None:
        """Note a step's loss and its questions."""
        self._results.append(result)
        self._questions.append(tuple(number for part in parts for number in part.question_id.tolist()))

    def total(self) -> float:
        """Their sum, not finite if one step's loss or gradient is not; waits for the device."""
        if not self._results:
            return 0.0
        return float(self._losses().double().sum())

    def fault(self, last_step: int) -> Fault | None:
        """The first step that is not finite.

        Args:
            last_step: number of the step that was added last.
        """
        finite = self._losses().isfinite().tolist()
        if all(finite):
            return None
        first = finite.index(False)
        is_here = not bool(self._results[first].loss.isfinite())
        return Fault(last_step - len(finite) + 1 + first, self._questions[first], is_here)

    def _losses(self) -> Tensor:
        losses = torch.stack([result.loss for result in self._results])
        broken = torch.stack([result.is_broken for result in self._results])
        return losses.masked_fill(broken, torch.nan)


def describe_faults(faults: Sequence[Fault | None]) -> str:
    """The first faulty step of all processes and its questions, in words."""
    there = [fault for fault in faults if fault is not None]
    step = min(fault.step for fault in there)
    first = [fault for fault in there if fault.step == step]
    guilty = [fault for fault in first if fault.is_here] or first
    questions = [number for fault in guilty for number in fault.questions]
    listed = ", ".join(str(number) for number in questions[:8])
    more = f" and {len(questions) - 8} more" if len(questions) > 8 else ""
    return f"step {step} (questions {listed}{more})"
