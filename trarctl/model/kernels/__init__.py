"""What computes attention, dropout and the norm: the only place that knows devices.

An attention kernel is one function in one file, registered in ``trarctl.registry.KERNELS``, with the arguments and the
result of ``trarctl.model.attention.reference_attention``, which it is tested against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.model.kernels import cpu, triton, triton_layers
from trarctl.model.spans import Spans
from trarctl.registry import KERNELS


def runs_on_cpu(states: Tensor) -> bool:
    """Whether the CPU's own kernels are for these states; what a compiler traces must be plain torch."""
    return states.device.type == "cpu" and not torch.compiler.is_compiling()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    span_weights: Tensor | None = None,
    spans: Spans | None = None,
    is_padding: Tensor | None,
    dropout: float = 0.0,
    kernel: str = "auto",
) -> Tensor:
    """Attend through a blend of spans, or to everything.

    Args:
        query: [B, H, T, d].
        key: [B, H, M, d].
        value: [B, H, M, d].
        span_weights: how much of each span, [B, K]; None attends to everything.
        spans: the K spans, if there are span weights.
        is_padding: keys not to look at, [B, M] bool; None looks at all.
        dropout: probability, applied to the blended map.
        kernel: name in KERNELS; ``auto`` takes the fastest one.

    Returns:
        [B, H, T, d].
    """
    if kernel == "auto":
        kernel = _fastest(query, key, value)
    if span_weights is None or spans is None:
        span_weights = query.new_ones(query.shape[0], 1)
        pair_class, contains = None, torch.ones(1, 1, dtype=torch.bool, device=query.device)
    else:
        pair_class, contains = spans.pair_class, spans.contains
    attended: Tensor = KERNELS[kernel](query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    return attended


def _fastest(query: Tensor, key: Tensor, value: Tensor) -> str:
    if runs_on_cpu(query):
        return "cpu"
    return "triton" if triton.supports(query, key, value) else "reference"


def dropout(states: Tensor, probability: float) -> Tensor:
    """Drop elements with a probability < 1, by the rule in ``trarctl.model.attention``."""
    if not probability or not runs_on_cpu(states):
        return functional.dropout(states, probability)
    return _apply(cpu._Dropout, states, probability, cpu.draw_seed())


def relu_dropout(states: Tensor, probability: float) -> Tensor:
    """Apply ``dropout(relu(states))``."""
    if not probability:
        return functional.relu(states)
    if runs_on_cpu(states):
        return _apply(cpu._ReluDropout, states, probability, cpu.draw_seed())
    if triton_layers.drops(states):
        return triton_layers.relu_dropout(states, probability)
    return functional.dropout(functional.relu(states), probability)


def sample_norm(states: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Turn the last axis into gain * (states - mean) / (sample deviation + eps) + bias, float32 at least."""
    if runs_on_cpu(states):
        return _apply(cpu._SampleNorm, states, gain, bias, eps)
    if triton_layers.norms(states, None, gain):
        return triton_layers.norm(states, None, gain, bias, eps, 0.0)
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    deviation, mean = torch.std_mean(wide, dim=-1, keepdim=True)
    return torch.addcmul(bias, (wide - mean) / (deviation + eps), gain)


def residual_norm(states: Tensor, change: Tensor, gain: Tensor, bias: Tensor, eps: float, probability: float) -> Tensor:
    """Apply ``sample_norm(states + dropout(change))``."""
    if not runs_on_cpu(states) and triton_layers.norms(states, change, gain):
        return triton_layers.norm(states, change, gain, bias, eps, probability)
    return sample_norm(states + dropout(change, probability), gain, bias, eps)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result
