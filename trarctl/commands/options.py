"""Options that several commands share, each with the same name, help and panel everywhere; and how help lists them.

Typer's own panels take Rich's whole Markdown machinery to draw. This answers in half the time, fits any width and is
the same in a pipe. Headings are bold on a terminal.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from trarctl.registry import DATASETS, load_plugins

DATA_PANEL = "Data"
SETTINGS_PANEL = "Settings"
TRAINING_PANEL = "Training"
DEVICE_PANEL = "Devices"
OUTPUT_PANEL = "Output"
GENERAL_PANEL = "General"

EvaluatorName = Literal["official", "upstream"]


def option(*names: str, help: str, panel: str, shows_default: bool = False, **more: Any) -> Any:
    """Describe an option; its default is shown only where that says something."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=shows_default, **more)


def dataset_argument(help: str) -> Any:
    """Describe the argument that names a data set, a plugin's included."""

    def check(name: str | None) -> str | None:
        if name is not None and name not in DATASETS.names():
            known = ", ".join(map(repr, DATASETS.names()))
            raise typer.BadParameter(f"{name!r} is not one of {known}.")
        return name

    return typer.Argument(
        metavar="DATASET", help=help, callback=check, autocompletion=lambda: list(DATASETS.names()), show_default=False
    )


DataOption = Annotated[
    Path | None,
    option("--data", metavar="DIR", panel=DATA_PANEL, help="Prepared folder; by default data/DATASET/prepared."),
]
ConfigOption = Annotated[
    Path | None,
    option(
        "--config",
        metavar="FILE",
        panel=SETTINGS_PANEL,
        help="Settings from a .toml file, or from the original program's trar.yml as it is.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    option(
        "--set",
        metavar="KEY=VALUE",
        panel=SETTINGS_PANEL,
        help="Any setting, such as model.hidden_size=256 or model.spans=0,1; may be given several times.",
    ),
]
GpusOption = Annotated[
    str | None,
    option("--gpus", metavar="0,1|cpu", panel=DEVICE_PANEL, help="Devices, or cpu; by default a GPU if there is one."),
]
EpochsOption = Annotated[
    int | None, option("--epochs", metavar="N", panel=TRAINING_PANEL, help="Passes over the training split.")
]
_CKPT = "A run (its best epoch), one epoch of it, or a file, the original's .pkl included; by default the latest run."
CkptOption = Annotated[str | None, option("--ckpt", metavar="RUN|RUN@EPOCH|FILE", panel=DATA_PANEL, help=_CKPT)]
CkptsOption = Annotated[
    list[str] | None,
    option("--ckpt", metavar="RUN|RUN@EPOCH|FILE", panel=DATA_PANEL, help=f"{_CKPT} May be given several times."),
]
SplitOption = Annotated[
    str | None, option("--split", metavar="NAME", panel=DATA_PANEL, help="Split of the prepared data.")
]
EvaluatorOption = Annotated[
    EvaluatorName,
    option(
        "--evaluator",
        panel=OUTPUT_PANEL,
        shows_default=True,
        help="official: the VQA team's current evaluator and CLEVR's own grouping; upstream: the older rules that the"
        " published numbers of TRAR follow.",
    ),
]
JsonOption = Annotated[
    str | None,
    option(
        "--json",
        metavar="FILE|-",
        panel=OUTPUT_PANEL,
        help="Write the result as JSON; - writes it, and nothing else, to stdout.",
    ),
]
SaveScoresOption = Annotated[
    Path | None,
    option(
        "--save-scores",
        metavar="FILE.npz",
        panel=OUTPUT_PANEL,
        help="Write question_id, scores (logits, one row per question) and answers.",
    ),
]
QuietOption = Annotated[
    bool, option("--quiet", "-q", panel=OUTPUT_PANEL, help="Show no progress, only notes, errors and the result.")
]


class Command(TyperCommand):
    """A command with grouped options; plugins are loaded before it runs, not for its help."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        load_plugins()
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """The program: commands first, then the few options that it has itself."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands and options."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(limit=100)) for name, command in commands if command is not None]
        with formatter.section(_heading("Commands")):
            formatter.write_dl(rows)
        _write_options(self.get_params(ctx), ctx, formatter)


def _write_options(parameters: list[Any], context: Any, formatter: Any) -> None:
    """Write arguments first, then each panel in order of appearance, what belongs to none last."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    general: list[tuple[str, str]] = []
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is None:
            continue
        if parameter.param_type_name == "argument":
            panels["Arguments"].append(record)
        elif parameter.rich_help_panel:
            panels.setdefault(parameter.rich_help_panel, []).append(record)
        else:
            general.append(record)
    for name, rows in [*panels.items(), (GENERAL_PANEL, general)]:
        if rows:
            with formatter.section(_heading(name)):
                formatter.write_dl(rows)


def _heading(text: str) -> str:
    """A heading; Typer strips the style where there is no terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
