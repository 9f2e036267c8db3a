"""Looking into a model while it answers: where it looks, and through which spans.

Axes: B questions, T words, N cells, W feature width, A answers, L layers, K spans, H heads, G glimpses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trarctl.engine.ensemble import probabilities
from trarctl.model.trar import TRAR


@dataclass(frozen=True)
class Insight:
    """What a model says to a few questions, and how it came to say so; everything on the CPU.

    Attributes:
        probabilities: of each answer, [B, A].
        routes: span weights before binarizing, [B, L, K].
        answer_attention: share of each cell in the picture's summary that the answer is read from; mean over the
            glimpses, [B, N].
        layer_attention: for each layer, share of each cell in what was looked at; mean over the heads, and over the
            looking cells weighted by ``answer_attention``; [B, L, N].
    """

    probabilities: NDArray[np.float32]
    routes: NDArray[np.float32]
    answer_attention: NDArray[np.float32]
    layer_attention: NDArray[np.float32]


def inspect(
    model: TRAR, question_tokens: Tensor, features: Tensor, *, temperature: float, is_exclusive: bool
) -> Insight:
    """Answer questions and tell where the model looked.

    Args:
        model: in evaluation mode, whose device and precision are used.
        question_tokens: word indices, 0 is padding, [B, T].
        features: grid features of each question's picture, [B, N, W].
        temperature: of hard routing.
        is_exclusive: probabilities are a softmax over the answers, otherwise a sigmoid of each.
    """
    device = model.head.weight.device
    with torch.inference_mode(), _recording(model) as (layer_inputs, pool_inputs):
        scores, routes = model(question_tokens.to(device), features.to(device), temperature=temperature)
        pooled = _pool_weights(model, *pool_inputs[0])
        maps = _layer_maps(model, layer_inputs, routes)
        looked_at = torch.stack([torch.einsum("bn,bhnm->bm", pooled, one) / one.shape[1] for one in maps], dim=1)
    return Insight(
        probabilities(scores.cpu().numpy(), is_exclusive=is_exclusive),
        routes.cpu().numpy(),
        pooled.cpu().numpy(),
        looked_at.cpu().numpy(),
    )


def attention_maps(model: TRAR, question_tokens: Tensor, features: Tensor, *, temperature: float) -> NDArray[Any]:
    """The blended attention map of each visual layer, [B, L, H, N, N] float32; arguments as for ``inspect``."""
    device = model.head.weight.device
    with torch.inference_mode(), _recording(model) as (layer_inputs, _):
        _, routes = model(question_tokens.to(device), features.to(device), temperature=temperature)
        maps = _layer_maps(model, layer_inputs, routes)
    return torch.stack(maps, dim=1).cpu().numpy()


Inputs = list[tuple[Tensor, Tensor]]


@contextmanager
def _recording(model: TRAR) -> Iterator[tuple[Inputs, Inputs]]:
    """While this lasts, what the routed layers and the pooling of the picture are given is noted down."""
    layer_inputs: Inputs = []
    pool_inputs: Inputs = []

    def note(inputs: Inputs) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.append((arguments[0], arguments[1]))

        return hook

    routes: list[Any] = [layer.route for layer in model.visual_layers]
    handles = [route.register_forward_pre_hook(note(layer_inputs)) for route in routes]
    handles.append(model.image_pool.register_forward_pre_hook(note(pool_inputs)))
    try:
        yield layer_inputs, pool_inputs
    finally:
        for handle in handles:
            handle.remove()


def _layer_maps(model: TRAR, layer_inputs: Inputs, routes: Tensor) -> list[Tensor]:
    """The map that each layer blended, [B, H, N, N]."""
    layers: list[Any] = list(model.visual_layers)
    return [
        layer.route.attention_map(cells, is_padding, routes[:, number])
        for number, (layer, (cells, is_padding)) in enumerate(zip(layers, layer_inputs, strict=True))
    ]


def _pool_weights(model: TRAR, cells: Tensor, is_padding: Tensor) -> Tensor:
    """How much of each cell goes into the summary of the picture, mean over the glimpses, [B, N]."""
    scores = model.image_pool.scorer(cells).float().masked_fill(is_padding.unsqueeze(-1), -1e9)
    return scores.softmax(dim=1).mean(dim=-1)
