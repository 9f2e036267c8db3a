"""Dropout whose masks are cheap on a CPU: four decisions out of each random number, none of them kept in memory.

torch's own draws one number and writes one float an element, which takes longer than the matrix product before it.
On other devices, and where the model is compiled, torch's own is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 2**16  # probabilities are rounded to multiples of 1 / LEVELS


class KeepMask:
    """Draws masks: 0 where an element is dropped, otherwise what keeps the expected value; the same for the same seed.

    Args:
        probability: of dropping an element, < 1.
        seed: one integer, int64.
    """

    def __init__(self, probability: float, seed: Tensor) -> None:
        self.num_dropped = round(probability * LEVELS)
        self.scale = LEVELS / (LEVELS - self.num_dropped)
        self._generator = torch.Generator()
        self._generator.manual_seed(int(seed))

    def draw(self, like: Tensor) -> Tensor:
        """A new mask of the shape and type of ``like``, contiguous, not yet scaled: 0 or 1."""
        bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64)
        bits.random_(-(2**63), None, generator=self._generator)
        levels = bits.view(torch.int16)[: like.numel()].view(like.shape)
        mask = torch.empty(like.shape, dtype=like.dtype)
        return torch.ge(levels, self.num_dropped - LEVELS // 2, out=mask)


def draw_seed() -> Tensor:
    """A seed for a mask, out of the generator that ``torch.manual_seed`` sets."""
    return torch.randint(2**62, ())


def dropout(states: Tensor, probability: float, *, training: bool) -> Tensor:
    """Set elements to 0 at random and scale the others up, in training only.

    Args:
        states: any shape.
        probability: of dropping an element, < 1.
        training: False returns ``states``.
    """
    if not training or probability == 0.0:
        return states
    if states.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(states, probability)
    dropped: Tensor = _Dropout.apply(states, probability, draw_seed())  # type: ignore[no-untyped-call]
    return dropped


def relu_dropout(states: Tensor, probability: float, *, training: bool) -> Tensor:
    """``dropout(relu(states))``, keeping nothing but its result for the backward pass."""
    if not training or probability == 0.0 or states.device.type != "cpu" or torch.compiler.is_compiling():
        return dropout(functional.relu(states), probability, training=training)
    dropped: Tensor = _ReluDropout.apply(states, probability, draw_seed())  # type: ignore[no-untyped-call]
    return dropped


class _Dropout(torch.autograd.Function):
    """The mask is drawn again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, probability: float, seed: Tensor) -> Tensor:
        ctx.probability, ctx.seed = probability, seed
        return _masked(states, probability, seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _masked(gradient, ctx.probability, ctx.seed), None, None


class _ReluDropout(torch.autograd.Function):
    """An element of the result is positive just where it was kept and passed the ReLU: that is the mask."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, probability: float, seed: Tensor) -> Tensor:
        keep = KeepMask(probability, seed)
        result = keep.draw(states).mul_(states).clamp_min_(0.0).mul_(keep.scale)
        ctx.save_for_backward(result)
        ctx.scale = keep.scale
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(gradient, result, 0)
        return passed.mul_(ctx.scale), None, None


def _masked(states: Tensor, probability: float, seed: Tensor) -> Tensor:
    keep = KeepMask(probability, seed)
    return keep.draw(states).mul_(states).mul_(keep.scale)
