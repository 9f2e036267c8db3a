"""Routed attention as Triton kernels: no map and no mask in memory, forward and backward.

The words are those of ``trarctl.model.attention``; ``kept`` is the factor of dropout, 0 or 1 / (1 - p).

Forward, a block of queries at a time. A first pass over the keys finds, for each class, its largest score and sum_c,
the sum of exp(s - largest_c). The two stay apart: lse_c = largest_c + log(sum_c) would lose digits where it is far from
0. The spans then need no key. With top_k the largest score of the classes in span k,

    within_kc = exp(largest_c - top_k) / (sum over the classes d of span k of  sum_d * exp(largest_d - top_k)),
    factor_c  = sum over the spans k that hold c of  alpha_k * within_kc,
    map[m]    = exp(s[m] - largest_c) * factor_c + uniform,

where within_kc is the softmax of span k at the largest score of class c, and uniform the sum of alpha_k / M over the
spans that show the query nothing. A second pass computes kept[m] * map[m] times the values. For the backward pass,
largest_c, sum_c and factor_c are kept: [B, H, T, C] float32.

Backward, with g[m] = kept[m] * (gradient of the result) . value[m], the gradient of the map before dropout. For a block
of queries, a first pass finds a total for each class, and from that its average under the softmax of each span:

    total_c   = sum over the keys m of class c of  exp(s[m] - largest_c) * g[m],
    average_k = sum over the classes c of span k of  within_kc * total_c,   or the mean of g if the span is empty.

The latter, summed over queries and heads, is the gradient of alpha_k. With

    mean_c = the average of average_k over the spans k that hold c, each with the weight alpha_k * within_kc,

the gradient of the score is exp(s[m] - largest_c) * factor_c * (g[m] - mean_c). A second pass gives that of the query;
a kernel of its own, a block of keys at a time, those of key and value.

The class of a pair is read from ``pair_class``: 2 bytes a pair of cells, but one table for all examples and heads, so
that it stays in the cache (8 kB for 8x8 cells, 2 MB for 32x32). It holds for any set of spans.

Random numbers: Philox with a seed that lies on the device, drawn by torch's generator, and the index of the element as
the counter. So a CUDA graph that is replayed draws new ones, and nothing waits for the device.

Products are of the type of the states, float32 ones in TensorFloat-32 where torch may use it; everything else, and all
sums, are float32. No atomics: the same numbers give the same result.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trarctl.model.attention import reference_attention
from trarctl.registry import KERNELS

IS_INSTALLED = importlib.util.find_spec("triton") is not None
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run as Python, on any device
LARGEST_WIDTH = 128  # of a head, for which the kernels are built
# Queries, keys and warps of a block by the precision of products and whether a row of states is long, so that no kernel
# spills a register. Products that are exact to float32 go without tensor cores, and take more registers.
BLOCKS = {
    ("ieee", False): (16, 32, 4),
    ("ieee", True): (16, 16, 8),
    ("tf32", False): (64, 16, 4),
    ("tf32", True): (32, 16, 4),
}
SMALLEST_BLOCK = 16  # of a matrix product in Triton
MOST_REGISTERS = 255  # of a thread, on every GPU


def runs_on(device: torch.device) -> bool:
    """Whether Triton kernels run on a device."""
    return IS_INSTALLED and (device.type == "cuda" or IS_INTERPRETED)


def draw_seed(device: torch.device) -> Tensor:
    """A seed of random masks, [1] int64, from torch's generator of the device."""
    return torch.randint(2**62, (1,), device=device)


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels compute this attention; arguments as for ``reference_attention``."""
    return (
        runs_on(query.device)
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] == value.shape[-1] <= LARGEST_WIDTH
    )


def is_exact(states: Tensor) -> bool:
    """Whether products of these states are exact to float32, and so go without tensor cores."""
    return states.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32


@KERNELS.register("triton")
def triton_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attend as ``reference_attention`` does, which computes what ``supports`` does not name."""
    if not supports(query, key, value):
        return reference_attention(query, key, value, span_weights, pair_class, contains, is_padding, dropout)
    if pair_class is None and len(contains) > 1:  # every span shows everything: together they are one
        span_weights, contains = span_weights.sum(dim=-1, keepdim=True), contains[:1]
    seed = draw_seed(query.device) if dropout > 0.0 else None
    # The kernels take [B, N, H, d], which is how the linear layers lay the heads out: nothing is copied.
    heads = [states.transpose(1, 2).contiguous() for states in (query, key, value)]
    others = [one if one is None else one.contiguous() for one in (span_weights, pair_class, contains, is_padding)]
    out, *_ = _attention(*heads, *others, seed, dropout)
    return out.transpose(1, 2)


@torch.library.custom_op("trarctl::routed_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, [B, T, H, d], and largest_c, sum_c and factor_c, [B, H, T, C] each, for heads [B, N, H, d]."""
    results = _empty_results(query, contains)
    arguments = _arguments(query, key, contains, dropout)
    with torch.cuda.device_of(query):
        _device().forward[_grid(query, arguments["BLOCK_QUERIES"])](
            *(query, key, value, span_weights, pair_class, contains, is_padding, seed, *results),
            NUM_SPANS=len(contains),
            BLOCK_CLASSES=_power_of_2(contains.shape[1]),
            **arguments,
        )
    return results


@torch.library.custom_op("trarctl::routed_attention_backward", mutates_args=())
def _attention_backward(
    gradient: Tensor,
    largest: Tensor,
    sums: Tensor,
    factor: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span_weights: Tensor,
    pair_class: Tensor | None,
    contains: Tensor,
    is_padding: Tensor | None,
    seed: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and, float32, of the span weights; that of the result is [B, T, H, d]."""
    of_query, of_key, of_value = (torch.empty_like(states) for states in (query, key, value))
    mean, uniform = torch.empty_like(largest), largest.new_empty(largest.shape[:3])
    arguments = _arguments(query, key, contains, dropout)
    grid = _grid(query, arguments["BLOCK_QUERIES"])
    of_weights = largest.new_empty(len(query), grid[0] // len(query), len(contains))
    with torch.cuda.device_of(query):
        _device().backward_queries[grid](
            *(query, key, value, span_weights, pair_class, contains, is_padding, seed, gradient),
            *(largest, sums, factor, mean, uniform, of_query, of_weights),
            NUM_SPANS=len(contains),
            BLOCK_CLASSES=_power_of_2(contains.shape[1]),
            **arguments,
        )
        _device().backward_keys[_grid(key, arguments["BLOCK_KEYS"])](
            *(query, key, value, pair_class, is_padding, seed, gradient),
            *(largest, factor, mean, uniform, of_key, of_value),
            **arguments,
        )
    return of_query, of_key, of_value, of_weights.sum(dim=1)


@_attention.register_fake
def _(query: Tensor, _key: Tensor, _value: Tensor, _weights: Tensor, _class: Any, contains: Tensor, *_: Any) -> Any:
    return _empty_results(query, contains)


@_attention_backward.register_fake
def _(_gradient: Tensor, _largest: Tensor, _sums: Tensor, _factor: Tensor, *inputs: Any) -> Any:
    query, key, value, span_weights, *_ = inputs
    return *map(torch.empty_like, (query, key, value)), torch.empty_like(span_weights, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dropout = inputs
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.set_materialize_grads(False)  # no zeros for the statistics, whose gradient nobody asks for


def _differentiate(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 9
    found = _attention_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.dropout)
    return *(one.to(like.dtype) for one, like in zip(found, ctx.saved_tensors[3:7], strict=True)), *(None,) * 5


_attention.register_autograd(_differentiate, setup_context=_save)


def _empty_results(query: Tensor, contains: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_queries, num_heads, _ = query.shape
    largest = query.new_empty(batch, num_heads, num_queries, contains.shape[1], dtype=torch.float32)
    return torch.empty_like(query), largest, torch.empty_like(largest), torch.empty_like(largest)


def _arguments(query: Tensor, key: Tensor, contains: Tensor, dropout: float) -> dict[str, Any]:
    """What all kernels are given beside tensors, for heads [B, N, H, d]."""
    width = query.shape[-1]
    precision = "ieee" if is_exact(query) else "tf32"  # which products of 16 bits do not depend on
    # Before Hopper, tensor cores read both factors from registers, where only rows of half the length fit.
    is_hopper = _capability(query.device) >= 9
    is_long = width * query.element_size() > (256 if is_hopper or precision == "ieee" else 128)
    most_queries, most_keys, num_warps = BLOCKS[precision, is_long]
    return {
        "score_scale": width**-0.5,
        "dropout": dropout,
        "kept_scale": 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0,
        "num_heads": query.shape[2],
        "num_queries": query.shape[1],
        "num_keys": key.shape[1],
        "NUM_CLASSES": contains.shape[1],
        "WIDTH": width,
        "BLOCK_WIDTH": max(SMALLEST_BLOCK, _power_of_2(width)),
        "BLOCK_QUERIES": min(most_queries, max(SMALLEST_BLOCK, _power_of_2(query.shape[1]))),
        "BLOCK_KEYS": min(most_keys, max(SMALLEST_BLOCK, _power_of_2(key.shape[1]))),
        "PRECISION": precision,
        "num_warps": num_warps,
        "num_stages": 1,
        # Left to choose, the assembler spills a few registers here so that one more block fits.
        "maxnreg": None if is_hopper and width > SMALLEST_BLOCK else MOST_REGISTERS,
    }


def _capability(device: torch.device) -> int:
    """The major one: 8 is Ampere, 9 Hopper."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def _grid(states: Tensor, block: int) -> tuple[int]:
    """One program for each block of rows of each example and head, for states [B, N, H, d]."""
    batch, num_rows, num_heads, _ = states.shape
    return (batch * num_heads * -(-num_rows // block),)


def _power_of_2(number: int) -> int:
    """The smallest one that is not below a number >= 1."""
    return 1 << (number - 1).bit_length()


@functools.cache
def _device() -> ModuleType:
    """The kernels, imported when the first is launched: users without a GPU have no triton."""
    return importlib.import_module("trarctl.model.kernels.triton_device")
