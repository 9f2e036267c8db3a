"""What the CPU computes faster than plain torch: routed attention, dropout and the norm.

Each has a plain form, to which ``trarctl.model.kernels`` falls back; ``benchmarks/attention.py`` and
``benchmarks/step.py`` show what it gains:

- Attention works on blocks of scores that stay in the cache, with one exponential for all spans. Nothing that grows
  with the square of the cells outlives a block: the backward pass computes the scores again.
- Masks of dropout come from numpy's fastest generator, 16 bits an element: a tenth of the time that torch takes. They
  are drawn again in the backward pass, from their seed, instead of being kept.
- The norm has a formula of its own for the gradient, since torch's ``std_mean`` is ten times as slow as its layer norm.

Axes: I examples times heads, T queries, M keys, d width of a head, K spans, C classes; R rows, D hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trarctl.model.attention import blended_map
from trarctl.registry import KERNELS

BLOCK_NUMBERS = 2**20  # float32 numbers in a block: the few blocks in use at a time then stay in the cache
LEVELS = 2**16  # probabilities of dropout are rounded to multiples of 1 / LEVELS, and so is their scale
SAFE_SCORE = 85.0  # in units of log 2: sums and products of powers of 2 up to here are far from float32's limits


def draw_seed() -> int:
    """Draw a seed for masks from the generator that ``torch.manual_seed`` sets."""
    return int(torch.randint(2**62, ()))


class KeepMask:
    """Masks of dropout, the same ones in the same order for the same seed.

    Attributes:
        scale: what keeps the expected value.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self._num_dropped = round(probability * LEVELS)
        self._bits = np.random.SFC64(seed)
        self._mask = torch.empty(0)
        self.scale = LEVELS / (LEVELS - self._num_dropped) if self._num_dropped < LEVELS else 0.0

    def draw(self, out: Tensor) -> Tensor:
        """Fill ``out``, contiguous, with 1 where an element is kept and 0 where it is dropped."""
        bits = torch.from_numpy(self._bits.random_raw(-(-out.numel() // 4)).view(np.int16))
        # In place, since a comparison that writes another type than it reads is many times slower.
        out.view(-1).copy_(bits.ge_(self._num_dropped - LEVELS // 2)[: out.numel()])
        return out

    def drop_(self, states: Tensor) -> Tensor:
        """Set elements of contiguous states to 0, and scale up the others, in place."""
        for part in states.view(-1).split(BLOCK_NUMBERS // 2):
            if len(self._mask) < len(part) or self._mask.dtype != part.dtype:
                self._mask = torch.empty_like(part)
            part.mul_(self.draw(self._mask[: len(part)])).mul_(self.scale)
        return states


class _Dropout(torch.autograd.Function):
    """``torch.nn.functional.dropout``, given a probability and a seed."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, *arguments: Any) -> Tensor:
        ctx.arguments = arguments
        return KeepMask(*arguments).drop_(states.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dropped = KeepMask(*ctx.arguments).drop_(gradient.clone(memory_format=torch.contiguous_format))
        return dropped, None, None


class _ReluDropout(torch.autograd.Function):
    """``dropout(relu(states))``, keeping its result alone: it is positive just where an element passed both."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, probability: float, seed: int) -> Tensor:
        keep = KeepMask(probability, seed)
        result = keep.drop_(functional.relu(states.contiguous()))
        ctx.scale = keep.scale
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, result, 0).mul_(ctx.scale), None, None


class _SampleNorm(torch.autograd.Function):
    """Torch's layer norm, whose rows are then scaled from the root of the variance to the sample deviation + eps.

    For a gradient g of the fraction y, and with q = 1 / (deviation + eps), that of the states is
    q * (g - mean(g)) - y * sum(y * g) / ((D - 1) * deviation).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        size = states.shape[-1]
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        # The addend keeps a constant row finite, and is lost in any other variance.
        normed, _, inverse = torch.native_layer_norm(wide, [size], None, None, 1e-30)
        deviation = inverse.reciprocal() * math.sqrt(size / (size - 1))
        quotient = (deviation + eps).reciprocal()
        normed.mul_(quotient / inverse)
        ctx.save_for_backward(normed, deviation, quotient, gain)
        ctx.dtype = states.dtype
        return torch.addcmul(bias, normed, gain)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normed, deviation, quotient, gain = ctx.saved_tensors
        size = normed.shape[-1]
        along = gradient * normed
        slope = (along @ gain).unsqueeze(-1) / (deviation * (1 - size))
        offset = (gradient @ gain).unsqueeze(-1) * (quotient / -size)
        of_gain, of_bias = (rows.reshape(-1, size).sum(dim=0) for rows in (along, gradient))
        of_states = torch.mul(gradient, gain, out=along).mul_(quotient).addcmul_(normed, slope).add_(offset)
        return of_states.to(ctx.dtype), of_gain, of_bias, None


@KERNELS.register("cpu")
def cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attend as ``reference_attention`` does."""
    if pair_class is None:  # every span shows everything: together they are one
        span_weights, contains = span_weights.sum(dim=-1, keepdim=True), contains[:1]
    seed = draw_seed() if dropout > 0.0 else None
    attended: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, span_weights, pair_class, contains, is_padding, dropout, seed
    )
    return attended


class _Attention(torch.autograd.Function):
    """Attention blended from K spans, block after block.

    Let Z_k be the sum of exp(s) over what span k shows a query. The blended map is

        map[m] = exp(s[m]) * factor[m],    factor[m] = sum of weight_k / Z_k over the spans k that hold key m,

    so only sums over the spans and factors for them depend on K. With t_k the average of the map's gradient under span
    k's softmax, the gradient of weight_k is t_k summed over the queries, and that of the scores is

        exp(s[m]) * (factor[m] * gradient[m] - sum of weight_k * t_k / Z_k over the spans that hold key m).

    A block whose scores are beyond the reach of exp is rare; it goes through ``blended_map``, and through autograd.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, ctx.dropout, ctx.seed = arguments
        ctx.save_for_backward(*tensors)
        query, _, value, *_ = tensors
        inputs = _Inputs(tensors, ctx.dropout, ctx.seed)
        # The backward pass computes the exponentials again, unless they are no larger than the queries.
        ctx.kept = [] if any(ctx.needs_input_grad) and inputs.key.shape[1] <= inputs.key.shape[2] else None
        out = inputs.value.new_empty(*inputs.query.shape[:2], inputs.value.shape[2])
        with torch.autocast("cpu", enabled=False):
            for items in inputs.blocks():
                exponentials = inputs.exponentials(items)
                if ctx.kept is not None:
                    ctx.kept.append(exponentials)
                blended = _blend(inputs, items, exponentials)
                if inputs.keep is not None:
                    blended.mul_(inputs.keep.draw(torch.empty_like(blended)))
                torch.bmm(blended, inputs.value[items], out=out[items])
        return out.unflatten(0, query.shape[:2]).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(ctx.saved_tensors, ctx.dropout, ctx.seed)
        kept, ctx.kept = ctx.kept, None  # freed here, not with the whole graph
        gradient = inputs.flat(gradient)
        found = [torch.empty_like(states) for states in inputs.states]
        with torch.autocast("cpu", enabled=False):
            for number, items in enumerate(inputs.blocks()):
                exponentials = inputs.exponentials(items) if kept is None else kept[number]
                parts = _gradients(inputs, items, exponentials, gradient[items])
                for whole, part in zip(found, parts, strict=True):
                    whole[items] = part
        *states, weights = (whole.unflatten(0, ctx.saved_tensors[0].shape[:2]) for whole in found)
        found = [*states, weights.sum(dim=1)]
        return *(one.to(like.dtype) for one, like in zip(found, ctx.saved_tensors, strict=False)), *(None,) * 5


class _Inputs:
    """What an attention is given, in float32 at least, with examples times heads as one axis.

    Attributes:
        states: query [I, T, d], key [I, M, d], value [I, M, d] and span weights [I, K].
        members: 1 where a span shows a query a key, [T, K, M]; None if there is one span that shows all.
        is_padding: [I, M], or None.
        keep: dropout of the map, or None.
    """

    def __init__(self, tensors: Sequence[Any], dropout: float, seed: int | None) -> None:
        query, key, value, span_weights, pair_class, contains, is_padding = tensors
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        heads = query.shape[1]
        self.query, self.key, self.value = (self.flat(states) for states in (query, key, value))
        self.weights = span_weights.to(self.dtype).repeat_interleave(heads, dim=0)
        self.states = (self.query, self.key, self.value, self.weights)
        self.pair_class, self.contains = pair_class, contains
        self.members = None
        if pair_class is not None:
            self.members = contains.to(self.dtype)[:, pair_class.int()].transpose(0, 1).contiguous()
        self.is_padding = None
        if is_padding is not None and is_padding.any():
            self.is_padding = is_padding.repeat_interleave(heads, dim=0)
        self.keep = None if seed is None else KeepMask(dropout, seed)
        self.scale = 1.0 if self.keep is None else self.keep.scale
        self.score_scale = query.shape[-1] ** -0.5

    def flat(self, states: Tensor) -> Tensor:
        """[B, H, T, d] -> [I, T, d], each matrix in one piece: that speeds up the products by more than it takes."""
        return states.to(self.dtype).contiguous().flatten(0, 1)

    def blocks(self) -> Iterator[slice]:
        """Some examples and heads after the other, in an order that depends on shapes only."""
        num_items, num_queries, _ = self.query.shape
        step = max(1, BLOCK_NUMBERS // (num_queries * self.key.shape[1]))
        return (slice(first, min(first + step, num_items)) for first in range(0, num_items, step))

    def sums(self, numbers: Tensor) -> Tensor:
        """Add up over what each span shows: [I, T, M] -> [T, K, I]."""
        if self.members is None:
            return numbers.sum(dim=-1).t().unsqueeze(1)
        # The members come first: as the second factor they would be a third as fast.
        return torch.bmm(self.members, numbers.permute(1, 2, 0))

    def spread(self, factors: Tensor) -> Tensor:
        """Give each key the sum of the factors of the spans that show it: [T, K, I] -> [I, T, M], or [I, T, 1]."""
        if self.members is None:
            return factors.permute(2, 0, 1)
        return torch.bmm(factors.transpose(1, 2), self.members).transpose(0, 1)

    def exponentials(self, items: slice) -> Tensor | None:
        """exp(s), [I, T, M], 0 where a key is padding; None if a score is beyond its reach."""
        scores = self.query.new_empty(items.stop - items.start, self.query.shape[1], self.key.shape[1])
        # Powers of 2 take two thirds of the time of powers of e.
        factor = self.score_scale * math.log2(math.e)
        scores.baddbmm_(self.query[items], self.key[items].mT, beta=0, alpha=factor)
        lowest, highest = torch.aminmax(scores)
        if not (lowest >= -SAFE_SCORE and highest <= SAFE_SCORE):
            return None
        scores.exp2_()
        if self.is_padding is not None:
            scores.mul_(~self.is_padding[items].unsqueeze(1))
        return scores

    def reference_map(self, items: slice, query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
        """The blended map of a block, [I, T, M], with torch's own gradient."""
        is_padding = None if self.is_padding is None else self.is_padding[items]
        return blended_map(
            query.unsqueeze(1), key.unsqueeze(1), weights, self.pair_class, self.contains, is_padding
        ).squeeze(1)


def _blend(inputs: _Inputs, items: slice, exponentials: Tensor | None) -> Tensor:
    """The map of a block before dropout, times dropout's scale."""
    query, key, _, weights = (states[items] for states in inputs.states)
    if exponentials is None:
        return inputs.reference_map(items, query, key, weights).mul_(inputs.scale)
    weights = weights.t() * inputs.scale
    sums = inputs.sums(exponentials)
    is_empty = sums == 0.0
    blended = exponentials * inputs.spread(sums.reciprocal().masked_fill_(is_empty, 0.0).mul_(weights))
    if is_empty.any():
        blended.add_((weights * is_empty).sum(dim=1).t().unsqueeze(-1), alpha=1 / blended.shape[-1])
    return blended


def _gradients(inputs: _Inputs, items: slice, exponentials: Tensor | None, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a block's query, key, value and span weights from that of its result."""
    parts = [states[items] for states in inputs.states]
    query, key, value, weights = parts
    mask = None
    if inputs.keep is not None:
        mask = inputs.keep.draw(query.new_empty(len(query), query.shape[1], key.shape[1]))
    if exponentials is None:
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part in parts]
            query, key, value, weights = parts
            blended = inputs.reference_map(items, query, key, weights)
            attended = (blended if mask is None else blended * mask.mul_(inputs.scale)) @ value
        return torch.autograd.grad(attended, parts, gradient)
    weights = weights.t() * inputs.scale
    sums = inputs.sums(exponentials)
    is_empty = sums == 0.0
    inverse = sums.reciprocal_().masked_fill_(is_empty, 0.0)
    factors = inputs.spread(inverse * weights)
    inner = torch.bmm(gradient, value.mT)  # gradient of the map after dropout
    has_empty = bool(is_empty.any())
    if has_empty:
        uniform = (weights * is_empty).sum(dim=1).t().unsqueeze(-1) / inner.shape[-1]
        uniform_average = (inner if mask is None else inner * mask).mean(dim=-1).t().unsqueeze(1) * is_empty
        uniform = uniform if mask is None else uniform * mask
    kept = exponentials if mask is None else mask.mul_(exponentials)
    inner.mul_(kept)
    averages = inputs.sums(inner).mul_(inverse)
    # In place wherever it can be: a fresh tensor for each step scatters the memory that the process holds.
    of_scores = inner.mul_(factors).addcmul_(exponentials, inputs.spread(averages * inverse * weights), value=-1.0)
    blended = kept.mul_(factors)
    if has_empty:
        blended.add_(uniform)
        averages += uniform_average
    return (
        torch.bmm(of_scores, key).mul_(inputs.score_scale),
        torch.bmm(of_scores.mT, query).mul_(inputs.score_scale),
        torch.bmm(blended.mT, gradient),
        averages.sum(dim=0).t() * inputs.scale,
    )
