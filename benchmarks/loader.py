"""Batches out of a packed feature file against a plain sequential read of the same file, and the memory it takes.

    python -m benchmarks.loader [--quick] [--json FILE]

The file is in the page cache for both. Batches are shuffled and complete: questions, features and targets.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson

from benchmarks.attention import resident_bytes
from benchmarks.make_full_size import write_vqa
from trarctl import cli
from trarctl.data.loader import load_batches, training_plan, training_samples
from trarctl.data.prepared import open_prepared
from trarctl.engine.distributed import reuse_freed_memory

BATCH, WIDTH, CELLS = 64, 2048, 64


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
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    result = measure_and_print(quick=options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
