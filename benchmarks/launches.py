"""How many operators a training step launches on a GPU, counted without one; which they are.

    python -m benchmarks.launches [--grid N] [--batch N]

A step of the published VQA-v2 recipe runs on tensors without content, through the operators that a GPU would run:
attention, norm, ReLU and dropout by Triton, lists of tensors by torch's fused operators, the LSTM as cuDNN's one
operator each way. Views and allocations launch nothing, and are not counted. An operator that reads a value on the
host, and so waits for the device, is refused.

An operator is at least one kernel. Those on lists (Adam, the gradient's norm) and cuDNN's LSTM are some
more, which depends on the GPU: ``make gpu-check`` counts kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_check import Size, published, random_batch
from tests.engine.op_recorder import Counted
from trarctl.engine.callbacks import no_callback
from trarctl.engine.checkpoint import TrainState
from trarctl.engine.distributed import Precision, World
from trarctl.engine.run import RunFolder
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import Trainer
from trarctl.model import kernels
from trarctl.model.kernels import triton
from trarctl.model.trar import TRAR

# Operators of ours that launch more than one kernel.
NUM_KERNELS = {"routed_attention_backward": 3}
CPU = torch.device("cpu")


@torch.library.custom_op("benchmarks::lstm", mutates_args=())
def _lstm(states: Tensor, weights: list[Tensor]) -> Tensor:
    raise NotImplementedError("for counting only")


@torch.library.custom_op("benchmarks::lstm_backward", mutates_args=())
def _lstm_backward(gradient: Tensor, states: Tensor, weights: list[Tensor]) -> list[Tensor]:
    raise NotImplementedError("for counting only")


@_lstm.register_fake
def _(states: Tensor, weights: list[Tensor]) -> Tensor:
    return states.new_empty(*states.shape[:2], weights[1].shape[1])


@_lstm_backward.register_fake
def _(_gradient: Tensor, states: Tensor, weights: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (states, *weights)]


def _save(ctx: Any, inputs: tuple[Tensor, list[Tensor]], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[0], *inputs[1])


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    states, *weights = ctx.saved_tensors
    of_states, *of_weights = _lstm_backward(gradient, states, weights)
    return of_states, of_weights


_lstm.register_autograd(_differentiate, setup_context=_save)


def cudnn_lstm(lstm: nn.LSTM, words: Tensor) -> tuple[Tensor, None]:
    """Stand for ``lstm(words)`` with one operator each way, as cuDNN's; without a GPU torch has dozens.

    Under autocast weights and words become 16 bits wide first, as for cuDNN.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else words.dtype
    return _lstm(words.to(dtype), [weight.to(dtype) for weight in lstm.parameters()]), None


def read_as_on_a_gpu(model: TRAR, question_tokens: Tensor) -> Tensor:
    """What ``TRAR._read`` does where autocast is not switched off for it."""
    return cudnn_lstm(model.reader, model.embedding(question_tokens))[0]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Tensors without content, and the choices that are made for a GPU."""
    with (
        mock.patch.object(kernels, "runs_on_cpu", return_value=False),
        mock.patch.object(triton, "runs_on", return_value=True),
        mock.patch.object(TRAR, "_read", read_as_on_a_gpu),
        mock.patch.object(TRAR, "to", lambda model, _device: model),  # which swaps what cannot be swapped
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True),
        FakeTensorMode(),
    ):
        yield


def count_step(size: Size, precision: Precision, counted: Counted) -> Counted:
    """Count, by a mode that may add up more than operators, the second training step of a published size."""
    settings, data = published(size, precision, "off")
    with as_on_a_gpu():
        trainer = Trainer(
            settings,
            data,
            RunFolder(Path()),
            World(0, 1, CPU),
            callback=no_callback,
            stop=StopRequest(),
            tensors={},
            state=TrainState(),
            schedule=(1e-4, 1.0),
        )
        trainer.network.train()
        batch = random_batch(size, CPU)
        trainer.train_step([batch], learning_rate=1e-4)  # Adam gets its averages
        with counted:
            trainer.train_step([batch], learning_rate=1e-4)
    return counted


def num_launches(counted: Counted) -> int:
    """Operators that launch a kernel, each of ours as often as it launches one."""
    return sum(count * NUM_KERNELS.get(name, 1) for name, count in counted.counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    size = Size(options.grid, (0, 1, 2, 3), options.batch)
    found = {precision: count_step(size, precision, Counted()) for precision in ("fp32", "bf16")}
    print(f"a step at {size.grid}x{size.grid}{''.join(f'{name:>8}' for name in found)}")
    print(f"launches     {''.join(f'{num_launches(counted):8}' for counted in found.values())}")
    for name, _ in (found["fp32"].counts | found["bf16"].counts).most_common():
        print(f"  {name:<34}{''.join(f'{counted.counts[name]:8}' for counted in found.values())}")


if __name__ == "__main__":
    main()
