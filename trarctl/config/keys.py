"""The dotted keys of the settings (``train.batch_size``): which there are, and how to read their values from text."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trarctl.config.settings import Settings

Tables = dict[str, dict[str, object]]


def _fields() -> dict[str, FieldInfo]:
    found = {}
    for table, outer in Settings.model_fields.items():
        model = outer.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"Settings.{table} must be a class of settings")
        for name, field in model.model_fields.items():
            found[f"{table}.{name}"] = field
    return found


FIELDS: dict[str, FieldInfo] = _fields()
TABLES: tuple[str, ...] = tuple(Settings.model_fields)


def is_optional(key: str) -> bool:
    """Whether a setting can be ``none``."""
    return NoneType in get_args(FIELDS[key].annotation)


def is_list(key: str) -> bool:
    """Whether a setting is a list of values."""
    return get_origin(FIELDS[key].annotation) is tuple


def is_text(key: str) -> bool:
    """Whether a setting is free text or a path, which is taken as it is written."""
    annotation = FIELDS[key].annotation
    return bool({str, Path} & {annotation, *get_args(annotation)})


def nearest_key(wrong: str, known: Iterable[str] | None = None) -> str | None:
    """The known name that a wrong one most likely means; None if none is near.

    A key in the wrong table, or without one, counts as near: ``batch_size`` means ``train.batch_size``.
    """
    candidates = list(FIELDS if known is None else known)
    folded = {candidate.casefold(): candidate for candidate in candidates}
    if wrong.casefold() in folded:
        return folded[wrong.casefold()]
    last = wrong.casefold().rpartition(".")[2]
    by_last = {candidate.rpartition(".")[2]: original for candidate, original in folded.items()}
    if last in by_last:
        return by_last[last]
    near = get_close_matches(wrong.casefold(), folded, n=1, cutoff=0.6)
    if near:
        return folded[near[0]]
    near = get_close_matches(last, by_last, n=1, cutoff=0.6)
    return by_last[near[0]] if near else None


def from_text(key: str, text: str) -> object:
    """Read a value from the environment or the command line.

    Lists are TOML or JSON (``[0, 1]``) or simply ``0,1``; ``none`` empties an optional setting. What cannot be read is
    handed on as text, and validation says what is wrong with it.
    """
    text = text.strip()
    if is_optional(key) and text.casefold() == "none":
        return None
    if is_list(key):
        return _list_from_text(text)
    value = _toml_value(text)
    if is_text(key):
        return value if isinstance(value, str) else text
    return value if isinstance(value, bool | int | float | str) else text


def from_file(key: str, value: object) -> object:
    """Read a value from a parsed TOML, JSON or YAML file: ``none`` and ``"0,1"`` mean there what they mean in text."""
    if not isinstance(value, str):
        return value
    if is_optional(key) and value.strip().casefold() == "none":
        return None
    return _list_from_text(value) if is_list(key) else value


def to_text(value: object) -> str:
    """Write a value for people, the way that ``from_text`` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_text(one) for one in value) + "]"
    return str(value)


def to_toml_value(value: object) -> str:
    """Write a value as TOML; ``none``, which TOML has not, becomes a string."""
    if value is None:
        return '"none"'
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml_value(one) for one in value) + "]"
    return to_text(value)


def nested(values: dict[str, object]) -> Tables:
    """Sort values by dotted key into tables."""
    tables: Tables = {table: {} for table in TABLES}
    for key, value in values.items():
        table, _, name = key.partition(".")
        tables[table][name] = value
    return tables


def flat(settings: Settings) -> dict[str, object]:
    """All values of the settings by dotted key."""
    return {key: getattr(getattr(settings, key.partition(".")[0]), key.partition(".")[2]) for key in FIELDS}


def _toml_value(text: str) -> object:
    """The TOML value that the text is; None if it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    return document["value"] if list(document) == ["value"] else None


def _list_from_text(text: str) -> object:
    text = text.strip()
    if text.startswith("["):
        value = _toml_value(text)
        return value if isinstance(value, list) else text
    parts = [part.strip() for part in text.removeprefix("(").removesuffix(")").split(",")]
    if parts[-1] == "":
        parts.pop()
    return parts
