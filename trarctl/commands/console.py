"""What the commands share at the terminal: consoles, notes, errors, tables, JSON, numbers for people.

Results go to stdout, everything else to stderr, so that a pipe carries results only. User text is never taken for
markup. Rich is loaded when something is printed.
"""

from __future__ import annotations

import io
import json
import math
import os
import select
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trarctl.errors import DataError
from trarctl.groups import is_follower

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trarctl.config.resolve import Resolved
    from trarctl.engine.evaluator import Chosen
    from trarctl.engine.predictor import Predictor

# Without a terminal nothing is wrapped: a log or a pipe has no width.
UNLIMITED_WIDTH = 10_000
JSON_HINT = "--json FILE in another folder"


class _Stream(io.FileIO):
    """A standard stream whose failure ends nothing: the rest of what is written goes nowhere."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all that can be written; where the other side is slow and may not be waited for, wait all the same."""
        while True:
            try:
                written = super().write(content)
            except OSError as error:
                self.failure = error
                _send_nowhere(self.fileno())
                return len(memoryview(content).cast("B"))
            if written is not None:
                return written
            select.select([], [self], [], 1.0)


def _send_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    os.set_inheritable(descriptor, True)


def shield_streams() -> None:
    """Let a program go on whose reader, terminal or disk is gone, or that was started with closed streams."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _send_nowhere(descriptor)
        if descriptor == 0 or stream is not getattr(sys, f"__{name}__") or _raw(stream) is not None:
            continue  # not to be written to, a test's, or done already
        if stream is not None:
            with suppress(OSError):
                stream.flush()
        shielded = _Stream(descriptor, "wb", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(shielded),
            encoding=None if stream is None else stream.encoding,
            errors="backslashreplace",  # a file name that is not valid text must not end a run
            line_buffering=descriptor == 2 or shielded.isatty(),
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def _raw(stream: Any) -> _Stream | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Stream) else None


def display_failure() -> OSError | None:
    """What went wrong in showing progress and notes."""
    raw = _raw(sys.stderr)
    return None if raw is None else raw.failure


def _require_written() -> None:
    """See that a result has arrived; who closed a pipe early, like ``head``, wanted no more of it."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    if raw is not None and raw.failure is not None and not isinstance(raw.failure, BrokenPipeError):
        reason = raw.failure.strerror or str(raw.failure)
        raise DataError(f"cannot write the result to stdout: {reason}", "send it where there is room, or to a pipe")


def open_console(*, is_stderr: bool = False) -> Console:
    """Open the console for results, or the one for progress, notes and errors."""
    from rich.console import Console

    stream = sys.stderr if is_stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED_WIDTH
    return Console(stderr=is_stderr, highlight=False, markup=False, emoji=False, width=width)


def printable(text: str) -> str:
    """Show control characters as escapes, so that no text can steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text
    )


def show_error(what: str, hint: str | None, label: str = "error") -> None:
    """Say on stderr what is wrong and what fixes it; further lines are indented below the first."""
    _labeled(f"{label}: ", what, "bold red")
    if hint:
        _labeled("hint:  ", hint, "bold cyan")


def note(*texts: str) -> None:
    """Say on stderr what the user should know but need not act on."""
    for text in () if is_follower(os.environ) else texts:
        _labeled("note:  ", text, "bold blue")


def warn(*texts: str) -> None:
    """Say on stderr what is odd, though the work continues."""
    for text in () if is_follower(os.environ) else texts:
        _labeled("warning: ", text, "bold yellow")


def tell_opened(predictor: Predictor, chosen: Chosen) -> None:
    """Say which checkpoint answers, how it was chosen, and what is odd about it."""
    note(*chosen.notes)
    warn(*predictor.warnings)
    note(f"checkpoint {chosen.checkpoint} ({chosen.how}), {predictor.trained_on()}")


def _labeled(label: str, text: str, style: str) -> None:
    from rich.text import Text

    lines = printable(text).splitlines() or [""]
    indented = ("\n" + " " * len(label)).join(lines)
    open_console(is_stderr=True).print(Text.assemble((label, style), indented), soft_wrap=True)


def say(text: str) -> None:
    """Print one line of a result."""
    if not is_follower(os.environ):
        open_console().print(printable(text), soft_wrap=True)


def make_table(*columns: str, title: str | None = None, numbers: Iterable[str] = ()) -> Table:
    """Make a table in the look that all commands share; the columns in ``numbers`` are set flush right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_style="none", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for column in columns:
        table.add_column(column, justify="right" if column in set(numbers) else "left", overflow="fold")
    return table


def add_row(table: Table, *cells: object, style: str | None = None) -> None:
    """Add a row; its cells are text, never markup."""
    table.add_row(*(printable(str(cell)) for cell in cells), style=style)


def show_table(table: Table) -> None:
    """Print a table as a result."""
    open_console().print(table)
    _require_written()


def show_settings(resolved: Resolved) -> None:
    """Print all settings with their origin: a table on a terminal, otherwise TOML that ``--config`` reads."""
    if not sys.stdout.isatty():
        say(resolved.to_toml())
        _require_written()
        return
    from trarctl.config.resolve import Source
    from trarctl.config.settings import flat, to_text

    table = make_table("setting", "value", "from")
    for key, value in flat(resolved.settings).items():
        origin = resolved.origins[key]
        add_row(table, key, to_text(value), origin.text, style="dim" if origin.source is Source.DEFAULT else None)
    show_table(table)


def write_json(document: Mapping[str, object], target: str) -> None:
    """Write a result as JSON to a file, or to stdout if ``target`` is ``-``."""
    from trarctl.files import write_output

    # A file name may hold bytes that are no text: JSON has escapes for what stands for them.
    content = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False).encode(errors="backslashreplace")
    if target == "-":
        sys.stdout.write(content.decode() + "\n")
        _require_written()
        return
    write_output(Path(target), content + b"\n", JSON_HINT)


def duration(seconds: float) -> str:
    """A time for people: ``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def compact(number: float) -> str:
    """A number for people where room is short: ``4,000``, ``1.9M``, ``2.5``."""
    if number < 10 and number != int(number):
        return f"{number:.1f}"
    return _scaled(number, ((1e5, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (math.inf, 1e9, "G")))


def compact_bytes(number: float) -> str:
    """A size for people, in powers of 1000 as disks are sold: ``950 B``, ``7.6 MB``, ``1.2 GB``."""
    units = (1e3, 1, " B"), (1e6, 1e3, " kB"), (1e9, 1e6, " MB"), (1e12, 1e9, " GB"), (math.inf, 1e12, " TB")
    return _scaled(number, units)


def _scaled(number: float, units: Sequence[tuple[float, float, str]]) -> str:
    """The number in the first unit whose limit it is below; each unit is (limit, size, suffix)."""
    size, suffix = next((size, suffix) for limit, size, suffix in units if number < limit)
    value = number / size
    return f"{value:.1f}{suffix}" if size > 1 and value < 100 else f"{value:,.0f}{suffix}"
