"""What a terminal shows of the work going on: a few lines that are drawn anew, as wide as the terminal is now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from trarctl.commands.progress import compact_bytes, duration
from trarctl.engine.callbacks import EpochDone, Progressed, RunStarted, StepDone, Validated
from trarctl.report.names import span_names

_LONGEST_BAR = 24


@dataclass
class _Task:
    """Something with an end: an epoch, a validation."""

    name: str
    started: float
    first_done: int
    done: int
    total: int

    def rate(self, now: float) -> float:
        """Units a second since it began."""
        return (self.done - self.first_done) / max(now - self.started, 1e-6)

    def seconds_left(self, now: float) -> float | None:
        rate = self.rate(now)
        return (self.total - self.done) / rate if rate else None


class LiveView:
    """Keeps the latest figures and draws them.

    Args:
        spans: the order of each span of the model; none where routes are not of interest.
        is_hard: whether the temperature matters.
        clock: seconds.
    """

    def __init__(
        self, spans: Sequence[int | str] = (), *, is_hard: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spans = span_names(spans)
        self._is_hard = is_hard
        self._clock = clock
        self._task: _Task | None = None
        self._run: RunStarted | None = None
        self._step: StepDone | None = None
        self._logged: StepDone | None = None
        self._validation_seconds = 0.0
        self._drawn: list[int] = []

    def update(self, event: object) -> None:
        """Take in an event; those that change no line are let pass."""
        if isinstance(event, RunStarted):
            self._run = event
        elif isinstance(event, StepDone):
            epochs = f"/{self._run.epochs}" if self._run else ""
            self._advance(f"epoch {event.epoch}{epochs}", event.step_in_epoch, event.steps_per_epoch)
            self._step = event
            if event.loss is not None:
                self._logged = event
        elif isinstance(event, Progressed):
            self._advance(event.task, event.done, event.total)
        elif isinstance(event, Validated):
            self._validation_seconds = event.seconds
        if isinstance(event, EpochDone | Validated):
            self._task = None

    def _advance(self, name: str, done: int, total: int) -> None:
        if self._task is None or self._task.name != name or done < self._task.done:
            self._task = _Task(name, self._clock(), done, done, total)
        self._task.done = done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw, in as many columns as there are."""
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
        """The lines as they are now."""
        if self._task is None:
            return []
        is_training = self._step is not None and self._task.name.startswith("epoch")
        lines = [self._progress(self._task, width)]
        if is_training:
            lines += [Text(line, style="dim") for line in _wrapped(self._figures(), width)]
            lines += self._routes(width)
        return lines

    def _progress(self, task: _Task, width: int) -> Text:
        """Name, bar, count and time left; the bar gives way first."""
        now = self._clock()
        left = task.seconds_left(now)
        count = f"{task.done:,}/{task.total:,}"
        times = "" if left is None else f"{duration(left)} left"
        whole = self._whole_seconds(task, now)
        if whole is not None:
            times += f", {duration(whole)} for the run"
        size = min(_LONGEST_BAR, width - len(f"{task.name}  {count}  {times}") - 2)
        parts = [Text(task.name, style="bold")]
        if size >= 6:
            parts.append(_bar(task.done / max(task.total, 1), size))
        parts += [Text(count), Text(times, style="cyan")]
        return Text("  ").join(part for part in parts if part.plain)

    def _whole_seconds(self, task: _Task, now: float) -> float | None:
        """Seconds to the end of the run, validations included; None in its last epoch."""
        rate = task.rate(now)
        if self._run is None or self._step is None or not task.name.startswith("epoch") or not rate:
            return None
        later = self._run.epochs - self._step.epoch
        if later < 1:
            return None
        steps = task.total - task.done + later * task.total
        return steps / rate + (later + 1) * self._validation_seconds

    def _figures(self) -> list[str]:
        step, logged = self._step, self._logged
        if step is None:
            return []
        figures = [f"loss {logged.loss:.4f}"] if logged is not None and logged.loss is not None else []
        figures += [f"rate {step.rate:.3g}", f"{step.samples_per_second:,.0f} samples/s"]
        if self._is_hard:
            figures.append(f"temperature {step.temperature:.3g}")
        if logged is not None and logged.memory_bytes:
            figures.append(f"memory {compact_bytes(logged.memory_bytes)}")
        return figures

    def _routes(self, width: int) -> list[Text]:
        """The share of each span in each layer, percent: ``1 45/14/5/36  2 30/20/25/25``."""
        if self._logged is None or not self._logged.routes or not self._spans:
            return []
        layers = [
            f"{number}: {'/'.join(f'{100 * share:.0f}' for share in weights)}"
            for number, weights in enumerate(self._logged.routes, start=1)
        ]
        heading = f"% of {'/'.join(self._spans)} by layer "
        return [Text(line, style="dim") for line in _wrapped([heading, *layers], width)]


def _bar(share: float, size: int) -> Text:
    full = round(share * size)
    return Text.assemble(("━" * full, "green"), ("─" * (size - full), "dim"))


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Put parts side by side, on as many lines as it takes; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines
