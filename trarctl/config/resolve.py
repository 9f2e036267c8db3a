"""Where settings come from, later ones win: recipe, file, environment, options, ``--set``; and which one to blame."""

from __future__ import annotations

import json
import os
import reprlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from trarctl.config import MOST_PIXELS_VARIABLE
from trarctl.config.original_yaml import read_yaml, refuse_repeated, translate
from trarctl.config.settings import (
    ALL_SETTINGS,
    DEFAULT_DATASET,
    FIELDS,
    OWN_DATASET,
    Settings,
    dataset_names,
    flat,
    from_dict,
    from_file,
    from_text,
    nearest_key,
    nested,
    recipe_of,
    to_text,
    to_toml_value,
    unknown,
    values_of_tables,
)
from trarctl.errors import SettingsError
from trarctl.registry import PLUGINS_VARIABLE

PREFIX = "TRARCTL_"
_NO_SETTINGS = (PLUGINS_VARIABLE, MOST_PIXELS_VARIABLE)


class Source(Enum):
    """What kind of source a value came from."""

    DEFAULT = auto()
    RECIPE = auto()
    FILE = auto()
    ORIGINAL_FILE = auto()
    ENVIRONMENT = auto()
    OPTION = auto()
    SET = auto()
    RUN = auto()


@dataclass(frozen=True)
class Origin:
    """Where a value came from: the kind for programs, the text (``my.toml``, ``--epochs``) for people."""

    source: Source
    text: str

    @property
    def is_users_choice(self) -> bool:
        """Whether somebody asked for the value; if not, it yields to what data or a checkpoint fixes."""
        return self.source not in (Source.DEFAULT, Source.RECIPE)


DEFAULT = Origin(Source.DEFAULT, "default")


@dataclass(frozen=True)
class Entry:
    """One value of a layer; ``blame`` begins an error message about it."""

    value: object
    origin: Origin
    blame: str


Layer = dict[str, Entry]
Options = Mapping[str, tuple[object, str]]  # dotted key -> (value, or None if it was not given; flag)


@dataclass(frozen=True)
class Resolved:
    """Valid settings, where each value came from by dotted key, and what the user should know."""

    settings: Settings
    origins: dict[str, Origin]
    notes: list[str]

    def to_toml(self) -> str:
        """All settings as a file for ``--config``, each with where it came from."""
        values = flat(self.settings).items()
        return "\n".join(f"{key} = {to_toml_value(value)}  # {self.origins[key].text}" for key, value in values)


def resolve(
    dataset: str | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    options: Options | None = None,
    sets: Sequence[str] = (),
    recipe: str | None = None,
) -> Resolved:
    """Find the settings that hold; a SettingsError says which key, value or file is wrong.

    Args:
        dataset: the data set that the user named, or that the data is of; a name that is not registered is that of
            one's own, made by ``prepare table``.
        config: a TOML file, the original's YAML file, or the ``settings.json`` of a run.
        environ: by default that of the process.
        options: what was given by flags.
        sets: ``KEY=VALUE``.
        recipe: in place of the data set's own: ``small``, ``published`` or a file.
    """
    file, notes = _read_file(config) if config else ({}, [])
    named = _dataset_layer(dataset) if dataset else {}
    environment = _environment_layer(os.environ if environ is None else environ)
    given = [file, environment, named, _option_layer(options or {}), _set_layer(sets)]
    chosen = next((layer["data.dataset"].value for layer in reversed(given) if "data.dataset" in layer), None)
    known = str(chosen) if chosen in dataset_names() else DEFAULT_DATASET
    values = _layer(recipe_of(known, recipe).values, Origin(Source.RECIPE, f"recipe {recipe or known}"))
    resolved = _build([{"data.dataset": Entry(known, DEFAULT, "its default")}, values, *given], notes)
    return _follow_epochs(resolved, values["train.epochs"].value if "train.epochs" in values else None)


def runs_folder(sets: Sequence[str] = ()) -> Path:
    """The folder of the runs: ``run.folder`` as the environment or ``--set`` says it, whatever else is set."""
    return resolve(sets=[text for text in sets if is_runs_folder(text)]).settings.run.folder


def is_runs_folder(assignment: str) -> bool:
    """Whether a ``--set KEY=VALUE`` only says where the runs are."""
    return assignment.startswith("run.folder")


def _follow_epochs(resolved: Resolved, recipe_epochs: object) -> Resolved:
    """Fit a recipe's decay and warm-up to the user's number of epochs; what the user gave stays.

    The original's files too mean the epochs that they, or its defaults, name.
    """
    train, origins = resolved.settings.train, resolved.origins
    before = recipe_epochs if isinstance(recipe_epochs, int) else FIELDS["train.epochs"].default
    if train.epochs == before or origins["train.epochs"].source in (Source.RECIPE, Source.ORIGINAL_FILE):
        return resolved
    follow: dict[str, Callable[[Any], object]] = {
        "train.decay_epochs": lambda epochs: scaled_decay(epochs, before, train.epochs),
        "train.warmup_epochs": lambda epochs: min(epochs, _scaled(epochs, before, train.epochs)),
    }
    values, origins, said = flat(resolved.settings), dict(origins), list[str]()
    length = f"{train.epochs} epoch{'' if train.epochs == 1 else 's'}"
    for key, fit in follow.items():
        value = values[key]
        if origins[key].is_users_choice or (fitted := fit(value)) == value:
            continue
        values[key] = fitted
        origins[key] = replace(origins[key], text=f"{origins[key].text}, fitted to {length}")
        said.append(f"{key} = {to_text(fitted)} ({to_text(value)} of {before} epochs)")
    if not said:
        return resolved
    note = f"the recipe's schedule is fitted to {length}: {', '.join(said)}"
    return Resolved(from_dict(nested(values), "settings"), origins, [*resolved.notes, note])


def scaled_decay(decay_epochs: Sequence[int], before: int, epochs: int) -> tuple[int, ...]:
    """Move the epochs where the rate falls to the same fractions of a run of another length, rounded.

    Each is within the run, after its first epoch, and stands once; those that were not reached are left out.
    """
    reached = [epoch for epoch in decay_epochs if epoch < before]
    moved = {min(max(_scaled(epoch, before, epochs), 1), epochs - 1) if epoch else 0 for epoch in reached}
    return tuple(sorted(moved if 0 in reached else moved - {0}))


def _scaled(count: int, before: int, epochs: int) -> int:
    """``count * epochs / before``, rounded, a half up."""
    return (2 * count * epochs + before) // (2 * before)


def _dataset_layer(name: str) -> Layer:
    values = {"data.dataset": name} if name in dataset_names() else {"data.dataset": OWN_DATASET, "data.name": name}
    return {key: Entry(value, Origin(Source.OPTION, "DATASET"), f"DATASET {name}") for key, value in values.items()}


def amend(settings: Settings, source: str, options: Options | None = None, sets: Sequence[str] = ()) -> Resolved:
    """Change some settings of a run or checkpoint, which ``source`` names; otherwise as ``resolve``."""
    base = _layer(flat(settings), Origin(Source.RUN, source))
    return _build([base, _option_layer(options or {}), _set_layer(sets)], [])


def _build(layers: Sequence[Layer], notes: Sequence[str]) -> Resolved:
    merged = {key: entry for layer in layers for key, entry in layer.items()}
    notes = [*notes, *_drop_binarize(merged)]
    rank_of = {key: rank for rank, layer in enumerate(layers) for key in layer}
    blames = {key: merged[key].blame for key in sorted(merged, key=lambda key: -rank_of[key])}
    settings = from_dict(nested({key: entry.value for key, entry in merged.items()}), "settings", blames)
    notes += _without_effect(settings, merged)
    return Resolved(settings, {key: merged[key].origin if key in merged else DEFAULT for key in FIELDS}, notes)


def _drop_binarize(merged: Layer) -> list[str]:
    """Soft routing has nothing to binarize: a recipe's value is dropped, and the original ignores its own."""
    binarize, routing = merged.get("model.binarize"), merged.get("model.routing")
    if binarize is None or binarize.origin.source not in (Source.RECIPE, Source.ORIGINAL_FILE):
        return []
    if binarize.value in (False, "False", "false") or (routing is not None and routing.value != "soft"):
        return []
    origin = replace(binarize.origin, text=f"{binarize.origin.text}, off with soft routing")
    merged["model.binarize"] = replace(binarize, value=False, origin=origin)
    return [f"{binarize.blame}: without effect, since routing is soft"]


def _without_effect(settings: Settings, merged: Layer) -> list[str]:
    """What the user asked for, on the command line or in the environment, and what does nothing with the rest."""
    model, train = settings.model, settings.train
    late = [epoch for epoch in train.decay_epochs if epoch >= train.epochs]
    why_soft = "since routing is soft" if model.routing == "soft" else ""
    idle = {f"train.temperature_{name}": why_soft for name in ("policy", "max", "min")}
    idle["train.decay_epochs"] = f"since epoch {late[0]} is not reached in {train.epochs}" if late else ""
    asked = (Source.ENVIRONMENT, Source.OPTION, Source.SET)
    idle = {key: reason for key, reason in idle.items() if key in merged and merged[key].origin.source in asked}
    return [f"{merged[key].blame}: without effect, {reason}" for key, reason in idle.items() if reason]


def _layer(values: Mapping[str, object], origin: Origin) -> Layer:
    return {key: Entry(value, origin, f"{origin.text} ({key} = {to_text(value)})") for key, value in values.items()}


def _option_layer(options: Options) -> Layer:
    layer = {}
    for key, (value, flag) in options.items():
        if value is None:
            continue
        if key not in FIELDS:
            raise KeyError(f"{flag} sets {key}, which is no setting")
        read = from_text(key, value) if isinstance(value, str) else value
        layer[key] = Entry(read, Origin(Source.OPTION, flag), f"{flag} {to_text(value)}")
    return layer


def _set_layer(sets: Sequence[str]) -> Layer:
    layer = {}
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise SettingsError(f"--set {text}: must be KEY=VALUE", "for example --set model.hidden_size=256")
        if key not in FIELDS:
            raise unknown(f"--set {text}", key)
        layer[key] = Entry(from_text(key, value), Origin(Source.SET, "--set"), f"--set {key}={value}")
    return layer


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    names = {f"{PREFIX}{key.upper().replace('.', joint)}": key for key in FIELDS for joint in ("_", "__")}
    layer: Layer = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX) and name not in _NO_SETTINGS):
        if variable not in names:
            name = variable.removeprefix(PREFIX).lower()
            near = nearest_key(name) or nearest_key(name.replace("_", ".", 1))
            general = f"trarctl reads {PREFIX}TABLE_KEY, such as {PREFIX}TRAIN_SEED; {ALL_SETTINGS}"
            hint = f"did you mean {PREFIX}{near.upper().replace('.', '_')}?" if near else general
            raise SettingsError(f"unknown environment variable {variable}", hint)
        key, text = names[variable], environ[variable]
        if not text.strip():
            continue
        if key in layer and layer[key].value != from_text(key, text):
            what = f"{layer[key].origin.text} and {variable} are the same setting, {key}, with different values"
            raise SettingsError(what, f"unset {variable}")
        blame = f"{variable}={reprlib.repr(text)[1:-1]}"
        layer[key] = Entry(from_text(key, text), Origin(Source.ENVIRONMENT, variable), blame)
    return layer


def _read_json(text: str) -> object:
    def table(pairs: list[tuple[str, object]]) -> dict[str, object]:
        refuse_repeated([name for name, _ in pairs])
        return dict(pairs)

    return json.loads(text, object_pairs_hook=table)


def _read_file(path: Path) -> tuple[Layer, list[str]]:
    """Read a file of settings, of the kind that its ending names; return also what the user should know."""
    readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _read_json}
    readers |= dict.fromkeys((".yml", ".yaml"), read_yaml)
    suffix = path.suffix.casefold()
    if suffix not in readers:
        what = f"settings are read from .toml, .yml, .yaml or .json files, not {suffix or 'one without ending'}"
        hint = "--config FILE.toml for trarctl's own keys, --config FILE.yml for the original's"
        raise SettingsError(f"{path}: {what}", hint)
    if path.is_fifo():
        raise SettingsError(f"{path} is a pipe, not a file", "--config FILE")
    try:
        document = readers[suffix](path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}", "--config FILE") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text", "save it as UTF-8") from None
    except RecursionError:
        raise SettingsError(f"{path}: is nested too deeply", "settings are one table of values deep") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML lets what it meets while it builds odd values through.
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: {reason}", f"correct the file; it must be valid {suffix[1:].upper()}") from None
    if not isinstance(document := {} if document is None else document, Mapping):
        raise SettingsError(f"{path}: holds no settings", "a file of settings is a table of keys and values")
    layer, notes = Layer(), list[str]()
    if suffix in (".yml", ".yaml"):
        values, notes = translate(document, str(path))
        for key, (value, name) in values.items():
            origin = Origin(Source.ORIGINAL_FILE, f"{path.name} ({name})")
            layer[key] = Entry(from_file(key, value), origin, f"{path} ({name}: {reprlib.repr(value)})")
    else:
        for key, value in values_of_tables(document, str(path)).items():
            shown = to_text(value) if isinstance(value, bool) else reprlib.repr(value)
            layer[key] = Entry(value, Origin(Source.FILE, path.name), f"{path} ({key.partition('.')[2]} = {shown})")
    return layer, notes
