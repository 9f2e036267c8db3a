"""Routed attention in one pass against one map a span, and against plain attention: time and peak memory.

    python -m benchmarks.attention [--quick] [--threads N] [--dropout P] [--json FILE]

One row is one layer's attention core, forward and backward, as in training. Variants of a size take turns, so that a
busy machine hits them alike: compare within a size, not across runs. Where other programs use the cores as well, set
OMP_WAIT_POLICY=passive: threads that spin while they wait for each other would measure the neighbors. Peak memory is
what a fresh process needs on top of its inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trarctl.engine.distributed import reuse_freed_memory
from trarctl.model.kernels import attend
from trarctl.model.spans import Spans

HEADS, WIDTH = 8, 64


@dataclass(frozen=True)
class Size:
    """Side of the grid, examples in the batch and orders of the spans."""

    grid: int
    batch: int
    spans: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One measured variant; ratios compare medians of the same size."""

    variant: str
    grid: int
    batch: int
    num_spans: int
    milliseconds: float
    ratio_to_k_maps: float | None
    ratio_to_plain: float
    peak_megabytes: float


SIZES = (Size(8, 64, (0, 1, 2, 3)), Size(14, 16, (0, 1, 3)), Size(16, 16, (0, 1, 2, 3)), Size(32, 4, (0, 1, 2, 3)))
QUICK_SIZES = (Size(8, 32, (0, 1, 2, 3)), Size(16, 8, (0, 1, 2, 3)))
Step = Callable[[], None]


class Variants:
    """The cores that are compared, on the same inputs."""

    def __init__(self, size: Size, dropout: float) -> None:
        torch.manual_seed(0)
        num_cells = size.grid**2
        self.spans = Spans(size.spans, size.grid)
        self.dropout = dropout
        cell = torch.arange(num_cells)
        row, column = cell // size.grid, cell % size.grid
        distance = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
        self.hidden = torch.stack([distance > (radius or size.grid) for radius in size.spans])
        flat = torch.randn(4, size.batch, num_cells, HEADS * WIDTH)
        heads = [states.view(size.batch, num_cells, HEADS, WIDTH).transpose(1, 2) for states in flat]
        self.query, self.key, self.value = (states.requires_grad_() for states in heads[:3])
        self.gradient = heads[3]
        self.weights = torch.rand(size.batch, len(size.spans)).softmax(dim=-1).requires_grad_()

    def k_maps(self) -> Tensor:
        scores = self.query @ self.key.mT / WIDTH**0.5
        maps = scores.unsqueeze(1).masked_fill(self.hidden[:, None], -1e9).softmax(dim=-1)
        blended = self.weights[:, :, None, None, None] * functional.dropout(maps, self.dropout)
        return blended.sum(dim=1) @ self.value

    def routed(self) -> Tensor:
        return self._attend(span_weights=self.weights, spans=self.spans)

    def reference(self) -> Tensor:
        return self._attend(span_weights=self.weights, spans=self.spans, kernel="reference")

    def plain(self) -> Tensor:
        return self._attend()

    def _attend(self, **arguments: Any) -> Tensor:
        return attend(self.query, self.key, self.value, is_padding=None, dropout=self.dropout, **arguments)

    def plain_torch(self) -> Tensor:
        return functional.scaled_dot_product_attention(self.query, self.key, self.value, dropout_p=self.dropout)

    def step(self, variant: str) -> Step:
        """A forward and a backward pass of the variant of that name."""
        inputs = [self.query, self.key, self.value] + (
            [self.weights] if variant in ("k_maps", "reference", "routed") else []
        )
        attend: Callable[[], Tensor] = getattr(self, variant)

        def run() -> None:
            torch.autograd.grad(attend(), inputs, self.gradient)

        return run


def median_times(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):  # the first turn warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def resident_bytes(field: str) -> int:
    """A size from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def peak_bytes(size: Size, dropout: float, variant: str, threads: int) -> int:
    """What one step needs on top of its inputs; to be run in a process of its own."""
    torch.set_num_threads(threads)
    Variants(Size(2, 1, size.spans), dropout).step(variant)()  # what loads on first use is no part of the step
    step = Variants(size, dropout).step(variant)
    before = resident_bytes("VmRSS")
    step()
    return resident_bytes("VmHWM") - before


def measure(size: Size, *, dropout: float, repeats: int, threads: int) -> list[Row]:
    """The rows of one size. Whole maps of the largest grid are left out: they would need many gigabytes."""
    variants = ["routed", "plain", "plain_torch"]
    if size.grid < 32:
        variants = ["k_maps", "reference", *variants]
    reuse_freed_memory()  # as training does
    cores = Variants(size, dropout)
    seconds = median_times({name: cores.step(name) for name in variants}, repeats)
    rows = []
    for name in variants:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_bytes, (size, dropout, name, threads))
        rows.append(
            Row(
                variant=name,
                grid=size.grid,
                batch=size.batch,
                num_spans=len(size.spans),
                milliseconds=round(seconds[name] * 1e3, 2),
                ratio_to_k_maps=round(seconds[name] / seconds["k_maps"], 3) if "k_maps" in seconds else None,
                ratio_to_plain=round(seconds[name] / seconds["plain"], 3),
                peak_megabytes=round(peak / 2**20, 1),
            )
        )
    return rows


def measure_all(*, quick: bool, threads: int, dropout: float = 0.1) -> list[Row]:
    """Measure and print every size."""
    rows = []
    print(f"{'variant':12} {'grid':>6} {'batch':>5} {'spans':>5} {'ms':>9} {'/K maps':>8} {'/plain':>7} {'peak MB':>8}")
    for size in QUICK_SIZES if quick else SIZES:
        for row in measure(size, dropout=dropout, repeats=5 if quick else 9, threads=threads):
            rows.append(row)
            grid = f"{row.grid}x{row.grid}"
            to_k_maps = "-" if row.ratio_to_k_maps is None else f"{row.ratio_to_k_maps:.2f}"
            print(
                f"{row.variant:12} {grid:>6} {row.batch:5} {row.num_spans:5} {row.milliseconds:9.1f} {to_k_maps:>8}"
                f" {row.ratio_to_plain:7.2f} {row.peak_megabytes:8.1f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer turns: under a minute")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, dropout {options.dropout}, {HEADS} heads of {WIDTH}")
    rows = measure_all(quick=options.quick, threads=options.threads, dropout=options.dropout)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
