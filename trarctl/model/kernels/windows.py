"""Softmax statistics of nested windows over one block of scores.

Axes: R queries and I examples times heads of a block, M keys, K spans, C distance classes, G groups of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Scores up to this size need no shift: 2**85 times the numbers of a row is far from the limits of float32.
SAFE_SCORES = {torch.float32: 85.0, torch.float64: 850.0}


@dataclass(frozen=True)
class Groups:
    """Groups of the keys, other ones for each query: sums over a group, factors for a group.

    Both are matrix products with the indicators of a query's groups, batched over the queries, so they read or write
    the scores once however many groups there are.

    Attributes:
        members: 1 where a group of the query holds the key, [R, G, M]; None if there is one group of all keys.
    """

    members: Tensor | None

    def sums(self, numbers: Tensor) -> Tensor:
        """Add up over each group: [I, R, M] -> [R, G, I]."""
        if self.members is None:
            return numbers.sum(dim=-1).t().unsqueeze(1)
        # The indicators come first: as the second factor they would be a third as fast.
        return torch.bmm(self.members, numbers.permute(1, 2, 0))

    def spread(self, factors: Tensor) -> Tensor:
        """Give each key the sum of the factors of its groups: [R, G, I] -> [I, R, M]; [I, R, 1] if all have one."""
        if self.members is None:
            return factors.permute(2, 0, 1)
        return torch.bmm(factors.transpose(1, 2), self.members).transpose(0, 1)


class RowWindows:
    """What the spans show to some of the queries.

    Args:
        pair_class: distance class of each of these queries and each key, [R, M] uint8; C is outside all spans; None if
            all keys are of class 0.
        contains: whether span k holds class c, [K, C] bool.
        dtype: of the scores.
    """

    def __init__(self, pair_class: Tensor | None, contains: Tensor, dtype: torch.dtype) -> None:
        self.pair_class = pair_class
        self.contains = contains
        self.dtype = dtype

    def to(self, dtype: torch.dtype) -> RowWindows:
        """The same windows for scores of another dtype."""
        return RowWindows(self.pair_class, self.contains, dtype)

    @cached_property
    def spans(self) -> Groups:
        """One group a span, the keys that it shows; they overlap."""
        return self._groups(torch.lt, self.contains.sum(dim=-1))

    @cached_property
    def classes(self) -> Groups:
        """One group a distance class; no key is in two."""
        return self._groups(torch.eq, torch.arange(self.contains.shape[1], device=self.contains.device))

    def _groups(self, compare: Callable[..., Tensor], bounds: Tensor) -> Groups:
        """The keys whose class compares well with a group's bound, [G]."""
        if self.pair_class is None:
            return Groups(None)
        rows, keys = self.pair_class.shape
        # A comparison that writes the type it reads is many times faster than one that writes bool.
        members = torch.empty(rows, len(bounds), keys, dtype=torch.uint8, device=bounds.device)
        compare(self.pair_class.unsqueeze(1), bounds.to(torch.uint8).unsqueeze(-1), out=members)
        return Groups(members.to(self.dtype))

    def maxima(self, scores: Tensor) -> Tensor:
        """The largest score in each class: [I, R, M] -> [R, C, I]; -inf where a class has none."""
        members = self.classes.members
        if members is None:
            return scores.amax(dim=-1).t().unsqueeze(1)
        largest = [scores.masked_fill(is_in == 0.0, -torch.inf).amax(dim=-1).t() for is_in in members.unbind(dim=1)]
        return torch.stack(largest, dim=1)

    def shift_(self, scores: Tensor, centers: Tensor) -> Tensor:
        """Subtract from each score the center of its class, infinity outside all; without rounding the center."""
        if self.pair_class is None:
            return scores.sub_(centers.permute(2, 0, 1))
        outside = torch.full_like(centers[:, :1], torch.inf)
        table = torch.cat([centers, outside], dim=1).permute(2, 0, 1)
        return scores.sub_(table.gather(-1, self.pair_class.long().expand(scores.shape)))


@dataclass(frozen=True)
class Shares:
    """How the exponentials of a block relate to the softmax of each span.

    Span k's softmax is exponential * ``inverse`` [k] where it shows a key, and also * ``scale`` [k, class] if there is
    one.

    Attributes:
        groups: of the keys, over which sums are taken: the spans, or with a scale the classes.
        inverse: one over the span's sum, 0 where a span has nothing to see, [R, K, I].
        scale: [R, K, C, I] if each class has been shifted on its own, else None.
        is_empty: where a span has nothing to see, [R, K, I]; None if nowhere.
    """

    groups: Groups
    inverse: Tensor
    scale: Tensor | None
    is_empty: Tensor | None

    def blend(self, span_numbers: Tensor) -> Tensor:
        """What to multiply the exponentials by, so that they add up the spans' softmaxes times these numbers.

        Args:
            span_numbers: [K, I] or [R, K, I].

        Returns:
            [I, R, M], or [I, R, 1] where all keys have one factor.
        """
        factors = self.inverse * span_numbers
        if self.scale is not None:
            factors = (factors.unsqueeze(2) * self.scale).sum(dim=1)
        return self.groups.spread(factors)

    def averages(self, numbers: Tensor) -> Tensor:
        """Average numbers, already times the exponentials, under each span's softmax: [I, R, M] -> [R, K, I]."""
        sums = self.groups.sums(numbers)
        if self.scale is not None:
            sums = (sums.unsqueeze(1) * self.scale).sum(dim=2)
        return sums.mul_(self.inverse)


def is_safe(scores: Tensor) -> bool:
    """Whether exponentials need no shift; never so where asking would stop the device."""
    if scores.device.type != "cpu":
        return False
    lowest, highest = torch.aminmax(scores)
    limit = SAFE_SCORES[scores.dtype]
    return bool(lowest >= -limit) and bool(highest <= limit)


def exponentiate_(scores: Tensor, windows: RowWindows, is_hidden: Tensor | None, *, is_safe: bool) -> Shares:
    """Turn scores into exponentials, in place.

    Args:
        scores: in units of log 2, since powers of 2 take two thirds of the time of powers of e, [I, R, M].
        windows: of the rows.
        is_hidden: keys that are padding, [I, 1, M]; None if there are none.
        is_safe: whether the exponentials of all scores can be used as they are. Otherwise each class is shifted by
            its own maximum: no common shift saves a window whose scores lie far below those of another.
    """
    if is_safe:
        scores.exp2_()
        if is_hidden is not None:
            scores.mul_((~is_hidden).to(scores.dtype))
        return share(scores, windows, is_hidden)
    if is_hidden is not None:
        scores.masked_fill_(is_hidden, -torch.inf)
    centers = windows.maxima(scores)
    windows.shift_(scores, centers.nan_to_num(neginf=0.0)).exp2_()
    in_span = torch.where(windows.contains.unsqueeze(-1), centers.unsqueeze(1), -torch.inf)
    scale = torch.exp2(in_span - in_span.amax(dim=2, keepdim=True).nan_to_num(neginf=0.0))
    return share(scores, windows, is_hidden, scale)


def share(exponentials: Tensor, windows: RowWindows, is_hidden: Tensor | None, scale: Tensor | None = None) -> Shares:
    """Relate exponentials [I, R, M], 0 where a key is hidden, to the softmax of each span; see ``Shares``."""
    groups = windows.spans if scale is None else windows.classes
    sums = groups.sums(exponentials)
    if scale is not None:
        sums = (scale * sums.unsqueeze(1)).sum(dim=2)
    if is_hidden is None:
        return Shares(groups, sums.reciprocal_(), scale, None)
    is_empty = sums == 0.0
    inverse = sums.reciprocal_().masked_fill_(is_empty, 0.0)
    return Shares(groups, inverse, scale, is_empty if exponentials.is_cuda or bool(is_empty.any()) else None)
