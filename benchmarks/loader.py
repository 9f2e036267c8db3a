"""Batches out of a packed feature file against a plain sequential read of the same file, and the memory it takes.

    python -m benchmarks.loader [--quick] [--json FILE]
    python -m benchmarks.loader --images 8000

The file is in the page cache for both. Batches are shuffled and complete: questions, features and targets. With
``--images``, as many questions as VQA-v2 trains on and features of that many images, from their file and from memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import orjson
import torch

from benchmarks.attention import resident_bytes
from benchmarks.make_full_size import write_vqa
from trarctl import cli
from trarctl.data import in_threads
from trarctl.data.features.grid import FeatureStore
from trarctl.data.features.resident import ResidentFeatures
from trarctl.data.loader import Rows, Samples, load_batches, training_plan, training_samples
from trarctl.data.manifest import FEATURES, ImageSetPart, ImagesPart
from trarctl.data.prepared import PreparedData, PreparedSplit, open_prepared
from trarctl.engine.distributed import reuse_freed_memory

BATCH, WIDTH, CELLS = 64, 2048, 64
NUM_QUESTIONS = 443_757  # of train of VQA-v2


@dataclass(frozen=True)
class Result:
    """Speeds in bytes of features, medians; memory that is not a mapped file."""

    file_gigabytes: float
    sequential_gigabytes_per_second: float
    batches_gigabytes_per_second: float
    batches_to_sequential: float
    samples_per_second: float
    memory_growth_megabytes: float
    samples: int
    first_batch_seconds: float


def sequential_seconds(path: Path, buffer: bytearray) -> float:
    """Seconds for reading a file from its beginning to its end into one buffer."""
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def make_data(folder: Path, scale: float) -> Path:
    """Prepared data of the VQA shape at a fraction of its size, with packed float16 features of random numbers."""
    raw = folder / "raw"
    write_vqa(raw, scale=scale)
    numbers = np.random.default_rng(0).standard_normal((CELLS, WIDTH)).astype(np.float16)
    for name, split in (("train2014", "train2014"), ("val2014", "val2014"), ("test2015", "test2015")):
        target = folder / "feats" / split
        target.mkdir(parents=True)
        questions = orjson.loads((raw / f"v2_OpenEnded_mscoco_{name}_questions.json").read_bytes())["questions"]
        for image in {question["image_id"] for question in questions}:
            np.save(target / f"COCO_{split}_{image:012d}.jpg.npy", np.roll(numbers, image))
    for name in ("VG_questions.json", "VG_annotations.json"):
        (raw / name).unlink()
    out = folder / "prepared"
    arguments = ["prepare", "vqa", "--raw", raw, "--features", folder / "feats", "--out", out, "--vectors", "none"]
    arguments += ["--pack", "float16", "--min-answer-count", "0"]
    with redirect_stdout(io.StringIO()):
        if cli.run([str(argument) for argument in arguments]):
            raise SystemExit("the benchmark's data could not be prepared")
    return out


def measure(folder: Path, *, scale: float, num_samples: int) -> Result:
    """Read the same bytes both ways, taking turns."""
    prepared = make_data(folder, scale)
    reuse_freed_memory()
    (packed,) = (prepared / "features").glob("train2014*.npy")
    size = packed.stat().st_size
    buffer = bytearray(16 * 2**20)
    start = time.perf_counter()
    data = open_prepared(prepared)
    samples = training_samples(data, "train", "bce")
    samples.batch(np.arange(BATCH))
    first_batch = time.perf_counter() - start
    sequential_seconds(packed, buffer)
    sequential, batches = [], []
    grown_from = 0
    seen = epoch = 0
    while seen < num_samples:
        sequential.append(size / sequential_seconds(packed, buffer))
        plan = training_plan(len(samples), batch_size=BATCH, seed=0, epoch=epoch, shuffle=True)[:100]
        start = time.perf_counter()
        for batch in load_batches(samples, plan, num_workers=2):
            seen += len(batch)
        batches.append(len(plan) * BATCH * CELLS * WIDTH * 2 / (time.perf_counter() - start))
        grown_from = grown_from or resident_bytes("RssAnon")
        epoch += 1
    fast, slow = statistics.median(sequential), statistics.median(batches)
    return Result(
        file_gigabytes=round(size / 1e9, 2),
        sequential_gigabytes_per_second=round(fast / 1e9, 2),
        batches_gigabytes_per_second=round(slow / 1e9, 2),
        batches_to_sequential=round(slow / fast, 3),
        samples_per_second=round(slow / (CELLS * WIDTH * 2), 1),
        memory_growth_megabytes=round((resident_bytes("RssAnon") - grown_from) / 2**20, 1),
        samples=seen,
        first_batch_seconds=round(first_batch, 3),
    )


def questions_of_full_size(folder: Path, num_images: int) -> Samples:
    """As many questions as train of VQA-v2 has, about images with random features in a packed file."""
    random = np.random.default_rng(0)
    (folder / FEATURES).mkdir()
    shape = num_images, CELLS, WIDTH
    packed = np.lib.format.open_memmap(folder / FEATURES / "all.npy", mode="w+", dtype=np.float16, shape=shape)
    cells = random.standard_normal((CELLS, WIDTH)).astype(np.float16)
    for row in range(num_images):
        packed[row] = np.roll(cells, row)
    del packed
    images = ImageSetPart(name="all", num_images=num_images, kind="packed", file="all.npy", stored_type="float16")
    part = ImagesPart(key="", grid_size=8, feature_width=WIDTH, pack="float16", backbone=None, image_sets=(images,))
    store = FeatureStore(folder, "vqa", part, [np.arange(num_images)])
    num_each = random.integers(1, 8, NUM_QUESTIONS)
    offsets = np.concatenate([[0], np.cumsum(num_each)])
    lengths = random.integers(4, 15, NUM_QUESTIONS)[:, None]
    split = SimpleNamespace(
        question_id=np.arange(NUM_QUESTIONS),
        question_tokens=np.where(np.arange(14) < lengths, 3, 0).astype(np.int32),
        image=random.integers(0, num_images, NUM_QUESTIONS, dtype=np.int32),
        targets=(offsets, random.integers(0, 3_129, offsets[-1]), random.integers(1, 10, offsets[-1], dtype=np.uint8)),
    )
    data = SimpleNamespace(answers=range(3_129), features=store)
    return Samples(cast(PreparedData, data), [(cast(PreparedSplit, split), np.arange(NUM_QUESTIONS))], "bce")


def compare_sources(
    folder: Path, num_images: int, *, repetitions: int = 5, num_batches: int = 150
) -> dict[str, tuple[int, int]]:
    """Samples a second in two threads, medians: by the clock, and by the time of the processors, were there two alone.

    Out of the file, out of memory, and where a device keeps the features; the first two with and without one more copy:
    it stands for the one into page-locked memory, which a GPU's batches took before they were read there.
    """
    samples = questions_of_full_size(folder, num_images)
    store, images = samples._data.features, samples._parts[0][0].image
    kept = ResidentFeatures(store, np.arange(num_images), num_threads=2)
    there = cast(ResidentFeatures, SimpleNamespace(on_device=torch.empty(0), places=kept.places))
    buffers = [np.empty((BATCH, CELLS, WIDTH), np.float16) for _ in range(8)]
    reuse_freed_memory()

    def copied_again(indices: Rows, source: ResidentFeatures | None = None) -> None:
        features = samples.batch(indices, kept=source).features.numpy()
        np.copyto(buffers[indices[0] % len(buffers)][: len(features)], features)

    works: dict[str, Callable[[Rows], object]] = {
        "file, copied again": copied_again,
        "file": samples.batch,
        "memory, copied again": partial(copied_again, source=kept),
        "memory": partial(samples.batch, kept=kept),
        "device": partial(samples.batch, kept=there),
        "features alone, file": lambda rows: store.read(images[rows]),
        "features alone, memory": lambda rows: kept.read(images[rows], buffers[rows[0] % len(buffers)]),
    }
    clock, processors = (defaultdict[str, list[float]](list) for _ in range(2))
    for epoch in range(repetitions):
        plan = training_plan(len(samples), batch_size=BATCH, seed=0, epoch=epoch, shuffle=True)[:num_batches]
        for name, work in works.items():
            start = time.perf_counter(), time.process_time()
            for _ in in_threads(work, plan, 2):
                pass
            clock[name].append(time.perf_counter() - start[0])
            processors[name].append((time.process_time() - start[1]) / 2)
    count = num_batches * BATCH
    return {
        name: (round(count / statistics.median(clock[name])), round(count / statistics.median(processors[name])))
        for name in works
    }


def measure_and_print(*, quick: bool) -> Result:
    """Measure in a temporary folder and print a table."""
    with tempfile.TemporaryDirectory(prefix="trarctl-loader-") as folder:
        result = measure(Path(folder), scale=0.005 if quick else 0.02, num_samples=20_000 if quick else 100_000)
    for name, value in asdict(result).items():
        print(f"{name.replace('_', ' '):36} {value:>12,}")
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller file, fewer samples")
    parser.add_argument("--images", type=int, help="compare files and memory, with features of that many images")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if options.images is not None:
        with tempfile.TemporaryDirectory(prefix="trarctl-loader-") as folder:
            speeds = compare_sources(Path(folder), options.images)
        print(f"{'samples/s in two threads':28} {'by the clock':>14} {'on two processors':>18} {'GB/s':>6}")
        for name, (by_clock, alone) in speeds.items():
            print(f"{name:28} {by_clock:>14,} {alone:>18,} {alone * CELLS * WIDTH * 2 / 1e9:6.1f}")
        print("load of the machine:", *os.getloadavg(), f"on {os.cpu_count()} processors")
        return
    result = measure_and_print(quick=options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
