"""A pooling of the router, added from outside the package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trarctl.config.settings import ModelSettings
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.registry import POOLINGS


class MaxPool(nn.Module):
    """The largest of each feature over the cells, weighed: [B, N, D] -> [B, D]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, cells: Tensor) -> Tensor:
        return cells.amax(dim=1) * self.gain


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POOLINGS, "_items", dict(POOLINGS._items))
    POOLINGS.register("max")(MaxPool)  # a plugin writes @POOLINGS.register("max") above the class


def test_a_model_with_it_learns() -> None:
    torch.manual_seed(0)
    settings = ModelSettings(
        num_layers=2, hidden_size=16, num_heads=2, feed_forward_size=24, word_embedding_size=6, flat_mlp_size=8,
        flat_out_size=12, grid_size=3, spans=(0, 1), pooling="max", dropout=0.0,
    )  # fmt: skip
    model = TRAR(settings, ModelSizes(vocabulary=11, answers=5, feature_width=7))
    tokens, features = torch.randint(1, 11, (6, 4)), torch.randn(6, 9, 7)
    target = functional.one_hot(torch.arange(6) % 5, 5).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = functional.binary_cross_entropy_with_logits(model(tokens, features)[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    gain = model.state_dict()["visual_layers.1.route.router.pool.gain"]
    assert not torch.equal(gain, torch.ones(16))
