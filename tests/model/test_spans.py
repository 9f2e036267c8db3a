"""Which cells a span shows."""

from __future__ import annotations

import pytest
import torch

from tests.model.reference import window
from trarctl.model.spans import Spans


@pytest.mark.parametrize(
    ("orders", "grid_size"),
    [([0, 1, 2, 3], 8), ([0, 1, 3], 5), ([2], 4), ([3, 1, 1], 6), ([9, 0], 3), ([1, 0], 1), ([1, 7, 2], 4)],
)
def test_each_span_shows_its_window(orders: list[int], grid_size: int) -> None:
    spans = Spans(orders, grid_size)
    assert spans.num_spans == len(orders)
    assert spans.num_cells == grid_size**2
    for number, order in enumerate(orders):
        assert torch.equal(spans.visible(number), window(order, grid_size))


def test_equal_windows_share_a_class() -> None:
    assert Spans([0, 3, 4, 9, 1], 4).num_classes == 2
    assert Spans([0, 1, 2, 3], 8).num_classes == 4


@pytest.mark.parametrize(("orders", "is_global"), [([0], True), ([0, 7, 9], True), ([0, 6], False), ([3], False)])
def test_knows_when_every_span_is_global(orders: list[int], is_global: bool) -> None:
    assert Spans(orders, 8).is_global is is_global


def test_leaves_no_trace_in_a_checkpoint() -> None:
    spans = Spans([0, 1], 4)
    assert spans.state_dict() == {}
    assert list(spans.parameters()) == []


@pytest.mark.parametrize(("orders", "grid_size"), [([], 4), ([0, -1], 4), ([0], 0)])
def test_refuses_what_is_no_span(orders: list[int], grid_size: int) -> None:
    with pytest.raises(ValueError, match="expected orders >= 0"):
        Spans(orders, grid_size)
