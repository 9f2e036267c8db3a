"""The tensors that make up a training's state, by name: out of the model and optimizer, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from trarctl.engine.distributed import World, collective
from trarctl.model.trar import TRAR

MODEL, AVERAGE, SQUARE, STEP = "model.", "adam.average.", "adam.square.", "adam.step"


def state_tensors(model: TRAR, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All tensors of a checkpoint: the weights, Adam's two averages and the number of updates that they have seen."""
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            tensors[STEP] = state["step"]
            tensors[AVERAGE + name] = state["exp_avg"]
            tensors[SQUARE + name] = state["exp_avg_sq"]
    return tensors


def model_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights among a checkpoint's tensors, under the model's own names."""
    return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}


def restore_optimizer(model: TRAR, optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    """Put Adam's averages back."""
    for name, parameter in model.named_parameters():
        if AVERAGE + name not in tensors:
            continue
        optimizer.state[parameter] = {
            "step": tensors[STEP].to(parameter.device, copy=True),
            "exp_avg": tensors[AVERAGE + name].to(parameter.device),
            "exp_avg_sq": tensors[SQUARE + name].to(parameter.device),
        }


def share_tensors(tensors: dict[str, Tensor] | None, world: World) -> dict[str, Tensor]:
    """The lead's tensors in every process; only the lead needs to reach the file that they came from."""
    if world.size == 1:
        return tensors or {}
    shapes = world.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in (tensors or {}).items()})
    shared = {}
    for name, (shape, dtype) in shapes.items():
        tensor = tensors[name] if world.is_main and tensors else torch.empty(shape, dtype=dtype)
        with collective():
            torch.distributed.broadcast(tensor, src=0)
        shared[name] = tensor
    return shared
