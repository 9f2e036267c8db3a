"""``trarctl runs``: the runs of a folder in a table. Short, but a command is a file of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trarctl.commands.console import add_row, compact_bytes, make_table, note, open_console, show_table, write_json
from trarctl.commands.options import JsonOption, check_targets

EPILOG = "Example: trarctl runs --json -"

WIDE = 100  # columns of a terminal that has room for the model


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Folder of the runs; by default runs.", show_default=False),
    ] = None,
    json: JsonOption = None,
) -> None:
    """List the runs: data, model, epochs, best accuracy, size and state."""
    from trarctl.config.resolve import resolve
    from trarctl.report.history import overviews

    check_targets({"--json": json}, [])
    where = folder or resolve().settings.run.folder
    found = overviews(where)
    if unreadable := [f"{run.num_unreadable} of {run.name}" for run in found if run.num_unreadable]:
        note(f"unreadable lines of metrics.jsonl, which are left out: {', '.join(unreadable)}")
    if json is not None:
        write_json({"folder": str(where), "runs": [asdict(run) for run in found]}, json)
    if json == "-":
        return
    if not found:
        note(f"no runs in {where}; start one: trarctl train")
        return
    numbers = ["epochs", "best, %", "size"]
    model = ["model"] if open_console().width >= WIDE else []
    table = make_table("run", "data", *model, *numbers, "state", numbers=numbers)
    for run in found:
        best = "" if run.best is None else f"{run.best_weights} {run.best:.2f}".lstrip()
        data = run.dataset if run.split in ("", "train") else f"{run.dataset}, {run.split}"
        epochs = f"{run.epochs_done}/{run.epochs}" if run.epochs else ""
        figures = (epochs, best, compact_bytes(run.num_bytes))
        add_row(table, run.name, data, *([run.model] if model else []), *figures, run.state_text)
    show_table(table)
