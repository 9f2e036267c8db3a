"""Measure preparation at the size of the real data, and print one table.

Run from the repository: ``python -m benchmarks.full_size --folder /tmp/full-size``. What was generated stays in the
folder and is used again. Every figure is measured in a process of its own, beside whatever else the machine is doing.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.make_full_size import write_clevr, write_table, write_vqa
from benchmarks.score_speed import Measured, measure_scoring, measure_submission, show

MOST_PREPARE_SECONDS, MOST_PREPARE_BYTES = 60, 3 << 30
MOST_READY_SECONDS, MOST_READY_BYTES = 3, 300 << 20
NUM_FEATURE_FILES = 20_000
NUM_TABLE_QUESTIONS = 100_000
FEATURE_SHAPE = (64, 2048)
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/full-size"))  # noqa: S108 - large, and the user's to move
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the real number of questions")
    parser.add_argument("--files", type=int, default=NUM_FEATURE_FILES, help="feature files to pack")
    parser.add_argument("--skip", nargs="*", default=[], choices=("vqa", "clevr", "table", "packing", "scoring"))
    options = parser.parse_args()
    lines: list[Measured] = []
    for dataset, write in (("vqa", write_vqa), ("clevr", write_clevr)):
        if dataset not in options.skip:
            raw = _generated(options.folder / dataset / "raw", write, options.scale)
            lines += _measure_text(dataset, raw, options.folder / dataset / "prepared")
    if "table" not in options.skip:
        lines += _measure_table(options.folder / "table", options.scale)
    if "packing" not in options.skip:
        lines += _measure_packing(options.folder / "packing", options.files)
    if "scoring" not in options.skip:
        lines += measure_scoring() + measure_submission()
    sys.exit(not show(lines))


def _generated(raw: Path, write: Callable[..., None], scale: float) -> Path:
    marker = raw / f"complete-{scale}"
    if not marker.exists():
        shutil.rmtree(raw, ignore_errors=True)
        write(raw, scale=scale)
        marker.touch()
    return raw


def _measure_text(dataset: str, raw: Path, out: Path) -> list[Measured]:
    lines = []
    if dataset == "vqa":
        lines += _measure_prepare(
            "vqa without Visual Genome", dataset, _without_visual_genome(raw), out, MOST_PREPARE_SECONDS
        )
    lines += _measure_prepare(dataset, dataset, raw, out, None if dataset == "vqa" else MOST_PREPARE_SECONDS)
    again, _, was_current = _in_own_process(_prepare, dataset, raw, out)
    assert was_current
    ready, grown, (parts, num_questions) = _in_own_process(_first_batch, out)
    what = f"{dataset}: first batch of {parts}, {num_questions:,} questions"
    return [
        *lines,
        _line(f"{dataset}: prepare again, nothing changed", "s", again, MOST_READY_SECONDS),
        _line(what, "s", ready, MOST_READY_SECONDS),
        _line(f"{dataset}: memory after touching all of it", "MiB", grown / MIB, MOST_READY_BYTES / MIB),
    ]


def _measure_prepare(name: str, dataset: str, raw: Path, out: Path, most_seconds: float | None) -> list[Measured]:
    shutil.rmtree(out, ignore_errors=True)
    size = sum(path.stat().st_size for path in raw.rglob("*.json") if "test-dev" not in path.name)
    seconds, peak, _ = _in_own_process(_prepare, dataset, raw, out)
    return [
        _line(f"{name}: prepare {size / 1e6:,.0f} MB of JSON", "s", seconds, most_seconds),
        _line(f"{name}: peak memory of prepare", "MiB", peak / MIB, MOST_PREPARE_BYTES / MIB),
    ]


def _without_visual_genome(raw: Path) -> Path:
    folder = raw.with_name("raw-without-vg")
    folder.mkdir(exist_ok=True)
    for path in raw.glob("v2_*"):
        (folder / path.name).unlink(missing_ok=True)
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _prepare(dataset: str, raw: Path, out: Path) -> tuple[float, int, Any]:
    from trarctl.data.prepare import PrepareRequest, prepare

    started = time.perf_counter()
    report = prepare(PrepareRequest(dataset, raw=raw, out=out, vectors="none", without_features=True))
    return time.perf_counter() - started, _peak_bytes(), report.was_current


def _first_batch(out: Path) -> tuple[float, int, Any]:
    """Time until the first batch's questions and targets are there; then read every array that training reads."""
    from trarctl.data import prepared

    before, started = _resident_bytes(), time.perf_counter()
    data = prepared.open_prepared(out)
    splits = [split for split in map(data.split, data.split_names) if split.is_annotated]
    order = np.concatenate([split.training_order for split in splits])
    rows = np.sort(np.random.default_rng(0).permutation(len(splits[0]))[:64])
    offsets, answer, _ = splits[0].targets
    assert splits[0].question_tokens[rows].shape[0] == len(rows) == len(splits[0].image[rows])
    assert len(answer[offsets[rows[0]] : offsets[rows[0] + 1]]) >= 0
    assert min(len(data.vocabulary), len(data.answers)) > 0
    seconds = time.perf_counter() - started
    for split in splits:
        for array in (split.question_tokens, split.question_id, split.image, *split.targets):
            array.max()
    parts = "+".join(split.name for split in splits)
    return seconds, _resident_bytes() - before, (parts, len(order))


def _measure_table(folder: Path, scale: float) -> list[Measured]:
    """A table of one's own, split by the content of its pictures: its time, and memory that does not grow with it."""
    lines, peaks = [], []
    for share in (0.1, 1.0):
        num_questions = int(NUM_TABLE_QUESTIONS * scale * share)
        raw = folder / f"raw-{num_questions}"
        if not (raw / "questions.jsonl").exists():
            write_table(raw, num_questions, num_questions // 5)
        out = folder / "prepared"
        shutil.rmtree(out, ignore_errors=True)
        seconds, peak, _ = _in_own_process(_prepare_table, raw, out)
        peaks.append(peak)
        what = f"table: prepare {num_questions:,} questions on {num_questions // 5:,} pictures"
        lines.append(_line(f"{what}, features included", "s", seconds, MOST_PREPARE_SECONDS))
    lines.append(_line("table: memory that ten times the questions add", "MiB", (peaks[1] - peaks[0]) / MIB, 100))
    return lines


def _prepare_table(raw: Path, out: Path) -> tuple[float, int, Any]:
    from trarctl.data.prepare import PrepareRequest, prepare

    started = time.perf_counter()
    options = {"name": "own", "questions": raw / "questions.jsonl"}
    request = PrepareRequest("table", out=out, vectors="none", images=raw / "pictures", grid=4, options=options)
    prepare(request)
    return time.perf_counter() - started, _peak_bytes(), None


def _measure_packing(folder: Path, num_files: int) -> list[Measured]:
    feats = folder / "feats" / "train"
    if not feats.exists() or len(list(feats.iterdir())) != num_files:
        _write_features(feats, num_files)
    size = num_files * int(np.prod(FEATURE_SHAPE)) * 4
    lines = []
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copying = _timed(lambda: subprocess.run(["/bin/cp", "-r", str(feats), str(copy)], check=True))
    shutil.rmtree(copy)
    lines.append(Measured(f"cp -r of {num_files:,} files, {size / 1e9:.1f} GB", f"{copying:,.1f} s", "", is_good=True))
    for stored in ("float16", "float32"):
        packed = folder / f"packed.{stored}.npy"
        packed.unlink(missing_ok=True)
        seconds, peak, _ = _in_own_process(_pack, feats, packed, stored)
        lines.append(_line(f"pack as {stored}", "s", seconds, 2 * copying))
        lines.append(_line(f"peak memory of packing as {stored}", "MiB", peak / MIB, 500))
    lines.append(_measure_resuming(folder, feats))
    return lines


def _measure_resuming(folder: Path, feats: Path) -> Measured:
    """Kill packing at random points until it ends by itself."""
    whole, path = folder / "packed.float16.npy", folder / "resumed.npy"
    for left in folder.glob("*resumed.npy*"):
        left.unlink()
    rng = random.Random(0)  # noqa: S311 - moments to kill at
    num_kills = 0
    while not path.exists():
        process = get_context("spawn").Process(target=_pack, args=(feats, path, "float16"))
        process.start()
        process.join(rng.uniform(1, 6) if num_kills < 5 else None)
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            num_kills += 1
        process.join()
    is_same = filecmp.cmp(whole, path, shallow=False)
    path.unlink()
    return Measured(f"killed {num_kills} times and resumed", "same bytes" if is_same else "OTHER BYTES", "", is_same)


def _pack(feats: Path, path: Path, stored: Any) -> tuple[float, int, Any]:
    from trarctl.data import no_progress
    from trarctl.data.datasets.base import FileNaming
    from trarctl.data.datasets.clevr import CLEVR
    from trarctl.data.features.images import ImageSet, scan_folder
    from trarctl.data.features.packing import fill_from_files, pack

    started = time.perf_counter()
    found = scan_folder(feats, [FileNaming("", 1, ".npy")])
    assert found is not None
    images = ImageSet(CLEVR.image_sets[0], found.ids, found)
    pack(partial(fill_from_files, images), path, (len(found.ids), *FEATURE_SHAPE), stored, no_progress)
    return time.perf_counter() - started, _peak_bytes(), None


def _write_features(folder: Path, count: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    features = np.maximum(np.random.default_rng(0).standard_normal(FEATURE_SHAPE).astype(np.float32), 0)
    for number in range(count):
        features[number % len(features)] = np.roll(features[number % len(features)], number)
        np.save(folder / f"{number}.npy", features)


def _line(what: str, unit: str, found: float, limit: float | None) -> Measured:
    if limit is None:
        return Measured(what, f"{found:,.1f} {unit}", "", is_good=True)
    return Measured(what, f"{found:,.1f} {unit}", f"at most {limit:,.1f} {unit}", found <= limit)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _in_own_process(call: Callable[..., tuple[float, int, Any]], *arguments: object) -> tuple[float, int, Any]:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _peak_bytes() -> int:
    # Not getrusage: there a new process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
