"""Showing a run as it goes: live lines on a terminal, plain ones now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trarctl.commands.console import note, printable, stderr_console
from trarctl.commands.epoch_table import EpochTable
from trarctl.commands.live import LiveView
from trarctl.commands.progress import PlainProgress, duration
from trarctl.engine.callbacks import (
    Callback,
    EpochDone,
    Event,
    Note,
    Progressed,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)

REFRESHES_PER_SECOND = 4
# A log should stay readable: a line after two seconds, then every ten, ever more seldom in a run of hours.
SECONDS_BEFORE_FIRST_LINE = 2.0
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 300.0
PAUSES_PER_RUN = 40


@contextmanager
def watch_run(
    *, is_quiet: bool = False, spans: tuple[int | str, ...] = (), is_hard: bool = False
) -> Iterator[Callback]:
    """An observer that shows a run on stderr.

    Args:
        is_quiet: show notes alone.
        spans: the order of each span of the model, to show how they are used.
        is_hard: whether the temperature matters.
    """
    if is_quiet:
        yield _show_notes
        return
    console = stderr_console()
    if not sys.stderr.isatty():
        yield RunView(console, PlainSteps(console, is_hard=is_hard), width=None)
        return
    view = LiveView(spans, is_hard=is_hard)
    with Live(view, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True) as live:
        yield RunView(live.console, view.update, width=lambda: live.console.width)


def _show_notes(event: Event) -> None:
    if isinstance(event, Note):
        note(event.text)


class PlainSteps:
    """Prints unfinished work now and then: ``epoch 2/6: 120 of 301 steps (40 %), loss 0.3512, 9 s left``.

    Args:
        console: where to.
        is_hard: whether the temperature matters.
        clock: seconds.
    """

    def __init__(self, console: Console, *, is_hard: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._is_hard = is_hard
        self._clock = clock
        self._started = clock()
        self._printed: float | None = None
        self._epochs = 0
        self._loss = ""
        self._epoch_started: tuple[int, float, int] = (0, 0.0, 0)
        self._tasks = PlainProgress(clock)

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, RunStarted):
            self._epochs = event.epochs
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Progressed):
            self._tasks(event.task, event.done, event.total)

    def _step(self, event: StepDone) -> None:
        now = self._clock()
        if event.loss is not None:
            self._loss = f"loss {event.loss:.4f}, "
        epoch, began, first = self._epoch_started
        if epoch != event.epoch:
            epoch, began, first = self._epoch_started = (event.epoch, now, event.step_in_epoch)
        if not self._is_due(now) or event.step_in_epoch == event.steps_per_epoch:
            return
        self._printed = now
        done, total = event.step_in_epoch, event.steps_per_epoch
        left = f", {duration((total - done) * (now - began) / (done - first))} left" if done > first else ""
        speed = f"{event.samples_per_second:,.0f} samples/s"
        heat = f"temperature {event.temperature:.3g}, " if self._is_hard else ""
        _print(
            self._console,
            f"epoch {event.epoch}/{self._epochs}: {done:,} of {total:,} steps ({100 * done / total:.0f} %), "
            f"{self._loss}rate {event.rate:.3g}, {heat}{speed}{left}",
        )

    def _is_due(self, now: float) -> bool:
        if self._printed is None:
            return now - self._started >= SECONDS_BEFORE_FIRST_LINE
        pause = min(max((now - self._started) / PAUSES_PER_RUN, SHORTEST_PAUSE), LONGEST_PAUSE)
        return now - self._printed >= pause


class RunView:
    """Turns events into lines that stay.

    Args:
        console: where finished things are printed.
        show: told every event, for what is unfinished.
        width: columns that the terminal has now; None where nothing is cut.
    """

    def __init__(self, console: Console, show: Callable[[Event], None], *, width: Callable[[], int] | None) -> None:
        self._console = console
        self._show = show
        self._width = width
        self._table = EpochTable(0, width)
        self._ended: EpochDone | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self._ended is not None and not isinstance(event, Progressed):
            self._print_epoch(event if isinstance(event, Validated) else None)
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, EpochDone):
            self._ended = event
        elif isinstance(event, Note):
            self._print(f"note:  {event.text}")
        elif isinstance(event, RunFinished):
            best = "" if event.best_epoch is None else f"; best epoch {event.best_epoch}: {event.best_overall:.2f} %"
            self._print(f"finished run {event.name} in {duration(event.seconds)}{best}")
        self._show(event)

    def _start(self, event: RunStarted) -> None:
        self._table = EpochTable(event.epochs, self._width)
        processes = "" if event.num_processes == 1 else f", {event.num_processes} processes"
        self._print(f"run {event.name} in {event.folder}, on {event.device}{processes}")
        self._print(
            f"{event.num_parameters:,} parameters, {event.num_samples:,} samples, "
            f"{event.steps_per_epoch:,} steps an epoch, {event.epochs} epochs"
        )
        if event.start_epoch or event.start_step:
            self._print(f"going on behind epoch {event.start_epoch}, step {event.start_step} of the next")

    def _print_epoch(self, validated: Validated | None) -> None:
        """The row of the epoch that has ended, once it is known whether it was validated."""
        if self._ended is not None:
            for line in self._table.rows(self._ended, validated):
                self._print(line)
        self._ended = None

    def _print(self, line: str) -> None:
        _print(self._console, line)


def _print(console: Console, line: str) -> None:
    console.print(Text(printable(line)), soft_wrap=True)
