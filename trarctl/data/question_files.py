"""Tables of pictures and questions, as people keep them: CSV with a header, one JSON object a line, or Parquet.

``predict`` asks the questions of such a file, and ``prepare table`` makes a data set of one or several.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from trarctl.data.records import RepeatedFields
from trarctl.errors import DataError, listed, shortened
from trarctl.files import refusing

_DELIMITERS = ",;\t"
_HINT = (
    'a .csv file starts with the line image,question; a .jsonl line is {"image": "a.png", "question": "what is it?"}'
)
_PATH_HINT = "give the path of an image file"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# Characters of a line: far more than a question with its answers, and little memory.
_LONGEST_LINE = 1_000_000

Row = dict[str, Any]
Columns = Mapping[str, Sequence[str]]
"""The columns that a table needs, and the names that each may have, in lower case."""


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
    columns = {name: (name,) for name in ("image", "question")}
    asking, odd, unusable = list[Asking](), list[str](), list[str]()
    for number, row in read_rows(path, columns, _HINT):
        place = f"line {number}"
        fault = row if isinstance(row, str) else _fault(row, columns)
        if fault:
            odd.append(f"{place} {fault}")
        elif isinstance(row, dict):
            image = path.parent / row["image"]
            if unusable_path := why_no_picture(row["image"], image):
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
    if fault := why_no_picture(str(image), image):
        raise DataError(fault, _PATH_HINT)


def why_no_picture(text: str, path: Path) -> str | None:
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


def _fault(row: Row, columns: Columns) -> str | None:
    """Say what is wrong with a line, as the end of a sentence; None if nothing."""
    if isinstance(row, RepeatedFields) and row.repeated:
        return f"has {' and '.join(sorted(row.repeated))} more than once"
    missing = [column for column in columns if not str(row.get(column) or "").strip()]
    if missing:
        return f"has no {' and no '.join(missing)}"
    for column in columns:
        if not isinstance(row[column], str):
            return f"has the {column} {shortened(str(row[column]))}, expected text"
    return None


def read_rows(path: Path, needed: Columns, hint: str) -> Iterator[tuple[int, Row | str]]:
    """Give each row of a table with the number of its first line, or what is wrong with it as the end of a sentence.

    A file is read line by line. A DataError with the hint says that it is no such table at all, or that one of the
    needed columns is missing.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise DataError(f"{path} is not a file", hint)
    suffix = path.suffix.lower()
    with refusing(f"cannot read {path}", hint):
        if suffix == ".parquet":
            yield from _parquet_rows(path, needed, hint)
            return
        is_json = suffix in _JSON_SUFFIXES
        with path.open("rb") as file:
            lines = _lines(path, file, newline="\n" if is_json else "")
            first = list[str]()
            for line in lines:
                first.append(line)
                if line.strip():
                    break
            if "".join(first).lstrip().startswith("["):
                again = f"jq -c '.[]' {shlex.quote(str(path))} > NEW.jsonl, and take NEW.jsonl"
                raise DataError(f"{path} is one JSON list", again)
            whole = chain(first, lines)
            yield from _json_rows(whole) if is_json else _csv_rows(path, whole, needed, hint)


def _lines(path: Path, file: io.BufferedReader, newline: str) -> Iterator[str]:
    """Give the lines of a text file as UTF-8, or UTF-16 where it says so; a DataError names a line that is neither."""
    start = file.read(3)
    file.seek(0)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    number = 0
    try:
        with io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            while line := text.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    what = f"{path}, line {number:,} is longer than {_LONGEST_LINE:,} characters"
                    raise DataError(what, "a table has one line for each question: is it damaged?")
                yield line
    except UnicodeError:
        kind, number = ("UTF-16", number + 1) if encoding == "utf-16" else ("UTF-8", _first_odd_line(path))
        what = f"{path}, line {number}: not {kind} text"
        raise DataError(what, f"iconv -f latin1 -t utf-8 {path} > FILE.csv") from None


def _first_odd_line(path: Path) -> int:
    """Find the first line of a file that is not UTF-8."""
    number = 0
    with path.open("rb") as file, suppress(UnicodeDecodeError):
        for line in file:
            number += 1
            line.decode()
    return number


def _json_rows(lines: Iterator[str]) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=RepeatedFields)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else "is not a JSON object"


def _csv_rows(path: Path, lines: Iterator[str], needed: Columns, hint: str) -> Iterator[tuple[int, Row | str]]:
    """Give each row, and the number of its first line; a question may go over several."""
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    whole = chain([header], lines)
    reader = csv.reader(whole, delimiter=delimiter, skipinitialspace=True, strict=True)
    number = 1
    names: list[str] = []
    try:
        for values in reader:
            number, first = reader.line_num + 1, number
            if not names:
                names = [name.strip().lower() for name in values]
                _refuse_header(path, values, names, needed, hint)
            elif len(values) > len(names):
                advice = f"put quotes around a text with {delimiter!r}"
                yield first, f"has {len(values)} values, expected {len(names)}: {advice}"
            elif values:
                yield first, dict(zip(names, values, strict=False))
    except csv.Error as error:
        yield number, f"cannot be read: {error}"


def _refuse_header(path: Path, given: Sequence[str], names: Sequence[str], needed: Columns, hint: str) -> None:
    """Refuse a table that lacks a column, or has it twice."""
    if twice := [name for accepted in needed.values() for name in accepted if names.count(name) > 1]:
        raise DataError(f"{path} has the column {' and '.join(twice)} more than once", hint)
    missing = [column for column, accepted in needed.items() if not set(accepted) & set(names)]
    if missing:
        found = listed(map(repr, map(shortened, given)), len(given), most=5) or "nothing"
        raise DataError(f"{path} has no column {' and no column '.join(missing)}: its first line has {found}", hint)


def _parquet_rows(path: Path, needed: Columns, hint: str) -> Iterator[tuple[int, Row | str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow", 'pip install "trarctl[parquet]"') from None
    try:
        with ParquetFile(path) as table:
            given = list(table.schema_arrow.names)
            names = [name.strip().lower() for name in given]
            _refuse_header(path, given, names, needed, hint)
            number = 0
            for batch in table.iter_batches(batch_size=4096):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}".splitlines()[0], hint) from None
