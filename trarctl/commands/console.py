"""What the commands share at the terminal: consoles, notes, errors, tables, JSON.

Results go to stdout, everything else to stderr, so that a pipe carries results only. User text is never taken for
markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from trarctl.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from trarctl.config.resolve import Resolved

# Without a terminal nothing is wrapped: a log or a pipe has no width.
UNLIMITED_WIDTH = 10_000


def stdout_console() -> Console:
    """The console for results."""
    return _console(is_stderr=False)


def stderr_console() -> Console:
    """The console for progress, notes and errors."""
    return _console(is_stderr=True)


def _console(*, is_stderr: bool) -> Console:
    stream = sys.stderr if is_stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED_WIDTH
    return Console(stderr=is_stderr, highlight=False, markup=False, emoji=False, width=width)


def printable(text: str) -> str:
    """The text without anything that could steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text
    )


def show_error(what: str, hint: str | None, label: str = "error") -> None:
    """Say on stderr what is wrong and what mends it; further lines are indented below the first."""
    _labeled(f"{label}: ", what, "bold red")
    if hint:
        _labeled("hint:  ", hint, "bold cyan")


def is_follower() -> bool:
    """Whether this is one of several processes that torchrun or Slurm started, and not the one that speaks."""
    if "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        return os.environ.get("SLURM_PROCID", "0") != "0"
    return os.environ.get("RANK", "0") != "0"


def note(text: str) -> None:
    """Say on stderr what the user should know but need not act on."""
    if is_follower():
        return
    _labeled("note:  ", text, "bold blue")


def warn(text: str) -> None:
    """Say on stderr what is odd, though the work goes on."""
    if is_follower():
        return
    _labeled("warning: ", text, "bold yellow")


def _labeled(label: str, text: str, style: str) -> None:
    lines = printable(text).splitlines() or [""]
    indented = ("\n" + " " * len(label)).join(lines)
    # A reader that has gone away is no reason to fail.
    with suppress(BrokenPipeError):
        stderr_console().print(Text.assemble((label, style), indented), soft_wrap=True)


def say(text: str) -> None:
    """Print one line of a result."""
    if is_follower():
        return
    stdout_console().print(Text(printable(text)), soft_wrap=True)


def make_table(*columns: str, title: str | None = None, numbers: Iterable[str] = ()) -> Table:
    """A table in the look of the house.

    Args:
        columns: the headings.
        title: above it.
        numbers: the columns that hold numbers, which are set flush right.
    """
    from rich import box
    from rich.table import Table

    heading = Text(title) if title else None
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), justify="right" if column in set(numbers) else "left", overflow="fold")
    return table


def add_row(table: Table, *cells: object, style: str | None = None) -> None:
    """Add a row; what stands in it is text, never markup."""
    table.add_row(*(Text(printable(str(cell))) for cell in cells), style=style)


def show_table(table: Table) -> None:
    """Print a table as a result."""
    stdout_console().print(table)


def show_settings(resolved: Resolved) -> None:
    """Print all settings with their origin: a table on a terminal, otherwise TOML that ``--config`` reads."""
    if not sys.stdout.isatty():
        say(resolved.to_toml())
        return
    from trarctl.config.resolve import Source
    from trarctl.config.settings import flat, to_text

    table = make_table("setting", "value", "from")
    for key, value in flat(resolved.settings).items():
        origin = resolved.origins[key]
        add_row(table, key, to_text(value), origin.text, style="dim" if origin.source is Source.DEFAULT else None)
    show_table(table)


def write_json(document: Mapping[str, object], target: str) -> None:
    """Write a result as JSON.

    Args:
        document: what to write.
        target: a file, or ``-`` for stdout.

    Raises:
        DataError: if the file cannot be written.
    """
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}", "--json FILE in another folder") from None
