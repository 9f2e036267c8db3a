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

from trarctl.data.dataset import Batch
from trarctl.engine.losses import answer_loss, mean_elements
from trarctl.engine.processes import World, precision_of, seed_step
from trarctl.model.trar import TRAR
from trarctl.settings.fields import Settings


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

    def step(self, parts: Sequence[Batch], *, number: int, rate: float, heat: float) -> tuple[Tensor, Tensor]:
        """Learn from one batch.

        Args:
            parts: of the batch, those that this process computes, on the device.
            number: of the step, from 1; seeds dropout and noise.
            rate: learning rate.
            heat: temperature of hard routing.

        Returns:
            This process's loss summed over its samples, and the mean routes of its last part, [L, K]; both are on the
            device and may not be computed yet.
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
        self._update_unless_broken()
        return torch.stack(losses).sum(), routes

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
            (loss * scale).backward()
        return loss.detach(), routes.detach().mean(dim=0)

    def _update_unless_broken(self) -> None:
        """Update the weights, unless the gradient is not finite; decided on the device, without waiting for it."""
        bias = self.model.head.bias.grad
        if bias is None:
            raise AssertionError("the head has a gradient after backward")
        # The fused optimizer leaves the weights alone where this is 1; gradients are the same in all processes.
        self.optimizer.found_inf = (~bias.sum().isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()


class LossWindow:
    """The losses since they were last looked at, on the device, and whose they are."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._questions: list[list[int]] = []

    def clear(self) -> None:
        """Forget them."""
        self._losses.clear()
        self._questions.clear()

    def add(self, loss: Tensor, parts: Sequence[Batch]) -> None:
        """Note a step's loss and its questions."""
        self._losses.append(loss)
        self._questions.append([int(number) for part in parts for number in part.question_id])

    def total(self) -> float:
        """Their sum; waits for the device."""
        return float(torch.stack(self._losses).double().sum()) if self._losses else 0.0

    def describe_fault(self, last_step: int) -> str:
        """The first step whose loss is not finite, and its questions, in words.

        Args:
            last_step: number of the step that was added last.
        """
        finite = torch.stack(self._losses).isfinite().tolist()
        first = finite.index(False) if False in finite else len(finite) - 1
        questions = self._questions[first]
        more = f" and {len(questions) - 8} more" if len(questions) > 8 else ""
        listed = ", ".join(str(number) for number in questions[:8])
        return f"step {last_step - len(finite) + 1 + first} (questions {listed}{more})"
