"""Tables of pictures and questions, as people keep them: CSV with a header, JSON (lines or a list), or Parquet.

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
from typing import Any, NamedTuple

from trarctl.data.records import RecordReader, RepeatedFields
from trarctl.errors import DataError, listed, shortened
from trarctl.files import refusing

_DELIMITERS = ",;\t"
_BLANKS = f"{_DELIMITERS} \r\n"  # a row of nothing else is none, as spreadsheets write them
_HINT = (
    'a .csv file starts with the line image,question; a .jsonl line is {"image": "a.png", "question": "what is it?"}'
)
_PATH_HINT = "give the path of an image file"
_PARQUET_SUFFIX = ".parquet"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# How files begin that people take for tables in text, and what to do about them.
_OTHER_KINDS = {
    b"PK\3\4": ("a zip archive, as workbooks of spreadsheets are", "save the table as .csv, or unpack it"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it: gunzip"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
}
# Characters of a line: far more than a question with its answers, and little memory.
_LONGEST_LINE = 1_000_000

Row = dict[str, Any]
Columns = Mapping[str, Sequence[str]]
"""Columns of a table, and the names that each may have, in lower case."""
_NO_COLUMNS: Columns = {}


class Place(NamedTuple):
    """Where a row stands, counted from 1: a line of a text file, or a row of what has no lines."""

    number: int
    unit: str = "line"

    def __str__(self) -> str:
        """Write it for a message."""
        return f"{self.unit} {self.number:,}"


@dataclass(frozen=True)
class Asking:
    """A question about a picture; ``place`` is where it stands, ``line 2``, empty where there is no file."""

    place: str
    image: Path
    question: str


def read_question_file(path: Path) -> list[Asking]:
    """Read pictures and questions from a table; a DataError names the rows that are unusable.

    Further columns and keys are left aside, and relative paths of images taken from the file's folder.
    """
    columns = {name: (name,) for name in ("image", "question")}
    asking, odd, unusable = list[Asking](), list[str](), list[str]()
    for place, row in read_rows(path, columns, _HINT):
        fault = row if isinstance(row, str) else _fault(row, columns)
        if fault:
            odd.append(f"{place} {fault}")
        elif isinstance(row, dict):
            image = path.parent / row["image"]
            if unusable_path := why_no_picture(row["image"], image):
                unusable.append(f"{place}: {unusable_path}")
            asking.append(Asking(str(place), image, row["question"]))
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


def holds_types(path: Path) -> bool:
    """Whether a table tells numbers from texts, as CSV does not."""
    return path.suffix.lower() in (*_JSON_SUFFIXES, _PARQUET_SUFFIX)


def read_rows(
    path: Path, needed: Columns, hint: str, others: Columns = _NO_COLUMNS
) -> Iterator[tuple[Place, Row | str]]:
    """Give each row of a table, or what is wrong with it as the end of a sentence.

    A file is read piece by piece. A DataError with the hint says that it is no such table at all, that one of the
    needed columns is missing, or that one of them or of the others stands in it twice.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise DataError(f"{path} is not a file", hint)
    suffix = path.suffix.lower()
    with refusing(f"cannot read {path}", hint):
        if suffix == _PARQUET_SUFFIX:
            yield from _parquet_rows(path, needed, hint, others)
            return
        with path.open("rb") as file:
            _refuse_other_kind(path, file)
            # Within JSON, a line break of any kind is none of a text.
            lines = _lines(path, file, newline=None if suffix in _JSON_SUFFIXES else "")
            first = list[str]()
            for line in lines:
                first.append(line)
                if line.strip(_BLANKS):
                    break
            start = first[-1].strip() if first else ""
            if start.startswith("["):
                yield from _list_rows(path)
            elif suffix not in _JSON_SUFFIXES:
                yield from _csv_rows(path, chain(first, lines), start, needed, hint, others)
            elif start == "{":
                again = f"jq -c '.NAME[]' {shlex.quote(str(path))} > NEW.jsonl, where NAME is its list of questions"
                raise DataError(f"{path} is one JSON object over several lines", again)
            else:
                yield from _json_rows(chain(first, lines))


def _refuse_other_kind(path: Path, file: io.BufferedReader) -> None:
    """Refuse what is no text at all, by how it begins."""
    start = file.read(4)
    file.seek(0)
    for begin, (kind, advice) in _OTHER_KINDS.items():
        if start.startswith(begin):
            raise DataError(f"{path} is {kind}", advice)


def _lines(path: Path, file: io.BufferedReader, newline: str | None) -> Iterator[str]:
    """Give the lines of a text file as UTF-8, or another UTF that it begins with; a DataError names a line that is not.

    Newline is as for ``open``.
    """
    encoding = json.detect_encoding(file.peek(4)[:4])
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    number = 0
    try:
        with io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            while line := text.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    what = f"{path}, line {number:,} is longer than {_LONGEST_LINE:,} characters"
                    raise DataError(what, "a table has one line for each question: is it damaged?")
                if "\0" in line:
                    what = f"{path}, line {number:,} has the character NUL, which no text has"
                    raise DataError(what, "is it damaged, or written in an encoding other than UTF-8?")
                yield line
    except UnicodeError:
        kind, number = ("UTF-8", _first_odd_line(path)) if encoding == "utf-8-sig" else (encoding.upper(), number + 1)
        what = f"{path}, line {number:,}: not {kind} text"
        raise DataError(what, f"iconv -f latin1 -t utf-8 {path} > FILE.csv") from None


def _first_odd_line(path: Path) -> int:
    """Find the first line of a file that is not UTF-8."""
    number = 0
    with path.open("rb") as file, suppress(UnicodeDecodeError):
        for line in file:
            number += 1
            line.decode()
    return number


def _json_rows(lines: Iterator[str]) -> Iterator[tuple[Place, Row | str]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=RepeatedFields)
            except (ValueError, RecursionError):
                row = None
            yield Place(number), _json_row(row)


def _list_rows(path: Path) -> Iterator[tuple[Place, Row | str]]:
    for number, record in enumerate(RecordReader(path, None).exact_records(), start=1):
        yield Place(number, "row"), _json_row(record)


def _json_row(row: Any) -> Row | str:
    """Give a row of JSON, or what is wrong with it."""
    if not isinstance(row, dict):
        return "is not a JSON object"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"has {error.object[error.start]!a}, half of a character"
    return row


def _csv_rows(
    path: Path, lines: Iterator[str], header: str, needed: Columns, hint: str, others: Columns
) -> Iterator[tuple[Place, Row | str]]:
    """Give each row, and the place of its first line; a question may go over several. Rows without a text are none."""
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    number = 1
    names: list[str] = []
    try:
        for values in reader:
            number, first = reader.line_num + 1, number
            if not any(value.strip(_BLANKS) for value in values):
                continue
            if not names:
                names = [name.strip().lower() for name in values]
                _refuse_header(path, values, names, needed, hint, others)
            elif any(map(str.strip, values[len(names) :])):
                advice = f"put quotes around a text with {delimiter!r}"
                yield Place(first), f"has {len(values)} values, expected {len(names)}: {advice}"
            else:
                yield Place(first), dict(zip(names, values, strict=False))
    except csv.Error as error:
        yield Place(number), f"cannot be read: {error}"
    if not names:
        raise DataError(f"{path} is empty", hint)


def _refuse_header(
    path: Path, given: Sequence[str], names: Sequence[str], needed: Columns, hint: str, others: Columns
) -> None:
    """Refuse a table that lacks a column, or has one twice."""
    accepted = [name for known in (*needed.values(), *others.values()) for name in known]
    if twice := [name for name in dict.fromkeys(accepted) if names.count(name) > 1]:
        raise DataError(f"{path} has the column {' and '.join(twice)} more than once", "leave one of them out")
    missing = [column for column, known in needed.items() if not set(known) & set(names)]
    if missing:
        found = listed(map(repr, map(shortened, given)), len(given), most=5) or "nothing"
        raise DataError(f"{path} has no column {' and no column '.join(missing)}: its first line has {found}", hint)


def _parquet_rows(path: Path, needed: Columns, hint: str, others: Columns) -> Iterator[tuple[Place, Row | str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"reading {path} needs pyarrow", 'pip install "trarctl[parquet]"') from None
    try:
        with ParquetFile(path) as table:
            given = list(table.schema_arrow.names)
            names = [name.strip().lower() for name in given]
            _refuse_header(path, given, names, needed, hint, others)
            # Others may hold whole pictures.
            accepted = {name for known in (*needed.values(), *others.values()) for name in known}
            taken = {name: folded for name, folded in zip(given, names, strict=True) if folded in accepted}
            number = 0
            for batch in table.iter_batches(batch_size=4096, columns=list(taken)):
                columns = [column.to_pylist() for column in batch.columns]
                keys = [taken[name] for name in batch.schema.names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Place(number, "row"), dict(zip(keys, values, strict=True))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}".splitlines()[0], hint) from None
