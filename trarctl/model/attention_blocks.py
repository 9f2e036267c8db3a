"""Cutting the scores of an attention into blocks that fit the cache, and the matrix products of a block.

Axes: B batch, H heads, T queries, M keys, d width of a head, K spans; inside a block: R of the queries, E of the
examples, I = H * E.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trarctl.model.attention_windows import RowClasses

# Numbers in one block of scores. On a CPU the few blocks in use then stay in the cache.
BLOCK_NUMBERS = {"cpu": 2**19, "cuda": 2**26}
IN_PLACE_DEVICES = {"cpu"}  # where heads are read where they lie

Part = tuple[slice, tuple[int | slice, int | slice]]


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
    """The scores of some rows of some examples, and what belongs to them.

    Attributes:
        examples: which examples.
        rows: which queries.
        shape: I, R and M; I runs over the heads, then the examples.
        weights: of the spans, [I, K].
        is_hidden: keys that are padding, [I, 1, M]; None if there are none.
        classes: the distance classes of the rows.
        parts: which of I are one matrix product, and what they are of [B, H]; see ``_parts``.
    """

    examples: slice
    rows: slice
    shape: tuple[int, int, int]
    weights: Tensor
    is_hidden: Tensor | None
    classes: RowClasses
    parts: list[Part]

    @property
    def dtype(self) -> torch.dtype:
        """What the block is computed in."""
        return self.weights.dtype

    def widened(self) -> Block:
        """The same block, computed in float64."""
        wide = torch.float64
        return replace(self, weights=self.weights.to(wide), classes=self.classes.to(wide))

    def compare(self, queries: Tensor, keys: Tensor, out: Tensor, *, factor: float = 1.0) -> Tensor:
        """Products of queries [B, H, T, d] and keys [B, H, M, d], written to ``out`` [I, R, M] and returned."""
        for part, where in self.parts:
            left, right = _states(queries[where])[:, self.rows], _states(keys[where]).transpose(1, 2)
            if out.device.type == "cpu":  # without AMX, products of bfloat16 are slower there than those of float32
                left, right = left.to(out.dtype), right.to(out.dtype)
            if left.dtype == out.dtype:
                torch.baddbmm(out[part], left, right, beta=0, alpha=factor, out=out[part])
            else:
                torch.mul(torch.bmm(left, right), factor, out=out[part])
        return out

    def gather(self, weights: Tensor, keys: Tensor, out: Tensor, *, factor: float = 1.0) -> None:
        """Sum up keys [B, H, M, d] by weights [I, R, M], written to the block's rows of ``out`` [B, H, T, d]."""
        for part, where in self.parts:
            target = out[where][..., self.rows, :]
            _store(weights[part], _states(keys[where]), target, factor=factor, is_first=True)

    def scatter(self, weights: Tensor, queries: Tensor, out: Tensor, *, factor: float = 1.0) -> None:
        """Add up queries [B, H, T, d] by weights [I, R, M] into ``out`` [B, H, M, d]; the first rows overwrite it."""
        for part, where in self.parts:
            left, right = weights[part].transpose(1, 2), _states(queries[where])[:, self.rows]
            _store(left, right, out[where], factor=factor, is_first=self.rows.start == 0)


def _states(part: Tensor) -> Tensor:
    """The states of a part as one batch, heads first: a copy only if it has several of both heads and examples."""
    return part if part.dim() == 3 else part.transpose(0, 1).flatten(0, 1)


def _store(weights: Tensor, states: Tensor, out: Tensor, *, factor: float, is_first: bool) -> None:
    """Write or add the product of weights and states to ``out``, a part that need not be contiguous."""
    if out.device.type == "cpu":
        states = states.to(weights.dtype)
    else:
        weights = weights.to(states.dtype)
    is_one_example = out.dim() == 3 and out.stride(0) < out.stride(1)
    if is_one_example and weights.dtype == out.dtype:  # faster without a detour; small products are not
        out.baddbmm_(weights, states, beta=0 if is_first else 1, alpha=factor)
        return
    product = torch.bmm(weights, states)
    if out.dim() == 4:
        out = out.transpose(0, 1)
        product = product.view(out.shape)
    if is_first:
        torch.mul(product, factor, out=out) if factor != 1.0 else out.copy_(product)
    else:
        out.add_(product, alpha=factor)


def cut(inputs: Inputs) -> Iterator[Block]:
    """The blocks of the scores, in an order that depends on shapes and device only."""
    batch, heads, num_queries, _ = inputs.query.shape
    num_keys = inputs.key.shape[2]
    device = inputs.query.device
    budget = BLOCK_NUMBERS.get(device.type, BLOCK_NUMBERS["cuda"])
    num_parts = min(num_queries, -(-heads * num_queries * num_keys // budget))
    num_rows = -(-num_queries // num_parts)
    num_examples = max(1, min(batch, budget // (heads * num_keys * num_rows)))
    has_padding = _padded_examples(inputs.is_padding, batch)
    for first_row in range(0, num_queries, num_rows):
        rows = slice(first_row, min(first_row + num_rows, num_queries))
        pair_class = None if inputs.pair_class is None else inputs.pair_class[rows]
        classes = RowClasses(pair_class, inputs.contains, inputs.dtype)
        for first in range(0, batch, num_examples):
            examples = slice(first, min(first + num_examples, batch))
            is_hidden = None
            if inputs.is_padding is not None and any(has_padding[examples]):
                is_hidden = inputs.is_padding[examples].repeat(heads, 1).unsqueeze(1)
            yield Block(
                examples=examples,
                rows=rows,
                shape=(heads * (examples.stop - first), rows.stop - first_row, num_keys),
                weights=inputs.span_weights[examples].to(inputs.dtype).repeat(heads, 1),
                is_hidden=is_hidden,
                classes=classes,
                parts=_parts(examples, heads, device.type),
            )


def _parts(examples: slice, heads: int, device_type: str) -> list[Part]:
    """Which matrix products a block takes.

    One head of several examples, or all heads of one example, can be read where they lie. On a CPU copying them first
    costs as much as the product; elsewhere one large product is better than several small ones.
    """
    size = examples.stop - examples.start
    if size == 1:
        return [(slice(None), (examples.start, slice(None)))]
    if device_type not in IN_PLACE_DEVICES:
        return [(slice(None), (examples, slice(None)))]
    return [(slice(head * size, (head + 1) * size), (examples, head)) for head in range(heads)]


def _padded_examples(is_padding: Tensor | None, batch: int) -> list[bool]:
    """Which examples have padding; all of them on a device that would have to stop to tell."""
    if is_padding is None or is_padding.device.type != "cpu":
        return [is_padding is not None] * batch
    padded: list[bool] = is_padding.any(dim=1).tolist()
    return padded


class Scratch:
    """Memory for the intermediate results of one block after the other, so that they stay in the cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, block: Block) -> Tensor:
        """Uninitialised memory of the block's shape and dtype; the same under the same name."""
        size = math.prod(block.shape)
        buffer = self.buffers.get((name, block.dtype))
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name, block.dtype] = torch.empty(size, dtype=block.dtype, device=self.device)
        return buffer[:size].view(block.shape)
