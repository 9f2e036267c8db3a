"""Attention blended from nested windows, forward and backward, without ever holding a whole map.

Axes: B batch, H heads, T queries, M keys, d width of a head, K spans, C distance classes; inside a block: R of the
queries, I examples times heads.

Let s be the scores of one query and Z_k the sum of exp(s) over what span k shows it. The blended map is

    map[m] = exp(s[m]) * factor[m],    factor[m] = sum of weight_k / Z_k over the spans k that show key m,

so one exponential serves all spans: only sums over the spans' windows and factors for them depend on K. With t_k the
average of the map's gradient under span k's softmax, the gradient of weight_k is t_k summed over the queries, and that
of the scores is

    exp(s[m]) * (factor[m] * gradient[m] - sum of weight_k * t_k / Z_k over the spans that show key m).

Scores beyond the reach of exp in float32 are rare and need more digits than float32 has: on a CPU such a block is
computed in float64, and beyond the reach of exp in float64 each distance class is shifted by its own maximum. Other
devices shift always, since deciding would stop them.

Nothing that grows faster than the states is kept for the backward pass: the scores are computed again and the dropout
mask is drawn again from its seed, so memory grows with T and M, not with their product. Only where there are no more
keys than a head is wide are the exponentials kept, since they then take no more room than the queries.

The same blocks serve every device. FlexAttention could hold the blend as a bias on CUDA, but in torch 2.13 it has no
backward pass on a CPU, where all of this is tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trarctl.model.kernels.blocks import Block, Buffer, Inputs, Scratch, cut, num_rows_in_block
from trarctl.model.kernels.dropout import KeepMask, draw_seed
from trarctl.model.kernels.windows import Shares, exponentiate_, is_safe, share

NOT_KEPT = torch.nan  # instead of the exponentials of a block whose scores are beyond their reach


@dataclass(frozen=True)
class Scored:
    """A block with its scores.

    Attributes:
        block: perhaps one of more digits than it was cut with.
        query: the block's queries, [I, R, d].
        key: [I, M, d].
        exponentials: of the scores, [I, R, M].
        shares: what makes softmaxes of them.
    """

    block: Block
    query: Tensor
    key: Tensor
    exponentials: Tensor
    shares: Shares

    def uniform(self, keep: KeepMask) -> Tensor | None:
        """What empty spans put on every key of a row, dropout's scale included, [I, R, 1]; None if none is empty."""
        if self.shares.is_empty is None:
            return None
        part = (self.block.weights * self.shares.is_empty).sum(dim=1).t().unsqueeze(-1)
        return part * (keep.scale / self.block.shape[2])


def score(block: Block, inputs: Inputs, scratch: Scratch, kept: Tensor | None) -> Scored:
    """Compare the block's queries with the keys.

    Args:
        block: which queries.
        inputs: whose.
        scratch: memory.
        kept: where exponentials are kept for the backward pass, [B, H, T, M]; None if nowhere.
    """
    query = block.take_rows(inputs.query, scratch["query"])
    key = block.take_keys(inputs.key, scratch["key"])
    out = scratch["scores"].get(block.shape, block.dtype) if kept is None else kept[block.examples].flatten(0, 1)
    scores = multiply(query, key.mT, out, inputs.score_scale * math.log2(math.e))
    is_small = is_safe(scores)
    if not is_small and kept is not None:
        scores.fill_(NOT_KEPT)
        return score(block, inputs, scratch, None)
    if not is_small and block.dtype == torch.float32 and scores.device.type == "cpu":
        return score(block.widened(), inputs, scratch, None)
    return Scored(block, query, key, scores, exponentiate_(scores, block.windows, block.is_hidden, is_safe=is_small))


def recall(block: Block, inputs: Inputs, scratch: Scratch, kept: Tensor | None) -> Scored:
    """What ``score`` found in the forward pass, out of what it kept; computed again if it kept nothing."""
    exponentials = None if kept is None else kept[block.examples].flatten(0, 1)
    if exponentials is None or bool(exponentials[0, 0, 0].isnan()):
        return score(block, inputs, scratch, None)
    query = block.take_rows(inputs.query, scratch["query"])
    key = block.take_keys(inputs.key, scratch["key"])
    return Scored(block, query, key, exponentials, share(exponentials, block.windows, block.is_hidden))


def multiply(left: Tensor, right: Tensor, out: Tensor, factor: float = 1.0, *, adds: bool = False) -> Tensor:
    """Write the products of many matrices, times a factor, to ``out``, or add them to it."""
    if left.dtype == right.dtype == out.dtype:
        return out.baddbmm_(left, right, beta=int(adds), alpha=factor)
    product = torch.bmm(left.to(right.dtype), right)
    return out.add_(product, alpha=factor) if adds else out.copy_(product).mul_(factor)


def keeps_exponentials(inputs: Inputs) -> bool:
    """Whether the forward pass keeps them for the backward pass: where they take no more room than the queries."""
    _, _, num_queries, width = inputs.query.shape
    is_small = inputs.key.shape[2] <= width and num_rows_in_block(inputs) == num_queries
    return is_small and inputs.query.device.type == "cpu"


def forward_pass(inputs: Inputs, seed: Tensor, kept: Tensor | None) -> Tensor:
    """Attend, [B, H, T, d], laid out as [B, T, H, d]; ``kept`` is filled, [B, H, T, M], unless it is None."""
    out = empty_heads(inputs.query, inputs.value, inputs.value.dtype)
    keep = KeepMask(inputs.dropout, seed, out.device)
    scratch = Scratch(out.device)
    for candidate in cut(inputs):
        scored = score(candidate, inputs, scratch, kept)
        block = scored.block
        blended = scratch["blended"].get(block.shape, block.dtype) if kept is not None else scored.exponentials
        torch.mul(scored.exponentials, scored.shares.blend(block.weights * keep.scale), out=blended)
        uniform = scored.uniform(keep)
        if uniform is not None:
            blended.add_(uniform)
        mask = keep.draw(scratch["mask"].get(block.shape, block.dtype))
        if mask is not None:
            blended.mul_(mask)
        value = block.take_keys(inputs.value, scratch["value"])
        block.put_rows(multiply(blended, value, scratch["out"].get(block.rows_shape(value), block.dtype)), out)
    return out


def backward_pass(
    inputs: Inputs, seed: Tensor, kept: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and span weights from that of the output."""
    heads = inputs.query.shape[1]
    query_gradient = empty_heads(inputs.query, inputs.query, inputs.query.dtype)
    key_gradient = empty_sums(inputs, inputs.key)
    value_gradient = empty_sums(inputs, inputs.value)
    weight_gradient = torch.zeros_like(inputs.span_weights, dtype=inputs.dtype)
    keep = KeepMask(inputs.dropout, seed, gradient.device)
    scratch = Scratch(gradient.device)
    for candidate in cut(inputs):
        scored = recall(candidate, inputs, scratch, kept)
        block = scored.block
        output_gradient = block.take_rows(gradient, scratch["gradient"])
        value = block.take_keys(inputs.value, scratch["value"])
        inner = multiply(output_gradient, value.mT, scratch["inner"].get(block.shape, block.dtype))
        blended, score_gradient, averages = map_gradients(scored, inner, keep, scratch)
        of_query = scratch["out"].get(block.rows_shape(scored.key), block.dtype)
        block.put_rows(multiply(score_gradient, scored.key, of_query, inputs.score_scale), query_gradient)
        sums = (score_gradient.mT, scored.query, inputs.score_scale), (blended.mT, output_gradient, 1.0)
        for total, (weights, states, factor) in zip((key_gradient, value_gradient), sums, strict=True):
            add_to_keys(block, weights, states, factor, total, scratch["sum"])
        weight_gradient[block.examples] += averages.sum(dim=0).unflatten(1, (-1, heads)).sum(dim=-1).t()
    return (
        query_gradient,
        side_by_side(key_gradient.to(inputs.key.dtype)),
        side_by_side(value_gradient.to(inputs.value.dtype)),
        weight_gradient.to(inputs.span_weights.dtype),
    )


def empty_sums(inputs: Inputs, keys: Tensor) -> Tensor:
    """Uninitialized [B, H, M, d] of the keys' shape, laid out for the sums over queries that ``add_to_keys`` takes."""
    if num_rows_in_block(inputs) < inputs.query.shape[2]:
        return torch.empty(keys.shape, dtype=inputs.dtype, device=keys.device)
    return empty_heads(keys, keys, inputs.dtype)


def add_to_keys(block: Block, weights: Tensor, states: Tensor, factor: float, total: Tensor, buffer: Buffer) -> None:
    """Add sums over the block's rows, [I, M, R] by [I, R, d], to its examples of ``total``; the first overwrite it."""
    target = total[block.examples]
    if target.is_contiguous():
        multiply(weights, states, target.flatten(0, 1), factor, adds=block.rows.start > 0)
    else:  # all rows are in one block
        product = multiply(weights, states, buffer.get(target.shape, block.dtype).flatten(0, 1), factor)
        target.copy_(product.view(target.shape))


def map_gradients(scored: Scored, inner: Tensor, keep: KeepMask, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """The map of a block after dropout, and gradients from that of the map after dropout.

    Args:
        scored: the block.
        inner: gradient of the map after dropout, [I, R, M]; overwritten.
        keep: dropout.
        scratch: memory.

    Returns:
        The map after dropout and the gradient of the scores, [I, R, M], and of the span weights for each row [R, K, I].
    """
    block, exponentials, shares = scored.block, scored.exponentials, scored.shares
    factors = shares.blend(block.weights * keep.scale)
    mask = keep.draw(scratch["mask"].get(block.shape, block.dtype))
    uniform = scored.uniform(keep)
    if uniform is not None:
        uniform_average = (inner if mask is None else inner * mask).mean(dim=-1).t().unsqueeze(1)
        uniform = uniform if mask is None else uniform * mask
    kept = exponentials if mask is None else mask.mul_(exponentials)
    inner.mul_(kept)
    averages = shares.averages(inner).mul_(keep.scale)
    pull = shares.blend(averages * block.weights)
    score_gradient = inner.mul_(factors).addcmul_(exponentials, pull, value=-1.0)
    blended = kept.mul_(factors)
    if uniform is not None and shares.is_empty is not None:
        blended.add_(uniform)
        averages = averages + uniform_average * shares.is_empty * keep.scale
    return blended, score_gradient, averages


def empty_heads(rows: Tensor, width: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialized [B, H, T, d] with the rows of one tensor and the width of another.

    The heads lie side by side, so that joining them copies nothing.
    """
    batch, heads, num_rows, _ = rows.shape
    empty = torch.empty(batch, num_rows, heads, width.shape[-1], dtype=dtype, device=rows.device)
    return empty.transpose(1, 2)


def side_by_side(states: Tensor) -> Tensor:
    """The same [B, H, T, d] laid out as ``empty_heads`` does."""
    return states.transpose(1, 2).contiguous().transpose(1, 2)


def blended_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    *,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention whose map is blended from K nested windows.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d], or of another width.
        span_weights: how much of each span, [B, K].
        pair_class: distance class of each query and key, C outside all spans, [T, M]; None if all are of class 0.
        contains: whether span k holds class c, [K, C] bool.
        is_padding: keys not to look at, [B, M] bool, or None.
        dropout: probability, applied to the blended map; the mask comes from the generator of ``torch.manual_seed``.

    Returns:
        [B, H, T, d], as wide as the value.
    """
    seed = draw_seed() if dropout > 0.0 else torch.zeros((), dtype=torch.int64)
    # Products of many small matrices are half as fast again where each lies in one piece, which pays for the copies.
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    inputs = (query, key, value, span_weights, pair_class, contains, is_padding)
    keeps = torch.is_grad_enabled() and query.requires_grad
    attended: Tensor = _attend(*inputs, dropout, seed, keeps)[0]
    return attended


# Opaque to the compiler, which could neither trace the decisions on the data nor keep the drawing of masks in order.
@torch.library.custom_op("trarctl::blended_attention", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
    seed: Tensor,
    keeps: bool,
) -> tuple[Tensor, Tensor]:
    """The result and the exponentials kept for the backward pass, without elements if none are."""
    inputs = Inputs(query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    kept = _empty_kept(inputs, keeps)
    with torch.autocast(query.device.type, enabled=False):
        return forward_pass(inputs, seed, kept if kept.numel() else None), kept


def _empty_kept(inputs: Inputs, keeps: bool) -> Tensor:
    batch, heads, num_queries, _ = inputs.query.shape
    shape = (batch, heads, num_queries, inputs.key.shape[2]) if keeps and keeps_exponentials(inputs) else (0,)
    return torch.empty(shape, dtype=inputs.dtype, device=inputs.query.device)


@torch.library.custom_op("trarctl::blended_attention_backward", mutates_args=())
def _attend_backward(
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
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = Inputs(query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    with torch.autocast(query.device.type, enabled=False):
        return backward_pass(inputs, seed, kept if kept.numel() else None, gradient)


@_attend.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, _seed, keeps = arguments
    inputs = Inputs(*given)
    return empty_heads(inputs.query, inputs.value, inputs.value.dtype), _empty_kept(inputs, keeps)


@_attend_backward.register_fake
def _(
    _gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, span_weights: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        empty_heads(query, query, query.dtype),
        empty_heads(key, key, key.dtype),
        empty_heads(value, value, value.dtype),
        torch.empty_like(span_weights),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.dropout, seed, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, seed, output[1])


def _differentiate(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 10
    *tensors, seed, kept = ctx.saved_tensors
    return (*_attend_backward(gradient, *tensors, ctx.dropout, seed, kept), *(None,) * 6)


_attend.register_autograd(_differentiate, setup_context=_remember)
