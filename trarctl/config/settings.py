"""The settings and their limits, the recipe of each data set, and settings as text.

A dotted key (``train.batch_size``) names a field in files, in the environment and on the command line.
"""

from __future__ import annotations

import functools
import json
import math
import re
import reprlib
import tomllib
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from trarctl.config import Compile, Loss, WantedCache, WantedPrecision
from trarctl.errors import SettingsError
from trarctl.registry import DATASETS, KERNELS, PLUGINS_VARIABLE, POOLINGS, SPAN_SHAPES, load_plugins

ALL_SETTINGS = "trarctl settings explains every setting, trarctl train --dry-run shows where each came from"


@dataclass(frozen=True)
class Recipe:
    """What a data set trains with: values by dotted key, and what ``train.loss`` and ``data.split`` may be."""

    path: Path
    values: Mapping[str, object]
    losses: tuple[str, ...]
    splits: tuple[str, ...]
    published: str | None = None  # the data set whose recipe is the published one; None: it is this


DEFAULT_DATASET = "vqa"
OWN_DATASET = "table"  # as which one's own data is registered, whatever its name
# Also the name of a folder, and the start of a run's name.
DATA_NAME = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
_SMALL = Path(__file__).parent / "recipes" / "table.toml"
_RECIPES = {name: Path(__file__).parent / "recipes" / f"{name}.toml" for name in DATASETS.built_in}


def register_recipe(dataset: str, path: Path) -> None:
    """Make a data set known to the settings; its recipe is read when it is first used."""
    _RECIPES[dataset] = Path(path)


def dataset_names() -> tuple[str, ...]:
    """Every data set that has a recipe, those of plugins included."""
    load_plugins()
    return tuple(_RECIPES)


def recipe_of(dataset: str, name: str | None = None) -> Recipe:
    """Get the recipe of a data set of ``dataset_names``; a SettingsError names the file if it is not valid.

    ``name`` is another's: ``small``, that of one's own data; ``published``, the paper's; or a file of settings.
    """
    own = recipe = _read_recipe(_RECIPES[dataset])
    if name == "published" and own.published is not None:
        recipe = _read_recipe(_RECIPES[own.published])
    elif name == "small":
        recipe = _read_recipe(_SMALL)
    elif name not in (None, "published"):
        recipe = replace(own, path=Path(name), values=_read_values(Path(name)))
    if recipe.path != own.path and "train.loss" in recipe.values and recipe.values["train.loss"] not in own.losses:
        recipe = replace(recipe, values={**recipe.values, "train.loss": own.losses[0]})
    from_dict(nested({**recipe.values, "data.dataset": dataset}), str(recipe.path))
    return recipe


@functools.cache
def _read_recipe(path: Path) -> Recipe:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read the recipe {path}: {reason}", "a recipe is a TOML file") from None
    like, published, losses, splits = (document.pop(name, None) for name in ("like", "published", "losses", "splits"))
    for names in (losses, splits):
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise SettingsError(f"{path}: must begin with the lists losses and splits", 'such as splits = ["train"]')
    # Those that come with trarctl, which lead in no circle.
    if like is not None and like not in DATASETS.built_in:
        raise SettingsError(f"{path}: like = {like!r} is no built-in recipe", f"like is {either(DATASETS.built_in)}")
    values = {} if like is None else _read_recipe(_RECIPES[like]).values
    return Recipe(path, {**values, **values_of_tables(document, str(path))}, tuple(losses), tuple(splits), published)


def _read_values(path: Path) -> Mapping[str, object]:
    """Read a file of settings that a user names as a recipe."""
    try:
        return values_of_tables(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read the recipe {path}: {reason}", "--recipe small|published|FILE.toml") from None


def either(names: Iterable[object], joint: str = "or") -> str:
    """List names as a message does: ``a, b or c``."""
    *others, last = map(str, names)
    return f"{', '.join(others)} {joint} {last}" if others else last


@dataclass(frozen=True)
class OneOf:
    """Requires a name; plugins, which may add some, are not loaded for one that is built in."""

    built_in: Container[str]
    names: Callable[[], Iterable[str]]

    def __call__(self, value: str) -> str:
        """Check a value."""
        if value not in self.built_in and value not in (known := tuple(self.names())):
            raise PydanticCustomError("plugin", "must be {names}", {"names": either(map(repr, known))})
        return value


def _shaped(span: str) -> str:
    shape, _, size = span.partition(":")
    if shape not in SPAN_SHAPES:
        shapes = either(map(repr, SPAN_SHAPES.names()))
        raise PydanticCustomError("plugin", "must be SHAPE:SIZE with a shape of {names}", {"names": shapes})
    if not (size.isascii() and size.isdigit() and size.strip("0")):
        raise PydanticCustomError("span", "must be SHAPE:SIZE with a size of 1 or more")
    return span


Dataset = Annotated[str, AfterValidator(OneOf(_RECIPES, dataset_names))]
Pooling = Annotated[str, AfterValidator(OneOf(POOLINGS, POOLINGS.names))]
Attention = Annotated[str, AfterValidator(OneOf(("auto",), lambda: ("auto", *KERNELS.names())))]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Span = Annotated[
    Annotated[NonNegativeInt, Tag("window")] | Annotated[str, AfterValidator(_shaped), Tag("shape")],
    Discriminator(lambda span: "shape" if isinstance(span, str) and ":" in span else "window"),
]
# A file system takes names of 255 bytes, some of which other files of the run add.
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
_LARGEST = 2**31 - 1
INTERVAL = r"^[1-9][0-9]*(m|min)?$"
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m(?:in)?)?(?:([0-9]{1,6})s)?")


def seconds_of(duration: str) -> int:
    """The seconds of a time such as ``2h30m``; 0 if it is none."""
    match = _DURATION.fullmatch(duration)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its meaning, which help and messages show."""
    return Field(default, description=meaning, **limits)


def contradiction(message: str, *keys: str) -> PydanticCustomError:
    """An error between several settings; ``keys`` let ``from_dict`` find out which flag or file to blame."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "keys": keys})


class Frozen(BaseModel):
    """Immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_odd_value(cls, value: object, info: ValidationInfo) -> object:
        """Python counts True as 1, and an empty path is the current folder: nobody means that."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list | tuple) else [value]
        if annotation is not bool and any(isinstance(one, bool) for one in values):
            raise PydanticCustomError("switch", "must not be true or false")
        if isinstance(value, str) and not value.strip():
            raise PydanticCustomError("empty", "must not be empty")
        if any(re.search(r"[\x00-\x1f\x7f]", str(one)) for one in values if isinstance(one, str | Path)):
            raise PydanticCustomError("control", "must not hold a line break or another control character")
        if isinstance(value, str) and value.strip().isdecimal() and int in map(type, get_args(annotation)):
            return int(value)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_huge_number(cls, value: object) -> object:
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(one, int) and one > _LARGEST for one in values):
            raise PydanticCustomError("huge", "must be a smaller number")
        return value


class DataSettings(Frozen):
    """Which prepared data to read, and which of it to train on."""

    dataset: Dataset = setting(DEFAULT_DATASET, "data set, which decides recipe and metric")
    name: str | None = setting(None, "name of one's own data set, made by prepare table", pattern=DATA_NAME)
    path: Path | None = setting(None, "prepared folder; by default data/DATASET/prepared")
    split: str = setting("train", "splits to train on, joined by +, such as train+val")
    later_split: str | None = setting(None, "splits to train on from epoch later_split_epoch on, as split")
    later_split_epoch: PositiveInt | None = setting(None, "epoch index, from 0, at which later_split begins")
    num_workers: int = setting(2, "threads per process that assemble batches; 0: none", ge=0, le=64)
    cache: WantedCache = setting(
        "auto",
        "where a training keeps its features: in memory (ram), on the device, or in their files (none). auto: on a GPU "
        "if it keeps a quarter of its memory for the rest, else in memory likewise, else in files; on a CPU in files",
    )


class ModelSettings(Frozen):
    """The shape of TRAR (ICCV 2021, section 3), sizes as published; what the data fixes is not here."""

    num_layers: PositiveInt = setting(6, "language layers, and as many visual layers", le=64)
    hidden_size: PositiveInt = setting(512, "width D of every layer; a multiple of num_heads, even")
    num_heads: PositiveInt = setting(8, "attention heads H")
    feed_forward_size: PositiveInt = setting(2048, "inner width of the feed-forward layers")
    dropout: Fraction = setting(0.1, "probability of dropping an element, 0 <= p < 1")
    word_embedding_size: PositiveInt = setting(300, "width E of the word embedding; that of the vectors")
    flat_mlp_size: PositiveInt = setting(512, "inner width of the attention pooling in the head")
    flat_glimpses: PositiveInt = setting(1, "glimpses of the attention pooling in the head")
    flat_out_size: PositiveInt = setting(1024, "width of the pooled image and question")
    spans: tuple[Span, ...] = setting(
        (0, 1, 2, 3), "spans: 0 sees the whole grid, r > 0 the cells within r, SHAPE:SIZE another shape", min_length=1
    )
    grid_size: PositiveInt = setting(8, "cells S along one side of the image grid; N = S * S")
    routing: Literal["soft", "hard"] = setting("soft", "blend the spans, or choose by Gumbel softmax")
    pooling: Pooling = setting("avg", "how a router sums up the image")
    binarize: bool = setting(False, "use only the heaviest span in evaluation; hard routing only")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            message = f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}"
            raise contradiction(message, "model.hidden_size", "model.num_heads")
        if self.hidden_size % 2:
            message = f"hidden_size {self.hidden_size} must be even: the router halves it"
            raise contradiction(message, "model.hidden_size")
        if self.binarize and self.routing != "hard":
            raise contradiction("binarize needs hard routing, got routing 'soft'", "model.binarize", "model.routing")
        return self


class TrainSettings(Frozen):
    """How the weights are learned."""

    epochs: PositiveInt = setting(13, "passes over the training split")
    batch_size: PositiveInt = setting(64, "samples of one optimizer step, over all GPUs and parts", le=999_999)
    accumulation: PositiveInt = setting(1, "parts that a batch is computed in, to save memory; must divide its size")
    learning_rate: PositiveFloat = setting(1e-4, "base rate of Adam")
    warmup_epochs: int = setting(
        3,
        "the rate rises in four stages over the first warmup_epochs + 1; a recipe's shrinks with a run of fewer epochs",
        ge=0,
    )
    caps_warmup: bool = setting(
        True, "no stage of it exceeds the base rate; false: as the original's of one epoch does"
    )
    decay_epochs: tuple[NonNegativeInt, ...] = setting(
        (10, 12),
        "epoch indices, from 0, at whose start the rate falls; a recipe's move with epochs, to the same fraction of "
        "the run, at least one before its end",
    )
    decay_factor: PositiveFloat = setting(0.2, "what the rate is multiplied by at each of them", le=1)
    adam_betas: tuple[Fraction, Fraction] = setting((0.9, 0.98), "decay rates of Adam's two averages")
    adam_epsilon: PositiveFloat = setting(1e-9, "term in Adam's denominator")
    patience: int | None = setting(
        None, "end the run after N validations in a row that are no better than the best; none: after all epochs", gt=0
    )
    ema_decay: float | None = setting(
        None,
        "also keep a moving average of the weights, in which those of t steps ago count ema_decay ** t times as much, "
        "such as 0.999, and validate it; none: not",
        gt=0,
        lt=1,
    )
    average_epochs: int | None = setting(
        None, "at the end also average the weights of the last N epochs, and validate that; none: not", ge=2
    )
    gradient_clip: PositiveFloat | None = setting(None, "largest norm of the whole gradient; none: no limit")
    loss: Loss = setting("bce", "binary cross entropy, KL divergence or cross entropy")
    loss_reduction: Literal["sum", "mean"] = setting("sum", "over a batch; mean is over its elements, as in torch")
    temperature_policy: Literal[0, 1, 2] = setting(1, "hard routing: 0 slow, 1 fast, 2 finetune")
    temperature_max: PositiveFloat = setting(10.0, "temperature of the first epoch")
    temperature_min: PositiveFloat = setting(0.1, "temperature that no epoch goes below")
    shuffle: bool = setting(True, "a new order of samples in each epoch; false: the order of the files")
    seed: int = setting(0, "seed of the start weights, dropout, noise and the order of samples", ge=0, lt=2**31)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        batch, parts = self.batch_size, self.accumulation
        if batch % parts:
            small = [n for n in range(1, math.isqrt(batch) + 1) if batch % n == 0]
            divisors = small + [batch // n for n in reversed(small)]
            near = [n for n in divisors if n < parts][-1:] + [n for n in divisors if n > parts][:1]
            nearest = f"nearest that do: {either(near, 'and')}"
            message = f"accumulation {parts} does not divide batch_size {batch} ({nearest})"
            raise contradiction(message, "train.accumulation", "train.batch_size")
        if self.temperature_min > self.temperature_max:
            message = f"temperature_min {self.temperature_min} is above temperature_max {self.temperature_max}"
            raise contradiction(message, "train.temperature_min", "train.temperature_max")
        return self


class RunSettings(Frozen):
    """Where a run lives and on what it runs."""

    name: str | None = setting(None, "name of the run's folder; by default data set and time", pattern=RUN_NAME)
    folder: Path = setting(Path("runs"), "folder that holds the runs")
    gpus: str | None = setting(None, "GPU indices, or cpu; by default a GPU if there is one", examples=["0,1", "cpu"])
    num_threads: PositiveInt | None = setting(
        None, "CPU threads of a process; none: its share of the cores. Small models want 1", le=1024
    )
    precision: WantedPrecision = setting(
        "auto",
        "precision of matrix products; weights, optimizer, softmax and loss stay float32. auto: train in bf16 on a GPU "
        "that has it, otherwise in fp32, and score in fp32",
    )
    attention: Attention = setting("auto", "attention backend: auto, reference, cpu or triton")
    compile: Compile = setting(
        "auto",
        "compile the model with torch.compile; for GPUs. On a CPU it needs a C++ compiler and makes steps slower. "
        "auto: GPUs replay the recorded step, as they do with on, but nothing is compiled; off: neither",
    )
    max_restarts: int = setting(0, "times that lost processes are restarted, from the latest checkpoint", ge=0, le=100)
    timeout_seconds: PositiveFloat = setting(600.0, "seconds to wait for a process before it counts as lost")
    save_every: str | None = setting(
        None,
        "also save within an epoch: every 500 steps, or every 10m (minutes)",
        pattern=INTERVAL,
        examples=["500", "10m"],
    )
    max_time: str | None = setting(
        None,
        "stop, saved, after this time of training, of all runs of a sweep together; trarctl resume goes on, for as "
        "long again",
        examples=["2h30m", "90m"],
    )
    validate_every: int = setting(1, "epochs between validations; 0: never", ge=0)
    log_every: PositiveInt = setting(50, "optimizer steps between two lines of metrics.jsonl")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = setting((), "where else to send curves; each is an extra")
    keep: int = setting(2, "keep the checkpoints of the best epoch and the latest N, by default 2; 0: of all", ge=0)

    @field_validator("max_time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and not seconds_of(value):
            raise PydanticCustomError("time", "must be a time, such as 2h30m, 90m or 45s")
        return value

    @field_validator("compile", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        """Read true and false, as older runs have it and as the option ``--compile`` gives it."""
        return {"true": "on", "false": "off"}.get(str(value).lower(), value)


class Settings(Frozen):
    """Everything that decides a run."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        dataset, loss = self.data.dataset, self.train.loss
        recipe = _read_recipe(_RECIPES[dataset])
        if loss not in recipe.losses:
            message = f"loss {loss!r} does not fit {dataset}: use {either(recipe.losses)}"
            raise contradiction(message, "train.loss", "data.dataset")
        for key, split in (("split", self.data.split), ("later_split", self.data.later_split)):
            if split not in (*recipe.splits, None):
                message = f"{key} {split!r} is none that {dataset} trains on: use {either(recipe.splits)}"
                raise contradiction(message, f"data.{key}", "data.dataset")
        split, epoch, epochs = self.data.later_split, self.data.later_split_epoch, self.train.epochs
        if (split is None) != (epoch is None):
            given, lacking = ("later_split", "later_split_epoch")[:: 1 if epoch is None else -1]
            raise contradiction(f"{given} needs {lacking}", f"data.{given}", f"data.{lacking}")
        if epoch is not None and epoch >= epochs:
            message = f"later_split_epoch {epoch} is not reached in {epochs} epochs: the last has index {epochs - 1}"
            raise contradiction(message, "data.later_split_epoch", "train.epochs")
        return self


# Dotted keys, and values as text

TABLES: dict[str, type[BaseModel]] = {name: type(field.default) for name, field in Settings.model_fields.items()}
FIELDS: dict[str, FieldInfo] = {
    f"{table}.{name}": field for table, model in TABLES.items() for name, field in model.model_fields.items()
}


def kinds_of(key: str) -> tuple[object, ...]:
    """The types that a setting's value may have; ``tuple`` for a list, ``Literal`` for a choice."""
    annotation = FIELDS[key].annotation
    return (annotation, get_origin(annotation), *get_args(annotation))


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Name settings without their table, where that is clear: ``learning_rate``."""
    keys = list(keys)
    lasts = [key.partition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


# Where a run is, and how and on what it is computed, which changes no number.
CIRCUMSTANCES = (
    *("data.path", "data.num_workers", "data.cache", "run.name", "run.folder", "run.gpus", "run.num_threads"),
    *("run.max_restarts", "run.max_time"),
)

# What settings are called in other programs.
_OTHER_NAMES = {
    "lr": "train.learning_rate",
    "device": "run.gpus",
    "gpu": "run.gpus",
    "amp": "run.precision",
    "fp16": "run.precision",
    "backend": "run.attention",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "iterations": "train.epochs",
    "bs": "train.batch_size",
    "grad_accum": "train.accumulation",
    "gradient_accumulation_steps": "train.accumulation",
    "clip_grad": "train.gradient_clip",
    "max_grad_norm": "train.gradient_clip",
    "warmup": "train.warmup_epochs",
    "milestones": "train.decay_epochs",
    "gamma": "train.decay_factor",
    "betas": "train.adam_betas",
    "eps": "train.adam_epsilon",
    "tau": "train.temperature_max",
    "depth": "model.num_layers",
    "layers": "model.num_layers",
    "width": "model.hidden_size",
    "dim": "model.hidden_size",
    "embed_dim": "model.hidden_size",
    "d_model": "model.hidden_size",
    "heads": "model.num_heads",
    "mlp_dim": "model.feed_forward_size",
    "ffn_dim": "model.feed_forward_size",
    "drop_rate": "model.dropout",
    "windows": "model.spans",
    "orders": "model.spans",
    "workers": "data.num_workers",
    "output_dir": "run.folder",
    "out_dir": "run.folder",
    "logger": "run.loggers",
    "wandb": "run.loggers",
    "tensorboard": "run.loggers",
    "early_stopping": "train.patience",
    "time_limit": "run.max_time",
    "ema": "train.ema_decay",
    "swa": "train.average_epochs",
}


def nearest_key(wrong: str, known: Collection[str] = FIELDS) -> str | None:
    """The known name that a wrong one most likely means, also if it is in the wrong table or lacks one; or None."""
    by_last = {candidate.rpartition(".")[2].casefold(): candidate for candidate in known}
    by_last |= {name: key for name, key in _OTHER_NAMES.items() if key in known}
    near = get_close_matches(wrong.rpartition(".")[2].casefold(), by_last, n=1, cutoff=0.75)
    return by_last[near[0]] if near else None


def unknown(source: str, key: str, *, is_table: bool = False) -> SettingsError:
    """The error that ``source`` names a setting or table that is none."""
    near = nearest_key(key, TABLES if is_table else FIELDS)
    hint = f"settings are in the tables {', '.join(TABLES)}; {ALL_SETTINGS}"
    if near:
        hint = f"did you mean [{near}]?" if is_table else f"did you mean {near}?"
    return SettingsError(f"{source}: unknown {'table' if is_table else 'setting'} {key}", hint)


def from_text(key: str, text: str) -> object:
    """Read a value from the environment or the command line; what cannot be read stays text, for validation.

    Lists are TOML or JSON (``[0, 1]``) or simply ``0,1``; ``none`` empties an optional setting.
    """
    value = from_file(key, text.strip())
    if not isinstance(value, str):
        return value
    read = _toml_value(value)
    is_free_text = str in kinds_of(key) or Path in kinds_of(key)
    return read if isinstance(read, str if is_free_text else bool | int | float | str) else value


def from_file(key: str, value: object) -> object:
    """Read a value from a parsed TOML, JSON or YAML file: ``none`` and ``"0,1"`` mean there what they mean in text."""
    if not isinstance(value, str):
        return value
    kinds = kinds_of(key)
    if NoneType in kinds and value.strip().casefold() == "none":
        return None
    return _list_from_text(value.strip()) if tuple in kinds else value


def to_toml_value(value: object) -> str:
    """Write a value as TOML; ``none``, which TOML has not, becomes a string."""
    text = json.dumps("none" if value is None else value, default=str, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def to_text(value: object) -> str:
    """Write a value for people, the way that ``from_text`` reads it."""
    return str(value) if isinstance(value, str | Path) else to_toml_value(value).strip('"')


def values_of_tables(document: Mapping[str, object], source: str) -> dict[str, object]:
    """Values by dotted key of a parsed file; an unknown table or key is an error that names ``source``."""
    values: dict[str, object] = {}
    for table, content in document.items():
        if table not in TABLES or not isinstance(content, Mapping):
            raise unknown(source, table, is_table=isinstance(content, Mapping))
        for name, value in content.items():
            if (key := f"{table}.{name}") not in FIELDS:
                raise unknown(source, key)
            values[key] = from_file(key, value)
    return values


def nested(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Sort values by dotted key into tables."""
    return {
        table: {key.partition(".")[2]: value for key, value in values.items() if key.partition(".")[0] == table}
        for table in TABLES
    }


def flat(settings: Settings) -> dict[str, object]:
    """All values of the settings by dotted key."""
    return {f"{table}.{name}": value for table, values in settings for name, value in values}


def _toml_value(text: str) -> object:
    """The TOML value that the text is; None if it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    return document["value"] if list(document) == ["value"] else None


def _list_from_text(text: str) -> object:
    if text.startswith("["):
        value = _toml_value(text)
        return value if isinstance(value, list) else text
    parts = [part.strip() for part in text.removeprefix("(").removesuffix(")").split(",")]
    return parts if parts[-1] else parts[:-1]


# What is wrong, in the user's words

PATTERNS = {
    DATA_NAME: "may hold up to 64 lower-case letters, digits, '.', '_' and '-', and begins with a letter or a digit",
    RUN_NAME: "may hold up to 200 letters, digits, '.', '_' and '-', and begins with a letter or a digit",
    INTERVAL: "must be a number of steps from 1, such as 500, or of minutes, such as 10m",
}
_PROBLEMS = {
    **PATTERNS,
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "int_parsing_size": "must be a smaller number",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "path": "must be a path",
    "tuple": "must be a list, such as 0,1,2",
    "model": "must be a table",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} values at most",
    "missing": "lacks a value",
    "extra": "is no setting",
}


def from_dict(tables: Mapping[str, object], source: str, blames: Mapping[str, str] | None = None) -> Settings:
    """Validate settings by table, as JSON holds them; a SettingsError has a line for each that is wrong.

    It begins with what ``blames`` has for the dotted key, those that win over others first, or with ``source``.
    """
    blames = blames or {}
    try:
        return Settings.model_validate(tables)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    lines: dict[str, str] = {}
    hints = set()
    for found in problems:
        explain = _explain_contradiction if found["type"] == "contradiction" else _explain_value
        key, text, hint = explain(found, blames)
        lines.setdefault(key, f"{blames.get(key, source)}: {text}")
        hints.add(hint)
    raise SettingsError("\n".join(lines.values()), hints.pop() if len(hints) == 1 else ALL_SETTINGS)


def _explain_contradiction(found: ErrorDetails, blames: Mapping[str, str]) -> tuple[str, str, str]:
    """The key to blame for an error between settings, what is wrong, and a hint."""
    keys = found["ctx"]["keys"]
    hint = ALL_SETTINGS
    if blames and len(keys) > 1:
        origins = ", ".join(f"{key} from {blames.get(key, 'its default')}" for key in keys)
        hint = f"change one: {origins.replace(' from', ' comes from', 1)}"
    return next((key for key in blames if key in keys), keys[0]), found["ctx"]["message"], hint


def _explain_value(found: ErrorDetails, blames: Mapping[str, str]) -> tuple[str, str, str]:
    """The key of a value that is not valid, what is wrong with it, and a hint."""
    key = ".".join(str(part) for part in found["loc"][:2])
    index = "".join(f"[{part}]" for part in found["loc"][2:] if isinstance(part, int))
    context: dict[str, Any] = found.get("ctx", {})
    kinds = (context.get("pattern"), found["type"], found["type"].partition("_")[0])
    kind = next((kind for kind in kinds if kind in _PROBLEMS), "")
    problem = _PROBLEMS[kind].format(**context) if kind else found["msg"].replace("Input should", "must", 1)
    got = "" if key in blames or kind in ("missing", "extra") else f", got {reprlib.repr(found['input'])}"
    hint = ALL_SETTINGS
    if found["type"] == "plugin":
        hint = f"if a plugin adds it, name its module: {PLUGINS_VARIABLE}=MODULE"
    elif key in FIELDS:
        hint = f"{key}: {FIELDS[key].description}; {ALL_SETTINGS}"
    elif near := nearest_key(key):
        hint = f"did you mean {near}?"
    return key, f"{key}{index} {problem}{got}", hint
