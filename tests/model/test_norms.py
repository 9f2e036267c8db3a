"""The norm against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.model import reference
from trarctl.model.layers import ResidualNorm, SampleNorm


def residual_norm(size: int, dropout: float) -> ResidualNorm:
    """A norm whose parameters are not those of the start."""
    norm = ResidualNorm(size, dropout=dropout)
    torch.nn.init.normal_(norm.gain)
    torch.nn.init.normal_(norm.bias)
    return norm


@pytest.fixture(params=["eager", "plain torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As the CPU computes it, and as a compiler or another device does."""
    if request.param == "plain torch":
        monkeypatch.setattr("trarctl.model.kernels.runs_on_cpu", lambda _: False)
    return str(request.param)


def test_divides_by_the_unbiased_deviation_plus_eps() -> None:
    norm = SampleNorm(4, eps=0.5).double()
    states = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    torch.testing.assert_close(norm(states), (states - 3.0) / ((14 / 3) ** 0.5 + 0.5))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_values_and_gradients_are_those_of_the_formula(scale: float, eps: float) -> None:
    norm = SampleNorm(5, eps=eps).double()
    torch.nn.init.normal_(norm.gain)
    torch.nn.init.normal_(norm.bias)
    states = (scale * torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    inputs = (states, norm.gain, norm.bias)
    ours, exact = norm(states), reference.sample_norm(states, norm.gain, norm.bias, eps)
    torch.testing.assert_close(ours, exact)
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((exact * weight).sum(), inputs))


def test_float32_is_near_the_formula() -> None:
    norm, states = residual_norm(512, 0.0), torch.randn(64, 512, requires_grad=True)
    change, weight = torch.randn(64, 512, requires_grad=True), torch.randn(64, 512)
    ours = norm(states, change)
    inputs = (states, change, norm.gain, norm.bias)
    exact = reference.sample_norm(states + change, norm.gain, norm.bias)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    for one, wanted in zip(found, torch.autograd.grad((exact * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-4)


def test_a_constant_row_is_its_bias_and_has_a_finite_gradient() -> None:
    norm = residual_norm(5, 0.0)
    states = torch.full((2, 5), 3.0, requires_grad=True)
    normed = norm(states, torch.zeros(2, 5))
    torch.testing.assert_close(normed, norm.bias.expand(2, 5))
    (normed * torch.randn(2, 5)).sum().backward()
    assert states.grad is not None


def test_statistics_are_float32_under_autocast() -> None:
    norm = SampleNorm(64)
    states = torch.randn(8, 64) * 1e-2 + 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed = norm(states)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed, norm(states))
    assert norm(states.bfloat16()).dtype == torch.float32


def test_gradients_have_the_types_of_what_came_in() -> None:
    norm = residual_norm(64, 0.1)
    states = torch.randn(4, 64, requires_grad=True)
    change = torch.randn(4, 64).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed = norm(states, change)
        normed.sum().backward()
    assert normed.dtype == torch.float32
    assert states.grad is not None
    assert states.grad.dtype == torch.float32
    assert change.grad is not None
    assert change.grad.dtype == torch.bfloat16


def dropped_with(norm: ResidualNorm, states: Tensor, change: Tensor) -> Tensor:
    torch.manual_seed(1)
    return norm(states, change)


def test_residual_norm_drops_of_the_change_alone() -> None:
    norm = residual_norm(6, 0.3).double()
    states, change, weight = (torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    # Of a row of ones, those that were kept end up above its mean; a row kept or dropped as a whole is constant.
    ones = torch.ones(3, 5, 6, dtype=torch.float64)
    is_kept = (dropped_with(norm, 0 * ones, ones) - norm.bias) / norm.gain > 1e-3
    mixed = is_kept.any(dim=-1)
    assert int(mixed.sum()) > 5
    expected = reference.sample_norm(states + change * is_kept / 0.7, norm.gain, norm.bias)
    ours = dropped_with(norm, states, change)
    torch.testing.assert_close(ours[mixed], expected[mixed], rtol=1e-4, atol=1e-4)
    inputs = (states, change)
    found = torch.autograd.grad((ours * weight)[mixed].sum(), inputs)
    wanted = torch.autograd.grad((expected * weight)[mixed].sum(), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_nothing_is_dropped_in_evaluation() -> None:
    norm = residual_norm(8, 0.5).eval()
    states, change = torch.randn(2, 8), torch.randn(2, 8)
    exact = reference.sample_norm(states + change, norm.gain, norm.bias).float()
    torch.testing.assert_close(norm(states, change), exact)
    assert not torch.allclose(norm.train()(states, change), exact)
