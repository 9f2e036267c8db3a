"""Averages of weights, which are validated beside the weights that they come from.

``ema``: the exponential moving average of the weights after every step. ``average``: the mean of the weights after the
last epochs. Neither changes the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trarctl.errors import CheckpointError

EMA = "ema."
_WEIGHTS, _STEP = "ema.weights.", "ema.step"


class MovingAverage:
    """The exponential moving average of a model's weights.

    After T steps the weights after step t count in proportion to ``decay ** (T - t)``; those from before the first do
    not count, so that a short run's average does not lean to its start (as Adam corrects its own averages).

    Args:
        model: on its device; its parameters keep their place.
        decay: between 0 and 1.
        tensors: of a checkpoint to go on from; without an average in it, one begins.
    """

    def __init__(self, model: nn.Module, decay: float, tensors: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters())
        self._names = list(named)
        self._parameters: list[Tensor] = list(named.values())
        self._decay = decay
        self.num_steps = int(tensors[_STEP]) if _STEP in tensors else 0
        self._average = [torch.zeros_like(parameter, requires_grad=False) for parameter in self._parameters]
        # What the newest weights count for, where a recorded step reads it.
        self._share = torch.ones((), device=self._parameters[0].device)
        if self.num_steps:
            for name, place in zip(self._names, self._average, strict=True):
                held = tensors.get(_WEIGHTS + name)
                if held is None or held.shape != place.shape:
                    given = "is missing" if held is None else f"is {list(held.shape)}"
                    what = f"the checkpoint's {_WEIGHTS}{name} {given}, expected {list(place.shape)}"
                    raise CheckpointError(what, "resume from another: --epoch N, or --set train.ema_decay=none")
                place.copy_(held)

    def begin_step(self) -> None:
        """Count a step, before ``update``, which may be a replay that runs no Python."""
        self.num_steps += 1
        self._share.fill_((1 - self._decay) / (1 - self._decay**self.num_steps))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step, without waiting for the device."""
        change = torch._foreach_sub(self._parameters, self._average)
        torch._foreach_mul_(change, self._share)
        torch._foreach_add_(self._average, change)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The average, under the model's names."""
        return dict(zip(self._names, self._average, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        held = {_WEIGHTS + name: average for name, average in self.weights.items()}
        return held | {_STEP: torch.tensor(self.num_steps)} if self.num_steps else {}


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights, by name, on the CPU."""
    first = states[0]
    total = {name: tensor.detach().cpu().double() for name, tensor in first.items()}
    for state in states[1:]:
        total = {name: tensor + state[name].cpu() for name, tensor in total.items()}
    return {name: (tensor / len(states)).to(first[name].dtype) for name, tensor in total.items()}


@contextmanager
def exchanged(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model other weights, at their place in memory, while the block runs; then its own again, bit for bit."""
    named = dict(model.named_parameters())
    parameters: list[Tensor] = list(named.values())
    with torch.no_grad():
        own = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, [weights[name].to(place.device) for name, place in named.items()])
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, own)
