from __future__ import annotations

import pytest
import torch

from trarctl.model.kernels import norms
from trarctl.model.kernels.dropout import KeepMask, draw_seed
from trarctl.model.kernels.norms import ResidualNorm, SampleNorm


def test_sample_norm_uses_the_unbiased_deviation_and_adds_eps_to_it() -> None:
    norm = SampleNorm(4, eps=0.5).double()
    states = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    deviation = states.std(unbiased=True)
    torch.testing.assert_close(norm(states), (states - 3.0) / (deviation + 0.5))


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_sample_norm_gradients(scale: float) -> None:
    norm = SampleNorm(5).double()
    states = (scale * torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((norm(states) * weight).sum(), states)
    deviation, mean = torch.std_mean(states, dim=-1, keepdim=True)
    (plain,) = torch.autograd.grad(((states - mean) / (deviation + 1e-6) * weight).sum(), states)
    torch.testing.assert_close(ours, plain)


def test_sample_norm_of_a_constant_row_is_its_bias() -> None:
    norm = SampleNorm(3)
    assert torch.equal(norm(torch.full((1, 3), 7.0)), torch.zeros(1, 3))


def test_sample_norm_keeps_statistics_in_float32_under_autocast() -> None:
    norm = SampleNorm(64)
    states = torch.randn(8, 64) * 1e-2 + 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed = norm(states)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed, norm(states))


def plain(norm: SampleNorm, summed: torch.Tensor) -> torch.Tensor:
    """The norm by its definition."""
    deviation, mean = torch.std_mean(summed, dim=-1, keepdim=True)
    return norm.gain * (summed - mean) / (deviation + norm.eps) + norm.bias


def residual_norm(size: int, dropout: float) -> ResidualNorm:
    """A norm whose parameters are not those of the start."""
    norm = ResidualNorm(size, dropout=dropout)
    torch.nn.init.normal_(norm.gain)
    torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("block", [1, 16, 10_000])
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_residual_norm_is_the_norm_of_the_sum(block: int, probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "BLOCK_NUMBERS", block)
    torch.manual_seed(0)
    norm = residual_norm(6, probability).double()
    states, change, weight = (torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    inputs = (states, change, norm.gain, norm.bias)
    torch.manual_seed(1)
    ours = norm(states, change)
    torch.manual_seed(1)
    kept = change
    if probability:
        keep = KeepMask(probability, draw_seed(), states.device)
        rows = max(1, block // 6)
        masks = [keep.draw(torch.empty_like(part)) for part in change.detach().view(-1, 6).split(rows)]
        kept = change * torch.cat(masks).view(change.shape) * keep.scale  # type: ignore[arg-type]
        assert not torch.equal(kept, change)
    expected = plain(norm, states + kept)
    torch.testing.assert_close(ours, expected)
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(found, wanted)


def test_residual_norm_drops_nothing_in_evaluation() -> None:
    norm = residual_norm(8, 0.5).eval()
    states, change = torch.randn(2, 8), torch.randn(2, 8)
    torch.testing.assert_close(norm(states, change), plain(norm, states + change))
    assert not torch.allclose(norm.train()(states, change), plain(norm, states + change))


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


def test_a_constant_row_has_a_finite_gradient() -> None:
    norm = SampleNorm(5)
    states = torch.full((2, 5), 3.0, requires_grad=True)
    (norm(states) * torch.randn(2, 5)).sum().backward()
    assert states.grad is not None
    assert torch.isfinite(states.grad).all()


def test_compiled_and_on_other_devices_it_is_the_same_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = residual_norm(6, 0.0)
    states, change = torch.randn(3, 6), torch.randn(3, 6)
    ours = norm(states, change)
    monkeypatch.setattr(norms, "draws_own_masks", lambda _: False)
    torch.testing.assert_close(norm(states, change), ours)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(norm(states, change), ours)
