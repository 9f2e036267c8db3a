"""Which cells a span shows, and which pairs of cells are one class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.model.reference import SHAPES, visible
from trarctl.model.spans import Spans, describe_coinciding, parse_span
from trarctl.registry import SPAN_SHAPES


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPAN_SHAPES, "_items", dict(SPAN_SHAPES._items))
    for name in ("cross", "ring", "dilated", "diagonal"):
        SPAN_SHAPES.register(name)(SHAPES[name])


def shown(spans: Spans, number: int) -> Tensor:
    """Who sees whom in a span, [N, N], read off the classes."""
    pair_class = torch.zeros(spans.num_cells, spans.num_cells) if spans.pair_class is None else spans.pair_class
    return spans.contains[number][pair_class.long()]


@pytest.mark.parametrize(
    ("spans", "grid_size"),
    [
        ([0, 1, 2, 3], 8),
        ([0, 1, 3], 5),
        ([2], 4),
        ([3, 1, 1], 6),
        ([9, 0], 3),
        ([1, 0], 1),
        ([1, 7, 2], 4),
        (["cross:2", 0], 6),
        (["cross:3", "ring:2", "dilated:2", "window:1", "diagonal:4"], 7),
    ],
)
def test_each_span_shows_its_cells(spans: list[int | str], grid_size: int) -> None:
    built = Spans(spans, grid_size)
    assert built.num_cells == grid_size**2
    assert len(built.contains) == len(spans)
    for number, span in enumerate(spans):
        assert torch.equal(shown(built, number), visible(span, grid_size))


def test_pairs_that_the_same_spans_hold_are_one_class() -> None:
    assert Spans([0, 3, 4, 9, 1], 4).contains.shape == (5, 2)
    assert Spans([0, 1, 2, 3], 8).contains.shape == (4, 4)
    assert Spans([1, 2], 8).contains.shape == (2, 3)  # outside both is a class
    assert Spans(["cross:2", "ring:1"], 8).contains.shape == (2, 4)
    assert not Spans([1, "cross:1"], 8).contains.all(dim=0).all()


@pytest.mark.parametrize(("spans", "is_one"), [([0], True), ([0, 7, 9], True), ([0, 6], False), ([3], False)])
def test_there_is_one_class_if_every_span_shows_everything(spans: list[int | str], is_one: bool) -> None:
    assert (Spans(spans, 8).pair_class is None) is is_one


def test_leaves_no_trace_in_a_checkpoint() -> None:
    spans = Spans([0, 1], 4)
    assert spans.state_dict() == {}
    assert list(spans.parameters()) == []


@pytest.mark.parametrize(
    ("spans", "grid_size", "message"),
    [
        ([], 4, "got 0 spans on a 4x4 grid"),
        ([0], 0, "got 1 spans on a 0x0 grid"),
        ([0, -1], 4, "got span -1, expected a size >= 0 or SHAPE:SIZE"),
        (["cross"], 4, "got span 'cross', expected"),
        (["cross:x"], 4, "got span 'cross:x', expected"),
        ([":2"], 4, "got span ':2', expected"),
        (["star:2"], 4, "got span 'star:2', expected a shape out of window"),
        ([0, "ring:4"], 4, "span 'ring:4' shows nothing on a 4x4 grid"),
        (["corner:1"], 4, r"span 'corner:1' is not symmetric: it must hold \(-y, -x\) where it holds \(y, x\)"),
    ],
)
def test_refuses_what_is_no_span(spans: list[int | str], grid_size: int, message: str) -> None:
    SPAN_SHAPES.register("corner")(lambda down, right, _size: down >= 0 and right >= 0)
    with pytest.raises(ValueError, match=message):
        Spans(spans, grid_size)


def test_a_number_is_a_window() -> None:
    assert parse_span(2) == parse_span("window:2") == parse_span("2")


@pytest.mark.parametrize(
    ("spans", "grid_size", "same"),
    [
        ((0, 1, 2, 3), 8, []),
        ((0, 1, 2, 3), 4, ["0 and 3"]),
        ((0, 1, 2, 3), 3, ["0 and 2 and 3"]),
        ((0, 1, 2, 3), 1, ["0 and 1 and 2 and 3"]),
        ((1, 2, 1), 8, ["1 and 1"]),
        ((0, "window:2", 2, 7), 8, ["0 and 7", "window:2 and 2"]),
    ],
)
def test_spans_that_coincide(spans: tuple[int | str, ...], grid_size: int, same: list[str]) -> None:
    expected = [f"the spans {names} show the same cells on a {grid_size}x{grid_size} grid" for names in same]
    assert sorted(describe_coinciding(spans, grid_size)) == sorted(expected)
