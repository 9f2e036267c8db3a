"""Validation errors in the words of the user: the flag, key, variable or file to blame, the value and the limit."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trarctl.config.keys import FIELDS, nearest_key
from trarctl.errors import SettingsError

_LIMITS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list, such as 0,1,2",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} values at most",
    "missing": "lacks a value",
    "string_pattern_mismatch": "may hold letters, digits, '.', '_' and '-', and begins with a letter or a digit",
    "extra_forbidden": "is no setting",
    "model_type": "must be a table",
}


def blame_all(error: ValidationError, blames: Mapping[str, str], source: str, hint: str) -> SettingsError:
    """Turn what validation found into one message, a line for each wrong setting.

    Args:
        error: what pydantic raised.
        blames: dotted key -> beginning of the message; those that win over others first.
        source: begins the message where no key is to blame.
        hint: where nothing better is known.
    """
    lines: dict[str, str] = {}
    hints: list[str] = []
    for found in error.errors(include_url=False):
        context: dict[str, Any] = found.get("ctx", {})
        if found["type"] == "contradiction":
            keys = [str(key) for key in context["keys"]]
            guilty = next((key for key in blames if key in keys), keys[0])
            lines.setdefault(guilty, f"{blames.get(guilty, source)}: {context['message']}")
            hints += [_origins_hint(keys, blames)] if blames and len(keys) > 1 else []
            continue
        key = ".".join(str(part) for part in found["loc"][:2])
        place = "".join(f"[{part}]" for part in found["loc"][2:])
        problem = _LIMITS.get(found["type"], found["msg"][:1].lower() + found["msg"][1:])
        text = f"{key}{place} {problem.format(**context) if found['type'] in _LIMITS else problem}"
        if key not in blames and found["type"] not in ("missing", "extra_forbidden"):
            text += f", got {reprlib.repr(found['input'])}"
        lines.setdefault(key, f"{blames.get(key, source)}: {text}")
        hints.append(_key_hint(key, hint))
    return SettingsError("\n".join(lines.values()), hints[0] if hints and len(lines) == 1 else hint)


def _key_hint(key: str, general: str) -> str:
    if key in FIELDS:
        return f"{key}: {FIELDS[key].description}; {general}"
    near = nearest_key(key)
    return f"did you mean {near}?" if near else general


def _origins_hint(keys: list[str], blames: Mapping[str, str]) -> str:
    first, *others = (
        f"{key} {'comes ' if key == keys[0] else ''}from {blames.get(key, 'its default')}" for key in keys
    )
    return f"change one: {', '.join([first, *others])}"
