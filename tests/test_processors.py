"""Processors: what affinity, quotas and OMP_NUM_THREADS leave of those that the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trarctl.processors import Memory, prepare_environment, threads_of_each, usable_memory, usable_processors

QUIET = {"TORCH_CPP_LOG_LEVEL": "FATAL"}


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen processors, all of them allowed."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_processors(tmp_path) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5})
    assert usable_processors(tmp_path) == 1


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 16),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("9900000 100000\n", 16),
        ("", 16),
        ("broken", 16),
        ("100000 0", 16),
        ("\u00b2 1", 16),
    ],
)
def test_the_quota_of_a_control_group(quota: str, expected: int, tmp_path: Path) -> None:
    root = write(tmp_path, proc__self__cgroup="0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(quota)
    assert usable_processors(root) == expected


def test_a_quota_further_up_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="0::/job/step/task\n",
        sys__fs__cgroup__job__cpu_DOT_max="300000 100000",
        sys__fs__cgroup__job__step__task__cpu_DOT_max="max 100000",
    )
    assert usable_processors(root) == 3


def test_the_quota_of_version_1(tmp_path: Path) -> None:
    root = write(tmp_path, proc__self__cgroup="7:memory:/m\n4:cpu,cpuacct:/docker/abc\n")
    for folder in ("sys/fs/cgroup/memory/m", "sys/fs/cgroup/cpu,cpuacct/docker/abc"):
        (root / folder).mkdir(parents=True)
        (root / folder / "cpu.cfs_quota_us").write_text("150000" if "cpu" in folder else "1000")
        (root / folder / "cpu.cfs_period_us").write_text("100000")
    assert usable_processors(root) == 2
    (root / "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us").write_text("-1")
    assert usable_processors(root) == 16


@pytest.mark.parametrize(
    ("num_processes", "omp", "expected"),
    [(1, None, 16), (2, None, 8), (3, None, 5), (40, None, 1), (2, "1", 1), (2, "6", 6), (2, "4,2", 4), (2, "x", 8)],
)
def test_threads_of_each(num_processes: int, omp: str | None, expected: int) -> None:
    environ = {} if omp is None else {"OMP_NUM_THREADS": omp}
    assert threads_of_each(num_processes, environ) == expected


@pytest.mark.parametrize(
    ("before", "after", "warning"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000", **QUIET}, None),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5", **QUIET}, None),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active", **QUIET}, None),
        ({"OMP_NUM_THREADS": "4,2"}, {"OMP_NUM_THREADS": "4,2", "GOMP_SPINCOUNT": "1000", **QUIET}, None),
        ({"OMP_NUM_THREADS": ""}, {"GOMP_SPINCOUNT": "1000", **QUIET}, None),
        *[
            (
                {"OMP_NUM_THREADS": text},
                {"GOMP_SPINCOUNT": "1000", **QUIET},
                f"OMP_NUM_THREADS={text!r} is no number of threads: it is not used",
            )
            for text in ("abc", "0", "-2", "\u00b2", "99999")
        ],
    ],
)
def test_the_environment_of_libraries(before: dict[str, str], after: dict[str, str], warning: str | None) -> None:
    environ = dict(before)
    assert prepare_environment(environ) == warning
    assert environ == after


MEMINFO = "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     700 kB\nHugePages_Total:       0\n"


@pytest.mark.parametrize(
    ("limit", "used", "files", "expected"),
    [
        ("max\n", "500\n", "", (1_024_000, 716_800)),
        ("600000\n", "500000\n", "", (600_000, 100_000)),
        ("600000\n", "500000\n", "anon 7\nactive_file 1000\ninactive_file 2000\n", (600_000, 103_000)),
        ("600000\n", "700000\n", "", (600_000, 0)),
        ("900000\n", "1000\n", "", (900_000, 716_800)),
        ("broken", "1", "", (1_024_000, 716_800)),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_memory_of_a_control_group(
    version: int, limit: str, used: str, files: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    root = write(tmp_path, proc__self__cgroup="0::/job\n" if version == 2 else "4:memory:/job\n2:cpu:/\n")
    (root / "proc/meminfo").write_text(MEMINFO)
    group = root / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory/job")
    group.mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip((*names, "memory.stat"), (limit, used, files), strict=True):
        (group / name).write_text(text)
    assert usable_memory(root) == Memory(*expected)


def test_memory_that_nobody_tells(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == Memory(0, 0)
