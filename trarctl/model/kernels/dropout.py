"""Dropout whose masks are cheap on a CPU: eight decisions out of each random number, none of them kept in memory.

torch's own draws one number and writes one float an element, which takes longer than the matrix product before it.
On other devices, and where the model is compiled, torch's own is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Elementwise work is done in blocks of so many numbers, which stay in the processor's cache from first to last.
BLOCK_NUMBERS = 2**19
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
        self._draw_bits = _bit_source(int(seed), device) if self.num_dropped else None

    def draw(self, out: Tensor) -> Tensor | None:
        """Fill ``out``, contiguous, with the next mask; None if nothing is dropped.

        Drawing is what a dropout costs on a CPU: each 64 random bits decide on eight elements. A decision compares 16
        bits with the probability, of which all but one in 256 depend on the upper eight alone; these are an element's
        own, while the lower ones are the upper ones of another element.
        """
        if self._draw_bits is None:
            return None
        octets = self._draw_bits(-(-out.numel() // 8)).view(torch.uint8)
        both = torch.cat([octets, octets[1:], octets[:1]]).view(torch.int16)
        # In place, since a comparison that writes another type than it reads is many times slower.
        out.view(-1).copy_(both.ge_(self.num_dropped - LEVELS // 2)[: out.numel()])
        return out


def _bit_source(seed: int, device: torch.device) -> Callable[[int], Tensor]:
    """What draws so many random int64; on a CPU numpy's fastest generator, which takes half as long as torch's."""
    if device.type == "cpu":
        raw = np.random.SFC64(seed)
        return lambda size: torch.from_numpy(raw.random_raw(size).view(np.int64))
    generator = torch.Generator(device).manual_seed(seed)
    return lambda size: torch.empty(size, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def draws_own_masks(states: Tensor) -> bool:
    """Whether masks for these states are drawn here, not by torch's own dropout."""
    return states.device.type == "cpu" and not torch.compiler.is_compiling()


def draw_seed() -> Tensor:
    """A seed for a mask, out of the generator that ``torch.manual_seed`` sets."""
    return torch.randint(2**62, ())


def relu_dropout(states: Tensor, probability: float, *, training: bool) -> Tensor:
    """``dropout(relu(states))``, keeping nothing but its result for the backward pass.

    Args:
        states: any shape.
        probability: of setting an element to 0, < 1; the others are scaled up.
        training: False drops nothing.
    """
    if not training or probability == 0.0 or not draws_own_masks(states):
        return functional.dropout(functional.relu(states), probability, training)
    dropped: Tensor = _ReluDropout.apply(states, probability, draw_seed())  # type: ignore[no-untyped-call]
    return dropped


class _ReluDropout(torch.autograd.Function):
    """An element of the result is positive just where it was kept and passed the ReLU: that is the mask."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, probability: float, seed: Tensor) -> Tensor:
        keep = KeepMask(probability, seed, states.device)
        ctx.scale = keep.scale
        result = torch.empty(states.shape, dtype=states.dtype)
        for part, kept in zip(
            states.reshape(-1).split(BLOCK_NUMBERS), result.view(-1).split(BLOCK_NUMBERS), strict=True
        ):
            mask = keep.draw(kept)
            if mask is None:
                torch.clamp_min(part, 0.0, out=kept)
            else:
                mask.mul_(part).clamp_min_(0.0).mul_(keep.scale)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        passed = torch.empty_like(result)
        flat = (tensor.reshape(-1).split(BLOCK_NUMBERS) for tensor in (gradient, result, passed))
        for gradient_part, result_part, part in zip(*flat, strict=True):
            torch.ops.aten.threshold_backward(gradient_part, result_part, 0, grad_input=part)
            part.mul_(ctx.scale)
        return passed, None, None
