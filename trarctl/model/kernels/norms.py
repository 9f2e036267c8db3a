"""The norm of TRAR's layers, alone and after a residual connection with dropout.

Axes: B batch, T tokens or N cells, D hidden width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trarctl.model.kernels.dropout import BLOCK_NUMBERS, KeepMask, draw_seed, draws_own_masks


class SampleNorm(nn.Module):
    """Layer norm with the sample standard deviation, as TRAR's weights were trained with.

    Unlike ``torch.nn.LayerNorm`` it divides by the unbiased standard deviation plus ``eps`` (not by the root of the
    variance plus ``eps``). Statistics are float32 whatever the input is.

    Source: the encoder norm of MCAN (CVPR 2019), as published TRAR weights expect it.
    """

    def __init__(self, size: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Normalize the last axis: [..., D] -> [..., D]."""
        if torch.compiler.is_compiling():
            wide = states if states.dtype == torch.float64 else states.float()
            deviation, mean = torch.std_mean(wide, dim=-1, keepdim=True)
            return torch.addcmul(self.bias, (wide - mean) / (deviation + self.eps), self.gain)
        normed: Tensor = _Norm.apply(states, None, self.gain, self.bias, self.eps, 0.0, None)  # type: ignore[no-untyped-call]
        return normed


class ResidualNorm(SampleNorm):
    """``norm(states + dropout(change))``: what follows each sublayer.

    Args:
        size: width D.
        dropout: probability of dropping an element of the change.
        eps: added to the deviation.
    """

    def __init__(self, size: int, *, dropout: float, eps: float = 1e-6) -> None:
        super().__init__(size, eps=eps)
        self.dropout = dropout

    def forward(self, states: Tensor, change: Tensor) -> Tensor:  # type: ignore[override]
        """Add a sublayer's result to what it started from, and normalize: twice [..., D] -> [..., D]."""
        if not draws_own_masks(states):
            return super().forward(states + functional.dropout(change, self.dropout, self.training))
        probability = self.dropout if self.training else 0.0
        seed = draw_seed() if probability else None
        normed: Tensor = _Norm.apply(states, change, self.gain, self.bias, self.eps, probability, seed)  # type: ignore[no-untyped-call]
        return normed


class _Norm(torch.autograd.Function):
    """gain * (x - mean) / (sample deviation + eps) + bias, where x = states + dropout(change).

    For a gradient g of the fraction y, and with q = 1 / (deviation + eps), that of x is
    q * (g - mean(g)) - y * sum(y * g) / ((D - 1) * deviation). The mask of the dropout is drawn again in the backward
    pass instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        change: Tensor | None,
        gain: Tensor,
        bias: Tensor,
        eps: float,
        probability: float,
        seed: Tensor | None,
    ) -> Tensor:
        rows = states.reshape(-1, states.shape[-1])
        changes = None if change is None else change.reshape(rows.shape)
        keep = None if seed is None else KeepMask(probability, seed, rows.device)
        normed = torch.empty(rows.shape, dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device)
        result = torch.empty_like(normed)
        deviations = normed.new_empty(len(rows), 1)
        quotients = torch.empty_like(deviations)
        for block in _Blocks(normed).over(rows, changes, normed, result, deviations, quotients):
            held, part, change_part, normed_part, result_part, deviation, quotient = block
            centered = held.copy_(part) if change_part is None else _summed(part, change_part, keep, held)
            centered.sub_(centered.mean(dim=1, keepdim=True))
            torch.linalg.vector_norm(centered, dim=1, keepdim=True, out=deviation).mul_((rows.shape[1] - 1) ** -0.5)
            torch.add(deviation, eps, out=quotient).reciprocal_()
            torch.mul(centered, quotient, out=normed_part)
            torch.addcmul(bias, normed_part, gain, out=result_part)
        ctx.save_for_backward(normed, deviations, quotients, gain)
        ctx.probability, ctx.seed = probability, seed
        ctx.states_dtype, ctx.change_dtype = states.dtype, None if change is None else change.dtype
        return result.view(states.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normed, deviations, quotients, gain = ctx.saved_tensors
        rows = gradient.reshape(normed.shape)
        size = rows.shape[1]
        keep = None if ctx.seed is None else KeepMask(ctx.probability, ctx.seed, rows.device)
        of_states = torch.empty_like(normed)
        of_change = None if keep is None else torch.empty_like(normed)
        of_gain, of_bias = torch.zeros_like(gain), torch.zeros_like(gain)
        # A constant row has no deviation, and its fraction y is 0: any divisor will do.
        slopes = deviations.clamp_min(torch.finfo(normed.dtype).tiny ** 0.5).reciprocal_().div_(1 - size)
        offsets = quotients / -size
        ones = torch.ones_like(normed[:, 0])
        for block in _Blocks(normed).over(rows, normed, of_states, of_change, quotients, slopes, offsets, ones):
            held, part, normed_part, of_state, of_change_part, quotient, slope, offset, one = block
            along = torch.mul(part, normed_part, out=held)
            of_gain.addmv_(along.t(), one)
            of_bias.addmv_(part.t(), one)
            slope.mul_(torch.mv(along, gain).unsqueeze(1))
            offset.mul_(torch.mv(part, gain).unsqueeze(1))
            torch.mul(part, gain, out=of_state).mul_(quotient).addcmul_(normed_part, slope).add_(offset)
            if keep is not None and (mask := keep.draw(held)) is not None:
                torch.mul(of_state, mask, out=of_change_part).mul_(keep.scale)
            elif keep is not None:
                of_change_part.copy_(of_state)
        if ctx.change_dtype is not None:
            of_change = (of_states if of_change is None else of_change).view(gradient.shape).to(ctx.change_dtype)
        return of_states.view(gradient.shape).to(ctx.states_dtype), of_change, of_gain, of_bias, None, None, None


class _Blocks:
    """Rows in blocks that stay in the cache; on other devices than the CPU all are one block.

    Args:
        rows: [R, D], whose size and type the room for a block has.
    """

    def __init__(self, rows: Tensor) -> None:
        on_cpu = rows.device.type == "cpu"
        self.step = max(1, BLOCK_NUMBERS // rows.shape[1] if on_cpu else len(rows))
        self.held = rows.new_empty(min(self.step, len(rows)), rows.shape[1])

    def over(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """The room for a block, then the block's part of each tensor [R, ...]; None stays None."""
        parts = [itertools.repeat(None) if tensor is None else tensor.split(self.step) for tensor in tensors]
        for block in zip(*parts, strict=False):
            yield self.held[: len(block[0])], *block


def _summed(states: Tensor, change: Tensor, keep: KeepMask | None, held: Tensor) -> Tensor:
    """``states + dropout(change)`` in ``held``."""
    if keep is None or (mask := keep.draw(held)) is None:
        return torch.add(states, change, out=held)
    return torch.add(states, mask.mul_(change), alpha=keep.scale, out=held)
