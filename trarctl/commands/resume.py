"""``trarctl resume``: continue a run exactly where it stopped. Short, but a command is a file of its own."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from trarctl.commands.console import note, say
from trarctl.commands.options import (
    DATA,
    DATA_PANEL,
    EPOCHS,
    GPUS,
    LEARNING_RATE,
    MAX_RESTARTS,
    MAX_TIME,
    PATIENCE,
    QuietOption,
    SetOption,
    complete_run,
    option,
    refuse_ignored,
    takes_settings,
)
from trarctl.commands.sweeps import amended, carry_out

EPILOG = (
    "Example: trarctl resume vqa-20260101-120000"
    "\n\ntrarctl resume RUN --epochs 20 trains a finished run for more epochs, 20 in all."
)


@takes_settings(DATA, EPOCHS, LEARNING_RATE, PATIENCE, MAX_TIME, GPUS, MAX_RESTARTS)
def resume(
    context: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|SWEEP",
            help="A run's name, folder, or one of its checkpoints, or a sweep; by default the latest run.",
            autocompletion=complete_run,
        ),
    ] = None,
    epoch: Annotated[
        int | None,
        option(
            "--epoch",
            DATA_PANEL,
            "Continue after this epoch; later checkpoints are set aside. By default after the latest checkpoint.",
            metavar="N",
            min=1,
        ),
    ] = None,
    sets: SetOption = None,
    is_quiet: QuietOption = False,
) -> None:
    """Continue a run as if it had never stopped: on the CPU, the same weights come out, bit for bit.

    What is not given stays as the run has it.
    """
    from trarctl.commands.progress import watch
    from trarctl.config.resolve import amend, is_runs_folder, runs_folder
    from trarctl.engine.jobs import plan_resume
    from trarctl.engine.launch import run_job
    from trarctl.engine.run import find_run, read_settings
    from trarctl.engine.sweep import find_sweep

    folder, changes = runs_folder(sets or []), [text for text in sets or [] if not is_runs_folder(text)]
    if (sweep := find_sweep(run, folder)) is not None:
        given = {flag: value for value, flag in context.obj.values()}
        given |= {"--epoch": epoch, "--set": changes}
        refuse_ignored("resume of a sweep", given, ["--epochs", "--epoch", "--lr", "--patience", "--set"])
        carry_out(amended(sweep, context.obj), is_quiet=is_quiet)
        return
    found = find_run(run, folder)
    if run is None:
        note(f"no run given: using the latest, {found.name}")
    notes: list[str] = []
    resolved = amend(read_settings(found, notes), f"run {found.name}", options=context.obj, sets=changes)
    job, fitted = plan_resume(found, resolved.settings, named=run, epoch=epoch)
    note(*notes, *fitted)
    run_job(job, functools.partial(watch, is_quiet=is_quiet))
    say(f"next: trarctl eval --ckpt {job.run.reference}")
