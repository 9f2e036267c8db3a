"""Cutting the scores of an attention into blocks that fit the cache, and what goes into a block and comes out.

Axes: B batch, H heads, T queries, M keys, d width of a head, K spans; inside a block: R of the queries, E of the
examples, I = E * H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trarctl.model.kernels.windows import RowWindows

# Numbers in one block of scores. On a CPU the few blocks in use then stay in the cache.
BLOCK_NUMBERS = {"cpu": 2**20, "cuda": 2**26}
WIDENING_DEVICES = {"cpu"}  # where products of bfloat16 are slower than those of float32, unless there is AMX


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

    @property
    def score_scale(self) -> float:
        """What turns products of query and key into scores."""
        return float(self.query.shape[-1] ** -0.5)


@dataclass(frozen=True)
class Block:
    """The scores of some rows of some examples, and what belongs to them.

    Attributes:
        examples: which examples.
        rows: which queries.
        shape: I, R and M; I runs over the examples, then the heads.
        weights: of the spans, [K, I].
        is_hidden: keys that are padding, [I, 1, M]; None if there are none.
        windows: of the rows.
    """

    examples: slice
    rows: slice
    shape: tuple[int, int, int]
    weights: Tensor
    is_hidden: Tensor | None
    windows: RowWindows

    @property
    def dtype(self) -> torch.dtype:
        """What the block is computed in."""
        return self.weights.dtype

    def widened(self) -> Block:
        """The same block, computed in float64."""
        wide = torch.float64
        return replace(self, weights=self.weights.to(wide), windows=self.windows.to(wide))

    def take_rows(self, states: Tensor, buffer: Buffer) -> Tensor:
        """The block's rows of states [B, H, T, d], each matrix in one piece: [I, R, d]."""
        return self._take(states[self.examples, :, self.rows], buffer)

    def take_keys(self, states: Tensor, buffer: Buffer) -> Tensor:
        """The block's states of all keys out of [B, H, M, d], each matrix in one piece: [I, M, d]."""
        return self._take(states[self.examples], buffer)

    def _take(self, states: Tensor, buffer: Buffer) -> Tensor:
        is_narrow = states.dtype.itemsize < 4 and states.device.type not in WIDENING_DEVICES
        dtype = states.dtype if is_narrow else self.dtype
        if states.dtype != dtype or not states[0, 0].is_contiguous():
            states = buffer.get(states.shape, dtype).copy_(states)
        return states.flatten(0, 1)

    def rows_shape(self, states: Tensor) -> tuple[int, int, int]:
        """The shape [I, R, d] of rows as wide as states [I, ., d]."""
        return *self.shape[:2], states.shape[-1]

    def put_rows(self, result: Tensor, out: Tensor) -> None:
        """Write results [I, R, d] to the block's rows of ``out`` [B, H, T, d]."""
        target = out[self.examples, :, self.rows]
        target.copy_(result.view(target.shape))


class Buffer:
    """Memory for one intermediate result of block after block, so that it stays in the cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory: dict[torch.dtype, Tensor] = {}

    def get(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialized, contiguous memory; the same at each call."""
        size = math.prod(shape)
        memory = self._memory.get(dtype)
        if memory is None or memory.numel() < size:
            memory = self._memory[dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return memory[:size].view(shape)


class Scratch:
    """One buffer for each name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Buffer] = {}

    def __getitem__(self, name: str) -> Buffer:
        if name not in self._buffers:
            self._buffers[name] = Buffer(self._device)
        return self._buffers[name]


def num_rows_in_block(inputs: Inputs) -> int:
    """How many queries of an example a block holds at most; all of them where they have room."""
    _, heads, num_queries, _ = inputs.query.shape
    num_parts = min(num_queries, -(-heads * num_queries * inputs.key.shape[2] // _budget(inputs)))
    return -(-num_queries // num_parts)


def _budget(inputs: Inputs) -> int:
    return BLOCK_NUMBERS.get(inputs.query.device.type, BLOCK_NUMBERS["cuda"])


def cut(inputs: Inputs) -> Iterator[Block]:
    """The blocks of the scores, in an order that depends on shapes and device only."""
    batch, heads, num_queries, _ = inputs.query.shape
    num_keys = inputs.key.shape[2]
    num_rows = num_rows_in_block(inputs)
    num_examples = max(1, min(batch, _budget(inputs) // (heads * num_keys * num_rows)))
    has_padding = _padded_examples(inputs.is_padding, batch)
    for first_row in range(0, num_queries, num_rows):
        rows = slice(first_row, min(first_row + num_rows, num_queries))
        pair_class = None if inputs.pair_class is None else inputs.pair_class[rows]
        windows = RowWindows(pair_class, inputs.contains, inputs.dtype)
        for first in range(0, batch, num_examples):
            examples = slice(first, min(first + num_examples, batch))
            is_hidden = None
            if inputs.is_padding is not None and any(has_padding[examples]):
                is_hidden = inputs.is_padding[examples].repeat_interleave(heads, dim=0).unsqueeze(1)
            yield Block(
                examples=examples,
                rows=rows,
                shape=(heads * (examples.stop - first), rows.stop - first_row, num_keys),
                weights=inputs.span_weights[examples].to(inputs.dtype).t().repeat_interleave(heads, dim=1),
                is_hidden=is_hidden,
                windows=windows,
            )


def _padded_examples(is_padding: Tensor | None, batch: int) -> list[bool]:
    """Which examples have padding; all of them on a device that would have to stop to tell."""
    if is_padding is None or is_padding.device.type != "cpu":
        return [is_padding is not None] * batch
    padded: list[bool] = is_padding.any(dim=1).tolist()
    return padded
