"""Attention cores: plain, and routed through several spans at once.

Axes: B batch, H heads, T queries, M keys, N cells, d width of a head, K spans.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.model.attention_kernel import blended_attention
from trarctl.model.spans import Spans


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, is_padding: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Plain multi-head attention.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d].
        is_padding: keys not to look at, [B, M] bool; None looks at all.
        dropout: probability, applied to the attention map.

    Returns:
        [B, H, T, d]; rows of examples whose keys are all padding are the plain average of the values.
    """
    one_span = torch.ones(1, 1, dtype=torch.bool, device=query.device)
    weights = torch.ones(query.shape[0], 1, device=query.device)
    return blended_attention(query, key, value, weights, None, one_span, is_padding, dropout, _seed(dropout))


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    spans: Spans,
    *,
    is_padding: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over the cells of a grid, blended from K spans for each example.

    The attention map is the sum over the spans of ``span_weights`` times the softmax of the scores inside that span.

    Args:
        query: [B, H, N, d].
        key: [B, H, N, d].
        value: [B, H, N, d].
        span_weights: how much of each span, [B, K].
        spans: the K windows over the N cells.
        is_padding: cells not to look at, [B, N] bool; None looks at all.
        dropout: probability, applied to the blended map.

    Returns:
        [B, H, N, d]. Where a row of a span has only padding to see, that span's part is uniform over all N cells.

    Source: TRAR (ICCV 2021), section 3.
    """
    if spans.is_global:
        attended = attention(query, key, value, is_padding=is_padding, dropout=dropout)
        return attended * span_weights.sum(dim=-1).to(attended.dtype)[:, None, None, None]
    return blended_attention(
        query,
        key,
        value,
        span_weights,
        spans.pair_class,
        spans.contains,
        is_padding,
        dropout,
        _seed(dropout),
    )


@torch.no_grad()
def routed_attention_map(
    query: Tensor, key: Tensor, span_weights: Tensor, spans: Spans, *, is_padding: Tensor | None = None
) -> Tensor:
    """The map of ``routed_attention`` without dropout, to look at: [B, H, N, N] float32, no gradient."""
    batch, heads, num_cells, _ = query.shape
    identity = torch.eye(num_cells, device=query.device).expand(batch, heads, num_cells, num_cells)
    return routed_attention(query.float(), key.float(), identity, span_weights, spans, is_padding=is_padding)


def chosen_span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: Tensor,
    spans: Spans,
    *,
    is_padding: Tensor | None = None,
) -> Tensor:
    """``routed_attention`` where each example uses a single span: ``chosen`` [B], an index into the spans."""
    one_hot = functional.one_hot(chosen, spans.num_spans).to(query.dtype)
    return routed_attention(query, key, value, one_hot, spans, is_padding=is_padding)


def _seed(dropout: float) -> Tensor:
    """A seed for a dropout mask, from the generator that ``torch.manual_seed`` sets; without dropout none is drawn."""
    return torch.randint(2**62, ()) if dropout > 0.0 else torch.zeros((), dtype=torch.int64)
