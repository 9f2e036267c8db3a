"""Processors and memory that this process may use: by affinity, by its control group, and by what users say.

Free of numpy and torch, whose libraries read some of it from the environment while they are loaded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# How often a thread of GNU OpenMP looks for work before it sleeps: for about as long as waking it takes. On processors
# that other programs keep busy, its default makes a step take 10 times as long and more, and 20,000 still 3 times.
_SPINS = "1000"


class Memory(NamedTuple):
    """Memory of a machine or a device, in bytes."""

    total: int
    free: int


def usable_processors(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy; at least 1. ``root`` holds ``proc`` and ``sys``."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for group in _groups(root, "cpu") for quota in _quota(group))]))


def threads_of_each(num_processes: int, environ: MutableMapping[str, str] = os.environ) -> int:
    """How many threads each of several processes on this machine computes with: OMP_NUM_THREADS, or an equal share."""
    wanted = re.match(r"\s*([0-9]{1,4})\s*(,|$)", environ.get("OMP_NUM_THREADS", ""))
    return max(1, int(wanted[1]) if wanted else usable_processors() // num_processes)


def prepare_environment(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Set what libraries read while they are loaded, unless the user has; a warning where the user's cannot be read."""
    # Libraries take the sizes of a terminal from here without a look.
    for name in ("COLUMNS", "LINES"):
        if name in environ and not re.fullmatch(r"0*[1-9][0-9]{0,4}", environ[name]):
            del environ[name]
    # What torch's network layer says is said again by the error that follows, in words for people.
    environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    text = environ.get("OMP_NUM_THREADS")
    if text is None or re.fullmatch(r"\s*0*[1-9][0-9]{0,3}\s*(,\s*[0-9]+\s*)*", text):
        return None
    del environ["OMP_NUM_THREADS"]
    return f"OMP_NUM_THREADS={text!r} is no number of threads: it is not used" if text.strip() else None


def usable_memory(root: Path = Path("/")) -> Memory:
    """The memory of this machine, or as much as control groups grant; files in the page cache count as free."""
    told = dict(re.findall(r"^(\w+):\s*([0-9]+) kB$", _read(root / "proc/meminfo"), re.MULTILINE))
    total, free = (1024 * int(told.get(name, 0)) for name in ("MemTotal", "MemAvailable"))
    for group in _groups(root, "memory"):
        for limit_file, used_file in (("memory.max", "memory.current"), _MEMORY_1):
            limit, used = (_read(group / name).strip() for name in (limit_file, used_file))
            # Without a limit, version 2 says max, and version 1 more than any machine has.
            if limit.isascii() and limit.isdigit() and used.isascii() and used.isdigit():
                files = re.findall(r"^(?:in)?active_file ([0-9]+)$", _read(group / "memory.stat"), re.MULTILINE)
                total = min(total, int(limit))
                free = min(free, max(int(limit) - int(used) + sum(map(int, files)), 0))
    return Memory(total, free)


_MEMORY_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")  # of version 1


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups of this process, those further up included; version 2 first, then version 1."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        inside = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        for mount in [base / controller, base / controllers] if controllers else [base]:
            # A container sees its own group at the mount, which is the last of the parents, whatever the path says.
            for group in (inside, *inside.parents):
                yield mount / group


def _quota(group: Path) -> list[float]:
    limit, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not limit:
        limit, period = _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()
    if limit.isascii() and limit.isdigit() and period.isascii() and period.isdigit() and int(period):
        return [int(limit) / int(period)]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
