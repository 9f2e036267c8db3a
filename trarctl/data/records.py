"""Raw files to flat arrays: long JSON lists read in pieces, checked record by record, strings in one array of bytes.

Axes: Q questions in file order, A annotations in file order.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data import Progress, no_progress
from trarctl.errors import DataError, listed

NUM_ANNOTATORS = 10
_LARGEST_ID = 2**63 - 1
_LONGEST_ID = 255

Ids = npt.NDArray[Any]
"""Ids of questions or images: int64, or text (numpy's ``U``), as the data set has them."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class FlatText:
    """Many strings as one array of bytes: memory-mapped, without a Python object for each."""

    content: npt.NDArray[np.uint8]  # UTF-8 bytes of all strings, one after the other, [bytes]
    offsets: npt.NDArray[np.int64]  # where each starts, and the end of the last, [strings + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        return self.content[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        step = 65_536
        for first in range(0, len(self), step):
            offsets = self.offsets[first : first + step + 1]
            content = self.content[offsets[0] : offsets[-1]].tobytes()
            for start, end in pairwise((offsets - offsets[0]).tolist()):
                yield content[start:end].decode()


def flatten(texts: Sequence[str]) -> FlatText:
    """Turn strings into one array of bytes."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
    return FlatText(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)


def _joined(parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], FlatText):
        return np.concatenate(parts)
    starts = np.cumsum([0] + [len(part.content) for part in parts])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return FlatText(np.concatenate([part.content for part in parts]), np.concatenate([[0], *offsets]))


class StringTable(dict[str, int]):
    """Strings numbered in order of first appearance; asking for a new one numbers it."""

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        return number

    def codes(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Give the numbers of strings, [len(texts)]."""
        return np.fromiter(map(self.__getitem__, texts), dtype=np.int32, count=len(texts))


@dataclass(frozen=True)
class RawAnnotations:
    """Answers of a split."""

    rows: npt.NDArray[np.int32]  # question row of each annotation, [A]
    answers: npt.NDArray[np.int32]  # codes of the annotators' answers, [A, 10], -1 where fewer than ten
    chosen: npt.NDArray[np.int32]  # code of the answer that counts for the answer list, [A]
    answer_type: npt.NDArray[np.int16]  # codes into answer_types, [A]
    answer_types: tuple[str, ...]
    question_type: npt.NDArray[np.int16]  # codes into question_types, [A]
    question_types: tuple[str, ...]
    has_one_answer: bool = False  # the first answer is the only one and counts for all ten annotators


@dataclass(frozen=True)
class RawSplit:
    """Questions of a split with their ids and images, [Q] each; ``annotations`` is None for a split without answers."""

    name: str
    question_id: Ids
    image_id: Ids
    texts: FlatText
    annotations: RawAnnotations | None


def single_answers(
    answers: npt.NDArray[np.int32], types: npt.NDArray[np.int32], type_names: Iterable[str]
) -> RawAnnotations:
    """Describe questions that have one answer each: codes of answers [Q] and of question types [Q]."""
    codes = np.full((len(answers), NUM_ANNOTATORS), -1, dtype=np.int32)
    codes[:, 0] = answers
    kinds, names = types.astype(np.int16), tuple(type_names)
    rows = np.arange(len(answers), dtype=np.int32)
    return RawAnnotations(rows, codes, answers, kinds, names, kinds, names, has_one_answer=True)


@dataclass
class RawData:
    """All splits of a data set, sharing one table of answers; ``num_records`` counts by file."""

    splits: list[RawSplit] = field(default_factory=list)
    answers: StringTable = field(default_factory=StringTable)
    warnings: list[str] = field(default_factory=list)
    num_records: dict[str, int] = field(default_factory=dict)


class RecordReader:
    """Takes fields out of the records of one JSON file and collects what is wrong with them.

    Args:
        path: the file.
        key: name of its list of records; None: the file is that list.
        progress: told the bytes read.
    """

    def __init__(self, path: Path, key: str | None, progress: Progress = no_progress) -> None:
        self.path = path
        self.num_records = 0
        self._key = key
        self._progress = progress
        self._first = 0
        self._problems: list[str] = []
        self._unusable: set[int] = set()

    def collect(self, take: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        """Read the whole file.

        ``take`` gives the columns of some records: arrays or ``FlatText``; None for one that is unusable.

        Raises:
            DataError: there is none, or some are unusable; names the first ten and counts the others.
        """
        parts = []
        for records in read_records(self.path, self._key, progress=self._progress):
            self._first = self.num_records
            self.num_records += len(records)
            columns = take(records)
            if all(column is not None for column in columns):
                parts.append(columns)
        if self._unusable:
            what = listed(self._problems, len(self._unusable))
            raise DataError(f"{self.path}: {what}", "download the file again, or correct these records")
        if not parts:
            raise DataError(f"{self.path} holds no {self._key or 'questions'}", "download it again")
        return [_joined(column) for column in zip(*parts, strict=True)]

    def column(
        self,
        records: Sequence[Any],
        name: str,
        kind: type[Value],
        *,
        default: Value | None = None,
        is_valid: Callable[[Value], bool] | None = None,
    ) -> list[Value] | None:
        """Take a field out of every record; None if some are unusable.

        Its values have to be of this ``kind`` exactly (True is no int) and valid. ``default`` stands in where the field
        is missing; with None it must not be missing.
        """
        try:
            if default is None:
                values = [record[name] for record in records]
            else:
                values = [record.get(name, default) for record in records]
        except (KeyError, TypeError, AttributeError, IndexError):
            values = None
        if values is not None and set(map(type, values)) <= {kind} and (is_valid is None or all(map(is_valid, values))):
            return values
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                self.report(number, "is not an object")
            elif name not in record and default is None:
                self.report(number, f'has no "{name}"')
            elif type(value := record.get(name, default)) is not kind:
                self.report(number, f'has {_shortened(value)} as "{name}", expected {_KIND_NAMES[kind]}')
            elif is_valid is not None and not is_valid(value):
                self.report(number, f'has {_shortened(value)} as "{name}"')
        return None

    def ids(self, records: Sequence[Any], name: str, kind: type[int] | type[str] = int) -> Ids | None:
        """Take ids: integers from 0 that fit 64 bits, or texts of 1 to 255 characters."""
        if kind is int:
            numbers = self.column(records, name, int, is_valid=lambda number: 0 <= number <= _LARGEST_ID)
            return None if numbers is None else np.array(numbers, dtype=np.int64)
        # A numpy text loses the zero characters at its end.
        texts = self.column(records, name, str, is_valid=lambda text: 0 < len(text) <= _LONGEST_ID and "\0" not in text)
        return None if texts is None else np.array(texts, dtype=np.str_)

    def texts(self, records: Sequence[Any], name: str) -> FlatText | None:
        """Take texts."""
        texts = self.column(records, name, str)
        return None if texts is None else flatten(texts)

    def codes(
        self, records: Sequence[Any], name: str, table: StringTable, *, default: str | None = None
    ) -> npt.NDArray[np.int32] | None:
        """Take texts as their numbers in a table."""
        texts = self.column(records, name, str, default=default)
        return None if texts is None else table.codes(texts)

    def report(self, number: int, problem: str) -> None:
        """Note that a record, counted within those that ``take`` got, is unusable; the first reason is kept."""
        if self._first + number in self._unusable:
            return
        self._unusable.add(self._first + number)
        if len(self._problems) < _NUM_LISTED:
            self._problems.append(f"record {self._first + number:,} {problem}")


_NUM_LISTED = 10
_KIND_NAMES: dict[type, str] = {int: "an integer", str: "a text", list: "a list"}


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def refuse_duplicates(path: Path, ids: Ids, name: str) -> None:
    """See that no id appears twice.

    Raises:
        DataError: naming those that do.
    """
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        raise DataError(f"{path}: {name} {listed(twice, len(twice))} appears more than once", "download the file again")


def rows_of(wanted: Ids, ids: Ids) -> npt.NDArray[np.int64]:
    """Look up ids [W] among unique ones in any order [I]: the row of each, -1 where it is missing, [W]."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


# Small enough that a piece and what is made of it stay in the processor's cache.
PIECE_BYTES = 1 << 19

_READABLE = "name a file that can be read"

_QUOTE, _OPEN, _CLOSE, _COMMA, _BACKSLASH = 1, 2, 3, 4, 5
_KIND = np.zeros(256, dtype=np.uint8)
for _characters, _kind in ((b'"', _QUOTE), (b"{[", _OPEN), (b"}]", _CLOSE), (b",", _COMMA), (b"\\", _BACKSLASH)):
    for _character in _characters:
        _KIND[_character] = _kind


def read_records(
    path: Path, key: str | None, *, progress: Progress = no_progress, piece_bytes: int = PIECE_BYTES
) -> Iterator[list[object]]:
    """Read the list ``key`` of the object in a JSON file, or the file's list, in order, ``piece_bytes`` at a time.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or has no such list.
    """
    size = _size(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = _list_start(path, text, key)
        end = None
        for first, last, is_end in _cuts(path, text, start, piece_bytes):
            if records := _parse_piece(path, text, first, last, is_whole=is_end and first == start + 1):
                yield records
            progress(f"reading {path.name}", last, size)
            end = last
        assert end is not None  # noqa: S101 - _cuts ends with the closing bracket or raises
        _check_frame(path, text, start, end, key)


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise DataError(f"no file {path}", _READABLE)
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", _READABLE) from error
    if size == 0:
        raise DataError(f"{path} is empty", "download it again")
    return size


def _list_start(path: Path, text: mmap.mmap, key: str | None) -> int:
    """Find the bracket that opens the list."""
    pattern = rb"\s*\[" if key is None else rb'(?<!\\)"' + re.escape(key.encode()) + rb'"\s*:\s*\['
    match = re.match(pattern, text) if key is None else re.search(pattern, text)
    if match is None:
        _refuse_damaged(path, text)
        raise DataError(_missing_list(path, key), "check that it is the file that its name says")
    return match.end() - 1


def _missing_list(path: Path, key: str | None) -> str:
    return f"{path} does not hold a list" if key is None else f'{path} has no list "{key}"'


def _refuse_damaged(path: Path, text: mmap.mmap) -> None:
    try:
        orjson.loads(memoryview(text))
    except orjson.JSONDecodeError as error:
        raise _not_json(path, error.pos, error.msg) from None


def _not_json(path: Path, position: int, reason: str) -> DataError:
    return DataError(f"{path} is not valid JSON near byte {position:,}: {reason.split(':')[0]}", "download it again")


def _cuts(path: Path, text: mmap.mmap, start: int, piece_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Cut the list that opens at ``start`` between elements.

    Yields:
        First byte of a piece, the byte after it (a comma, or the closing bracket), whether it is the closing bracket.
    """
    depth, is_inside_string, is_escaped = 0, False, False
    piece_start = start + 1
    size = len(text)
    for block_start in range(start, size, piece_bytes):
        positions, kinds, is_escaped = _block_tokens(text, block_start, piece_bytes, is_escaped=is_escaped)
        parity = np.cumsum(kinds == _QUOTE, dtype=np.int64) + is_inside_string
        is_outside = (parity & 1) == 0
        steps = ((kinds == _OPEN).astype(np.int8) - (kinds == _CLOSE)) * is_outside
        depths = np.cumsum(steps, dtype=np.int64) + depth
        closings = np.flatnonzero((depths == 0) & (steps == -1))
        stop = closings[0] if len(closings) else len(kinds)
        commas = np.flatnonzero((kinds[:stop] == _COMMA) & (depths[:stop] == 1) & is_outside[:stop])
        if len(closings):
            yield piece_start, block_start + int(positions[stop]), True
            return
        if len(commas):
            cut = block_start + int(positions[commas[-1]])
            yield piece_start, cut, False
            piece_start = cut + 1
        if len(kinds):
            depth, is_inside_string = int(depths[-1]), bool(parity[-1] & 1)
    raise DataError(f"{path} is cut off: it ends inside its list, after {size:,} bytes", "download it again")


def _block_tokens(
    text: mmap.mmap, start: int, length: int, *, is_escaped: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], bool]:
    """Find quotes, brackets and commas, leaving out quotes after a backslash.

    ``is_escaped`` says whether the byte before the block is a backslash that escapes the first byte.

    Returns:
        Positions in the block [K], their kinds [K], and whether the block ends with an escaping backslash.
    """
    # The view of the file must not outlive this call: a file that is still viewed cannot be closed.
    block = np.frombuffer(text, dtype=np.uint8, count=min(length, len(text) - start), offset=start)
    kinds = _KIND[block]
    positions = np.flatnonzero(kinds)
    kinds = kinds[positions]
    is_backslash = kinds == _BACKSLASH
    slashes = positions[is_backslash]
    if not is_escaped and not len(slashes):
        return positions, kinds, False
    # A backslash escapes what follows unless it is itself escaped: within a run every second one is.
    starts_run = np.ones(len(slashes), dtype=bool)
    starts_run[1:] = np.diff(slashes) != 1
    run_start = np.maximum.accumulate(np.where(starts_run, np.arange(len(slashes)), 0))
    index_in_run = slashes - slashes[run_start]
    if is_escaped and 0 in slashes[:1]:
        index_in_run[run_start == 0] += 1
    escaping = slashes[index_in_run % 2 == 0]
    ends_escaping = len(block) - 1 in escaping[-1:]
    escaped = np.append(escaping + 1, [0] if is_escaped else [])
    keeps = ~(is_backslash | ((kinds == _QUOTE) & np.isin(positions, escaped)))
    return positions[keeps], kinds[keeps], ends_escaping


def _parse_piece(path: Path, text: mmap.mmap, first: int, last: int, *, is_whole: bool) -> list[object]:
    piece = text[first:last]
    if not piece.strip() and not is_whole:
        raise _not_json(path, last, "an element is missing")
    try:
        records = orjson.loads(b"[" + piece + b"]")
    except orjson.JSONDecodeError as error:
        raise _not_json(path, first + max(error.pos - 1, 0), error.msg) from None
    assert isinstance(records, list)  # noqa: S101 - it was parsed from "[...]"
    return records


def _check_frame(path: Path, text: mmap.mmap, start: int, end: int, key: str | None) -> None:
    """See that what stands around the list is valid, and that the list is where it should be."""
    try:
        frame = orjson.loads(text[:start] + b"[]" + text[end + 1 :])
    except orjson.JSONDecodeError as error:
        position = error.pos if error.pos <= start else error.pos - start - 2 + end
        raise _not_json(path, position, error.msg) from None
    if key is not None and not (isinstance(frame, dict) and frame.get(key) == []):
        raise DataError(_missing_list(path, key), "check that it is the file that its name says")
