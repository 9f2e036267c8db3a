"""Attention cores: plain, and routed through several spans at once.

Axes: B batch, H heads, T queries, M keys, N cells, d width of a head, K spans.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.model.spans import Spans

HIDDEN_SCORE = -1e9  # what TRAR's weights were trained with: a row that sees nothing is uniform, not NaN


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
    scores = _scores(query, key)
    if is_padding is not None:
        scores = scores.masked_fill(is_padding[:, None, None, :], HIDDEN_SCORE)
    weights = functional.dropout(scores.softmax(dim=-1), dropout)
    return torch.matmul(weights.to(value.dtype), value)


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
    weights = _blended_map(query, key, span_weights, spans, is_padding)
    return torch.matmul(functional.dropout(weights, dropout).to(value.dtype), value)


@torch.no_grad()
def routed_attention_map(
    query: Tensor, key: Tensor, span_weights: Tensor, spans: Spans, *, is_padding: Tensor | None = None
) -> Tensor:
    """The map of ``routed_attention`` without dropout, to look at: [B, H, N, N] float32, no gradient."""
    return _blended_map(query, key, span_weights, spans, is_padding)


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


def _scores(query: Tensor, key: Tensor) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    return scores if scores.dtype == torch.float64 else scores.float()


def _blended_map(query: Tensor, key: Tensor, span_weights: Tensor, spans: Spans, is_padding: Tensor | None) -> Tensor:
    scores = _scores(query, key)
    blended = torch.zeros_like(scores)
    for span in range(spans.num_spans):
        is_hidden = ~spans.visible(span)
        if is_padding is not None:
            is_hidden = is_hidden | is_padding[:, None, None, :]
        shown = scores.masked_fill(is_hidden, HIDDEN_SCORE).softmax(dim=-1)
        blended = blended + span_weights[:, span, None, None, None] * shown
    return blended
