"""``trarctl train``: prepared data to a run with checkpoints."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from trarctl.commands.console import note, say, show_settings
from trarctl.commands.options import (
    DATA,
    DATA_PANEL,
    DEVICE_PANEL,
    EPOCHS,
    GPUS,
    MAX_RESTARTS,
    OUTPUT_PANEL,
    SETTINGS_PANEL,
    TRAINING_PANEL,
    ConfigOption,
    QuietOption,
    SetOption,
    SettingOption,
    complete_run,
    dataset_argument,
    option,
    refuse_unknown,
    takes_settings,
)

EPILOG = (
    "Example: trarctl train vqa --split train+val --gpus 0,1 --accu 2"
    "\n\nUnder torchrun or Slurm the same command joins the processes that they start."
)


@takes_settings(
    DATA,
    SettingOption("data.split", "--split", DATA_PANEL),
    EPOCHS,
    SettingOption("train.batch_size", "--batch-size", TRAINING_PANEL),
    SettingOption("train.accumulation", "--accu", TRAINING_PANEL),
    SettingOption("train.seed", "--seed", TRAINING_PANEL),
    GPUS,
    SettingOption("run.precision", "--precision", DEVICE_PANEL),
    SettingOption("run.compile", "--compile", DEVICE_PANEL),
    MAX_RESTARTS,
    SettingOption("run.name", "--name", OUTPUT_PANEL),
    SettingOption("run.save_every", "--save-every", OUTPUT_PANEL),
    SettingOption("run.keep", "--keep", OUTPUT_PANEL),
)
def train(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        dataset_argument("; by default that of --data, or vqa", takes_own=True),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    dry_run: Annotated[
        bool,
        option("--dry-run", SETTINGS_PANEL, "Show the settings and where each came from, without training."),
    ] = False,
    recipe: Annotated[
        str | None,
        option(
            "--recipe",
            SETTINGS_PANEL,
            "Begin with other settings: small (one layer, for a CPU), published (the paper's), or a file.",
            metavar="small|published|FILE",
        ),
    ] = None,
    init: Annotated[
        str | None,
        option(
            "--init",
            TRAINING_PANEL,
            "Start from these weights, the original's .pkl included, instead of random ones.",
            metavar="RUN|RUN@EPOCH|FILE",
            autocompletion=complete_run,
        ),
    ] = None,
    is_quiet: QuietOption = False,
) -> None:
    """Train TRAR on prepared data, validating and saving after each epoch.

    Settings come from the data set's recipe, then --config, the environment (TRARCTL_MODEL_HIDDEN_SIZE=256), these
    options, and --set; later ones win.
    """
    from trarctl.config.resolve import resolve
    from trarctl.data.manifest import read_manifest

    options = context.obj
    data, _ = options["data.path"]
    refuse_unknown(dataset, data, takes_own=True)
    wanted = dataset or (read_manifest(data).name if data is not None else None)
    resolved = resolve(dataset=wanted, config=config, options=options, sets=sets or [], recipe=recipe)
    note(*resolved.notes)
    if dry_run:
        show_settings(resolved)
        return
    if wanted is None and not resolved.origins["data.dataset"].is_users_choice:
        note(f"no data set given: using {resolved.settings.data.dataset}")

    from trarctl.commands.progress import watch
    from trarctl.engine.jobs import plan_start
    from trarctl.engine.launch import run_job

    job, notes = plan_start(resolved.settings, resolved.origins, init=init)
    note(*notes)
    run_job(job, functools.partial(watch, is_quiet=is_quiet))
    say(f"next: trarctl eval --ckpt {job.run.reference}")
