"""Routed attention and the norm as they are defined, in float64: one attention map a span. Slow, large and plain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHAPES: dict[str, Callable[[int, int, int], bool]] = {
    "window": lambda down, right, size: size == 0 or (abs(down) <= size and abs(right) <= size),
    "cross": lambda down, right, size: (down == 0 or right == 0) and abs(down) + abs(right) <= size,
    "ring": lambda down, right, size: max(abs(down), abs(right)) == size,
    "dilated": lambda down, right, size: down % size == 0 and right % size == 0,
    "diagonal": lambda down, right, size: down == right and abs(down) <= size,
}


def visible(span: int | str, grid_size: int) -> Tensor:
    """Which cell (column) a cell (row) sees in a span, [N, N] bool."""
    shape, _, size = str(span).rpartition(":")
    num_cells = grid_size * grid_size
    sees = torch.zeros(num_cells, num_cells, dtype=torch.bool)
    for cell in range(num_cells):
        for other in range(num_cells):
            down, right = other // grid_size - cell // grid_size, other % grid_size - cell % grid_size
            sees[cell, other] = SHAPES[shape or "window"](down, right, int(size))
    return sees


def span_maps(
    query: Tensor, key: Tensor, spans: Sequence[int | str], grid_size: int, is_padding: Tensor | None
) -> Tensor:
    """The attention map of each span, [B, K, H, N, N] float64."""
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    maps = []
    for span in spans:
        is_hidden = ~visible(span, grid_size)
        if is_padding is not None:
            is_hidden = is_hidden | is_padding[:, None, None, :]
        maps.append(scores.masked_fill(is_hidden, -1e9).softmax(dim=-1))
    return torch.stack(maps, dim=1)


def blended_map(
    query: Tensor,
    key: Tensor,
    span_weights: Tensor,
    spans: Sequence[int | str],
    grid_size: int,
    is_padding: Tensor | None = None,
) -> Tensor:
    """The sum of the spans' maps by their weights, [B, H, N, N] float64."""
    maps = span_maps(query, key, spans, grid_size, is_padding)
    return (span_weights.double()[:, :, None, None, None] * maps).sum(dim=1)


def sample_norm(states: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """The norm by its definition, out of sums: float64."""
    states = states.double()
    size = states.shape[-1]
    centered = states - states.sum(dim=-1, keepdim=True) / size
    deviation = (centered**2).sum(dim=-1, keepdim=True).div(size - 1).sqrt()
    return gain.double() * centered / (deviation + eps) + bias.double()
