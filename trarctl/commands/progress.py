"""How far long work has come: bars with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trarctl.commands.console import printable, stderr_console
from trarctl.data import Progress, no_progress

if TYPE_CHECKING:
    from rich.progress import Task

# A terminal shows no more than this many changes a second to the eye.
SECONDS_BETWEEN_REFRESHES = 0.1
# A log should stay short: the first line after two seconds, then seldom.
SECONDS_BEFORE_FIRST_LINE = 2.0
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(*, is_quiet: bool = False) -> Iterator[Progress]:
    """Show on stderr what is reported to the callback that this gives.

    Args:
        is_quiet: show nothing.
    """
    if is_quiet:
        yield no_progress
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield PlainProgress()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.table import Column
    from rich.text import Text

    class Rate(rich_progress.ProgressColumn):
        """Steps a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{compact(speed)}/s" if speed else "", style="progress.data.speed")

    class Count(rich_progress.ProgressColumn):
        """How much of how much."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text(compact(task.completed) if task.completed else "")
            return Text(f"{compact(task.completed)}/{compact(task.total)}", style="progress.download")

    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=20),
        # A narrow terminal takes from the bar, not from the figures.
        Count(Column(no_wrap=True)),
        Rate(Column(no_wrap=True)),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=stderr_console(),
    )
    tasks: dict[str, rich_progress.TaskID] = {}
    refreshed: dict[str, float] = {}
    latest: dict[str, int] = {}
    lock = threading.Lock()

    def report(task: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        with lock:
            is_new = task not in tasks
            if not is_new and done != total and now - refreshed[task] < SECONDS_BETWEEN_REFRESHES:
                return
            refreshed[task] = now
            if is_new:
                tasks[task] = bars.add_task(printable(task), total=total)
            elif done < latest[task]:
                # The same task again, as validation comes after each epoch.
                bars.reset(tasks[task], total=total)
            latest[task] = done
        bars.update(tasks[task], completed=done, total=total)

    with bars:
        yield report


@dataclass
class _Line:
    """What has been printed of one task."""

    started: float
    first_done: int
    printed: float | None = None


class PlainProgress:
    """A line per task now and then: ``reading images: 1,200 of 5,000 (24 %), 300/s, 13 s left``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()

    def __call__(self, task: str, done: int, total: int | None) -> None:
        """Report progress; see ``trarctl.data.progress``."""
        now = self._clock()
        with self._lock:
            line = self._lines.setdefault(task, _Line(now, done))
            if self._is_due(line, now, is_finished=done == total):
                line.printed = now
                _print(f"{task}: {_describe(done - line.first_done, done, total, now - line.started)}")
            if done == total:
                # The same task may come again.
                del self._lines[task]

    @staticmethod
    def _is_due(line: _Line, now: float, *, is_finished: bool) -> bool:
        if line.printed is None:
            return now - line.started >= SECONDS_BEFORE_FIRST_LINE
        return is_finished or now - line.printed >= SECONDS_BETWEEN_LINES


def _describe(num_new: int, done: int, total: int | None, seconds: float) -> str:
    rate = num_new / seconds if seconds > 0 else 0.0
    parts = [f"{done:,}" if total is None else f"{done:,} of {total:,} ({100 * done / max(total, 1):.0f} %)"]
    if rate:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
    if total is not None and done >= total:
        parts.append(f"took {duration(seconds)}")
    elif total is not None and rate:
        parts.append(f"{duration((total - done) / rate)} left")
    return ", ".join(parts)


def compact(number: float) -> str:
    """A number for people in a narrow place: ``4,000``, ``1.9M``, ``2.5``."""
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    for limit, unit, suffix in ((1e5, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if number < limit:
            value = number / unit
            return f"{value:.1f}{suffix}" if suffix and value < 100 else f"{value:,.0f}{suffix}"
    return f"{number / 1e9:.1f}G"


def compact_bytes(number: float) -> str:
    """A size for people, in powers of 1000 as disks are sold: ``950 B``, ``7.6 MB``, ``1.2 GB``."""
    for limit, unit, suffix in ((1e3, 1, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if number < limit:
            value = number / unit
            return f"{value:.1f} {suffix}" if unit > 1 and value < 100 else f"{value:.0f} {suffix}"
    return f"{number / 1e12:.1f} TB"


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _print(line: str) -> None:
    stderr_console().print(printable(line), soft_wrap=True)
