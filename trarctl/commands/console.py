"""What the commands share at the terminal: consoles, notes, errors, tables, JSON, numbers for people.

Results go to stdout, everything else to stderr, so that a pipe carries results only. User text is never taken for
markup. Rich is loaded when something is printed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trarctl.config.resolve import Resolved

# Without a terminal nothing is wrapped: a log or a pipe has no width.
UNLIMITED_WIDTH = 10_000
JSON_HINT = "--json FILE in another folder"


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


def is_follower() -> bool:
    """Whether torchrun or Slurm started several processes and this is not the first, which alone prints."""
    if "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        return os.environ.get("SLURM_PROCID", "0") != "0"
    return os.environ.get("RANK", "0") != "0"


def note(*texts: str) -> None:
    """Say on stderr what the user should know but need not act on."""
    for text in () if is_follower() else texts:
        _labeled("note:  ", text, "bold blue")


def warn(text: str) -> None:
    """Say on stderr what is odd, though the work continues."""
    if not is_follower():
        _labeled("warning: ", text, "bold yellow")


def _labeled(label: str, text: str, style: str) -> None:
    from rich.text import Text

    lines = printable(text).splitlines() or [""]
    indented = ("\n" + " " * len(label)).join(lines)
    # A reader that has gone away is no reason to fail.
    with suppress(BrokenPipeError):
        open_console(is_stderr=True).print(Text.assemble((label, style), indented), soft_wrap=True)


def say(text: str) -> None:
    """Print one line of a result."""
    if not is_follower():
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
    """Write a result as JSON to a file, or to stdout if ``target`` is ``-``.

    Raises:
        DataError: if the file cannot be written.
    """
    from trarctl.files import write_output

    # A file name may hold bytes that are no text: JSON has escapes for what stands for them.
    content = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False).encode(errors="backslashreplace")
    if target == "-":
        sys.stdout.write(content.decode() + "\n")
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
