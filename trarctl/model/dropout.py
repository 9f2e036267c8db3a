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
    """Draws masks: 1 where an element is kept, 0 where it is dropped; the same ones for the same seed.

    Args:
        probability: of dropping an element, <= 1; rounded to multiples of 1 / ``LEVELS``.
        seed: one integer, int64.
        device: of the masks.

    Attributes:
        scale: what keeps the expected value, for the rounded probability.
    """

    def __init__(self, probability: float, seed: Tensor, device: torch.device) -> None:
        self.num_dropped = round(probability * LEVELS)
        self.scale = LEVELS / (LEVELS - self.num_dropped) if self.num_dropped < LEVELS else 0.0
        self._generator = torch.Generator(device).manual_seed(int(seed)) if self.num_dropped else None

    def draw(self, out: Tensor) -> Tensor | None:
        """Fill ``out``, contiguous, with the next mask; None if nothing is dropped.

        Drawing is what a dropout costs on a CPU: each 64 random bits decide on eight elements. A decision compares 16
        bits with the probability, of which all but one in 256 depend on the upper eight alone; these are an element's
        own, while the lower ones are the upper ones of another element.
        """
        if self._generator is None:
            return None
        size = out.numel()
        half = -(-size // 2)
        bits = torch.empty(-(-half // 4) + 1, dtype=torch.int64, device=out.device)
        octets = bits.random_(-(2**63), None, generator=self._generator).view(torch.uint8)
        aligned = octets[: 2 * half].view(torch.int16)
        between = octets[1 : 1 + 2 * (size - half)].clone().view(torch.int16)
        threshold = self.num_dropped - LEVELS // 2
        # In place, since a comparison that writes another type than it reads is many times slower.
        out.view(-1)[:half] = aligned.ge_(threshold)
        out.view(-1)[half:] = between.ge_(threshold)
        return out


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
        return _masked(states, probability, seed)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _masked(gradient, ctx.probability, ctx.seed)[0], None, None


class _ReluDropout(torch.autograd.Function):
    """An element of the result is positive just where it was kept and passed the ReLU: that is the mask."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, probability: float, seed: Tensor) -> Tensor:
        result, ctx.scale = _masked(states, probability, seed)
        ctx.save_for_backward(result.clamp_min_(0.0))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        passed = torch.ops.aten.threshold_backward(gradient, result, 0)
        return passed.mul_(ctx.scale), None, None


def _masked(states: Tensor, probability: float, seed: Tensor) -> tuple[Tensor, float]:
    """The states that a mask keeps, scaled, and the scale."""
    keep = KeepMask(probability, seed, states.device)
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    mask = keep.draw(out)
    if mask is None:
        return states.clone(), 1.0
    return mask.mul_(states).mul_(keep.scale), keep.scale
