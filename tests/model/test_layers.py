from __future__ import annotations

import pytest
import torch

from trarctl.model.layers import AttentionPooling, MultiHeadAttention, SampleNorm, join_heads, split_heads


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


def test_heads_split_and_join() -> None:
    states = torch.randn(2, 3, 8)
    assert split_heads(states, 4).shape == (2, 4, 3, 2)
    assert torch.equal(join_heads(split_heads(states, 4)), states)


def test_attention_does_not_see_padding() -> None:
    torch.manual_seed(0)
    attend = MultiHeadAttention(8, 2, dropout=0.0)
    queries, keys = torch.randn(1, 2, 8), torch.randn(1, 5, 8)
    is_padding = torch.tensor([[False, False, False, True, True]])
    torch.testing.assert_close(
        attend(queries, keys, is_padding), attend(queries, keys[:, :3], torch.zeros(1, 3, dtype=torch.bool))
    )


@pytest.mark.parametrize("num_glimpses", [1, 2])
def test_pooling_leaves_padding_out(num_glimpses: int) -> None:
    torch.manual_seed(0)
    pool = AttentionPooling(8, 6, num_glimpses=num_glimpses, out_size=4, dropout=0.0)
    states = torch.randn(1, 5, 8)
    is_padding = torch.tensor([[False, True, False, True, True]])
    torch.testing.assert_close(pool(states, is_padding), pool(states[:, [0, 2]], None))
