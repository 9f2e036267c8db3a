"""``trarctl train``: prepared data to a run with checkpoints."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from trarctl.commands.options import (
    DEVICE_PANEL,
    OUTPUT_PANEL,
    TRAINING_PANEL,
    ConfigOption,
    DataOption,
    DryRunOption,
    EpochsOption,
    GpusOption,
    QuietOption,
    SetOption,
    SplitOption,
    dataset_argument,
)

EPILOG = (
    "Example: trarctl train vqa --split train+val --gpus 0,1 --accu 2"
    "\n\nUnder torchrun or Slurm the same command joins the processes that they start."
)

AccuOption = Annotated[
    int | None,
    typer.Option(
        "--accu",
        metavar="N",
        help="Parts that each batch is computed in, to save memory; must divide the batch size.",
        rich_help_panel=TRAINING_PANEL,
        show_default=False,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Samples of one optimizer step, over all GPUs and parts.",
        rich_help_panel=TRAINING_PANEL,
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Of start weights, dropout and the order of samples.",
        rich_help_panel=TRAINING_PANEL,
        show_default=False,
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="RUN|RUN@EPOCH|FILE",
        help="Start from these weights, the original's .pkl included, instead of random ones.",
        rich_help_panel=TRAINING_PANEL,
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|tf32|bf16",
        help="Of matrix products; weights, optimizer, softmax and loss stay float32.",
        rich_help_panel=DEVICE_PANEL,
        show_default=False,
    ),
]
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="Compile the model with torch.compile; for GPUs. On a CPU it needs a C++ compiler and makes steps slower.",
        rich_help_panel=DEVICE_PANEL,
        show_default=False,
    ),
]
RestartsOption = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        metavar="N",
        help="Times that a lost process is started again, from the latest checkpoint.",
        rich_help_panel=DEVICE_PANEL,
        show_default=False,
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Name of the run; by default data set and time.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
SaveEveryOption = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        metavar="STEPS|MINUTESm",
        help="Checkpoints within an epoch as well: every 500 steps, or every 10m.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
KeepOption = Annotated[
    int | None,
    typer.Option(
        "--keep",
        metavar="N",
        help="Keep the checkpoints of the latest N epochs and the best; by default all.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]


def train(
    dataset: Annotated[
        str | None,
        dataset_argument(" or one that a plugin adds; by default that of --data, or vqa"),
    ] = None,
    data: DataOption = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    accu: AccuOption = None,
    seed: SeedOption = None,
    init: InitOption = None,
    gpus: GpusOption = None,
    precision: PrecisionOption = None,
    compile_model: CompileOption = None,
    max_restarts: RestartsOption = None,
    name: NameOption = None,
    save_every: SaveEveryOption = None,
    keep: KeepOption = None,
    is_quiet: QuietOption = False,
) -> None:
    """Train TRAR on prepared data, validating and saving after each epoch.

    Settings come from the data set's recipe, then --config, the environment (TRARCTL_MODEL_HIDDEN_SIZE=256), these
    options, and --set; later ones win.
    """
    from trarctl.commands.console import note, say, show_settings
    from trarctl.config.resolve import resolve
    from trarctl.data.manifest import read_manifest

    wanted = dataset or (read_manifest(data).dataset if data is not None else None)
    options = {
        "data.path": (data, "--data"),
        "data.split": (split, "--split"),
        "train.epochs": (epochs, "--epochs"),
        "train.batch_size": (batch_size, "--batch-size"),
        "train.accumulation": (accu, "--accu"),
        "train.seed": (seed, "--seed"),
        "run.gpus": (gpus, "--gpus"),
        "run.precision": (precision, "--precision"),
        "run.compile": (compile_model, "--compile"),
        "run.max_restarts": (max_restarts, "--max-restarts"),
        "run.name": (name, "--name"),
        "run.save_every": (save_every, "--save-every"),
        "run.keep": (keep, "--keep"),
    }
    resolved = resolve(dataset=wanted, config=config, options=options, sets=sets or [])
    for text in resolved.notes:
        note(text)
    if dry_run:
        show_settings(resolved)
        return
    if wanted is None and resolved.origin["data.dataset"].startswith(("recipe", "default")):
        note(f"no data set named: taking {resolved.settings.data.dataset}")

    from trarctl.commands.watching import watch_run
    from trarctl.engine.jobs import plan_start
    from trarctl.engine.launch import run_job

    job, notes = plan_start(resolved.settings, resolved.origin, init=init)
    for text in notes:
        note(text)
    model = job.settings.model
    is_hard = model.routing == "hard"
    run_job(job, functools.partial(watch_run, is_quiet=is_quiet, spans=model.spans, is_hard=is_hard))
    say(f"next: trarctl eval --ckpt {job.run.name}")
