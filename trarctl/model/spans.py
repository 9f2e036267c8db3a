"""Attention spans: which cells of a grid a cell may look at.

Axes: K spans, S grid size, N = S * S cells in row-major order, C classes of pairs.

A span is a set of relative offsets (rows down, columns right), the same for every cell and symmetric: what a cell
sees, sees it too. Pairs of cells that the same spans hold are one class. The class depends on the offset alone, so a
table of (2S - 1) x (2S - 1) offsets says everything, whatever the shapes are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trarctl.registry import SPAN_SHAPES

Shape = Callable[[int, int, int], bool]  # (rows down, columns right, size) -> whether the span holds this offset


@SPAN_SHAPES.register("window")
def window(down: int, right: int, size: int) -> bool:
    """Hold the square of cells at Chebyshev distance <= ``size``; 0 is the whole grid."""
    return size == 0 or max(abs(down), abs(right)) <= size


def parse_span(span: int | str) -> tuple[Shape, int]:
    """Find the shape and size of a span: 2 and ``window:2`` are the same.

    Raises:
        ValueError: for an unknown shape, or a size that is no number >= 0.
    """
    name, _, size = str(span).rpartition(":")
    if not size.isdecimal() or (name == "" and str(span) != size):
        raise ValueError(f"got span {span!r}, expected a size >= 0 or SHAPE:SIZE")
    if name and name not in SPAN_SHAPES:
        raise ValueError(f"got span {span!r}, expected a shape out of {', '.join(SPAN_SHAPES.names())}")
    return SPAN_SHAPES[name or "window"], int(size)


def _holders(spans: Sequence[int | str], grid_size: int) -> list[tuple[bool, ...]]:
    """For each offset of the grid, row by row, tell which spans hold it."""
    shapes = [parse_span(span) for span in spans]
    reach = range(1 - grid_size, grid_size)
    return [tuple(bool(shape(y, x, size)) for shape, size in shapes) for y in reach for x in reach]


def coinciding(spans: Sequence[int | str], grid_size: int) -> list[list[int]]:
    """Group spans by index: those of a group hold the same cells of the grid."""
    same: dict[tuple[bool, ...], list[int]] = {}
    for index, holds in enumerate(zip(*_holders(spans, grid_size), strict=True)):
        same.setdefault(holds, []).append(index)
    return list(same.values())


def describe_coinciding(spans: Sequence[int | str], grid_size: int) -> list[str]:
    """Say which spans are the same on a grid, such as the whole grid and a window that reaches over all of it."""
    return [
        f"the spans {' and '.join(str(spans[index]) for index in group)} show the same cells on a"
        f" {grid_size}x{grid_size} grid"
        for group in coinciding(spans, grid_size)
        if len(group) > 1
    ]


class Spans(nn.Module):
    """The spans of a routed attention layer on its grid, built once; nothing of it is learned or saved.

    Args:
        spans: one a span: r for a window (0 the whole grid), or ``SHAPE:SIZE``.
        grid_size: side S of the grid, in cells.

    Attributes:
        num_cells: N.
        pair_class: class of each query (row) and key (column), [N, N] int16; None if there is but one.
        contains: whether span k holds class c, [K, C] bool; pairs outside all spans are a class too.

    Raises:
        ValueError: for no span, an unknown, empty or asymmetric one, or an empty grid.
    """

    pair_class: Tensor | None
    contains: Tensor

    def __init__(self, spans: Sequence[int | str], grid_size: int) -> None:
        super().__init__()
        if not spans or grid_size < 1:
            raise ValueError(f"got {len(spans)} spans on a {grid_size}x{grid_size} grid, expected at least one on 1x1")
        holders = _holders(spans, grid_size)
        for span, holds in zip(spans, zip(*holders, strict=True), strict=True):
            if holds != holds[::-1]:
                raise ValueError(f"span {span!r} is not symmetric: it must hold (-y, -x) where it holds (y, x)")
            if not any(holds):
                raise ValueError(f"span {span!r} shows nothing on a {grid_size}x{grid_size} grid")
        classes = sorted(set(holders), reverse=True)
        class_of = {held: number for number, held in enumerate(classes)}
        table = torch.tensor([class_of[held] for held in holders], dtype=torch.int16)
        cell = torch.arange(grid_size**2)
        row, column = cell // grid_size, cell % grid_size
        down, right = (axis[None, :] - axis[:, None] + grid_size - 1 for axis in (row, column))
        self.num_cells = grid_size**2
        pair_class = None if len(classes) == 1 else table[down * (2 * grid_size - 1) + right]
        self.register_buffer("pair_class", pair_class, persistent=False)
        self.register_buffer("contains", torch.tensor(classes).t().contiguous(), persistent=False)
