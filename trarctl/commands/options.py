"""Options that several commands share, each with the same name, help and panel everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trarctl.registry import DATASETS

DATA_PANEL = "Data"
SETTINGS_PANEL = "Settings"
TRAINING_PANEL = "Training"
DEVICE_PANEL = "Devices"
OUTPUT_PANEL = "Output"

EvaluatorName = Literal["official", "upstream"]


def _known_dataset(name: str | None) -> str | None:
    """Refuse a name that no data set has.

    Raises:
        BadParameter: listing the names there are.
    """
    if name is None or name in DATASETS:
        return name
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, DATASETS.names()))}")


def _completed_datasets(incomplete: str) -> list[str]:
    return [name for name in DATASETS.names() if name.startswith(incomplete)]


def dataset_argument(help: str) -> Any:
    """The argument that names a data set; ``help`` follows the list of those that come with trarctl."""
    return typer.Argument(
        metavar="DATASET",
        help=f"vqa, clevr, easy-vqa{help}.",
        callback=_known_dataset,
        autocompletion=_completed_datasets,
    )


DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Prepared folder; by default data/DATASET/prepared.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings from a .toml file, or from the original program's trar.yml as it is.",
        rich_help_panel=SETTINGS_PANEL,
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as model.hidden_size=256 or model.spans=0,1; may be given several times.",
        rich_help_panel=SETTINGS_PANEL,
        show_default=False,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the settings and where each came from; do nothing.",
        rich_help_panel=SETTINGS_PANEL,
    ),
]
GpusOption = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        metavar="0,1|cpu",
        help="Devices, or cpu; by default a GPU if there is one.",
        rich_help_panel=DEVICE_PANEL,
        show_default=False,
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Passes over the training split.",
        rich_help_panel=TRAINING_PANEL,
        show_default=False,
    ),
]
CkptOption = Annotated[
    str | None,
    typer.Option(
        "--ckpt",
        metavar="RUN|RUN@EPOCH|FILE",
        help="A run (its best epoch), one epoch of it, or a file, the original's .pkl included; by default the"
        " latest run.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
CkptsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ckpt",
        metavar="RUN|RUN@EPOCH|FILE",
        help="A run (its best epoch), one epoch of it, or a file, the original's .pkl included; by default the"
        " latest run. May be given several times.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Split of the prepared data.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
EvaluatorOption = Annotated[
    EvaluatorName,
    typer.Option(
        "--evaluator",
        help="The VQA team's current evaluator and CLEVR's own grouping, or the older ones behind the published"
        " numbers of TRAR.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help="Write the result as JSON; - writes it, and nothing else, to stdout.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
SaveScoresOption = Annotated[
    Path | None,
    typer.Option(
        "--save-scores",
        metavar="FILE.npz",
        help="Write question_id, scores (logits, one row per question) and answers.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Show no progress, only notes, errors and the result.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
