"""Files of your own images and questions for ``predict``: CSV with a header, or one JSON object a line.

A module of its own, though short and used by one command: a file format is a concept apart from rendering.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import orjson

from trarctl.errors import DataError, listed

_COLUMNS = ("image", "question")
_HINT = (
    'a .csv file starts with the line image,question; a .jsonl line is {"image": "a.png", "question": "what is it?"}'
)


def read_question_file(path: Path) -> tuple[list[Path], list[str]]:
    """Read pictures and questions.

    Args:
        path: ``.csv``, or ``.jsonl`` of objects; further columns and keys are left aside.

    Returns:
        The path of each picture, relative ones taken from the file's folder, and the question to each.

    Raises:
        DataError: if the file cannot be read, or lines lack an image or a question; the message names the lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", _HINT) from None
    rows = _json_lines(text) if path.suffix in (".jsonl", ".ndjson") else _csv_lines(path, text)
    images, questions, problems = [], [], []
    for number, row in rows:
        values = [row.get(column) for column in _COLUMNS] if isinstance(row, dict) else [None, None]
        missing = [
            column
            for column, value in zip(_COLUMNS, values, strict=True)
            if not isinstance(value, str) or not value.strip()
        ]
        if missing:
            problems.append(f"line {number} has no {' and no '.join(missing)}")
            continue
        images.append(path.parent / str(values[0]))
        questions.append(str(values[1]))
    if problems:
        raise DataError(f"{path}: {listed(problems, len(problems))}", _HINT)
    if not images:
        raise DataError(f"{path} holds no questions", _HINT)
    return images, questions


def _json_lines(text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError:
                yield number, None


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    names = reader.fieldnames or []
    missing = [column for column in _COLUMNS if column not in names]
    if missing:
        raise DataError(f"{path} has no column {' and no column '.join(missing)}", _HINT)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}", _HINT) from None
