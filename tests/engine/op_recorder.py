"""What a CUDA graph does, on the CPU: the operations of some work, recorded with their tensors and done again.

Like a graph, a replay runs no Python of the work and sees only memory: each operation reads the tensors it was recorded
with and writes its results where they were. A number that the work had read from Python stays what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trarctl.engine.graph import Outputs, Work

# What a recording on a GPU cannot hold, since the host waits for a value or a size.
WAITING = ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "masked_select", "unique", "_unique2")


class Counted(TorchDispatchMode):
    """Count the operations below autograd, and refuse those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()  # of those that compute something: at least one kernel each on a GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            raise RuntimeError(f"{func} waits for the device")
        outputs = func(*args, **(kwargs or {}))
        if "empty" not in name and (func._schema.is_mutable or not is_view(args, outputs)):
            self.counts[name] += 1
        return outputs


class Operations(Counted):
    """The operations that some work consists of, with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs


def is_view(args: Any, outputs: Any) -> bool:
    """Whether an operation's results lie in its arguments' memory: a view, or one that works in place."""
    # The storages themselves: without content, as on the meta device, they have no address.
    places = {leaf.untyped_storage()._cdata for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    results = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return all(result.untyped_storage()._cdata in places for result in results)


class OpRecorder:
    """Record operations; what it did is counted."""

    def __init__(self) -> None:
        self.num_runs = self.num_recorded = self.num_replays = 0

    def run(self, work: Work) -> Outputs:
        self.num_runs += 1
        return work()

    def record(self, work: Work) -> tuple[Outputs, Callable[[], None]]:
        operations = Operations()
        with operations:
            outputs = work()
        is_inference = outputs[0].is_inference()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replays += 1
            with torch.inference_mode(is_inference), torch._C._AutoDispatchBelowAutograd():
                for func, args, kwargs, results in operations.calls:
                    # oneDNN's LSTM keeps what its backward pass needs where gradients are on, as in the recording.
                    with torch.set_grad_enabled(not is_inference and "backward" not in str(func)):
                        again = func(*args, **kwargs)
                    if is_view(args, results):
                        continue
                    for place, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                        if isinstance(place, Tensor):
                            place.copy_(new)

        return outputs, replay
