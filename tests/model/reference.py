"""Routed attention as it is defined: one attention map a span. Slow, large and plain, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def window(order: int, grid_size: int) -> Tensor:
    """Which cell (column) a cell (row) sees in a span of that order, [N, N] bool."""
    num_cells = grid_size * grid_size
    sees = torch.zeros(num_cells, num_cells, dtype=torch.bool)
    for cell in range(num_cells):
        for other in range(num_cells):
            down = abs(cell // grid_size - other // grid_size)
            right = abs(cell % grid_size - other % grid_size)
            sees[cell, other] = order == 0 or max(down, right) <= order
    return sees


def span_maps(query: Tensor, key: Tensor, orders: list[int], grid_size: int, is_padding: Tensor | None) -> Tensor:
    """The attention map of each span, [B, K, H, N, N]."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    maps = []
    for order in orders:
        is_hidden = ~window(order, grid_size)
        if is_padding is not None:
            is_hidden = is_hidden | is_padding[:, None, None, :]
        maps.append(scores.masked_fill(is_hidden, -1e9).softmax(dim=-1))
    return torch.stack(maps, dim=1)


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    orders: list[int],
    grid_size: int,
    *,
    is_padding: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Blend K maps, each with a dropout of its own, and attend: [B, H, N, d]."""
    maps = torch.nn.functional.dropout(span_maps(query, key, orders, grid_size, is_padding), dropout)
    blended = (span_weights[:, :, None, None, None] * maps).sum(dim=1)
    return blended.to(value.dtype) @ value
