"""``trarctl runs``: the runs of a folder in a table, or some of them compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trarctl.commands.comparison import show_runs
from trarctl.commands.console import note, write_json
from trarctl.commands.options import JsonOption, check_targets, complete_run

EPILOG = "Example: trarctl runs 'rates-*'\n\nWhich rate is best, and is it real: trarctl runs SWEEP"


def runs(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|SWEEP|RUN|'PATTERN*'",
            help="A folder of runs, by default runs; or a sweep, runs, or patterns in quotes: these are compared.",
            autocompletion=complete_run,
            show_default=False,
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """List runs: data, the settings that differ, epochs, best accuracy, size and state."""
    from trarctl.config.resolve import runs_folder
    from trarctl.engine.sweep import find_runs, find_sweep, is_pattern
    from trarctl.report.history import runs_in

    check_targets({"--json": json}, [])
    default = runs_folder()
    where, named = default, which or []
    if len(named) == 1 and not is_pattern(named[0]) and find_sweep(named[0], default) is None:
        path = Path(named[0])
        if path.exists() or len(path.parts) > 1:
            where, named = path, []
    if named:
        show_runs(find_runs(named, default), str(default), json, has_groups=True)
        return
    found = runs_in(where)
    if found or json == "-":
        show_runs(found, str(where), json, has_groups=False)
        return
    if json is not None:
        write_json({"folder": str(where), "runs": []}, json)
    note(f"no runs in {where}; start one: trarctl train")
