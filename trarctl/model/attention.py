"""Attention cores: plain, and routed through several spans at once.

Axes: B batch, H heads, T queries, M keys, N cells, d width of a head, K spans.

Padding keeps the meaning it had when TRAR's published weights were trained, where hidden scores were -1e9: a row with
nothing to see is uniform over all its keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.model.kernels.cpu import blended_attention
from trarctl.model.spans import Spans


def attention(query: Tensor, key: Tensor, value: Tensor, *, is_padding: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Plain multi-head attention.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d].
        is_padding: keys not to look at, [B, M] bool; None looks at all.
        dropout: probability, applied to the attention map.

    Returns:
        [B, H, T, d]; examples whose keys are all padding get the plain average of the values.
    """
    if dropout == 0.0 or query.is_cuda:
        is_hidden = None if is_padding is None else is_padding[:, None, None, :]
        return _masked_attention(query, key, value, is_hidden, dropout=dropout)
    return blended_attention(
        query,
        key,
        value,
        torch.ones(query.shape[0], 1, device=query.device),
        pair_class=None,
        contains=torch.ones(1, 1, dtype=torch.bool, device=query.device),
        is_padding=is_padding,
        dropout=dropout,
    )


def routed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    spans: Spans,
    *,
    is_padding: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention over the cells of a grid, blended from K spans for each example.

    The attention map is the sum over the spans of ``span_weights`` times the softmax of the scores inside that span;
    it is never held as a whole.

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
        pair_class=spans.pair_class,
        contains=spans.contains,
        is_padding=is_padding,
        dropout=dropout,
    )


@torch.no_grad()
def routed_attention_map(
    query: Tensor, key: Tensor, span_weights: Tensor, spans: Spans, *, is_padding: Tensor | None
) -> Tensor:
    """The map of ``routed_attention`` without dropout, to look at: [B, H, N, N] float32, no gradient."""
    batch, heads, num_cells, _ = query.shape
    identity = torch.eye(num_cells, device=query.device).expand(batch, heads, num_cells, num_cells)
    return routed_attention(query.float(), key.float(), identity, span_weights, spans, is_padding=is_padding)


def chosen_span_attention(
    query: Tensor, key: Tensor, value: Tensor, chosen: Tensor, spans: Spans, *, is_padding: Tensor | None
) -> Tensor:
    """``routed_attention`` where each example uses one span and the others are not computed.

    Args:
        query: [B, H, N, d].
        key: [B, H, N, d].
        value: [B, H, N, d].
        chosen: index of the span of each example, [B].
        spans: the K windows over the N cells.
        is_padding: cells not to look at, [B, N] bool; None looks at all.

    Returns:
        [B, H, N, d].
    """
    if spans.is_global:
        return attention(query, key, value, is_padding=is_padding)
    is_hidden = spans.pair_class >= spans.contains.sum(dim=-1)[chosen][:, None, None]
    if is_padding is not None:
        is_hidden = is_hidden | is_padding[:, None, :]
    return _masked_attention(query, key, value, is_hidden.unsqueeze(1))


def _masked_attention(
    query: Tensor, key: Tensor, value: Tensor, is_hidden: Tensor | None, *, dropout: float = 0.0
) -> Tensor:
    """Attention with a mask [B, 1, T or 1, M]; rows where everything is hidden become uniform over all keys."""
    if is_hidden is None:
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    is_blind = is_hidden.all(dim=-1, keepdim=True)
    return functional.scaled_dot_product_attention(
        query.masked_fill(is_blind, 0.0), key, value, attn_mask=~is_hidden | is_blind, dropout_p=dropout
    )
