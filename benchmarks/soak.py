"""Train, score and ask over and over: memory, open files, threads, processes and temporary files must stay level.

    python -m benchmarks.soak [--minutes N]

One round trains a tiny model in this process, scores it and asks it; the next does so in two processes.
A table of samples, and exit code 1 if what is measured here grows over the second half by more than its bound.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.engine.running import tiny_settings, train
from tests.small_runs import make_raw
from trarctl import api
from trarctl.data.prepare import PrepareRequest, prepare

# What each may grow by over the second half, by the slope of a line through its samples.
BOUNDS = {"memory, MB": 16.0, "open files": 1.0, "threads": 1.0, "processes": 1.0, "temporary files": 1.0}
_PR_SET_CHILD_SUBREAPER = 36
Sample = tuple[float, float, float, float, float]


def one_round(data: Path, folder: Path, gpus: str) -> None:
    """Train, score in as many processes, and ask about pictures; leave nothing."""
    settings = tiny_settings(data, folder, "easy-vqa", run__gpus=gpus, train__epochs=1)
    run = train(settings)
    scores = api.score(run.name, gpus=gpus, runs=settings.run.folder)
    assert np.isfinite(scores.scores).all()
    predictor = api.open_predictor(run.name, runs=settings.run.folder)
    pictures = sorted((folder / "raw" / "test" / "images").iterdir())
    predictor.ask_files([*pictures, *pictures], ["what shape is it?"] * 2 * len(pictures))
    shutil.rmtree(settings.run.folder)


def sample(folder: Path) -> Sample:
    """Measure this process, those that it started, and the files that it left."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    tasks = list(Path("/proc/self/task").iterdir())
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    num_files = sum(len(files) + len(folders) for _, folders, files in os.walk(folder))
    memory = float(status["VmRSS"].split()[0]) / 1e3
    return memory, len(list(Path("/proc/self/fd").iterdir())), len(tasks), children, num_files


def growth(samples: Sequence[Sample]) -> list[float]:
    """What each value grows by over the second half, by the slope of a line through it."""
    half = np.array(samples[len(samples) // 2 :])
    return [float(np.polyfit(np.arange(len(half)), values, 1)[0] * (len(half) - 1)) for values in half.T]


def soak(minutes: float, folder: Path) -> list[Sample]:
    """Go round until the time is over, at least four times, printing the samples."""
    make_raw(folder / "raw")
    data = folder / "prepared"
    prepare(PrepareRequest("easy-vqa", data, folder / "raw", vectors="none"))
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir()
    # Processes that outlive the one that started them become ours, and are counted.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    start, samples, shown = time.monotonic(), list[Sample](), 0.0
    print("minute " + "".join(f"{name:>17}" for name in BOUNDS))
    while time.monotonic() - start < 60 * minutes or len(samples) < 8:
        for gpus in ("cpu", "cpu:2"):
            one_round(data, folder, gpus)
            samples.append(sample(folder))
        if time.monotonic() >= shown:
            shown = time.monotonic() + 60 * minutes / 20
            row = "".join(f"{value:17.1f}" for value in samples[-1])
            print(f"{(time.monotonic() - start) / 60:6.1f} {row}", flush=True)
    return samples


def main() -> None:
    """Soak, and say what grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        samples = soak(parser.parse_args().minutes, Path(folder))
    grown = dict(zip(BOUNDS, growth(samples), strict=True))
    print(f"\ngrowth over the second half of {len(samples)} samples")
    for name, bound in BOUNDS.items():
        print(f"{name:>16} {grown[name]:8.2f}, bound {bound:g}{'' if grown[name] < bound else '  TOO MUCH'}")
    raise SystemExit(any(grown[name] >= bound for name, bound in BOUNDS.items()))


if __name__ == "__main__":
    main()
