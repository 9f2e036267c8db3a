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


def option(name: str, panel: str, help: str, *, short: str = "", shows_default: bool = False, **more: Any) -> Any:
    """Describe an option; its default is shown only where that says something."""
    names = (name, short) if short else (name,)
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=shows_default, **more)


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
    option("--data", DATA_PANEL, "Prepared folder; by default data/DATASET/prepared.", metavar="DIR"),
]
ConfigOption = Annotated[
    Path | None,
    option(
        "--config", SETTINGS_PANEL, "Settings from a .toml file, or the original's trar.yml as it is.", metavar="FILE"
    ),
]
SetOption = Annotated[
    list[str] | None,
    option("--set", SETTINGS_PANEL, "Any setting, such as model.spans=0,1; may be repeated.", metavar="KEY=VALUE"),
]
GpusOption = Annotated[
    str | None,
    option("--gpus", DEVICE_PANEL, "Devices, or cpu; by default a GPU if there is one.", metavar="0,1|cpu"),
]
EpochsOption = Annotated[int | None, option("--epochs", TRAINING_PANEL, "Passes over the training split.", metavar="N")]
_CKPT = "A run (its best epoch), one epoch of it, or a file, the original's .pkl included; by default the latest run."
CkptOption = Annotated[str | None, option("--ckpt", DATA_PANEL, _CKPT, metavar="RUN|RUN@EPOCH|FILE")]
CkptsOption = Annotated[
    list[str] | None,
    option("--ckpt", DATA_PANEL, f"{_CKPT} May be repeated.", metavar="RUN|RUN@EPOCH|FILE"),
]
SplitOption = Annotated[str | None, option("--split", DATA_PANEL, "Split of the prepared data.", metavar="NAME")]
EvaluatorOption = Annotated[
    EvaluatorName,
    option(
        "--evaluator",
        OUTPUT_PANEL,
        "official: the current evaluator of the VQA team, and CLEVR's own grouping; upstream: the older rules of TRAR's"
        " published numbers.",
        shows_default=True,
    ),
]
JsonOption = Annotated[
    str | None,
    option(
        "--json", OUTPUT_PANEL, "Write the result as JSON; - writes it, and nothing else, to stdout.", metavar="FILE|-"
    ),
]
SaveScoresOption = Annotated[
    Path | None,
    option("--save-scores", OUTPUT_PANEL, "Write question_id, scores (logits) and answers.", metavar="FILE.npz"),
]
QuietOption = Annotated[
    bool, option("--quiet", OUTPUT_PANEL, "Show no progress, only notes, errors and the result.", short="-q")
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
    for parameter in parameters:
        if record := parameter.get_help_record(context):
            is_argument = parameter.param_type_name == "argument"
            panel = "Arguments" if is_argument else parameter.rich_help_panel or GENERAL_PANEL
            panels.setdefault(panel, []).append(record)
    panels[GENERAL_PANEL] = panels.pop(GENERAL_PANEL, [])
    for name, rows in panels.items():
        if rows:
            with formatter.section(_heading(name)):
                formatter.write_dl(rows)


def _heading(text: str) -> str:
    """A heading; Typer strips the style where there is no terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
