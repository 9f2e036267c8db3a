from __future__ import annotations

import pytest
import torch

from trarctl.model.layers import AttentionPooling, MultiHeadAttention, join_heads, split_heads


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
