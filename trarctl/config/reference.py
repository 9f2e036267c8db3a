"""Every setting for people: what it means, which values it takes, and what it is in each recipe.

``trarctl settings``, the help of options and ``docs/settings.md`` are made of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AfterValidator

from trarctl.config.settings import (
    FIELDS,
    PATTERNS,
    TABLES,
    OneOf,
    either,
    nearest_key,
    recipe_of,
    to_text,
    unknown,
)
from trarctl.errors import SettingsError
from trarctl.registry import DATASETS

_UNITS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}


def values_text(key: str) -> str:
    """Say which values a setting takes: ``a whole number, 1 to 64``, ``soft or hard``."""
    named = [one.func for one in FIELDS[key].metadata if isinstance(one, AfterValidator)]
    if named and isinstance(named[0], OneOf):
        return either(named[0].names())
    examples = FIELDS[key].examples
    return f"such as {either(examples)}" if examples else _kind_text(_schemas()[key])


def limits_text(key: str) -> str:
    """Say within which limits a number has to be: ``1 to 64``; empty for any other setting, and without limits."""
    schema = _schemas()[key]
    (part, *others) = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return "" if others or "enum" in part else _limits(part)


def meaning(key: str) -> str:
    """Say what a setting is, as one or more sentences without the last full stop."""
    text = FIELDS[key].description or ""
    return text[:1].upper() + text[1:]


def by_recipe(key: str) -> dict[str, list[str]]:
    """Give a setting's values in the recipes that come with trarctl, as text, each with its data sets; most first."""
    found: dict[str, list[str]] = {}
    for dataset in DATASETS.built_in:
        value = _recipe_values(dataset).get(key, FIELDS[key].default)
        found.setdefault(to_text(value), []).append(dataset)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def defaults_text(key: str) -> str:
    """Say what a setting is if nobody gives it: ``13; 16 for clevr and clevr-cogent``."""
    if key == "data.dataset":
        return to_text(FIELDS[key].default)
    (usual, _), *others = by_recipe(key).items()
    return "; ".join([usual, *(f"{value} for {either(datasets, 'and')}" for value, datasets in others)])


def find_keys(text: str) -> list[str]:
    """List the settings that a user means by a key, a table, the last part of a key, or another program's name for it.

    Raises:
        SettingsError: if none is meant; it names the nearest.
    """
    wanted = text.strip().casefold().replace("-", "_")
    found = [key for key in FIELDS if wanted in (key, *key.split("."))]
    if not found:
        found = [key for key in FIELDS if wanted and wanted in key]
    if not found and (near := nearest_key(wanted)) is not None:
        found = [near]
    if not found:
        error = unknown("trarctl settings", text)
        raise SettingsError(error.what, f"tables are {either(TABLES)}; trarctl settings lists all settings")
    return found


def as_markdown(flags: Mapping[str, str]) -> str:
    """Write the page of all settings; ``flags`` has the options of ``train`` that stand for some, by key."""
    lines = [
        "# Settings",
        "",
        "Every setting, from the same source as `trarctl settings` and the help of options. A value comes from the",
        "data set's recipe, then `--config FILE.toml`, the environment (`TRARCTL_TRAIN_SEED=1`), options, and",
        "`--set KEY=VALUE`; later ones win. `trarctl train --dry-run` shows what holds, and where it came from. Where",
        "recipes differ, the first value is that of all data sets that are not named.",
        "",
        "```bash",
        "trarctl settings train           # one table of them",
        "trarctl settings learning_rate   # one in full; names of other programs are understood, such as lr",
        "trarctl help train               # the options of a command",
        "trarctl version",
        "```",
    ]
    for table, model in TABLES.items():
        lines += ["", f"## {table}", "", (model.__doc__ or "").strip(), ""]
        lines += ["| setting | meaning | values | default |", "| --- | --- | --- | --- |"]
        for key in (key for key in FIELDS if key.partition(".")[0] == table):
            flag = f", `{flags[key]}`" if key in flags else ""
            cells = (meaning(key), values_text(key), defaults_text(key))
            lines.append(f"| `{key}`{flag} | {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


@functools.cache
def _recipe_values(dataset: str) -> Mapping[str, object]:
    """The values of a recipe, which is validated whenever it is read."""
    return recipe_of(dataset).values


@functools.cache
def _schemas() -> dict[str, dict[str, Any]]:
    """Each setting as JSON Schema."""
    return {
        f"{table}.{name}": part
        for table, model in TABLES.items()
        for name, part in model.model_json_schema()["properties"].items()
    }


def _kind_text(schema: Mapping[str, Any]) -> str:
    kinds: Sequence[Mapping[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or ()
    if kinds:
        texts = [_kind_text(one) for one in kinds if one.get("type") != "null"]
        return "; or ".join([*(["none"] if len(texts) < len(kinds) else []), *texts])
    if "enum" in schema:
        return either(schema["enum"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems", [])
        items = parts[0] if parts else schema["items"]
        return f"{f'{len(parts)} values' if parts else 'a list'}, each {_kind_text(items)}"
    if schema.get("format") == "path":
        return "a path"
    if schema.get("pattern") in PATTERNS:
        return f"text: {PATTERNS[schema['pattern']]}"
    kind = _UNITS[schema["type"]]
    limits = _limits(schema)
    return f"{kind}, {limits}" if limits else kind


def _limits(schema: Mapping[str, Any]) -> str:
    whole = schema.get("type") == "integer"
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if whole:
        low = above + 1 if low is None and above is not None else low
        high = below - 1 if high is None and below is not None else high
        above = below = None
    if low is not None and high is not None:
        return f"{low:g} to {high:,}"
    texts = [
        f"{low:g} or more" if low is not None else f"above {above:g}" if above is not None else "",
        f"at most {high:,}" if high is not None else f"below {below:g}" if below is not None else "",
    ]
    return ", ".join(text for text in texts if text)
