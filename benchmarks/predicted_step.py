"""A prediction, not a measurement: what a training step of the published model should take on GPUs that are not here.

    python -m benchmarks.predicted_step [--grids 8 14 16 32] [--batch 64]

One step runs on tensors without content, as ``benchmarks.launches`` counts it. Every operator is noted with its
products and the bytes that it reads and writes, and is given the time of whichever bound is highest: arithmetic,
memory, or the shortest time that any kernel takes. Three numbers follow: ``arithmetic`` alone, ``graph`` (operators one
after the other, launched together), and ``eager`` (where the host launches them one by one).

Gradients are exchanged in float32 between the backward pass and the update, which are graphs of their own. The figures
of the GPUs are their makers', and what of them is reached in practice is a guess: see docs/scaling.md for how near it
came to what an H100 measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu_check import Size
from benchmarks.launches import count_step
from tests.engine.op_recorder import Counted

BATCH, STEPS_OF_AN_EPOCH, EPOCHS = 64, 6_933, 13  # of the published recipe on train
SPANS = {8: (0, 1, 2, 3), 14: (0, 1, 3), 16: (0, 1, 2, 3), 32: (0, 1, 2, 3)}
HOST_SECONDS = 38e-6  # of an operator from Python, as beside the H100 of gpu.json; the launch alone takes 4 to 6e-6
SHORTEST_SECONDS = 2e-6  # of any kernel on the device
PASSES = 4  # over all gradients, to pack them (read, write) and to divide their sum (read, write)
# Products of a query, or a gradient, with every key.
ATTENTION_PRODUCTS = {"routed_attention": 2, "routed_attention_backward": 5}
LSTM_PRODUCTS = {"lstm": 1, "lstm_backward": 2}  # of a word with each weight
WEIGHTS_AND_AVERAGES = 28  # bytes that Adam reads and writes for each weight


@dataclass(frozen=True)
class Gpu:
    """What a GPU does in a second in practice; bandwidths are per GPU and direction."""

    name: str
    flops: float  # of products in bfloat16: about 40 % (H100) and 65 % (A100) of the makers' figures
    memory: float  # bytes, 80 % of the maker's figure
    link: float  # bytes between the GPUs of one machine, as NCCL's all-reduce reaches
    network: float  # bytes between machines, one adapter a GPU


H100 = Gpu("H100", flops=400e12, memory=0.8 * 3.35e12, link=360e9, network=45e9)
A100 = Gpu("A100", flops=200e12, memory=0.8 * 2.04e12, link=230e9, network=22e9)


@dataclass
class Operator:
    """One operator of a step."""

    name: str
    flops: float
    num_bytes: float

    def seconds(self, gpu: Gpu) -> float:
        """How long it takes: the highest of its bounds."""
        return max(self.flops / gpu.flops, self.num_bytes / gpu.memory, SHORTEST_SECONDS)


class Step(Counted):
    """What a training step does on the device, noted as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.num_weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note it if it is counted."""
        num_before = self.counts.total()
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        if self.counts.total() > num_before:
            self.operators.append(self._operator(func, args, kwargs or {}, outputs))
        return outputs

    def _operator(self, func: Any, args: Any, kwargs: Any, outputs: Any) -> Operator:
        name = func.overloadpacket.__name__
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, outputs)) if isinstance(leaf, Tensor)}
        num_bytes = sum(one.numel() * one.itemsize for one in tensors.values())
        count: Callable[..., float] | None = flop_registry.get(func._overloadpacket)
        flops = 0.0 if count is None else count(*args, **kwargs, out_val=outputs)
        if name in ATTENTION_PRODUCTS:
            query, key = args[:2] if name == "routed_attention" else args[4:6]
            flops = 2 * ATTENTION_PRODUCTS[name] * query.numel() * key.shape[1]
        elif name in LSTM_PRODUCTS:
            states, weights = args[-2:]
            num_weights = sum(one.numel() for one in weights if one.dim() == 2)
            flops = 2 * LSTM_PRODUCTS[name] * states.shape[0] * states.shape[1] * num_weights
        elif name == "_fused_adam_":
            self.num_weights = sum(one.numel() for one in args[0])
            num_bytes = WEIGHTS_AND_AVERAGES * self.num_weights
        return Operator(name, flops, num_bytes)

    def seconds(self, gpu: Gpu) -> float:
        """As one graph."""
        return sum(one.seconds(gpu) for one in self.operators)

    def exchange_seconds(self, gpu: Gpu, num_gpus: int) -> float:
        """What exchanging gradients of 4 bytes a weight takes between GPUs, eight in a machine."""
        if num_gpus == 1:
            return 0.0
        bandwidth = gpu.link if num_gpus <= 8 else min(gpu.link, 8 * gpu.network)
        num_bytes = 4 * self.num_weights
        return 2 * (num_gpus - 1) / num_gpus * num_bytes / bandwidth + PASSES * num_bytes / gpu.memory


def count(grid: int, batch: int) -> Step:
    """Run a step of the published model in bfloat16 on tensors without content."""
    step = Step()
    count_step(Size(grid, SPANS[grid], batch), "bf16", step)
    return step


def measured_steps() -> dict[int, float]:
    """Milliseconds of a step by the grid's side, in bfloat16 as one graph, as ``gpu_check`` measured them last."""
    rows = orjson.loads((Path(__file__).parent / "gpu.json").read_bytes())[0]["rows"]
    is_asked = {f"step {grid}x{grid}": grid for grid in SPANS}
    return {
        is_asked[row["what"]]: row["figures"]["milliseconds"]
        for row in rows
        if row["what"] in is_asked and (row["precision"], row["how"]) == ("bf16", "graph")
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, nargs="+", choices=SPANS, default=list(SPANS))
    parser.add_argument("--batch", type=int, default=BATCH, help="questions of a step")
    options = parser.parse_args()
    print(f"PREDICTED milliseconds of a step of {options.batch}, bfloat16")
    measured = measured_steps()
    head = f"{'grid':6}{'TFLOP':>7}{'GB':>7}{'operators':>11}"
    for gpu in (A100, H100):
        head += "".join(f"{f'{gpu.name} {what}':>18}" for what in ("arithmetic", "graph", "eager"))
    print(f"{head}   measured, see docs/scaling.md")
    steps = {grid: count(grid, options.batch) for grid in options.grids}
    for grid, step in steps.items():
        flops, num_bytes = (sum(getattr(one, what) for one in step.operators) for what in ("flops", "num_bytes"))
        row = f"{f'{grid}x{grid}':6}{flops / 1e12:7.2f}{num_bytes / 1e9:7.1f}{len(step.operators):11,}"
        for gpu in (A100, H100):
            graph = step.seconds(gpu)
            eager = max(graph, HOST_SECONDS * len(step.operators))
            row += "".join(f"{1e3 * one:18.1f}" for one in (flops / gpu.flops, graph, eager))
        is_known = grid in measured and options.batch == BATCH and grid < 32
        print(row + (f"{measured[grid]:10.1f}" if is_known else ""))
    grid = options.grids[0]
    print(f"\nPREDICTED for the whole recipe at {grid}x{grid}, {EPOCHS} epochs, as one graph a step")
    names = {
        "GPUs": 7,
        "questions each": 16,
        "in all": 8,
        "step, ms": 10,
        "exchange, ms": 14,
        "minutes": 9,
        "speedup": 9,
    }
    print("".join(f"{name:>{width}}" for name, width in names.items()))
    alone = 0.0
    for gpu, num_gpus, each in ((A100, 1, 64), (H100, 1, 64), (H100, 8, 8), (H100, 8, 64), (H100, 64, 16)):
        step = count(grid, each)
        exchange = step.exchange_seconds(gpu, num_gpus)
        seconds = step.seconds(gpu) + exchange
        minutes = seconds * STEPS_OF_AN_EPOCH * BATCH / (each * num_gpus) * EPOCHS / 60
        alone = minutes if num_gpus == 1 else alone
        row = f"{num_gpus:2} {gpu.name}{each:14}{each * num_gpus:8,}{1e3 * seconds:10.1f}{1e3 * exchange:14.2f}"
        print(f"{row}{minutes:9.1f}{alone / minutes:9.1f}")


if __name__ == "__main__":
    main()
