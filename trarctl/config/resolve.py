"""Where settings come from, later ones win: recipe, file, environment, options, ``--set``; and whom to blame."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from trarctl.config.files import FileValues, read_file
from trarctl.config.keys import FIELDS, TABLES, flat, from_text, nearest_key, nested, to_text, to_toml_value
from trarctl.config.messages import blame_all
from trarctl.config.recipes import DEFAULT_DATASET, RECIPES
from trarctl.config.settings import Dataset, Settings
from trarctl.errors import SettingsError

PREFIX = "TRARCTL_"
ALL_SETTINGS = "trarctl train --dry-run shows every setting and where it came from"


@dataclass(frozen=True)
class Entry:
    """One value and where it came from.

    ``origin`` is for the table of ``--dry-run``, ``blame`` begins an error message. An entry that ``yields`` came with
    a recipe, and gives way where the user's choices leave it without meaning.
    """

    value: object
    origin: str
    blame: str
    yields: bool = False


Layer = dict[str, Entry]


@dataclass(frozen=True)
class Row:
    """One line of the table of ``--dry-run``; ``toml`` is the same as a file for ``--config`` has it."""

    key: str
    value: str
    origin: str
    toml: str


@dataclass(frozen=True)
class Resolved:
    """Valid settings, where each value came from, and what the user should know."""

    settings: Settings
    origin: dict[str, str]
    notes: list[str]

    def rows(self) -> Iterator[Row]:
        """All settings in their order, for the table of ``--dry-run``."""
        for key, value in flat(self.settings).items():
            yield Row(key, to_text(value), self.origin[key], f"{key} = {to_toml_value(value)}")


def resolve(
    dataset: str | None = None,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, tuple[object, str]] | None = None,
    sets: Sequence[str] = (),
) -> Resolved:
    """Find the settings that hold.

    Args:
        dataset: the data set that the user named, or that the data is of; None: whatever the other sources say.
        config: a TOML file, an upstream YAML file, or the ``settings.json`` of a run.
        environ: the environment; None: that of the process.
        options: dotted key -> (value, flag); a value of None means that the flag was not given.
        sets: ``KEY=VALUE`` as given with ``--set``.

    Raises:
        SettingsError: for unknown keys, for values outside their limits, and for a file that cannot be read.
    """
    file = read_file(config) if config else FileValues()
    given = [
        {key: Entry(value, *file.origins[key]) for key, value in file.values.items()},
        _environment_layer(os.environ if environ is None else environ),
        {"data.dataset": Entry(dataset, "DATASET", f"DATASET {dataset}")} if dataset else {},
        _option_layer(options or {}),
        _set_layer(sets),
    ]
    chosen = next((layer["data.dataset"].value for layer in reversed(given) if "data.dataset" in layer), None)
    recipe = str(chosen) if chosen in get_args(Dataset) else DEFAULT_DATASET
    return _build([_recipe_layer(recipe), *given], file.notes)


def amend(
    settings: Settings,
    source: str,
    options: Mapping[str, tuple[object, str]] | None = None,
    sets: Sequence[str] = (),
) -> Resolved:
    """Change some of a run's settings.

    Args:
        settings: what the run was started with.
        source: the run, for the table and for messages.
        options: as for ``resolve``.
        sets: as for ``resolve``.

    Raises:
        SettingsError: as for ``resolve``.
    """
    base = {key: Entry(value, source, f"{source} ({key} = {to_text(value)})") for key, value in flat(settings).items()}
    return _build([base, _option_layer(options or {}), _set_layer(sets)], [])


def to_dict(settings: Settings) -> dict[str, dict[str, object]]:
    """The settings as JSON holds them, by table."""
    return settings.model_dump(mode="json")


def from_dict(tables: Mapping[str, object], source: str) -> Settings:
    """The settings that ``to_dict`` wrote.

    Raises:
        SettingsError: naming ``source``, if they are none.
    """
    try:
        return Settings.model_validate(tables)
    except ValidationError as error:
        raise blame_all(error, {}, source, ALL_SETTINGS) from None


def to_toml(settings: Settings) -> str:
    """The settings as a file for ``--config``, each with its meaning."""
    lines: list[str] = []
    for table, values in nested(flat(settings)).items():
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        for name, value in values.items():
            lines += [f"# {FIELDS[f'{table}.{name}'].description}", f"{name} = {to_toml_value(value)}"]
    return "\n".join(lines) + "\n"


def _build(layers: Sequence[Layer], notes: Sequence[str]) -> Resolved:
    merged: dict[str, tuple[int, Entry]] = {}
    for rank, layer in enumerate(layers):
        merged.update({key: (rank, entry) for key, entry in layer.items()})
    notes = [*notes, *_drop_binarize(merged)]
    entries = {key: entry for key, (_, entry) in merged.items()}
    try:
        settings = Settings.model_validate(nested({key: entry.value for key, entry in entries.items()}))
    except ValidationError as error:
        ranked = sorted(merged, key=lambda key: -merged[key][0])
        raise blame_all(error, {key: entries[key].blame for key in ranked}, "settings", ALL_SETTINGS) from None
    origin = {key: entries[key].origin if key in entries else "default" for key in FIELDS}
    return Resolved(settings, origin, list(notes))


def _drop_binarize(merged: dict[str, tuple[int, Entry]]) -> list[str]:
    """Soft routing has nothing to binarize: a recipe's wish to do so falls silent once the user asks for soft."""
    rank, binarize = merged.get("model.binarize", (0, Entry(False, "default", "")))
    _, routing = merged.get("model.routing", (0, Entry("soft", "default", "")))
    if not binarize.yields or binarize.value in (False, "False", "false") or routing.value != "soft":
        return []
    origin = f"{binarize.origin}, off with soft routing"
    merged["model.binarize"] = (rank, replace(binarize, value=False, origin=origin))
    return [f"{binarize.blame}: without effect, since routing is soft"]


def _recipe_layer(dataset: str) -> Layer:
    name = f"recipe {dataset}"
    layer = {
        key: Entry(value, name, f"{name} ({key} = {to_text(value)})", yields=key == "model.binarize")
        for key, value in RECIPES[dataset].items()
    }
    return {"data.dataset": Entry(dataset, "default", "its default"), **layer}


def _option_layer(options: Mapping[str, tuple[object, str]]) -> Layer:
    layer = {}
    for key, (value, flag) in options.items():
        if value is None:
            continue
        if key not in FIELDS:
            raise KeyError(f"{flag} sets {key}, which is no setting")
        read = from_text(key, value) if isinstance(value, str) else value
        layer[key] = Entry(read, flag, f"{flag} {to_text(value)}")
    return layer


def _set_layer(sets: Sequence[str]) -> Layer:
    layer = {}
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise SettingsError(f"--set {text}: must be KEY=VALUE", "for example --set model.hidden_size=256")
        if key not in FIELDS:
            raise SettingsError(f"--set {text}: unknown setting {key}", _unknown_hint(key))
        layer[key] = Entry(from_text(key, value), "--set", f"--set {key}={value}")
    return layer


def _unknown_hint(key: str) -> str:
    near = nearest_key(key)
    if near:
        return f"did you mean {near}?"
    return f"settings are in the tables {', '.join(TABLES)}; {ALL_SETTINGS}"


def _variable_hint(variable: str) -> str:
    name = variable.removeprefix(PREFIX).lower()
    for table in TABLES:
        if name.startswith(f"{table}_"):
            name = f"{table}.{name.removeprefix(table).lstrip('_')}"
    near = nearest_key(name)
    if near:
        return f"did you mean {PREFIX}{near.upper().replace('.', '_')}?"
    return f"trarctl reads {PREFIX}TABLE_KEY, such as {PREFIX}TRAIN_SEED; {ALL_SETTINGS}"


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    names = {}
    for key in FIELDS:
        table, _, name = key.upper().partition(".")
        names[f"{PREFIX}{table}__{name}"] = names[f"{PREFIX}{table}_{name}"] = key
    layer: Layer = {}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        if variable not in names:
            raise SettingsError(f"unknown environment variable {variable}", _variable_hint(variable))
        key, text = names[variable], environ[variable]
        if not text.strip():
            continue
        if key in layer and layer[key].value != from_text(key, text):
            raise SettingsError(
                f"{layer[key].origin} and {variable} are the same setting, {key}, with different values",
                f"unset {variable}",
            )
        layer[key] = Entry(from_text(key, text), variable, f"{variable}={reprlib.repr(text)[1:-1]}")
    return layer
