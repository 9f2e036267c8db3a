"""Losses over a batch, summed or averaged as the original has them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional


def answer_loss(scores: Tensor, target: Tensor, *, loss: Literal["bce", "kld", "ce"]) -> Tensor:
    """The loss of each sample.

    Args:
        scores: answer logits, [B, A], float32.
        target: soft scores [B, A] for ``bce`` and ``kld``, answer indices [B] for ``ce``.
        loss: which.

    Returns:
        Losses summed over the answers, [B].
    """
    if loss == "ce":
        return functional.cross_entropy(scores, target, reduction="none")
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(dim=1)
    return functional.kl_div(scores.log_softmax(dim=1), target, reduction="none").sum(dim=1)


def mean_elements(num_samples: int, num_answers: int, *, loss: Literal["bce", "kld", "ce"]) -> int:
    """What torch's ``mean`` reduction divides a batch's summed loss by."""
    return num_samples if loss == "ce" else num_samples * num_answers
