"""Routers: how much of each attention span an image gets.

A pooling of the router is a module, made from the width D, that sums up the cells of an image: [B, N, D] -> [B, D].
Axes: B batch, N cells, D hidden width, K spans.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trarctl.model.layers import AttentionPooling, SampleNorm
from trarctl.registry import POOLINGS

ATTENTION_POOLING_DROPOUT = 0.1  # fixed by the published model, whatever dropout the rest has


@POOLINGS.register("avg")
class AveragePool(nn.Module):
    """The mean over all cells, padding included."""

    def __init__(self, _size: int) -> None:
        super().__init__()

    def forward(self, cells: Tensor) -> Tensor:
        """Average over the cells."""
        return cells.mean(dim=1)


@POOLINGS.register("attention")
class AttentionPool(nn.Module):
    """An attention pooling with its own output norm; padding is weighed too, as in the published model."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.flat = AttentionPooling(size, size, out_size=size, dropout=ATTENTION_POOLING_DROPOUT)
        self.norm = SampleNorm(size)

    def forward(self, cells: Tensor) -> Tensor:
        """Weigh, sum up and norm."""
        return self.norm(self.flat(cells, None))


@POOLINGS.register("fc")
class LinearPool(nn.Module):
    """A sum weighted by the softmax of one linear score a cell."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(size, 1)

    def forward(self, cells: Tensor) -> Tensor:
        """Weigh and sum up."""
        weights = self.scorer(cells).softmax(dim=1)
        return torch.matmul(weights.transpose(1, 2), cells).squeeze(1)


class Router(nn.Module):
    """Weigh the attention spans for each image.

    Args:
        size: width D of the cells.
        num_spans: K.
        pooling: name in POOLINGS of what sums up the image.
        is_hard: sample towards a single span with Gumbel noise while training; the noise is fresh in each forward.

    Source: TRAR (ICCV 2021), section 3.2; Gumbel softmax: Jang et al. (ICLR 2017).
    """

    def __init__(self, size: int, num_spans: int, *, pooling: str, is_hard: bool) -> None:
        super().__init__()
        self.pool = POOLINGS[pooling](size)
        self.squeeze = nn.Linear(size, size // 2, bias=False)
        self.score = nn.Linear(size // 2, num_spans)
        self.is_hard = is_hard

    def forward(self, cells: Tensor, *, temperature: float | Tensor) -> Tensor:
        """Weigh the spans.

        Args:
            cells: grid states, [B, N, D].
            temperature: > 0; used by hard routing only, noise in training only.

        Returns:
            Weights that sum to 1 over the spans, float32 (float64 for float64 cells), [B, K].
        """
        logits = self.score(functional.relu(self.squeeze(self.pool(cells))))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not self.is_hard:
            return logits.softmax(dim=-1)
        choice = logits.log_softmax(dim=-1)
        if self.training:
            choice = choice + gumbel_like(choice)
        return (choice / temperature).softmax(dim=-1)


def gumbel_like(tensor: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of ``tensor``, always finite."""
    exponential = torch.empty_like(tensor).exponential_()
    return -exponential.clamp_min(torch.finfo(tensor.dtype).tiny).log()
