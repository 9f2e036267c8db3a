"""TRAR's routed attention: the paper's equations, in plain torch on any device.

Each span k lets a cell attend to a part of the grid. The map of an image is the blend of the spans' maps,

    map[m] = sum over k of  alpha_k * softmax over span k (s)[m],

with one score matrix s for all spans. To do it in one pass, sort the keys of a query into classes: two keys are of one
class if the same spans hold both. Classes do not overlap, and a span is a union of classes. So its softmax is a
product: the softmax of the score within its class, times that of the class among the classes of the span. Only the
second factor depends on k, and it has one number a class, not one a key:

    lse_c   = log-sum-exp of the scores in class c
    share_c = sum over the spans k that hold c of  alpha_k * exp(lse_c - lse_k),   lse_k = log-sum-exp of their lse_c
    map[m]  = exp(s[m] - lse_c) * share_c,   c the class of key m.

No exponent is above 0, so all is finite however far the scores of two spans lie apart. This is ``exp(s + w_c)`` with
w_c = log(share_c) - lse_c, without the logarithm of an alpha that may be 0. Attention without spans has one class.

Padding keeps the meaning it had when the published weights were trained: hidden scores were -1e9, so the softmax of a
span that shows nothing but padding to a query is uniform over all keys.

Dropout, on every device: it is applied once, to the blended map. Each element is kept with probability 1 - p,
independently of the others, and scaled by 1 / (1 - p). The random numbers come from torch's generator, or from a seed
that it draws; on the CPU p is rounded to a multiple of 2**-16. The same rule holds in the feed-forward layers and the
residual connections.

Source: TRAR (ICCV 2021), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.registry import KERNELS

HIDDEN = -1e9  # the score of what is not to be seen; far below any other, yet finite, and so are all gradients


def blended_map(
    query: Tensor,
    key: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
) -> Tensor:
    """Blend the attention maps of K spans; arguments as for ``reference_attention``.

    Returns:
        [B, H, T, M], float32 (float64 for float64 queries). Rows add up to the sum of the span weights.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.mT  # [B, H, T, M]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if is_padding is not None:
        scores = scores.masked_fill(is_padding[:, None, None, :], HIDDEN)
    num_classes = contains.shape[1]
    if pair_class is None:
        in_class = torch.ones(1, 1, 1, dtype=torch.bool, device=scores.device)
    else:
        in_class = pair_class == torch.arange(num_classes, device=scores.device)[:, None, None]  # [C, T, M]

    def per_key(per_class: Tensor) -> Tensor:  # [B, H, T, C] -> [B, H, T, M]
        result = per_class[..., :1]
        for number in range(1, num_classes):
            result = torch.where(in_class[number], per_class[..., number : number + 1], result)
        return result

    # Log-sum-exp of each class: the scores less the largest of their class, then one exponential serves all spans.
    largest = torch.stack([scores.masked_fill(~keys, HIDDEN).amax(dim=-1) for keys in in_class], dim=-1).detach()
    exponentials = torch.exp(scores - per_key(largest))
    sums = torch.stack([torch.where(keys, exponentials, 0.0).sum(dim=-1) for keys in in_class], dim=-1)
    sums = sums.clamp_min(1.0)  # what only a class without keys is below
    lse = largest + sums.log()  # [B, H, T, C]

    # The share of each class: its softmax among the classes of a span, blended over the spans.
    of_span = lse[..., None, :].masked_fill(~contains, 2 * HIDDEN)  # [B, H, T, K, C]
    is_empty = of_span.detach().amax(dim=-1) < HIDDEN / 2  # [B, H, T, K]
    weights = span_weights.to(scores.dtype)[:, None, None, :]  # [B, 1, 1, K]
    share = (weights.masked_fill(is_empty, 0.0)[..., None] * of_span.softmax(dim=-1)).sum(dim=-2)  # [B, H, T, C]
    uniform = (weights * is_empty).sum(dim=-1, keepdim=True) / key.shape[-2]  # [B, H, T, 1]
    return exponentials * per_key(share / sums) + uniform


@KERNELS.register("reference")
def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attend through a blend of K spans. Every attention kernel has these arguments and this result.

    Axes: B batch, H heads, T queries, M keys, d width of a head, K spans, C classes.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d], or of another width.
        span_weights: alpha, how much of each span, [B, K].
        pair_class: class of each query and key, [T, M]; None if all are of class 0.
        contains: whether span k holds class c, [K, C] bool; a class that no span holds is outside all of them.
        is_padding: keys not to look at, [B, M] bool; None looks at all.
        dropout: probability of dropping an element of the blended map.

    Returns:
        [B, H, T, d], as wide as the value.
    """
    blended = blended_map(query, key, span_weights, pair_class, contains, is_padding)
    return functional.dropout(blended, dropout).to(value.dtype) @ value
