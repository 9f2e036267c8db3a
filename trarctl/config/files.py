"""Settings from a file: TOML, an upstream YAML file, or the ``settings.json`` of a run."""

from __future__ import annotations

import json
import reprlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trarctl.config.keys import FIELDS, TABLES, from_file, nearest_key
from trarctl.config.original_yaml import translate
from trarctl.errors import SettingsError


@dataclass
class FileValues:
    """Values by dotted key, and (origin, beginning of an error message, whether it gives way) of each."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_file(path: Path) -> FileValues:
    """Read a file of settings; its kind is told by its ending.

    Raises:
        SettingsError: if it cannot be read or parsed, or holds unknown keys.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".yml": yaml.safe_load,
        ".yaml": yaml.safe_load,
    }
    suffix = path.suffix.casefold()
    if suffix not in readers:
        raise SettingsError(
            f"{path}: settings are read from .toml, .yml, .yaml or .json files, not {suffix or 'one without ending'}",
            "--config FILE.toml for trarctl's own keys, --config FILE.yml for the original's",
        )
    document = _parse(path, readers[suffix])
    if not isinstance(document, Mapping):
        raise SettingsError(f"{path}: holds no settings", "a file of settings is a table of keys and values")
    if suffix in (".yml", ".yaml"):
        return _from_upstream(document, path)
    return _from_tables(document, path)


def _parse(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        document = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}", "--config FILE") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text", "--config FILE") from None
    except RecursionError:
        raise SettingsError(f"{path}: is nested too deeply", "settings are one table of values deep") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path}: {reason}", f"mend the file; it must be valid {path.suffix[1:].upper()}") from None
    return {} if document is None else document


def _from_tables(document: Mapping[str, object], path: Path) -> FileValues:
    result = FileValues()
    for table, content in document.items():
        if table not in TABLES or not isinstance(content, Mapping):
            raise _unknown(path, table, is_table=isinstance(content, Mapping))
        for name, value in content.items():
            key = f"{table}.{name}"
            if key not in FIELDS:
                raise _unknown(path, key)
            result.values[key] = from_file(key, value)
            result.origins[key] = (path.name, f"{path} ({name} = {_short(value)})", False)
    return result


def _unknown(path: Path, key: str, *, is_table: bool = False) -> SettingsError:
    near = nearest_key(key, TABLES) if is_table else nearest_key(key)
    if near is None:
        hint = f"the tables are {', '.join(f'[{table}]' for table in TABLES)}"
    else:
        hint = f"did you mean [{near}]?" if is_table else f"did you mean {near}?"
    return SettingsError(f"{path}: unknown {'table' if is_table else 'setting'} {key}", hint)


def _from_upstream(document: Mapping[Any, Any], path: Path) -> FileValues:
    upstream = translate(document, str(path))
    result = FileValues(notes=upstream.notes)
    for key, value in upstream.values.items():
        name = upstream.origins[key]
        result.values[key] = from_file(key, value)
        # The original ignores BINARIZE where routing is soft.
        yields = key == "model.binarize"
        result.origins[key] = (f"{path.name} ({name})", f"{path} ({name}: {_short(value)})", yields)
    return result


def _short(value: object) -> str:
    """A value for messages: never long, whatever the file holds."""
    if isinstance(value, bool):
        return str(value).lower()
    return reprlib.repr(value)
