"""A span of another shape, added from outside the package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trarctl.config.settings import ModelSettings
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.registry import SPAN_SHAPES


def cross(down: int, right: int, size: int) -> bool:
    """The cells of the same row or column, up to ``size`` away."""
    return (down == 0 or right == 0) and abs(down) + abs(right) <= size


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPAN_SHAPES, "_items", dict(SPAN_SHAPES._items))
    SPAN_SHAPES.register("cross")(cross)  # a plugin writes @SPAN_SHAPES.register("cross") above the function


GRID = 4
SIZES = ModelSizes(vocabulary=11, answers=5, feature_width=7)


def build(attention: str = "auto") -> TRAR:
    torch.manual_seed(0)
    settings = ModelSettings(
        num_layers=2, hidden_size=16, num_heads=2, feed_forward_size=24, word_embedding_size=6, flat_mlp_size=8,
        flat_out_size=12, grid_size=GRID, spans=(0, "cross:2"), dropout=0.0,
    )  # fmt: skip
    return TRAR(settings, SIZES, attention=attention)


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    features = torch.randn(6, GRID**2, 7)
    features[0, -5:] = 0.0  # padding
    return torch.randint(1, 11, (6, 4)), features


@pytest.mark.parametrize("attention", ["reference", "cpu"])
def test_a_layer_attends_within_the_cross(attention: str) -> None:
    route = build(attention).visual_layers[0].route
    _, features = inputs()
    cells, is_padding = torch.randn(6, GRID**2, 16), ~features.any(dim=-1)
    attended, weights = route(cells, is_padding, temperature=1.0)  # type: ignore[operator]
    sees = torch.tensor(
        [
            [(a // 4 == b // 4 and abs(a - b) <= 2) or (a % 4 == b % 4 and abs(a - b) <= 8) for b in range(GRID**2)]
            for a in range(GRID**2)
        ]
    )
    query, key, value = (
        functional.linear(cells.double(), part.weight.double(), part.bias.double()).view(6, 16, 2, 8).transpose(1, 2)
        for part in (route.query, route.key, route.value)  # type: ignore[union-attr]
    )
    scores = (query @ key.mT / 8**0.5).masked_fill(is_padding[:, None, None], -1e9)
    maps = [scores.softmax(dim=-1), scores.masked_fill(~sees, -1e9).softmax(dim=-1)]
    blended = sum(weights[:, span, None, None, None].double() * one for span, one in enumerate(maps))
    expected = (blended @ value).transpose(1, 2).flatten(2)
    output = route.output  # type: ignore[union-attr]
    expected = functional.linear(expected, output.weight.double(), output.bias.double())
    torch.testing.assert_close(attended.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_model_with_it_learns() -> None:
    model, (tokens, features) = build(), inputs()
    target = functional.one_hot(torch.arange(6) % 5, 5).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        scores, routes = model(tokens, features)
        loss = functional.binary_cross_entropy_with_logits(scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert routes.shape == (6, 2, 2)
    assert losses[-1] < losses[0] / 2
