"""Files of your own images and questions for ``predict``: CSV with a header, or one JSON object a line.

A module of its own, though short and used by one command: a file format is a concept apart from rendering.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trarctl.data.records import RepeatedFields
from trarctl.errors import DataError, listed, shortened
from trarctl.files import refusing

_COLUMNS = ("image", "question")
_DELIMITERS = ",;\t"
_HINT = (
    'a .csv file starts with the line image,question; a .jsonl line is {"image": "a.png", "question": "what is it?"}'
)
_PATH_HINT = "give the path of an image file"

Row = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """A question about a picture; ``place`` is where it stands, ``line 2``, empty where there is no file."""

    place: str
    image: Path
    question: str


def read_question_file(path: Path) -> list[Asking]:
    """Read pictures and questions from a ``.csv`` or ``.jsonl`` file; a DataError names the lines that are unusable.

    Further columns and keys are left aside, and relative paths of images taken from the file's folder.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise DataError(f"{path} is not a file", _HINT)
    with refusing(f"cannot read {path}", _HINT):
        content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text", f"iconv -f latin1 -t utf-8 {path} > FILE.csv") from None
    if text.lstrip().startswith("["):
        hint = f"jq -c '.[]' {shlex.quote(str(path))} > NEW.jsonl, and --batch NEW.jsonl"
        raise DataError(f"{path} is one JSON list", hint)
    is_json = path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    asking, odd, unusable = list[Asking](), list[str](), list[str]()
    for number, row in _json_lines(text) if is_json else _csv_lines(path, text):
        place = f"line {number}"
        fault = row if isinstance(row, str) else _fault(row)
        if fault:
            odd.append(f"{place} {fault}")
        elif isinstance(row, dict):
            image = path.parent / row["image"]
            if unusable_path := _unusable_path(row["image"], image):
                unusable.append(f"{place}: {unusable_path}")
            asking.append(Asking(place, image, row["question"]))
    if odd or unusable:
        problems = odd + unusable
        raise DataError(f"{path}: {listed(problems, len(problems))}", _HINT if odd else _PATH_HINT)
    if not asking:
        raise DataError(f"{path} holds no questions", _HINT)
    return asking


def refuse_missing_image(image: Path) -> None:
    """Raise a DataError if what is given as a picture's path is missing, or is an address."""
    if fault := _unusable_path(str(image), image):
        raise DataError(fault, _PATH_HINT)


def _fault(row: Row) -> str | None:
    """Say what is wrong with a line, as the end of a sentence; None if nothing."""
    if isinstance(row, RepeatedFields) and row.repeated:
        return f"has {' and '.join(sorted(row.repeated))} more than once"
    missing = [column for column in _COLUMNS if not str(row.get(column) or "").strip()]
    if missing:
        return f"has no {' and no '.join(missing)}"
    for column in _COLUMNS:
        if not isinstance(row[column], str):
            return f"has the {column} {shortened(str(row[column]))}, expected text"
    return None


def _unusable_path(text: str, path: Path) -> str | None:
    """Say why a text cannot be the path of a picture; None where something is there."""
    shown = repr(shortened(text))
    with suppress(OSError, ValueError):  # of names that no file can have
        if path.exists() or path.is_symlink():
            return None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if scheme:
        kind = "the data of a picture" if scheme[1].lower() == "data" else "a URL"
        return f"{shown} is {kind}, expected the path of a file"
    return f"{shown} is missing" + ("; it begins or ends with a blank" if text != text.strip() else "")


def _json_lines(text: str) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=RepeatedFields)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, Row | str]]:
    """Give each row, and the number of its first line; a question may go over several."""
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    number = 1
    names: list[str] = []
    try:
        for values in reader:
            number, first = reader.line_num + 1, number
            if not names:
                names = [name.strip().lower() for name in values]
                if twice := [column for column in _COLUMNS if names.count(column) > 1]:
                    raise DataError(f"{path} has the column {' and '.join(twice)} more than once", _HINT)
                missing = [column for column in _COLUMNS if column not in names]
                if missing:
                    found = listed(map(repr, map(shortened, values)), len(values), most=5) or "nothing"
                    what = f"{path} has no column {' and no column '.join(missing)}: its first line has {found}"
                    raise DataError(what, _HINT)
            elif len(values) > len(names):
                advice = f"put quotes around a text with {delimiter!r}"
                yield first, f"has {len(values)} values, expected {len(names)}: {advice}"
            elif values:
                yield first, dict(zip(names, values, strict=False))
    except csv.Error as error:
        yield number, f"cannot be read: {error}"
