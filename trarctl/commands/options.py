"""The options of commands: those that several share, those that stand for a setting, and how help lists them.

A command names the settings that have an option once, ``@takes_settings(EPOCHS, GPUS)``, and finds what was given in
``context.obj``, as ``resolve`` wants it. Type, limits and help are those of the setting's field, which is read when the
command is parsed: ``trarctl --help`` does without pydantic.

Typer's own panels take Rich's whole Markdown machinery to draw. This answers in half the time, fits any width and is
the same in a pipe. Headings are bold on a terminal.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from trarctl.config import EvaluatorName
from trarctl.registry import DATASETS, EXTRACTORS, load_plugins

DATA_PANEL = "Data"
SETTINGS_PANEL = "Settings"
TRAINING_PANEL = "Training"
SWEEP_PANEL = "Several runs"
DEVICE_PANEL = "Devices"
OUTPUT_PANEL = "Output"
GENERAL_PANEL = "General"
EXTRACTOR_NAMES = ", ".join("timm:MODEL" if name == "timm" else name for name in EXTRACTORS.built_in)
PANELS = (DATA_PANEL, SETTINGS_PANEL, TRAINING_PANEL, SWEEP_PANEL, DEVICE_PANEL, OUTPUT_PANEL)


def option(name: str, panel: str, help: str, *, short: str = "", shows_default: bool = False, **more: Any) -> Any:
    """Describe an option; its default is shown only where that says something."""
    names = (name, short) if short else (name,)
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=shows_default, **more)


def own_data(name: str) -> bool:
    """Whether there is prepared data of that name where commands look for it."""
    return (Path("data") / name / "prepared" / "manifest.json").is_file()


def own_names() -> list[str]:
    """The names of one's own prepared data where commands look for it, sorted."""
    names = (path.parent.parent.name for path in Path("data").glob("*/prepared/manifest.json"))
    return sorted({*names} - {*DATASETS.names()})


def refuse_unknown(dataset: str | None, data: Path | None = None, *, takes_own: bool = False) -> None:
    """Refuse a name of no data set: neither registered, nor that of one's own data in its place or in ``data``."""
    from trarctl.data.manifest import read_manifest

    if dataset is None or dataset in DATASETS.names():
        return
    if takes_own and (read_manifest(data).name == dataset if data is not None else own_data(dataset)):
        return
    known = ", ".join(map(repr, [*DATASETS.names(), *(own_names() if takes_own else ())]))
    raise typer.BadParameter(f"{dataset!r} is not one of {known}.", param_hint="'DATASET'")


def dataset_argument(more: str = "", *, takes_own: bool = False) -> Any:
    """Describe the argument that names a data set, a plugin's included.

    ``more`` is added to its help; ``takes_own``: it may also be the name of one's own prepared data.
    """

    def check(name: str | None) -> str | None:
        if not takes_own:  # else ``refuse_unknown`` is to be called, which needs --data
            refuse_unknown(name)
        return name

    def complete() -> list[str]:
        return [*DATASETS.names(), *(own_names() if takes_own else ())]

    known = ", ".join(DATASETS.built_in)
    help = f"{known}, or one that a plugin adds{', or the name of your own' if takes_own else ''}{more}."
    return typer.Argument(metavar="DATASET", help=help, callback=check, autocompletion=complete, show_default=False)


# What a shell completes; it asks while somebody types, so that nothing heavy is loaded and nothing is ever wrong.


def complete_run(typed: str) -> list[str]:
    """Complete the name of a run or a sweep in the folder of the runs, and after ``@`` an epoch or average of a run."""
    name, at, _ = typed.partition("@")
    folder = Path(os.environ.get("TRARCTL_RUN_FOLDER") or "runs")
    if at:
        saved = [
            path.stem.removeprefix("epoch-") for path in (folder / name / "checkpoints").glob("epoch-*.safetensors")
        ]
        epochs = [str(int(epoch)) for epoch in sorted(saved) if epoch.isdecimal()]
        averages = {average for _, dash, average in (one.partition("-") for one in saved) if average.isalpha()}
        return [f"{name}@{one}" for one in (*epochs, *sorted(averages))]
    names = [path.parent.name for path in folder.glob("*/settings.json")]
    names += [path.name.removesuffix(".sweep.json") for path in folder.glob("*.sweep.json")]
    return sorted(name for name in names if name.startswith(typed))


def complete_split(ctx: typer.Context, typed: str) -> list[str]:
    """Complete the name of a split of the prepared data that the rest of the line names, or of all there is."""
    named = ctx.params.get("data") or (Path("data") / (ctx.params.get("dataset") or "*") / "prepared")
    splits: dict[str, None] = {}
    folder = Path(named)
    for path in Path(folder.anchor or ".").glob(str(folder.relative_to(folder.anchor) / "manifest.json")):
        try:
            splits |= dict.fromkeys(orjson.loads(path.read_bytes())["text"]["splits"])
        except (OSError, ValueError, TypeError, LookupError):
            continue
    return [split for split in splits if split.startswith(typed)]


def complete_setting(typed: str) -> list[str]:
    """Complete the key of a setting, and after ``=`` its value where there is a choice."""
    from trarctl.config.settings import FIELDS

    key, equals, value = typed.partition("=")
    if equals:
        choices = get_args(FIELDS[key].annotation) if key in FIELDS else ()
        return [f"{key}={one}" for one in choices if isinstance(one, str | int) and str(one).startswith(value)]
    return [key for key in FIELDS if key.startswith(typed)]


def complete_assignment(typed: str) -> list[str]:
    """Complete the key of a setting, with its sign of equality."""
    return [key if "=" in key else f"{key}=" for key in complete_setting(typed)]


DataOption = Annotated[
    Path | None,
    option("--data", DATA_PANEL, "Prepared folder; by default that of the run, or data/vqa/prepared.", metavar="DIR"),
]
OptionalDataOption = Annotated[
    Path | None,
    option(
        "--data",
        DATA_PANEL,
        "Prepared folder; needed by checkpoints of older versions and the original.",
        metavar="DIR",
    ),
]
ConfigOption = Annotated[
    Path | None,
    option("--config", SETTINGS_PANEL, "Settings from a .toml file, or the original's trar.yml.", metavar="FILE"),
]
SetOption = Annotated[
    list[str] | None,
    option(
        "--set",
        SETTINGS_PANEL,
        "Any setting, such as model.spans=0,1; may be repeated.",
        metavar="KEY=VALUE",
        autocompletion=complete_assignment,
    ),
]
GpusOption = Annotated[
    str | None,
    option("--gpus", DEVICE_PANEL, "Devices, or cpu; by default a GPU if there is one.", metavar="0,1|cpu"),
]
_CKPT = (
    "A run (the best of it), one epoch or average of it (RUN@ema), an exported folder, or a file, the original's .pkl"
    " included; by default the latest run."
)
_CKPT_KIND: dict[str, Any] = {"metavar": "RUN|RUN@EPOCH|FILE", "autocompletion": complete_run}
CkptOption = Annotated[str | None, option("--ckpt", DATA_PANEL, _CKPT, **_CKPT_KIND)]
CkptsOption = Annotated[
    list[str] | None,
    option("--ckpt", DATA_PANEL, f"{_CKPT} May be repeated.", **_CKPT_KIND),
]
SplitOption = Annotated[
    str | None,
    option("--split", DATA_PANEL, "Split of the prepared data.", metavar="NAME", autocompletion=complete_split),
]
ExtractorOption = Annotated[
    str | None,
    option(
        "--extractor",
        DATA_PANEL,
        "What made the features of the data, if it does not say so; compared with one of its images.",
        metavar="NAME",
    ),
]
WeightsOption = Annotated[
    Path | None,
    option("--weights", DATA_PANEL, "Weights of the extractor; by default a download.", metavar="FILE"),
]
DeviceOption = Annotated[str | None, option("--gpus", DEVICE_PANEL, "Device; by default cpu.", metavar="0|cpu")]
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
    option("--json", OUTPUT_PANEL, "Write JSON; - writes it, and nothing else, to stdout.", metavar="FILE|-"),
]
SaveScoresOption = Annotated[
    Path | None,
    option("--save-scores", OUTPUT_PANEL, "Write question ids, logits, routes and answers.", metavar="FILE.npz"),
]
QuietOption = Annotated[
    bool, option("--quiet", OUTPUT_PANEL, "Show no progress, only notes, errors and the result.", short="-q")
]


def extracting_devices(gpus: str | None) -> tuple[str, ...]:
    """Give the devices of this process that extract features, one copy of the extractor each."""
    from trarctl.engine.distributed import plan_placement

    # With RANK and WORLD_SIZE alone a process shares the pictures, but no machine.
    environ = dict(os.environ)
    if "LOCAL_RANK" not in environ and "SLURM_PROCID" not in environ:
        environ = {name: value for name, value in environ.items() if name not in ("RANK", "WORLD_SIZE")}
    placement = plan_placement(gpus, environ)
    return placement.devices if placement.group is None else (placement.device,)


def refuse_ignored(
    mode: str, given: Mapping[str, object], ignored: Iterable[str], *, unused: Iterable[str] = ()
) -> None:
    """Refuse options that were given though ``mode`` makes no use of them; a SettingsError names them all.

    Those in ``unused`` get a note only: they change nothing, and often come with a script's other commands.
    """
    from trarctl.commands.console import note
    from trarctl.errors import SettingsError

    if dropped := [flag for flag in ignored if given[flag]]:
        raise SettingsError(f"{mode} makes no use of {', '.join(dropped)}", f"leave out {' and '.join(dropped)}")
    if idle := [flag for flag in unused if given[flag]]:
        note(f"{mode} makes no use of {', '.join(idle)}")


def check_targets(targets: Mapping[str, Path | str | None], inputs: Iterable[object]) -> None:
    """See, before the work, that its results can be written, and that they overwrite neither input nor each other.

    ``targets`` has the file of each option; None or ``-``, which is stdout, for none.
    """
    from trarctl.errors import SettingsError
    from trarctl.files import refuse_unwritable

    # Unlike Path.resolve, this has an answer for links in a circle.
    taken = {os.path.realpath(str(one)): "what is read" for one in inputs if one is not None}
    for flag, named in targets.items():
        if named is None or named == "-":
            continue
        target = Path(named)
        hint = f"choose another file with {flag}"
        refuse_unwritable(target, hint)
        if target.exists() and not target.is_file():
            continue  # a device or a pipe
        if other := taken.get(os.path.realpath(target)):
            raise SettingsError(f"{flag} {target} would overwrite {other}", hint)
        taken[os.path.realpath(target)] = f"the result of {flag}"


@dataclass(frozen=True)
class SettingOption:
    """An option for one setting: dotted key, flag, and the panel of the help that lists it."""

    key: str
    flag: str
    panel: str

    @property
    def name(self) -> str:
        """The parameter's name: ``batch_size`` for ``--batch-size``."""
        return self.flag.lstrip("-").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """Describe the option to Typer; limits are shown here and checked with the rest of the settings.

        A setting that may be ``on`` gets a flag; its other values come from files and ``--set``.
        """
        from trarctl.config.reference import limits_text, meaning
        from trarctl.config.settings import FIELDS, kinds_of

        field, kinds = FIELDS[self.key], kinds_of(self.key)
        choices = field.examples or (get_args(field.annotation) if Literal in kinds else ())
        known = (kind for kind in (bool, int, float, Path) if kind in kinds)
        kind = bool if "on" in choices else next(known, str)
        metavar = "|".join(map(str, choices)) or {int: "N", float: "X", Path: "DIR"}.get(kind, "NAME")
        limits = limits_text(self.key)
        help = f"{meaning(self.key)}.{f' [{limits}]' if limits else ''}"
        more: dict[str, Any] = {"autocompletion": complete_split} if self.key == "data.split" else {}
        if choices and kind is str and not field.examples:
            more["autocompletion"] = lambda: list(choices)
        info = option(self.flag, self.panel, help, metavar=None if kind is bool else metavar, **more)
        annotation: Any = Annotated[kind | None, info]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


DATA = SettingOption("data.path", "--data", DATA_PANEL)
EPOCHS = SettingOption("train.epochs", "--epochs", TRAINING_PANEL)
LEARNING_RATE = SettingOption("train.learning_rate", "--lr", TRAINING_PANEL)
GPUS = SettingOption("run.gpus", "--gpus", DEVICE_PANEL)
PATIENCE = SettingOption("train.patience", "--patience", TRAINING_PANEL)
MAX_TIME = SettingOption("run.max_time", "--max-time", TRAINING_PANEL)
MAX_RESTARTS = SettingOption("run.max_restarts", "--max-restarts", DEVICE_PANEL)

Function = TypeVar("Function", bound=Callable[..., None])


def takes_settings(*options: SettingOption) -> Callable[[Function], Function]:
    """Give a command an option for each setting; ``context.obj`` is then key -> (value or None, flag)."""

    def mark(command: Function) -> Function:
        command.__dict__["setting_options"] = options
        return command

    return mark


def build_parameters(options: Sequence[SettingOption]) -> list[Any]:
    """Make Typer's objects, by way of a function that has these options alone."""

    def carrier(**_values: object) -> None: ...

    parameters = [option.parameter() for option in options]
    carrier.__dict__["__signature__"] = inspect.Signature(parameters)
    carrier.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(carrier)
    names = {parameter.name for parameter in parameters}
    return [parameter for parameter in typer.main.get_command(app).params if parameter.name in names]


class Command(TyperCommand):
    """A command with grouped options, those of settings included; plugins are loaded before it runs, not for help."""

    _settings: Sequence[SettingOption] | None = None

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters by panel; options of settings are made when they are first needed."""
        if self._settings is None:
            self._settings = getattr(self.callback, "setting_options", ())
            panels = [None, *PANELS]
            if self._settings:
                self.params = [*build_parameters(self._settings), *self.params]
                self.params.sort(key=lambda one: panels.index(getattr(one, "rich_help_panel", None)))
        return super().get_params(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; a setting that was taken for an option is told as one."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # Typer does not export the class of this one
            if (
                any(one.name == "sets" for one in self.params)
                and (named := getattr(error, "option_name", None)) is not None
            ):
                self._suggest(error, named)
            raise

    def _suggest(self, error: Any, named: str) -> None:
        """Add to the message about an unknown option which setting was perhaps meant."""
        from trarctl.config.settings import FIELDS, nearest_key

        key = nearest_key(named.lstrip("-").replace("-", "_"))
        if key in FIELDS:
            flags = {one.key: one.flag for one in self._settings or ()}
            error.message = f"{error.message}. Did you mean {flags.get(key, f'--set {key}')}?"
            error.possibilities = None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what was given for settings is in ``ctx.obj``."""
        load_plugins()
        if self._settings:
            ctx.obj = {option.key: (ctx.params.pop(option.name), option.flag) for option in self._settings}
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
            panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or GENERAL_PANEL
            panels.setdefault(panel, []).append(record)
    panels[GENERAL_PANEL] = panels.pop(GENERAL_PANEL, [])
    for name, rows in panels.items():
        if rows:
            with formatter.section(_heading(name)):
                formatter.write_dl(rows)


def _heading(text: str) -> str:
    """A heading; Typer strips the style where there is no terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)
