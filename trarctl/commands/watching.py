"""Showing a run as it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from trarctl.commands.console import printable, stderr_console
from trarctl.commands.progress import PlainProgress, duration
from trarctl.engine.events import (
    EpochDone,
    Event,
    Note,
    Observer,
    Progressed,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)


@contextmanager
def watch_run() -> Iterator[Observer]:
    """An observer that shows a run on stderr."""
    console = stderr_console()
    if not sys.stderr.isatty():
        yield RunView(console, _plain_steps())
        return
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bars:
        yield RunView(bars.console, _bar_steps(bars))


Steps = Callable[[str, str, int, int], None]


def _plain_steps() -> Steps:
    plain = PlainProgress()

    def show(task: str, _speed: str, done: int, total: int) -> None:
        plain(task, done, total)

    return show


def _bar_steps(bars: Progress) -> Steps:
    task_id: TaskID = bars.add_task("", total=None, visible=False, speed="")

    def show(task: str, speed: str, done: int, total: int) -> None:
        nonlocal task_id
        if done <= 1 or bars.tasks[0].total != total:
            bars.reset(task_id, total=total)
        bars.update(task_id, description=task, completed=done, speed=speed, visible=done < total)

    return show


class RunView:
    """Turns events into lines.

    Args:
        console: where finished things are printed.
        show_steps: where unfinished ones are shown: task, speed, done, total.
    """

    def __init__(self, console: Console, show_steps: Steps) -> None:
        self._console = console
        self._show_steps = show_steps
        self._epochs = 0
        self._loss = ""
        self._earlier: float | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            if event.loss is not None:
                self._loss = f"  loss {event.loss:.4f}"
            name = f"epoch {event.epoch}/{self._epochs}"
            speed = f"{event.samples_per_second:,.0f} samples/s{self._loss}  rate {event.rate:.2g}"
            self._show_steps(name, speed, event.step_in_epoch, event.steps_per_epoch)
        elif isinstance(event, Progressed):
            self._show_steps(event.task, "", event.done, event.total)
        elif isinstance(event, EpochDone):
            self._print(
                f"epoch {event.epoch}/{self._epochs}  loss {event.loss:.4f}  rate {event.rate:.3g}  "
                f"{event.samples_per_second:,.0f} samples/s  {duration(event.seconds)}"
            )
        elif isinstance(event, Validated):
            self._validated(event)
        elif isinstance(event, Note):
            self._print(f"note:  {event.text}")
        elif isinstance(event, RunFinished):
            best = "" if event.best_epoch is None else f"; best epoch {event.best_epoch}: {event.best_overall:.2f} %"
            self._print(f"finished run {event.name} in {duration(event.seconds)}{best}")

    def _start(self, event: RunStarted) -> None:
        self._epochs = event.epochs
        processes = "" if event.num_processes == 1 else f", {event.num_processes} processes"
        self._print(f"run {event.name} in {event.folder}, on {event.device}{processes}")
        self._print(
            f"{event.num_parameters:,} parameters, {event.num_samples:,} samples, "
            f"{event.steps_per_epoch:,} steps an epoch, {event.epochs} epochs"
        )
        if event.start_epoch or event.start_step:
            self._print(f"going on behind epoch {event.start_epoch}, step {event.start_step} of the next")

    def _validated(self, event: Validated) -> None:
        change = "" if self._earlier is None else f" ({event.overall - self._earlier:+.2f})"
        self._earlier = event.overall
        types = "  ".join(f"{name} {value:.2f}" for name, value in event.per_type.items())
        best = "  best so far" if event.is_best else ""
        self._print(f"           val {event.overall:.2f} %{change}  {types}  {duration(event.seconds)}{best}")

    def _print(self, line: str) -> None:
        self._console.print(Text(printable(line)), soft_wrap=True)
