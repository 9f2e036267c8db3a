"""Attention spans: which cells of a grid a cell may look at.

Axes: K spans, S grid size, N = S * S cells in row-major order, C distance classes.

A span is a window, and windows around one cell are nested. So what a pair of cells belongs to depends only on its
distance class: class 0 is what the smallest window holds, class 1 what the next one adds, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Spans(nn.Module):
    """The windows of a routed attention layer, built once; nothing of it is learned or saved.

    Args:
        spans: one order a span: 0 sees the whole grid, r > 0 the cells at Chebyshev distance <= r.
        grid_size: side S of the grid, in cells.

    Attributes:
        num_spans: K.
        num_cells: N.
        num_classes: C, the number of different windows on this grid.
        is_global: whether every span sees the whole grid, which makes the attention a plain one.
        pair_class: distance class of each query (row) and key (column), C outside every span, [N, N] uint8.
        contains: whether span k holds distance class c, [K, C] bool.

    Raises:
        ValueError: for no span, a negative order or an empty grid.
    """

    pair_class: Tensor
    contains: Tensor

    def __init__(self, spans: Sequence[int], grid_size: int) -> None:
        super().__init__()
        if not spans or min(spans) < 0 or grid_size < 1:
            raise ValueError(f"got spans {list(spans)} on a {grid_size}x{grid_size} grid, expected orders >= 0")
        farthest = grid_size - 1
        reach = [farthest if order == 0 else min(order, farthest) for order in spans]
        limits = torch.tensor(sorted(set(reach)))
        row, column = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
        cells = torch.stack([row.flatten(), column.flatten()], dim=-1)
        distance = (cells[:, None] - cells[None, :]).abs().amax(dim=-1)
        self.num_spans = len(reach)
        self.num_cells = grid_size * grid_size
        self.num_classes = len(limits)
        self.is_global = min(reach) == farthest
        pair_class = (distance.unsqueeze(-1) > limits).sum(dim=-1)
        self.register_buffer("pair_class", pair_class.to(torch.uint8), persistent=False)
        self.register_buffer("contains", limits <= torch.tensor(reach).unsqueeze(-1), persistent=False)

    def visible(self, span: int) -> Tensor:
        """Whether a query (row) sees a key (column) in span number ``span``, [N, N] bool."""
        return self.pair_class < self.contains[span].sum()
