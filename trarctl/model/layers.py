"""Layers that language and image share: the norm, the feed-forward, multi-head attention, attention pooling.

Axes: B batch, T tokens or N cells, M keys, H heads, D hidden width, G glimpses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trarctl.model import kernels
from trarctl.model.attention import HIDDEN


class SampleNorm(nn.Module):
    """Layer norm with the sample standard deviation, as TRAR's weights were trained with.

    Unlike ``torch.nn.LayerNorm`` it divides by the unbiased standard deviation plus ``eps`` (not by the root of the
    variance plus ``eps``). Statistics are float32 whatever the input is.

    Source: the encoder norm of MCAN (CVPR 2019), as published TRAR weights expect it.
    """

    def __init__(self, size: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """Normalize the last axis: [..., D] -> [..., D]."""
        return kernels.sample_norm(states, self.gain, self.bias, self.eps)


class ResidualNorm(SampleNorm):
    """``norm(states + dropout(change))``: what follows each sublayer."""

    def __init__(self, size: int, *, dropout: float) -> None:
        super().__init__(size)
        self.dropout = dropout

    def forward(self, states: Tensor, change: Tensor) -> Tensor:  # type: ignore[override]
        """Add a sublayer's result to what it started from, and normalize: twice [..., D] -> [..., D]."""
        dropout = self.dropout if self.training else 0.0
        return kernels.residual_norm(states, change, self.gain, self.bias, self.eps, dropout)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU and dropout between: D -> inner -> D."""

    def __init__(self, size: int, inner_size: int, *, out_size: int | None = None, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(size, inner_size)
        self.contract = nn.Linear(inner_size, size if out_size is None else out_size)
        self.dropout = dropout

    def forward(self, states: Tensor) -> Tensor:
        """Map [..., D] to [..., out]."""
        return self.contract(kernels.relu_dropout(self.expand(states), self.dropout if self.training else 0.0))


class MultiHeadAttention(nn.Module):
    """Attention with H heads; q, k, v and output linears all have a bias.

    Args:
        size: width D.
        num_heads: H.
        dropout: probability, of the attention map.
        kernel: what computes the attention, see ``trarctl.model.kernels``.
    """

    def __init__(self, size: int, num_heads: int, *, dropout: float, kernel: str = "auto") -> None:
        super().__init__()
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.num_heads = num_heads
        self.dropout = dropout
        self.kernel = kernel

    def forward(self, queries: Tensor, keys: Tensor, is_padding: Tensor) -> Tensor:
        """Attend from ``queries`` [B, T, D] to ``keys`` [B, M, D]; ``is_padding`` [B, M] is True where not to look.

        Returns:
            [B, T, D]; a row whose keys are all padding gets their plain average.
        """
        return self._attend(queries, keys, is_padding=is_padding)

    def _attend(self, queries: Tensor, keys: Tensor, **arguments: Any) -> Tensor:
        attended = kernels.attend(
            split_heads(self.query(queries), self.num_heads),
            split_heads(self.key(keys), self.num_heads),
            split_heads(self.value(keys), self.num_heads),
            dropout=self.dropout if self.training else 0.0,
            kernel=self.kernel,
            **arguments,
        )
        projected: Tensor = self.output(join_heads(attended))
        return projected


class AttentionPooling(nn.Module):
    """Weigh the rows of a sequence by a small MLP and sum them up, once per glimpse.

    Args:
        size: width D of the rows.
        inner_size: inner width of the MLP that scores the rows.
        num_glimpses: how many independent weighings G are concatenated.
        out_size: width of the result.
        dropout: probability inside the MLP.
    """

    def __init__(self, size: int, inner_size: int, *, num_glimpses: int = 1, out_size: int, dropout: float) -> None:
        super().__init__()
        self.scorer = FeedForward(size, inner_size, out_size=num_glimpses, dropout=dropout)
        self.merge = nn.Linear(size * num_glimpses, out_size)

    def forward(self, states: Tensor, is_padding: Tensor | None) -> Tensor:
        """Pool [B, N, D] to [B, out]; ``is_padding`` [B, N] is True for rows to leave out."""
        scores = self.scorer(states).to(torch.promote_types(states.dtype, torch.float32))
        if is_padding is not None:
            scores = scores.masked_fill(is_padding.unsqueeze(-1), HIDDEN)
        weights = scores.softmax(dim=1).to(states.dtype)
        glimpses = torch.matmul(weights.transpose(1, 2), states)
        return self.merge(glimpses.flatten(1))


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """View [B, T, D] as [B, H, T, D / H]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(states: Tensor) -> Tensor:
    """Undo ``split_heads``: [B, H, T, D / H] -> [B, T, D]."""
    return states.transpose(1, 2).flatten(2)
