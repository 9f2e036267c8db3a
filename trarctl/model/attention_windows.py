"""Softmax statistics of nested windows over one block of scores.

Axes: R queries and I examples times heads of a block, M keys, K spans, C distance classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores up to this size need no shift: exp(60) times the numbers of a row is far from the limits of float32.
SAFE_SCORES = {torch.float32: 60.0, torch.float64: 600.0}


class RowClasses:
    """The distance classes of some rows of the scores: sums over a class, factors for a class.

    Both are matrix products with the class indicators of a row, batched over the rows, so they read or write the
    scores once however many classes there are.

    Args:
        pair_class: class of each query of these rows and key, [R, M]; C is outside all; None if there is one class.
        contains: whether span k holds class c, [K, C].
        dtype: of the scores.
    """

    def __init__(self, pair_class: Tensor | None, contains: Tensor, dtype: torch.dtype) -> None:
        self.contains = contains
        self.pair_class = pair_class
        if pair_class is not None:
            classes = torch.arange(contains.shape[1], device=pair_class.device).unsqueeze(-1)
            self.is_class = pair_class.unsqueeze(1) == classes
            self._spread = self.is_class.to(dtype)
            self._sum = self._spread.transpose(1, 2).contiguous()

    def to(self, dtype: torch.dtype) -> RowClasses:
        """The same classes for scores of another dtype."""
        return RowClasses(self.pair_class, self.contains, dtype)

    def sums(self, numbers: Tensor) -> Tensor:
        """Add up over each class: [I, R, M] -> [R, I, C]."""
        if self.pair_class is None:
            return numbers.sum(dim=-1).t().unsqueeze(-1)
        return torch.bmm(numbers.transpose(0, 1), self._sum)

    def spread(self, factors: Tensor) -> Tensor:
        """Give each key the factor of its class, 0 outside all: [R, I, C] -> [I, R, M]; [I, R, 1] if all have one."""
        if self.pair_class is None:
            return factors.transpose(0, 1)
        return torch.bmm(factors, self._spread).transpose(0, 1)

    def maxima(self, scores: Tensor) -> Tensor:
        """The largest score in each class: [I, R, M] -> [R, I, C]; -inf where a class has none."""
        if self.pair_class is None:
            return scores.amax(dim=-1).t().unsqueeze(-1)
        largest = [
            scores.masked_fill(~self.is_class[:, index], -torch.inf).amax(dim=-1).t()
            for index in range(self.is_class.shape[1])
        ]
        return torch.stack(largest, dim=-1)

    def shift_(self, scores: Tensor, centers: Tensor) -> Tensor:
        """Subtract from each score the center of its class, infinity outside all; without rounding the center."""
        if self.pair_class is None:
            return scores.sub_(centers.transpose(0, 1))
        outside = torch.full_like(centers[..., :1], torch.inf)
        table = torch.cat([centers, outside], dim=-1).transpose(0, 1)
        return scores.sub_(table.gather(-1, self.pair_class.long().expand(scores.shape)))


@dataclass(frozen=True)
class Shares:
    """How the exponentials of a block relate to the softmax of each span.

    Span k's softmax is exponential * ``scale`` [k, class] * ``inverse`` [k].

    Attributes:
        inverse: one over the span's sum, 0 where a span has nothing to see, [R, I, K].
        scale: [K, C], or [R, I, K, C] if classes are shifted on their own.
        is_empty: where a span has nothing to see, [R, I, K]; None if nowhere.
    """

    inverse: Tensor
    scale: Tensor
    is_empty: Tensor | None

    def to_classes(self, span_numbers: Tensor) -> Tensor:
        """Blend numbers of the spans into factors of the classes: [R, I, K] -> [R, I, C]."""
        numbers = span_numbers * self.inverse
        if self.scale.dim() == 2:
            return numbers @ self.scale
        return (numbers.unsqueeze(-1) * self.scale).sum(dim=-2)

    def to_spans(self, class_sums: Tensor) -> Tensor:
        """Average over the spans, from sums over the classes: [R, I, C] -> [R, I, K]."""
        if self.scale.dim() == 2:
            return (class_sums @ self.scale.t()) * self.inverse
        return (class_sums.unsqueeze(-2) * self.scale).sum(dim=-1) * self.inverse


def is_safe(scores: Tensor) -> bool:
    """Whether exponentials need no shift; never so where asking would stop the device."""
    if scores.device.type != "cpu":
        return False
    lowest, highest = torch.aminmax(scores)
    limit = SAFE_SCORES[scores.dtype]
    return bool(lowest >= -limit) and bool(highest <= limit)


def exponentiate_(scores: Tensor, classes: RowClasses, is_hidden: Tensor | None, *, is_safe: bool) -> Shares:
    """Turn scores into exponentials, in place.

    Args:
        scores: [I, R, M].
        classes: of the rows.
        is_hidden: keys that are padding, [I, 1, M]; None if there are none.
        is_safe: whether the exponentials of all scores can be used as they are. Otherwise each class is shifted by
            its own maximum: no common shift saves a window whose scores lie far below those of another.
    """
    contains = classes.contains.to(scores.dtype)
    if is_safe:
        scores.exp_()
        if is_hidden is not None:
            scores.mul_((~is_hidden).to(scores.dtype))
        sums = classes.sums(scores) @ contains.t()
        scale = contains
    else:
        if is_hidden is not None:
            scores.masked_fill_(is_hidden, -torch.inf)
        centers = classes.maxima(scores)
        classes.shift_(scores, centers.nan_to_num(neginf=0.0)).exp_()
        in_span = torch.where(classes.contains, centers.unsqueeze(-2), -torch.inf)
        scale = torch.exp(in_span - in_span.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0))
        sums = (scale * classes.sums(scores).unsqueeze(-2)).sum(dim=-1)
    if is_hidden is None:
        return Shares(sums.reciprocal_(), scale, None)
    is_empty = sums == 0.0
    inverse = sums.reciprocal_().masked_fill_(is_empty, 0.0)
    return Shares(inverse, scale, is_empty if scores.is_cuda or bool(is_empty.any()) else None)
