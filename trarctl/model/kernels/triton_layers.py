"""Norm with residual and dropout, and ReLU with dropout, as one Triton kernel each where torch takes five or two.

The norm is gain * (x - mean) / (deviation + eps) + bias with x = states + dropout(change), the sample deviation, and
everything float32 whatever the states are. Let y be the fraction, g the gradient of the result times gain, D the width.
Then, as derived in ``trarctl.model.kernels.cpu``, the gradient of x is

    (g - mean(g)) / (deviation + eps) - y * sum(y * g) / ((D - 1) * deviation),

that of states is the same, that of change what dropout lets pass. For gain and bias each program adds up its rows, and
torch adds up the programs: no atomics, the same numbers give the same result. Rows are read and normed again in the
backward pass, so that nothing is kept but the inputs; of ReLU and dropout the result, which the next layer keeps too.

Random numbers are those of ``trarctl.model.kernels.triton``: a seed on the device, and an element's place as counter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trarctl.model.kernels import triton

STATE_TYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_WIDTH = 4096  # of a row, which lies in the registers of one program
MOST_WARPS = 16  # of a row
WARP_WIDTH = 256  # elements of a row for each warp: 8 a thread
MOST_PROGRAMS = 512  # of the norm's backward pass, each of which leaves a row of partial sums
BLOCK = 1024  # elements of a program without rows


def norms(states: Tensor, change: Tensor | None, gain: Tensor) -> bool:
    """Whether ``norm`` computes this."""
    return (
        triton.runs_on(states.device)
        and states.dtype in STATE_TYPES
        and (change is None or (change.dtype in STATE_TYPES and change.shape == states.shape))
        and gain.dtype == torch.float32
        and 1 < states.shape[-1] <= LARGEST_WIDTH
        and states.numel() > 0
    )


def drops(states: Tensor) -> bool:
    """Whether ``relu_dropout`` computes this."""
    return triton.runs_on(states.device) and states.dtype in STATE_TYPES and states.numel() > 0


def norm(states: Tensor, change: Tensor | None, gain: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
    """Norm states + dropout(change), both [..., D], or states alone: float32."""
    seed = triton.draw_seed(states.device) if change is not None and dropout > 0.0 else None
    change = None if change is None else change.contiguous()
    result: Tensor = _norm(states.contiguous(), change, gain, bias, seed, eps, dropout)
    return result


def relu_dropout(states: Tensor, dropout: float) -> Tensor:
    """Apply dropout(relu(states)), for a probability > 0."""
    result: Tensor = _relu_dropout(states.contiguous(), triton.draw_seed(states.device), dropout)
    return result


@torch.library.custom_op("trarctl::norm", mutates_args=())
def _norm(
    states: Tensor, change: Tensor | None, gain: Tensor, bias: Tensor, seed: Tensor | None, eps: float, dropout: float
) -> Tensor:
    out = torch.empty_like(states, dtype=torch.float32)
    width = states.shape[-1]
    with torch.cuda.device_of(states):
        triton._device().norm[(states.numel() // width,)](
            *(states, change, gain, bias, seed, out), **_dropping(dropout), eps=eps, **_row(width)
        )
    return out


@torch.library.custom_op("trarctl::norm_backward", mutates_args=())
def _norm_backward(
    gradient: Tensor,
    states: Tensor,
    change: Tensor | None,
    gain: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of states and change (empty without one), and each program's part of gain's and bias's, [P, 2, D]."""
    results = _empty_gradients(gradient, states, change)
    width, num_rows = states.shape[-1], states.numel() // states.shape[-1]
    with torch.cuda.device_of(states):
        triton._device().norm_backward[(len(results[-1]),)](
            *(gradient, states, change, gain, seed, *results),
            **_dropping(dropout),
            eps=eps,
            num_rows=num_rows,
            rows_each=_rows_each(num_rows),
            **_row(width),
        )
    return results


@torch.library.custom_op("trarctl::relu_dropout", mutates_args=())
def _relu_dropout(states: Tensor, seed: Tensor, dropout: float) -> Tensor:
    out = torch.empty_like(states)
    with torch.cuda.device_of(states):
        triton._device().relu_dropout[(-(-states.numel() // BLOCK),)](
            *(states, seed, out), **_dropping(dropout), num_elements=states.numel(), BLOCK_WIDTH=BLOCK
        )
    return out


@torch.library.custom_op("trarctl::relu_dropout_backward", mutates_args=())
def _relu_dropout_backward(gradient: Tensor, result: Tensor, dropout: float) -> Tensor:
    of_states = torch.empty_like(result)
    with torch.cuda.device_of(result):
        triton._device().relu_dropout_backward[(-(-result.numel() // BLOCK),)](
            *(gradient, result, of_states),
            kept_scale=_dropping(dropout)["kept_scale"],
            num_elements=result.numel(),
            BLOCK_WIDTH=BLOCK,
        )
    return of_states


@_norm.register_fake
def _(states: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(states, dtype=torch.float32)


@_norm_backward.register_fake
def _(gradient: Tensor, states: Tensor, change: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(gradient, states, change)


@_relu_dropout.register_fake
def _(states: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(states)


@_relu_dropout_backward.register_fake
def _(_gradient: Tensor, result: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(result)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch gives it by name
    states, change, gain, _, seed, *ctx.numbers = inputs
    ctx.save_for_backward(states, change, gain, seed)


def _differentiate_norm(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_states, of_change, parts = _norm_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers)
    of_gain, of_bias = parts.sum(dim=0).unbind()
    return of_states, None if ctx.saved_tensors[1] is None else of_change, of_gain, of_bias, None, None, None


def _save_relu_dropout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dropout = inputs[-1]
    ctx.save_for_backward(output)


def _differentiate_relu_dropout(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _relu_dropout_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.dropout), None, None


_norm.register_autograd(_differentiate_norm, setup_context=_save_norm)
_relu_dropout.register_autograd(_differentiate_relu_dropout, setup_context=_save_relu_dropout)


def _empty_gradients(gradient: Tensor, states: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    width = states.shape[-1]
    num_rows = states.numel() // width
    parts = gradient.new_empty(-(-num_rows // _rows_each(num_rows)), 2, width)
    return torch.empty_like(states), gradient.new_empty(0) if change is None else torch.empty_like(change), parts


def _rows_each(num_rows: int) -> int:
    return max(1, -(-num_rows // MOST_PROGRAMS))


def _dropping(dropout: float) -> dict[str, float]:
    return {"dropout": dropout, "kept_scale": 1.0 / (1.0 - dropout) if dropout < 1.0 else 0.0}


def _row(width: int) -> dict[str, Any]:
    """What a kernel is given that holds a row of this width."""
    block = max(4, triton._power_of_2(width))  # random numbers come in fours
    num_warps = min(max(block // WARP_WIDTH, 1), MOST_WARPS)
    # Left to choose, the assembler gives the threads of so many warps half of the registers, and spills some.
    most_registers = 65536 // (32 * MOST_WARPS) if num_warps == MOST_WARPS else None
    return {"WIDTH": width, "BLOCK_WIDTH": block, "num_warps": num_warps, "maxnreg": most_registers}
