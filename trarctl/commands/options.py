"""Options that several commands share, and options that take type, limits and help from a setting.

A command names its setting options once, ``@takes_settings(BATCH_SIZE, SEED)``, and finds what was given in
``context.obj``, as ``resolve`` wants it. The fields are read when the command is parsed: ``trarctl --help`` does
without pydantic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer
import typer.main

from trarctl.registry import DATASETS

DATA_PANEL = "Data"
SETTINGS_PANEL = "Settings"
TRAINING_PANEL = "Training"
DEVICE_PANEL = "Devices"
OUTPUT_PANEL = "Output"
PANELS = (DATA_PANEL, SETTINGS_PANEL, TRAINING_PANEL, DEVICE_PANEL, OUTPUT_PANEL)

EvaluatorName = Literal["official", "upstream"]


@dataclass(frozen=True)
class SettingOption:
    """An option for one setting: dotted key, flag, and the panel of the help that it stands in."""

    key: str
    flag: str
    panel: str

    @property
    def name(self) -> str:
        """The parameter's name: ``batch_size`` for ``--batch-size``."""
        return self.flag.lstrip("-").replace("-", "_")


Function = TypeVar("Function", bound=Callable[..., None])


def takes_settings(*options: SettingOption) -> Callable[[Function], Function]:
    """Give a command an option for each setting; ``context.obj`` is then key -> (value or None, flag)."""

    def mark(command: Function) -> Function:
        command.__dict__["setting_options"] = options
        return command

    return mark


def build_parameters(options: Sequence[SettingOption]) -> list[Any]:
    """Typer's parameters for options of settings.

    The limits are shown here and checked where all values are, with the rest of the settings.
    """
    from trarctl.config.settings import FIELDS, kinds_of

    def carrier(**_values: object) -> None: ...

    parameters = []
    for option in options:
        field, kinds = FIELDS[option.key], kinds_of(option.key)
        kind = next((kind for kind in (bool, int, float, Path) if kind in kinds), str)
        choices = field.examples or (get_args(field.annotation) if Literal in kinds else ())
        metavar = "|".join(map(str, choices)) or {int: "N", float: "X", Path: "DIR"}.get(kind, "NAME")
        description = field.description or ""
        limits = ", ".join(
            f"{metavar} {sign} {getattr(limit, name)}"
            for limit in field.metadata
            for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if hasattr(limit, name)
        )
        info = typer.Option(
            option.flag,
            metavar=None if kind is bool else metavar,
            help=f"{description[:1].upper()}{description[1:]}.{f' [{limits}]' if limits else ''}",
            rich_help_panel=option.panel,
            show_default=False,
        )
        annotation: Any = Annotated[kind | None, info]
        parameters.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    carrier.__dict__["__signature__"] = inspect.Signature(parameters)
    carrier.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(carrier)
    names = {option.name for option in options}
    return [parameter for parameter in typer.main.get_command(app).params if parameter.name in names]


DATA = SettingOption("data.path", "--data", DATA_PANEL)
EPOCHS = SettingOption("train.epochs", "--epochs", TRAINING_PANEL)
GPUS = SettingOption("run.gpus", "--gpus", DEVICE_PANEL)
MAX_RESTARTS = SettingOption("run.max_restarts", "--max-restarts", DEVICE_PANEL)


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
