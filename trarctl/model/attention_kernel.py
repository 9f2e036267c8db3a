"""Attention blended from nested windows, forward and backward, without ever holding a whole map.

Axes: B batch, H heads, T queries, M keys, d width of a head, K spans, C distance classes; inside a block: R of the
queries, I examples times heads.

Let s be the scores of one query and Z_k the sum of exp(s) over what span k shows it. The blended map is

    map[m] = exp(s[m]) * factor[class of m],    factor[c] = sum of weight_k / Z_k over the spans k that hold class c,

so one exponential serves all spans: only sums over classes and factors for classes depend on K. With t_k the average
of the map's gradient under span k's softmax, the gradient of weight_k is t_k summed over the queries, and that of the
scores is

    exp(s[m]) * (factor[class of m] * gradient[m] - sum of weight_k * t_k / Z_k over the spans that hold class c).

exp(s) is safe in float32 only while scores are small, and no common shift saves a window whose scores lie far below
those of another. Where a block's scores are large, each class is shifted by its own maximum instead.

Nothing of the size of a map is kept for the backward pass: the scores are computed again and the dropout mask is drawn
again from its seed. So memory grows with T and M, not with their product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trarctl.model.attention_windows import RowClasses, Shares, exponentiate_

# Numbers in one block of scores. On a CPU the few blocks in use then stay in the cache of its cores.
BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class Inputs:
    """What forward and backward pass are given; see ``blended_attention``."""

    query: Tensor
    key: Tensor
    value: Tensor
    span_weights: Tensor
    pair_class: Tensor | None
    contains: Tensor
    is_padding: Tensor | None
    dropout: float

    @property
    def dtype(self) -> torch.dtype:
        """What statistics are computed in."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Block:
    """The scores of some examples and rows, small enough for the cache, with what belongs to them."""

    examples: slice
    rows: slice
    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    is_hidden: Tensor | None
    classes: RowClasses
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """I, R, M."""
        return (self.query.shape[0], self.query.shape[1], self.key.shape[1])

    def scores_(self, out: Tensor) -> Tensor:
        """The scaled scores [I, R, M], written to ``out``."""
        return product_(self.query, self.key.transpose(1, 2), out, factor=self.query.shape[-1] ** -0.5)


class KeepMask:
    """Draws dropout masks, block after block: the same ones for the same seed."""

    def __init__(self, dropout: float, seed: Tensor, device: torch.device) -> None:
        self.num_dropped = round(dropout * 2**16)
        self.scale = 2**16 / (2**16 - self.num_dropped) if self.num_dropped < 2**16 else 0.0
        self.generator = torch.Generator(device).manual_seed(int(seed)) if self.num_dropped else None

    def draw(self, out: Tensor) -> Tensor | None:
        """Fill ``out`` with 1 where to keep and 0 where to drop; None if nothing is dropped.

        Each draw of 64 bits decides on four numbers: drawing is what a dropout costs on a CPU.
        """
        if self.generator is None:
            return None
        bits = torch.empty(-(-out.numel() // 4), dtype=torch.int64, device=out.device)
        bits.random_(-(2**63), None, generator=self.generator)
        numbers = bits.view(torch.int16)[: out.numel()].view(out.shape)
        return torch.ge(numbers, self.num_dropped - 2**15, out=out)


def blocks(inputs: Inputs) -> Iterator[Block]:
    """Cut the scores into blocks, in an order that depends on shapes and device only."""
    batch, heads, num_queries, _ = inputs.query.shape
    num_keys = inputs.key.shape[2]
    device = inputs.query.device
    budget = BLOCK_NUMBERS.get(device.type, BLOCK_NUMBERS["cuda"])
    num_parts = min(num_queries, -(-heads * num_queries * num_keys // budget))
    num_rows = -(-num_queries // num_parts)
    num_examples = max(1, min(batch, budget // (heads * num_keys * num_rows)))
    has_padding = padded_examples(inputs.is_padding, batch)
    for first_row in range(0, num_queries, num_rows):
        rows = slice(first_row, first_row + num_rows)
        pair_class = None if inputs.pair_class is None else inputs.pair_class[rows]
        classes = RowClasses(pair_class, inputs.contains, inputs.dtype)
        for first in range(0, batch, num_examples):
            examples = slice(first, first + num_examples)
            is_hidden = None
            if inputs.is_padding is not None and any(has_padding[examples]):
                is_hidden = inputs.is_padding[examples].repeat_interleave(heads, dim=0).unsqueeze(1)
            yield Block(
                examples=examples,
                rows=rows,
                query=inputs.query[examples, :, rows].flatten(0, 1),
                key=inputs.key[examples].flatten(0, 1),
                value=inputs.value[examples].flatten(0, 1),
                weights=inputs.span_weights[examples].to(inputs.dtype).repeat_interleave(heads, dim=0),
                is_hidden=is_hidden,
                classes=classes,
                dtype=inputs.dtype,
            )


def padded_examples(is_padding: Tensor | None, batch: int) -> list[bool]:
    """Which examples have padding; all of them on a device that would have to stop to tell."""
    if is_padding is None:
        return [False] * batch
    return is_padding.any(dim=1).tolist() if is_padding.device.type == "cpu" else [True] * batch


def product_(left: Tensor, right: Tensor, out: Tensor, *, factor: float = 1.0) -> Tensor:
    """Batched matrix product in the dtype of the operands, written to ``out`` in its own."""
    if left.dtype == out.dtype:
        return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)
    return torch.mul(torch.bmm(left, right), factor, out=out)


def uniform_part(block: Block, shares: Shares, keep: KeepMask) -> Tensor | None:
    """What empty spans put on every key of a row, [I, R, 1], dropout's scale included; None if no span is empty."""
    if shares.is_empty is None:
        return None
    part = (block.weights * shares.is_empty).sum(dim=-1).t().unsqueeze(-1)
    return part * (keep.scale / block.shape[2])


class Scratch:
    """Memory for the intermediate results of one block after the other, so that they stay in the cache."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory."""
        size = math.prod(shape)
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.empty(size, dtype=dtype, device=self.like.device)
        return buffer[:size].view(shape)


def forward_pass(inputs: Inputs, seed: Tensor) -> Tensor:
    """Attend, [B, H, T, d]; memory is laid out as [B, T, H, d]."""
    out = empty_heads(inputs.query, inputs.query.dtype)
    keep = KeepMask(inputs.dropout, seed, inputs.query.device)
    scratch = Scratch(inputs.query)
    for block in blocks(inputs):
        exponentials = block.scores_(scratch.get("scores", block.shape, block.dtype))
        shares = exponentiate_(exponentials, block.classes, block.is_hidden)
        factors = shares.to_classes(block.weights).mul_(keep.scale)
        blended = exponentials.mul_(block.classes.spread(factors))
        uniform = uniform_part(block, shares, keep)
        if uniform is not None:
            blended.add_(uniform)
        mask = keep.draw(scratch.get("mask", block.shape, block.dtype))
        if mask is not None:
            blended.mul_(mask)
        target = out[block.examples, :, block.rows]
        target.copy_(torch.bmm(blended.to(block.value.dtype), block.value).view(target.shape))
    return out


def backward_pass(inputs: Inputs, seed: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and span weights from that of the output."""
    query_gradient = empty_heads(inputs.query, inputs.query.dtype)
    key_gradient = empty_heads(inputs.key, inputs.dtype)
    value_gradient = empty_heads(inputs.value, inputs.dtype)
    weight_gradient = torch.zeros_like(inputs.span_weights, dtype=inputs.dtype)
    keep = KeepMask(inputs.dropout, seed, inputs.query.device)
    scratch = Scratch(inputs.query)
    for block in blocks(inputs):
        out_gradient = gradient[block.examples, :, block.rows].flatten(0, 1)
        blended, score_gradient, averages = block_gradients(block, out_gradient, keep, scratch)
        heads = inputs.query.shape[1]
        weight_gradient[block.examples] += averages.sum(dim=0).view(-1, heads, averages.shape[-1]).sum(dim=1)
        blended = blended.to(out_gradient.dtype)
        score_gradient = score_gradient.to(block.query.dtype)
        target = query_gradient[block.examples, :, block.rows]
        target.copy_(torch.bmm(score_gradient, block.key).view(target.shape))
        for whole, left, right in (
            (key_gradient, score_gradient, block.query),
            (value_gradient, blended, out_gradient),
        ):
            target = whole[block.examples]
            part = torch.bmm(left.transpose(1, 2), right).view(target.shape)
            if block.rows.start == 0:
                target.copy_(part)
            else:
                target.add_(part)
    return (
        query_gradient,
        key_gradient.to(inputs.key.dtype),
        value_gradient.to(inputs.value.dtype),
        weight_gradient.to(inputs.span_weights.dtype),
    )


def block_gradients(
    block: Block, out_gradient: Tensor, keep: KeepMask, scratch: Scratch
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's map after dropout, the gradient of its unscaled scores, and of each row's span weights [R, I, K]."""
    exponentials = block.scores_(scratch.get("scores", block.shape, block.dtype))
    shares = exponentiate_(exponentials, block.classes, block.is_hidden)
    factors = block.classes.spread(shares.to_classes(block.weights).mul_(keep.scale))
    mask = keep.draw(scratch.get("mask", block.shape, block.dtype))
    inner = product_(out_gradient, block.value.transpose(1, 2), scratch.get("inner", block.shape, block.dtype))
    uniform = uniform_part(block, shares, keep)
    uniform_average = None
    if uniform is not None:
        uniform_average = (inner if mask is None else inner * mask).mean(dim=-1).t().unsqueeze(-1)
        uniform = uniform if mask is None else uniform * mask
    kept = exponentials if mask is None else mask.mul_(exponentials)
    inner.mul_(kept)
    averages = shares.to_spans(block.classes.sums(inner)).mul_(keep.scale)
    score_gradient = inner.mul_(factors).addcmul_(
        exponentials, block.classes.spread(shares.to_classes(averages * block.weights)), value=-1.0
    )
    blended = torch.mul(kept, factors, out=kept)
    if uniform is not None and uniform_average is not None and shares.is_empty is not None:
        blended.add_(uniform)
        averages = averages + uniform_average * shares.is_empty * keep.scale
    return blended, score_gradient.mul_(block.query.shape[-1] ** -0.5), averages


def empty_heads(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised [B, H, T, d] whose heads lie side by side, so that joining them copies nothing."""
    batch, heads, rows, width = like.shape
    return torch.empty(batch, rows, heads, width, dtype=dtype, device=like.device).transpose(1, 2)


@torch.library.custom_op("trarctl::blended_attention", mutates_args=())
def blended_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
    seed: Tensor,
) -> Tensor:
    """Attention whose map is blended from K nested windows; one opaque operation for the compiler.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d].
        span_weights: how much of each span, [B, K].
        pair_class: distance class of each query and key, C outside all spans, [T, M]; None if all are of class 0.
        contains: whether span k holds class c, [K, C] bool.
        is_padding: keys not to look at, [B, M] bool, or None.
        dropout: probability, applied to the blended map.
        seed: of the dropout mask, one integer.

    Returns:
        [B, H, T, d].
    """
    inputs = Inputs(query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    with torch.autocast(query.device.type, enabled=False):
        return forward_pass(inputs, seed)


@torch.library.custom_op("trarctl::blended_attention_backward", mutates_args=())
def blended_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and span weights of ``blended_attention``."""
    inputs = Inputs(query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    with torch.autocast(query.device.type, enabled=False):
        return backward_pass(inputs, seed, gradient)


@blended_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return empty_heads(query, query.dtype)


@blended_attention_backward.register_fake
def _(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, span_weights: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        empty_heads(query, query.dtype),
        empty_heads(key, key.dtype),
        empty_heads(value, value.dtype),
        torch.empty_like(span_weights),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    query, key, value, span_weights, pair_class, contains, is_padding, ctx.dropout, seed = inputs
    ctx.save_for_backward(query, key, value, span_weights, pair_class, contains, is_padding, seed)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    gradients = blended_attention_backward(gradient, *tensors, ctx.dropout, seed)
    return (*gradients, None, None, None, None, None)


blended_attention.register_autograd(_differentiate, setup_context=_remember)
