from __future__ import annotations

import pytest
import torch

from trarctl.model.routing import Router, gumbel_like


def router(pooling: str, *, is_hard: bool, size: int = 8, num_spans: int = 3) -> Router:
    torch.manual_seed(1)
    return Router(size, num_spans, pooling=pooling, is_hard=is_hard)


@pytest.mark.parametrize("pooling", ["avg", "attention", "fc"])
@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_weights_sum_to_one(pooling: str, is_hard: bool, batch: int) -> None:
    weights = router(pooling, is_hard=is_hard)(torch.randn(batch, 4, 8), temperature=0.5)
    assert weights.shape == (batch, 3)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))


def test_evaluation_has_no_noise_and_training_fresh_noise() -> None:
    route, cells = router("avg", is_hard=True), torch.randn(2, 4, 8)
    first, second = route(cells, temperature=1.0), route(cells, temperature=1.0)
    assert not torch.equal(first, second)
    route.eval()
    assert torch.equal(route(cells, temperature=1.0), route(cells, temperature=1.0))


def test_a_low_temperature_decides() -> None:
    route, cells = router("fc", is_hard=True).eval(), torch.randn(5, 4, 8)
    warm, cold = route(cells, temperature=10.0), route(cells, temperature=1e-3)
    assert bool((cold.max(dim=1).values > warm.max(dim=1).values).all())
    assert torch.equal(cold.argmax(dim=1), warm.argmax(dim=1))


def test_soft_routing_ignores_the_temperature() -> None:
    route, cells = router("avg", is_hard=False), torch.randn(2, 4, 8)
    assert torch.equal(route(cells, temperature=0.1), route(cells, temperature=10.0))


def test_hard_routing_has_gradients() -> None:
    route = router("attention", is_hard=True)
    route(torch.randn(2, 4, 8), temperature=0.1)[:, 0].sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in route.parameters())


def test_gumbel_noise_is_finite_and_has_the_mean_it_should() -> None:
    torch.manual_seed(0)
    noise = gumbel_like(torch.empty(200_000))
    assert bool(noise.isfinite().all())
    assert abs(float(noise.mean()) - 0.5772) < 0.02
