"""The one progress printer: live lines on a terminal, a plain line now and then in a log, and rows that stay."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from trarctl.commands.console import (
    compact,
    compact_bytes,
    display_failure,
    duration,
    note,
    open_console,
    printable,
    shield_streams,
)
from trarctl.data import Progress
from trarctl.engine.callbacks import (
    Callback,
    EpochDone,
    Event,
    Note,
    Progressed,
    RunFinished,
    RunStarted,
    Shielded,
    StepDone,
    Validated,
)
from trarctl.report.pictures import ShownSpans

REFRESHES_PER_SECOND = 4
LONGEST_BAR, SHORTEST_BAR, SHORTEST_NAME = 24, 6, 12
GAP = "  "
# A log should stay readable: a line after two seconds, then every ten, less and less often in a run of hours.
SECONDS_BEFORE_FIRST_LINE = 2.0
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 300.0
PAUSES_PER_RUN = 40


@contextmanager
def watch(*, is_quiet: bool = False, is_transient: bool = True) -> Iterator[Callback]:
    """Show on stderr what the events say.

    Args:
        is_quiet: show notes alone.
        is_transient: take the live lines off the screen at the end.
    """
    shield_streams()
    if is_quiet:
        yield _show_notes
        return
    from rich.live import Live

    console, is_live = open_console(is_stderr=True), sys.stderr.isatty()
    printer = ProgressPrinter(console, is_live=is_live)
    live = Live(printer, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=is_transient)
    with live if is_live else nullcontext():
        yield printer


@contextmanager
def show_progress(*, is_quiet: bool = False) -> Iterator[Progress]:
    """Show work that reports ``(task, done, total)``; on a terminal its lines stay."""
    with watch(is_quiet=is_quiet, is_transient=False) as callback:
        shielded = Shielded(callback, "the display")
        yield lambda task, done, total: shielded(Progressed(task, done, total))


def _show_notes(event: Event) -> None:
    if isinstance(event, Note):
        note(event.text)


@dataclass
class _Task:
    """Something with an end: an epoch, a validation, a file to read.

    Attributes:
        total: None while nobody knows it.
        log_started: when a log began to wait for a line; epochs share the start of the run.
        printed: when a log got its latest line.
    """

    name: str
    started: float
    first_done: int
    done: int
    total: int | None = None
    ended: float | None = None
    is_epoch: bool = False
    log_started: float = 0.0
    printed: float | None = None

    def rate(self, now: float) -> float:
        """Units a second since it began."""
        elapsed = (now if self.ended is None else self.ended) - self.started
        return (self.done - self.first_done) / max(elapsed, 1e-6)

    def pace(self, now: float) -> list[str]:
        """The rate, and the time left or taken; an epoch's rate is shown as samples a second elsewhere."""
        rate = self.rate(now)
        figures = [f"{compact(rate)}/s" if rate >= 10 else f"{rate:.1f}/s"] if rate and not self.is_epoch else []
        if self.ended is not None:
            figures.append(f"took {duration(self.ended - self.started)}")
        elif self.total is not None and rate:
            figures.append(f"{duration((self.total - self.done) / rate)} left")
        return figures

    def is_due(self, now: float) -> bool:
        """Whether a log gets a line."""
        if self.printed is None:
            return now - self.log_started >= SECONDS_BEFORE_FIRST_LINE
        pause = min(max((now - self.log_started) / PAUSES_PER_RUN, SHORTEST_PAUSE), LONGEST_PAUSE)
        return now - self.printed >= pause


class ProgressPrinter:
    """A callback that prints what is finished, and shows what is not.

    Args:
        console: where to.
        is_live: whether Rich draws this object as live lines; otherwise unfinished work is printed now and then.
        clock: seconds.
    """

    def __init__(self, console: Console, *, is_live: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._is_live = is_live
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self._epoch = _Task("", clock(), 0, 0, log_started=clock())
        self._run: RunStarted | None = None
        self._step: StepDone | None = None
        self._logged: StepDone | None = None
        self._ended: EpochDone | None = None
        self._validation_seconds = 0.0
        self._table = EpochTable(0)
        self._drawn: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take in an event, from any thread; OSError if nobody can see it any more."""
        with self._lock:
            if self._ended is not None and not isinstance(event, Progressed):
                # Only now is it known whether the epoch was validated.
                for line in self._table.rows(self._ended, event if isinstance(event, Validated) else None):
                    self._print(line)
                self._ended = None
            match event:
                case RunStarted():
                    self._start(event)
                case StepDone():
                    self._step = event
                    if event.loss is not None:
                        self._logged = event
                    of = f"/{self._run.epochs}" if self._run else ""
                    done, total = event.step_in_epoch, event.steps_per_epoch
                    self._advance(f"epoch {event.epoch}{of}", done, total, is_epoch=True)
                case Progressed():
                    self._advance(event.task, event.done, event.total)
                case EpochDone():
                    self._ended = event
                    self._tasks.clear()
                case Validated():
                    self._validation_seconds = event.seconds
                    self._tasks.clear()
                case Note():
                    self._print(f"note:  {event.text}")
                case RunFinished():
                    best = "" if event.best_epoch is None else f"; best epoch {event.best_epoch}: "
                    best += "" if event.best_overall is None else f"{event.best_overall:.2f} %"
                    self._print(f"finished run {event.name} in {duration(event.seconds)}{best}")
        if failure := display_failure():
            raise failure

    def _start(self, event: RunStarted) -> None:
        self._run = event
        self._table = EpochTable(event.epochs, (lambda: self._console.width) if self._is_live else None)
        threads = f"{event.num_threads} thread{'' if event.num_threads == 1 else 's'}"
        if event.num_processes > 1:
            threads = f"{event.num_processes} processes, {threads} each"
        self._print(f"run {event.name} in {event.folder}, on {event.device}, {threads}")
        self._print(
            f"{event.num_parameters:,} parameters, {event.num_samples:,} samples, "
            f"{event.steps_per_epoch:,} steps per epoch, {event.epochs} epochs"
        )
        if event.steps_run:
            self._print(f"steps are {event.steps_run}")
        if event.start_epoch or event.start_step:
            step = f" and step {event.start_step} of the next" if event.start_step else ""
            self._print(f"continuing after epoch {event.start_epoch}{step}")

    def _print(self, line: str) -> None:
        self._console.print(Text(printable(line)), soft_wrap=True)

    def _advance(self, name: str, done: int, total: int | None, *, is_epoch: bool = False) -> None:
        now, task = self._clock(), self._tasks.get(name)
        if task is None or done < task.done:
            # The same task may come again, as validation does after each epoch.
            task = self._tasks[name] = _Task(name, now, done, done, is_epoch=is_epoch, log_started=now)
            if is_epoch:
                task.log_started, task.printed = self._epoch.log_started, self._epoch.printed
                self._epoch = task
        is_finished = done == total and task.ended is None
        task.done, task.total = done, total
        if is_finished:
            task.ended = now
        if not self._is_live and (task.is_due(now) or (is_finished and task.printed is not None)):
            self._print_task(task, now)

    def _print_task(self, task: _Task, now: float) -> None:
        """``epoch 2/6: 120 of 301 steps (40 %), loss 0.3512, 9 s left``; an epoch's end has a row of its own."""
        if task.is_epoch and task.ended is not None:
            return
        task.printed = now
        count, unit = f"{task.done:,}", " steps" if task.is_epoch else ""
        if task.total is not None:
            count += f" of {task.total:,}{unit} ({100 * task.done / max(task.total, 1):.0f} %)"
        figures = [*(self._figures() if task.is_epoch else []), *task.pace(now)]
        self._print(f"{task.name}: {', '.join([count, *figures])}")

    def _figures(self) -> list[str]:
        """What the latest steps say of the training."""
        step, logged = self._step, self._logged
        if step is None:
            return []
        figures = [f"loss {logged.loss:.4f}"] if logged is not None and logged.loss is not None else []
        figures.append(f"rate {step.learning_rate:.3g}")
        if self._run is not None and self._run.is_hard:
            figures.append(f"temperature {step.temperature:.3g}")
        return [*figures, f"{step.samples_per_second:,.0f} samples/s"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the live lines, in as many columns as there are."""
        width = options.max_width
        # A terminal that was made narrower has broken the lines that are to be drawn over into more.
        surplus = sum((length - 1) // width for length in self._drawn if length)
        if surplus:
            yield Control(*[(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * surplus)
        lines = self.lines(width)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            yield line
        self._drawn = [line.cell_len for line in lines]

    def lines(self, width: int) -> list[Text]:
        """Lay out the live lines as they are now."""
        tasks = list(self._tasks.values())
        lines = self._task_lines(tasks, width) if tasks else []
        if self._epoch in tasks:
            figures = self._figures()
            if self._logged is not None and self._logged.memory_bytes:
                figures.append(f"memory {compact_bytes(self._logged.memory_bytes)}")
            lines += [Text(line, style="dim") for line in (*_wrapped(figures, width), *self._routes(width))]
        return lines

    def _task_lines(self, tasks: list[_Task], width: int) -> list[Text]:
        """Name, bar, count, rate and time left of each task in columns; the bar gives way first, then the name."""
        now = self._clock()
        counts = [_count(task) for task in tasks]
        tails = [
            ", ".join([*task.pace(now), *(self._whole_time(task, now) if task.is_epoch else [])]) for task in tasks
        ]
        count_size = max(map(len, counts))
        rest = len(GAP) + count_size + max(len(GAP + tail) if tail else 0 for tail in tails)
        name_size = max(len(task.name) for task in tasks)
        bar_size = min(LONGEST_BAR, width - name_size - len(GAP) - rest)
        if bar_size < SHORTEST_BAR:
            name_size, bar_size = min(name_size, max(width - rest, SHORTEST_NAME)), 0
        lines = []
        for task, count, tail in zip(tasks, counts, tails, strict=True):
            name = Text(printable(task.name), style="bold")
            name.truncate(name_size, overflow="ellipsis", pad=True)
            bar = [_bar(task, bar_size)] if bar_size else []
            line = Text(GAP).join([name, *bar, Text(count.ljust(count_size)), Text(tail, style="cyan")])
            line.rstrip()
            lines.append(line)
        return lines

    def _whole_time(self, task: _Task, now: float) -> list[str]:
        """The time to the end of the run, validations included; nothing in its last epoch."""
        if self._run is None or self._step is None or task.total is None or not task.rate(now):
            return []
        later = self._run.epochs - self._step.epoch
        steps = task.total - task.done + later * task.total
        seconds = steps / task.rate(now) + (later + 1) * self._validation_seconds
        return [f"{duration(seconds)} for the run"] if later > 0 else []

    def _routes(self, width: int) -> list[str]:
        """The share of each span in each layer: ``% of whole/3x3 by layer   1: 45/55  2: 30/70``."""
        if self._run is None or self._logged is None or not self._logged.routes:
            return []
        spans = ShownSpans(self._run.spans, self._run.grid_size)
        layers = [
            f"{number}: {'/'.join(f'{100 * share:.0f}' for share in weights)}"
            for number, weights in enumerate(spans.merged(self._logged.routes), start=1)
        ]
        return _wrapped([f"% of {'/'.join(spans.names)} by layer ", *layers], width)


_WIDTHS = {"epoch": 5, "loss": 7, "val, %": 6, "change": 6, "time": 12, "": 4}
# The columns that a narrow terminal loses, first to last; the types of questions go before all of them.
_DISPENSABLE = ("time", "loss")


class EpochTable:
    """Lays out a row for each epoch, each column where it was in the row before.

    Args:
        epochs: of the run.
        width: columns that the terminal has now; None where nothing is cut, as in a log.
    """

    def __init__(self, epochs: int, width: Callable[[], int] | None = None) -> None:
        self._epochs = epochs
        self._width = width
        self._columns: dict[str, int] = {}
        self._earlier: float | None = None

    def rows(self, ended: EpochDone, validated: Validated | None) -> list[str]:
        """Lay out the row of an epoch, with a heading above it where the columns changed."""
        cells = self._cells(ended, validated)
        widths = {name: max(len(name), len(text), _WIDTHS.get(name, 6)) for name, text in cells.items()}
        types = [name for name in widths if name not in _WIDTHS]
        for unwanted in (types, *([name] for name in _DISPENSABLE)):
            if self._width is None or sum(widths.values()) + len(GAP) * (len(widths) - 1) <= self._width():
                break
            widths = {name: width for name, width in widths.items() if name not in unwanted}
        lines = []
        if list(widths) != list(self._columns):
            self._columns = widths
            lines.append(self._row({name: name for name in widths}))
        return [*lines, self._row(cells)]

    def _cells(self, ended: EpochDone, validated: Validated | None) -> dict[str, str]:
        cells = {
            "epoch": f"{ended.epoch:>{len(str(self._epochs))}}/{self._epochs}",
            "loss": f"{ended.loss:.4f}",
        }
        seconds = ended.seconds
        if validated is not None:
            change = "" if self._earlier is None else f"{validated.overall - self._earlier:+.2f}"
            self._earlier = validated.overall
            cells |= {"val, %": f"{validated.overall:.2f}", "change": change}
            cells |= {name.replace("_", " "): f"{value:.2f}" for name, value in sorted(validated.per_type.items())}
            seconds += validated.seconds
        is_best = validated is not None and validated.is_best
        return cells | {"time": duration(seconds), "": "best" if is_best else ""}

    def _row(self, cells: dict[str, str]) -> str:
        texts = [cells[name].rjust(width) if name else cells[name] for name, width in self._columns.items()]
        return GAP.join(texts).rstrip()


def _count(task: _Task) -> str:
    if task.total is None:
        return compact(task.done) if task.done else ""
    return f"{compact(task.done)}/{compact(task.total)}"


def _bar(task: _Task, size: int) -> Text:
    """A bar; blank where the total is unknown."""
    if task.total is None:
        return Text(" " * size)
    full = round(task.done / max(task.total, 1) * size)
    return Text.assemble(("━" * full, "green"), ("─" * (size - full), "dim"))


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Put parts side by side, on as many lines as it takes; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(GAP) + len(part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(part)
    return lines
