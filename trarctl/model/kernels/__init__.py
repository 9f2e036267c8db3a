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

# Triton computes float32 products without tensor cores, and scores five times where the reference does it once: 12
# products a pair of query and key against 6. An H100 took 12.2 ms for 2**25 pairs, and 7.4 for the reference; but the
# launches of the reference take 6 ms for however few, in which Triton is done with 2**24.
LARGE = 2**24
BYTES_A_PAIR = 256  # what the reference keeps in six layers; 216 on an H100, at 8x8


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
    if not triton.supports(query, key, value):
        return "reference"
    return "reference" if triton.is_exact(query) and _is_large(query, key) else "triton"


def _is_large(query: Tensor, key: Tensor) -> bool:
    """Whether exact float32 attention takes longer by Triton than by the reference, whose maps would fit."""
    if query.device.type != "cuda":  # the interpreter's
        return False
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return LARGE < pairs < _memory(query.device) / (2 * BYTES_A_PAIR)


def _memory(device: torch.device) -> int:
    """Of a GPU, in bytes."""
    size: int = torch.cuda.get_device_properties(device).total_memory
    return size


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
