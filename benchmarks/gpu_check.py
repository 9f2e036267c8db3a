"""Is this machine's GPU right, and how fast is it: parity, step time and loader, one table and an exit code.

    python -m benchmarks.gpu_check [--device cpu|cuda:0] [--quick]

Without a GPU the same runs at small sizes on the CPU, so that the check itself is known to work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from trarctl.config.resolve import resolve
from trarctl.config.settings import Settings
from trarctl.data.loader import Batch, load_batches, scoring_samples, training_plan, training_samples
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.callbacks import no_callback
from trarctl.engine.checkpoint import TrainState, load_upstream
from trarctl.engine.distributed import Precision, World, peak_memory_bytes, precision_of, tf32_allowed
from trarctl.engine.loading import model_sizes
from trarctl.engine.run import RunFolder
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import Trainer
from trarctl.model.trar import TRAR

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
GRIDS = {"vqa": 4, "clevr": 5}
# Largest difference of a score from the original's, by precision; scores are of the size of 1.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
TEMPERATURE = 0.1  # at which the original's scores were taken


@dataclass(frozen=True)
class Row:
    """One line of the table; ``result`` is ``ok``, ``skipped`` or what is wrong."""

    what: str
    precision: str
    is_compiled: bool
    figures: str
    result: str


@dataclass(frozen=True)
class Size:
    """A step to time: cells along one side, spans, samples of a batch."""

    grid: int
    spans: tuple[int, ...]
    batch: int


def parity(device: torch.device, folder: Path) -> Iterator[Row]:
    """The original's scores for each golden case."""
    data = {}
    for dataset, grid in GRIDS.items():
        raw = GOLDEN / f"mini_{dataset}"
        prepare(
            PrepareRequest(
                dataset, out=folder / dataset, raw=raw / "raw", features=raw / "feats", grid=grid, vectors="none"
            )
        )
        data[dataset] = open_prepared(folder / dataset)
    cases = sorted((GOLDEN / "cases").glob("*.json"))
    for is_compiled in (False, True):
        if is_compiled and not can_compile(device):
            yield Row("parity", "all", True, "no C++ compiler", "skipped")
            continue
        # Compiling takes long, on the CPU a minute a case: one or two will do.
        few = ("vqa_soft_avg", "clevr_hard_fc_binarize") if device.type == "cuda" else ("vqa_soft_avg",)
        chosen = [case for case in cases if not is_compiled or case.stem in few]
        for precision in precisions(device):
            tolerance = TOLERANCES[precision]
            worst = max(_difference(case, data, device, precision, is_compiled=is_compiled) for case in chosen)
            result = "ok" if worst < tolerance else f"more than {tolerance:g}"
            yield Row(
                f"parity of {len(chosen)} cases", precision, is_compiled, f"largest difference {worst:.1e}", result
            )


def _difference(
    file: Path, data: dict[str, PreparedData], device: torch.device, precision: Precision, *, is_compiled: bool
) -> float:
    case = json.loads(file.read_text())
    prepared = data[case["dataset"]]
    settings = resolve(dataset=case["dataset"], config=file.with_suffix(".yml"), environ={}).settings
    model = TRAR(settings.model, model_sizes(prepared))
    model.load_state_dict(load_upstream(file.with_suffix(".pkl"))[0])
    model.to(device).eval()
    if is_compiled:
        model.compile()
    samples = scoring_samples(prepared, case["split"])
    batch = samples.batch(np.arange(len(samples))).to(device)
    with torch.inference_mode(), precision_of(device, precision):
        scores, _ = model(batch.question_tokens, batch.cells(), temperature=TEMPERATURE)
    with np.load(file.with_suffix(".npz")) as expected:
        return float(np.abs(scores.float().cpu().numpy() - expected["scores"]).max())


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that differ on a device: tf32 is a matter of NVIDIA GPUs."""
    return ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs."""
    return device.type == "cuda" or any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def step_times(device: torch.device, sizes: list[Size], *, num_steps: int) -> Iterator[Row]:
    """Time of a training step on the published sizes, and the most memory it takes."""
    for size in sizes:
        for precision in precisions(device):
            for is_compiled in (False, True) if device.type == "cuda" else (False,):
                yield _step_time(device, size, precision, num_steps=num_steps, is_compiled=is_compiled)


def _step_time(device: torch.device, size: Size, precision: Precision, *, num_steps: int, is_compiled: bool) -> Row:
    spans = ",".join(map(str, size.spans))
    sets = [f"model.grid_size={size.grid}", f"model.spans={spans}", f"train.batch_size={size.batch}"]
    sets += [f"run.precision={precision}", f"run.compile={str(is_compiled).lower()}"]
    settings: Settings = resolve(dataset="vqa", environ={}, sets=sets).settings
    # As much of prepared data as a step needs, at the size of VQA-v2.
    features = SimpleNamespace(width=2_048)
    data = SimpleNamespace(vocabulary=range(20_573), answers=range(3_129), features=features, vectors=None)
    trainer = Trainer(
        settings,
        cast(PreparedData, data),
        RunFolder(Path()),
        World(0, 1, device),
        callback=no_callback,
        stop=StopRequest(),
        tensors={},
        state=TrainState(),
    )
    batch = Batch(
        np.arange(size.batch),
        torch.randint(3, 20_573, (size.batch, 14)),
        torch.randn(size.batch, size.grid**2, 2_048),
        torch.arange(size.batch),
        torch.rand(size.batch, 3_129).round(),
    ).to(device)
    trainer.network.train()
    with tf32_allowed(device, precision):
        for _ in range(2):
            trainer.train_step([batch], learning_rate=1e-4)
        _wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        for _ in range(num_steps):
            result = trainer.train_step([batch], learning_rate=1e-4)
        _wait(device)
    seconds = (time.perf_counter() - started) / num_steps
    is_fine = bool(result.loss.isfinite()) and bool(result.gradient_norm.isfinite())
    memory = peak_memory_bytes(device) / 2**30
    figures = f"{seconds * 1e3:8.1f} ms a step of {size.batch}, {size.batch / seconds:6.0f} samples/s, {memory:.1f} GiB"
    return Row(f"step {size.grid}x{size.grid}", precision, is_compiled, figures, "ok" if is_fine else "not finite")


def loader_speed(device: torch.device, size: Size, folder: Path, *, num_batches: int) -> Row:
    """Batches a second from packed features to the device."""
    num_images, width = 400, 2_048
    data = _generated(folder / f"loader-{size.grid}", size.grid, num_images, width)
    samples = training_samples(data, "train", "bce")
    plan = training_plan(len(samples), batch_size=size.batch, seed=0, epoch=0, shuffle=True)
    plan = [plan[index % len(plan)] for index in range(num_batches)]
    batches = load_batches(samples, plan, num_workers=4, pin=device.type == "cuda")
    next(batches).to(device)
    started = time.perf_counter()
    count = sum(len(batch.to(device)) for batch in islice(batches, num_batches - 1))
    _wait(device)
    rate = count / (time.perf_counter() - started)
    figures = f"{rate:8.0f} samples/s to the device, {rate * size.grid**2 * width * 4 / 2**30:.2f} GiB/s"
    return Row(f"loader {size.grid}x{size.grid}", "", False, figures, "ok")


def _generated(folder: Path, grid: int, num_images: int, width: int) -> PreparedData:
    """The golden questions with features of the size asked for."""
    raw = GOLDEN / "mini_vqa"
    chance = np.random.default_rng(0)
    for image_set in (raw / "feats").iterdir():
        there = folder / "feats" / image_set.name
        there.mkdir(parents=True)
        for file in list(image_set.iterdir())[:num_images]:
            np.save(there / file.name, chance.standard_normal((grid * grid, width), dtype=np.float32))
    prepare(
        PrepareRequest(
            "vqa", out=folder / "data", raw=raw / "raw", features=folder / "feats", grid=grid, vectors="none"
        )
    )
    return open_prepared(folder / "data")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Check every GPU, or the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="one device; by default every GPU, or the CPU")
    parser.add_argument("--quick", action="store_true", help="small batches and few steps, as on the CPU")
    options = parser.parse_args()
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [options.device] if options.device else [f"cuda:{index}" for index in range(num_gpus)] or ["cpu"]
    is_right = True
    for name in names:
        device = torch.device(name)
        is_small = options.quick or device.type == "cpu"
        title = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(f"{name}: {title}, torch {torch.__version__}")
        sizes = [Size(8, (0, 1, 2, 3), 64), Size(14, (0, 1, 3), 64), Size(16, (0, 1, 2, 3), 64)]
        if is_small:
            sizes = [Size(size.grid, size.spans, 2) for size in sizes]
        with tempfile.TemporaryDirectory(prefix="trarctl-gpu-check-") as folder:
            is_right &= _print(parity(device, Path(folder)))
            is_right &= _print(step_times(device, sizes, num_steps=2 if is_small else 20))
            speeds = (loader_speed(device, size, Path(folder), num_batches=10 if is_small else 100) for size in sizes)
            is_right &= _print(speeds)
    print("all as it should be" if is_right else "something is wrong, see above")
    sys.exit(not is_right)


def _print(rows: Iterator[Row]) -> bool:
    is_right = True
    for row in rows:
        compiled = "compiled" if row.is_compiled else ""
        print(f"  {row.what:<20} {row.precision:<5} {compiled:<9} {row.figures:<58} {row.result}", flush=True)
        is_right &= row.result in ("ok", "skipped")
    return is_right


if __name__ == "__main__":
    main()
