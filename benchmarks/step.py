"""A whole training step against its floor (its linear layers alone) and against a plain Transformer's step.

    python -m benchmarks.step [--quick] [--threads N] [--json FILE]

One step is forward, backward and Adam on the published sizes (D 512, 6 + 6 layers, 20,573 words, 3,129 answers).
Variants take turns in one process, so that a busy machine hits them alike; peak memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.attention import Step, median_times, resident_bytes
from trarctl.config.settings import ModelSettings
from trarctl.engine.distributed import precision_of, reuse_freed_memory
from trarctl.engine.trainer import answer_loss
from trarctl.model.trar import TRAR, ModelSizes

NUM_WORDS = 14
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """Side of the grid, samples in the batch, spans, and width of the features."""

    grid: int
    batch: int
    spans: tuple[int, ...] = (0, 1, 2, 3)
    width: int = 2048
    original_gigabytes: float | None = None


SIZES = (
    Size(8, 64, original_gigabytes=5.8),
    Size(14, 16, (0, 1, 3), 1024, original_gigabytes=4.5),
    Size(16, 16, original_gigabytes=7.6),
    Size(32, 4),
)
QUICK_SIZES = (Size(8, 16), Size(16, 4))


@dataclass(frozen=True)
class Row:
    """Medians of one size, in seconds, and what they make of each other; no bf16 where the processor has none."""

    grid: int
    batch: int
    routed_fp32_seconds: float
    plain_fp32_seconds: float
    floor_fp32_seconds: float
    routed_bf16_seconds: float | None
    floor_bf16_seconds: float | None
    routed_to_plain: float
    step_to_floor_fp32: float
    step_to_floor_bf16: float | None
    fp32_to_bf16: float | None
    peak_gigabytes: float
    peak_to_original: float | None


def cpu_info(field: str) -> str:
    """What the kernel says of the first processor; empty if it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def cpu_extensions() -> list[str]:
    """Those of the processor's instructions that decide how fast products are."""
    flags = cpu_info("flags").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def build(size: Size, spans: tuple[int, ...]) -> tuple[TRAR, torch.optim.Adam]:
    """A model of the published sizes and its optimizer."""
    torch.manual_seed(0)
    settings = ModelSettings(grid_size=size.grid, spans=spans)
    model = TRAR(settings, ModelSizes(vocabulary=20_573, answers=3_129, feature_width=size.width))
    return model, torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True)


def batch_of(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Random questions, features and targets."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 20_573, (size.batch, NUM_WORDS), generator=generator)
    features = torch.randn(size.batch, size.grid**2, size.width, generator=generator)
    return tokens, features, torch.rand(size.batch, 3_129, generator=generator).gt(0.999).float()


def training_step(size: Size, spans: tuple[int, ...], precision: str) -> Step:
    """What ``trarctl train`` does with one batch."""
    model, optimizer = build(size, spans)
    tokens, features, target = batch_of(size)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision_of(CPU, precision):  # type: ignore[arg-type]
            scores, _ = model(tokens, features)
        answer_loss(scores, target, loss="bce").sum().backward()
        optimizer.step()

    return run


def floor_step(size: Size, precision: str) -> Step:
    """The same linear layers on inputs of the same shapes, forward and backward, and nothing else."""
    model, _ = build(size, (0,))
    shapes: list[tuple[nn.Linear, torch.Size]] = []
    hooks = [
        module.register_forward_pre_hook(lambda linear, inputs: shapes.append((linear, inputs[0].shape)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    tokens, features, _ = batch_of(size)
    with torch.no_grad():
        model(tokens, features)
    for hook in hooks:
        hook.remove()
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    # One input for each shape: the floor is the products, not the memory.
    inputs = {shape: torch.randn(shape, dtype=kind, requires_grad=True) for _, shape in shapes}
    outputs = {
        (shape, linear.out_features): torch.randn(*shape[:-1], linear.out_features, dtype=kind)
        for linear, shape in shapes
    }
    weights = [(linear.weight.detach().to(kind).requires_grad_(), shape) for linear, shape in shapes]

    def run() -> None:
        for weight, shape in weights:
            states = inputs[shape]
            product = functional.linear(states, weight)
            wanted = [weight] if shape[-1] == size.width else [weight, states]
            torch.autograd.grad(product, wanted, outputs[shape, weight.shape[0]])

    return run


def peak_bytes(size: Size, threads: int) -> int:
    """The most that a process holds that trains two steps; to be run in a process of its own."""
    reuse_freed_memory()
    torch.set_num_threads(threads)
    step = training_step(size, size.spans, "fp32")
    step()
    step()
    return resident_bytes("VmHWM")


def measure(size: Size, *, repeats: int, threads: int) -> Row:
    """One row of the table."""
    reuse_freed_memory()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_bytes, (size, threads)) / 1e9
    steps = {
        "routed": training_step(size, size.spans, "fp32"),
        "plain": training_step(size, (0,), "fp32"),
        "floor": floor_step(size, "fp32"),
    }
    if {"avx512_bf16", "amx_bf16"} & set(cpu_extensions()):
        steps |= {"routed bf16": training_step(size, size.spans, "bf16"), "floor bf16": floor_step(size, "bf16")}
    seconds = median_times(steps, repeats)

    def ratio(above: str, below: str) -> float | None:
        return round(seconds[above] / seconds[below], 3) if above in seconds and below in seconds else None

    original = size.original_gigabytes
    return Row(
        grid=size.grid,
        batch=size.batch,
        routed_fp32_seconds=round(seconds["routed"], 3),
        plain_fp32_seconds=round(seconds["plain"], 3),
        floor_fp32_seconds=round(seconds["floor"], 3),
        routed_bf16_seconds=round(seconds["routed bf16"], 3) if "routed bf16" in seconds else None,
        floor_bf16_seconds=round(seconds["floor bf16"], 3) if "floor bf16" in seconds else None,
        routed_to_plain=round(seconds["routed"] / seconds["plain"], 3),
        step_to_floor_fp32=round(seconds["routed"] / seconds["floor"], 3),
        step_to_floor_bf16=ratio("routed bf16", "floor bf16"),
        fp32_to_bf16=ratio("routed", "routed bf16"),
        peak_gigabytes=round(peak, 2),
        peak_to_original=None if original is None else round(peak / original, 3),
    )


def shown(figure: float | None) -> str:
    """A figure as the table shows it."""
    return "-" if figure is None else f"{figure:.2f}"


def measure_all(*, quick: bool, threads: int) -> list[Row]:
    """Measure and print every size."""
    print(f"{'step':>12} {'routed s':>9} {'plain s':>8} {'floor s':>8} {'bf16 s':>7} {'/plain':>7} {'/floor':>7}"
          f" {'bf16 /floor':>11} {'fp32/bf16':>9} {'peak GB':>8} {'/original':>9}")  # fmt: skip
    rows = []
    for size in QUICK_SIZES if quick else SIZES:
        row = measure(size, repeats=3 if quick else 5, threads=threads)
        rows.append(row)
        print(
            f"{f'{row.grid}x{row.grid}, {row.batch}':>12} {row.routed_fp32_seconds:9.2f} {row.plain_fp32_seconds:8.2f} "
            f"{row.floor_fp32_seconds:8.2f} {shown(row.routed_bf16_seconds):>7} {row.routed_to_plain:7.2f} "
            f"{row.step_to_floor_fp32:7.2f} {shown(row.step_to_floor_bf16):>11} {shown(row.fp32_to_bf16):>9} "
            f"{row.peak_gigabytes:8.2f} {shown(row.peak_to_original):>9}"
        )
        sys.stdout.flush()
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller batches, fewer turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure_all(quick=options.quick, threads=options.threads)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
