"""``trarctl resume``: go on with a run exactly where it stopped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from trarctl.commands.options import (
    DATA,
    DATA_PANEL,
    EPOCHS,
    GPUS,
    MAX_RESTARTS,
    QuietOption,
    SetOption,
    takes_settings,
)

EPILOG = (
    "Example: trarctl resume vqa-20260101-120000"
    "\n\ntrarctl resume RUN --epochs 20 trains on with a run that has finished."
)


@takes_settings(DATA, EPOCHS, GPUS, MAX_RESTARTS)
def resume(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run's name, folder, or one of its checkpoints; by default the latest."),
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch",
            metavar="N",
            min=1,
            help="Go on behind this epoch; later checkpoints are set aside. By default behind the latest checkpoint.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    is_quiet: QuietOption = False,
) -> None:
    """Go on with a run as if it had never stopped: the same weights come out, bit for bit, on the CPU."""
    from trarctl.commands.console import note, say
    from trarctl.commands.watching import watch_run
    from trarctl.config.resolve import amend, resolve
    from trarctl.engine.jobs import plan_resume
    from trarctl.engine.launch import run_job
    from trarctl.engine.run import find_run, read_settings

    folder: Path = resolve(sets=[text for text in sets or [] if text.startswith("run.folder")]).settings.run.folder
    found = find_run(run, folder)
    if run is None:
        note(f"no run named: taking the latest, {found.name}")
    changes = [text for text in sets or [] if not text.startswith("run.folder")]
    resolved = amend(read_settings(found), f"run {found.name}", options=context.obj, sets=changes)
    job, notes = plan_resume(found, resolved.settings, named=run, epoch=epoch)
    for text in notes:
        note(text)
    model = job.settings.model
    is_hard = model.routing == "hard"
    run_job(job, functools.partial(watch_run, is_quiet=is_quiet, spans=model.spans, is_hard=is_hard))
    say(f"next: trarctl eval --ckpt {job.run.name}")
