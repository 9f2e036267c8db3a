"""Dropout against its rule: each element is kept with probability 1 - p, independently, and scaled by 1 / (1 - p)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trarctl.model import kernels
from trarctl.model.kernels import cpu

Dropout = Callable[[Tensor, float], Tensor]
both = pytest.mark.parametrize("function", [kernels.dropout, kernels.relu_dropout])


def kept_of(function: Dropout, probability: float, *shape: int, seed: int = 0) -> Tensor:
    """Where ones are kept, with the values that they then have."""
    torch.manual_seed(seed)
    return function(torch.ones(shape), probability)


@both
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
def test_rate_and_scale(function: Dropout, probability: float) -> None:
    dropped = kept_of(function, probability, 1000, 1500)
    is_kept = dropped != 0
    deviation = (probability * (1 - probability) / dropped.numel()) ** 0.5
    assert abs(float(is_kept.double().mean()) - (1 - probability)) < 4 * deviation
    scales = dropped[is_kept].unique()
    assert scales.numel() == 1
    assert abs(float(scales) - 1 / (1 - probability)) < 1e-4


@both
def test_elements_are_dropped_independently(function: Dropout) -> None:
    centered = (kept_of(function, 0.3, 2**21) != 0).double() - 0.7
    for lag in (1, 2, 3, 4, 5, 7, 8, 64, 512, 2**16, 2**19, 2**20):
        correlation = float((centered[lag:] * centered[:-lag]).mean()) / 0.21
        assert abs(correlation) < 5 / (len(centered) - lag) ** 0.5, lag


@both
@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (9,), (17,), (1001,), (3, 5, 7)])
def test_every_element_of_every_size_has_its_chance(function: Dropout, shape: tuple[int, ...]) -> None:
    rates = torch.stack([kept_of(function, 0.5, *shape, seed=seed) != 0 for seed in range(200)]).double().mean(dim=0)
    assert float(rates.min()) > 0.25
    assert float(rates.max()) < 0.75


@both
@pytest.mark.parametrize("block", [8, 256, 2**20])
def test_values_and_gradient_have_one_mask(function: Dropout, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "BLOCK_NUMBERS", block)
    mask = kept_of(function, 0.2, 50, 9).double()
    assert 0.05 < float((mask == 0).double().mean()) < 0.35
    states = torch.randn(50, 9, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    dropped = function(states, 0.2)
    passes = mask if function is kernels.dropout else mask * (states > 0)
    torch.testing.assert_close(dropped, passes * states, rtol=1e-6, atol=1e-6)
    weight = torch.randn(50, 9, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((dropped * weight).sum(), states)
    torch.testing.assert_close(gradient, passes * weight, rtol=1e-6, atol=1e-6)


@both
def test_gradient_by_finite_differences(function: Dropout) -> None:
    def seeded(states: Tensor) -> Tensor:
        torch.manual_seed(7)
        return function(states, 0.4)

    states = torch.randn(4, 6, dtype=torch.float64)
    states = torch.where(states.abs() < 0.1, 0.5, states).requires_grad_()  # away from the ReLU's corner
    assert torch.autograd.gradcheck(seeded, states)


@both
def test_the_seed_decides(function: Dropout) -> None:
    torch.manual_seed(0)
    first, second = function(torch.ones(100, 100), 0.5), function(torch.ones(100, 100), 0.5)
    assert torch.equal(kept_of(function, 0.5, 100, 100), first)
    assert not torch.equal(first, second)


def test_without_dropout_nothing_changes_and_no_random_number_is_drawn() -> None:
    states, before = torch.randn(3, 3), torch.get_rng_state()
    assert torch.equal(kernels.dropout(states, 0.0), states)
    assert torch.equal(kernels.relu_dropout(states, 0.0), states.relu())
    assert torch.equal(before, torch.get_rng_state())


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_layouts(function: Dropout, dtype: torch.dtype) -> None:
    states = torch.ones(3, 5, 1, dtype=dtype, requires_grad=True)
    dropped = function(states.transpose(0, 1) * 1, 0.5)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) <= {0.0, 2.0}
    dropped.sum().backward()
    assert states.grad is not None
    assert states.grad.dtype == dtype
    assert torch.equal(states.grad.transpose(0, 1), dropped)
