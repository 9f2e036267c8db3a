"""Raw files to flat arrays: long JSON lists read in pieces, checked record by record, strings in one array of bytes.

Axes: Q questions in file order, A annotations in file order.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data import Progress, no_progress
from trarctl.data.archives import open_raw, split_path
from trarctl.errors import DataError, listed, shortened
from trarctl.files import refusing

NUM_ANNOTATORS = 10
# Small enough that a piece and what is made of it stay in the processor's cache.
PIECE_BYTES = 1 << 19
_READABLE = "name a file that can be read"
_LARGEST_ID = 2**63 - 1
_LONGEST_ID = 255

Ids = npt.NDArray[Any]
"""Ids of questions or images: int64, or text (numpy's ``U``), as the data set has them."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class FlatText:
    """Many strings as one array of bytes, without a Python object for each."""

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
    chosen: npt.NDArray[np.int32]  # codes that the answer list is drawn from, each as often as it counts: [A], or of
    # every annotator [A, 10], -1 where there are fewer, or any other number of them
    answer_type: npt.NDArray[np.int16]  # codes into answer_types, [A]
    answer_types: tuple[str, ...]
    question_type: npt.NDArray[np.int16]  # codes into question_types, [A]
    question_types: tuple[str, ...]
    counts_for_ten: bool = False  # however few annotators there are, their shares count as those of ten


@dataclass(frozen=True)
class RawSplit:
    """Questions of a split with their ids and images, [Q] each; ``annotations`` is None for a split without answers."""

    name: str
    question_id: Ids
    image_id: Ids
    texts: FlatText
    annotations: RawAnnotations | None
    image_set: npt.NDArray[np.int8] | None = None  # place of each image's set among the data set's, [Q]; None: not said


def annotators_codes(texts: Sequence[str], lengths: npt.NDArray[np.int64], table: StringTable) -> npt.NDArray[np.int32]:
    """Number the answers of all annotators, ``lengths`` [Q] of each question: [Q, 10], -1 where there are fewer."""
    codes = np.full((len(lengths), NUM_ANNOTATORS), -1, dtype=np.int32)
    codes[np.arange(NUM_ANNOTATORS) < lengths[:, None]] = table.codes(texts)
    return codes


def other_numbers(path: Path, answers: npt.NDArray[np.int32]) -> list[str]:
    """Give a warning if questions of a file have other than ten annotators' answers, [Q, 10]."""
    numbers = np.bincount((answers >= 0).sum(axis=1), minlength=NUM_ANNOTATORS + 1).tolist()
    if not any(numbers[:NUM_ANNOTATORS]):
        return []
    found = ", ".join(f"{count:,} have {number}" for number, count in enumerate(numbers) if count)
    return [f"{path}: questions have other than {NUM_ANNOTATORS} answers: {found}"]


def single_answers(
    answers: npt.NDArray[np.int32], types: npt.NDArray[np.int32], type_names: Iterable[str]
) -> RawAnnotations:
    """Describe questions that have one answer each: codes of answers [Q] and of question types [Q]."""
    codes = np.full((len(answers), NUM_ANNOTATORS), -1, dtype=np.int32)
    codes[:, 0] = answers
    kinds, names = types.astype(np.int16), tuple(type_names)
    rows = np.arange(len(answers), dtype=np.int32)
    return RawAnnotations(rows, codes, answers, kinds, names, kinds, names, counts_for_ten=True)


def cut_split(split: RawSplit, name: str, is_taken: npt.NDArray[np.bool_]) -> RawSplit:
    """Cut some of a split's questions, [Q], out as a split of their own; DataError if none are left.

    Only for annotations whose ``chosen`` go with their questions.
    """
    taken = np.flatnonzero(is_taken)
    if not len(taken):
        raise DataError(f"no question is left for the split {name}", "cut the files to more questions")
    annotations = split.annotations
    if annotations is not None:
        is_kept = is_taken[annotations.rows]
        new_row = (np.cumsum(is_taken) - 1).astype(np.int32)
        annotations = replace(
            annotations,
            rows=new_row[annotations.rows[is_kept]],
            answers=annotations.answers[is_kept],
            chosen=annotations.chosen[is_kept],
            answer_type=annotations.answer_type[is_kept],
            question_type=annotations.question_type[is_kept],
        )
    texts = flatten([split.texts[row] for row in taken.tolist()])
    image_set = None if split.image_set is None else split.image_set[taken]
    return RawSplit(name, split.question_id[taken], split.image_id[taken], texts, annotations, image_set)


@dataclass
class RawData:
    """All splits of a data set, sharing one table of answers; ``num_records`` counts by file."""

    splits: list[RawSplit] = field(default_factory=list)
    answers: StringTable = field(default_factory=StringTable)
    warnings: list[str] = field(default_factory=list)
    num_records: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what was taken how, and is not odd
    whole: dict[str, RawSplit] = field(default_factory=dict)  # by file, what several splits are cut from


class RecordReader:
    """Takes fields out of the records of one JSON file and collects what is wrong with them.

    Args:
        path: the file, or ``ZIP/MEMBER``: UTF-8, UTF-16 or UTF-32, plain or compressed by gzip.
        key: name of its list of records; None: the file is that list.
        progress: told the bytes read.
        warnings: what is odd about the file, but can be read, is added to them.
        layout: what the file should look like, for messages.
        may_be_bare: the file may also be the list itself, without ``key``.
        is_keyed: the file is an object that has the records by their ids, instead of a list.
        inner: fields of a record whose objects have names that the record itself has as well.

    Attributes:
        frame: what stands beside the list, once all records were read.
    """

    def __init__(
        self,
        path: Path,
        key: str | None,
        progress: Progress = no_progress,
        *,
        warnings: list[str] | None = None,
        layout: str = "",
        may_be_bare: bool = False,
        is_keyed: bool = False,
        inner: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.num_records = 0
        self.frame: dict[str, Any] = {}
        self._key, self._may_be_bare = key, may_be_bare
        self._progress = progress
        self._warnings = [] if warnings is None else warnings
        self._layout = layout or (f'{{"{key}": [RECORD, RECORD]}}' if key else "[RECORD, RECORD]")
        self._is_keyed, self._inner = is_keyed, inner
        self._brackets = (b"{", b"}") if is_keyed else (b"[", b"]")
        self._piece, self._records, self._keys = b"", list[Any](), list[str]()
        self._first = 0
        self._problems: list[str] = []
        self._unusable: set[int] = set()
        self._odd: Counter[str] = Counter()

    def collect(self, take: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        """Read the whole file; a DataError counts the records that are unusable and names the first ten.

        ``take`` gives the columns of some records: arrays or ``FlatText``; None for one that is unusable.
        """
        parts = []
        for records in self.pieces():
            self._first = self.num_records
            self.num_records += len(records)
            columns = take(records)
            if all(column is not None for column in columns):
                parts.append(columns)
        if self._unusable:
            what = listed(self._problems, len(self._unusable))
            what += f" (of {self.num_records:,} records, the first is record 0)"
            raise DataError(f"{self.path}: {what}", f"correct them; the layout is {self._layout}")
        if not parts:
            raise DataError(f"{self.path} holds no {self._key or 'questions'}", f"the layout is {self._layout}")
        self._warnings += [f"{self.path}: {what}: {count:,}" for what, count in self._odd.items()]
        return [_joined(column) for column in zip(*parts, strict=True)]

    def column(
        self,
        records: Sequence[Any],
        name: str,
        kind: type[Value],
        *,
        default: Value | None = None,
        is_valid: Callable[[Value], bool] | None = None,
        expected: str = "",
        read: Callable[[object], Value | None] | None = None,
    ) -> list[Value] | None:
        """Take a field out of every record; None if some are unusable.

        Its values have to be of this ``kind`` exactly (True is no int) and valid, which ``expected`` puts in words.
        ``default`` stands in where the field is missing; with None it must not be missing. What ``read`` makes of
        values of another kind is taken in their place, and counted.
        """
        try:
            values = [record[name] if default is None else record.get(name, default) for record in records]
        except (KeyError, TypeError, AttributeError, IndexError):
            values = None
        is_sound = values is not None and set(map(type, values)) <= {kind}
        is_sound = is_sound and (is_valid is None or all(map(is_valid, values or ())))
        is_raw = records is self._records
        if is_sound and not (is_raw and self._piece.count(f'"{name}"'.encode()) > self._num_expected(name)):
            return values
        # orjson makes numbers of more than 64 bits floats, and keeps the last of two fields of one name.
        needs_exact = is_raw and (is_sound or len(self._problems) < _NUM_LISTED)
        exact = self._exact_records() if needs_exact else records
        replaced: dict[int, Value] = {}
        for number, record in enumerate(exact):
            if not isinstance(record, dict):
                self.report(number, "is not an object")
            elif name not in record and default is None:
                self.report(number, f'has no "{name}", only {listed(record, len(record)) or "no field at all"}')
            elif isinstance(record, RepeatedFields) and name in record.repeated:
                self.report(number, f'has "{name}" more than once')
            elif type(value := record.get(name, default)) is not kind or not (is_valid is None or is_valid(value)):
                another = read(value) if read is not None and type(value) is not kind else None
                if another is not None and (is_valid is None or is_valid(another)):
                    replaced[number] = another
                    self.count(f'"{name}" that is {_KIND_NAMES.get(type(value))}, read as {_KIND_NAMES[kind]}')
                else:
                    self.report(number, f'has {shown(value)} as "{name}", expected {expected or _KIND_NAMES[kind]}')
        if values is None or self._unusable:
            return None
        return [replaced.get(number, value) for number, value in enumerate(values)] if replaced else values

    def _num_expected(self, name: str) -> int:
        """Count how often a field's name stands in the piece if no record has it twice."""
        objects = (record.get(field) for record in self._records for field in self._inner)
        return len(self._records) + sum(name in one for one in objects if isinstance(one, dict))

    def _exact_records(self) -> list[Any]:
        """Parse the piece again, with every digit and every repeated name."""
        opening, closing = self._brackets
        document = json.loads(opening + self._piece + closing, object_pairs_hook=RepeatedFields)
        return list(document.values()) if self._is_keyed else document

    def keys(self) -> Ids | None:
        """Take the ids under which the records stand, of a file that is keyed by them; None if some are unusable."""
        for number, key in enumerate(self._keys):
            if not is_text_id(key):
                self.report(number, f"stands under {shown(key)}, expected a text of 1 to {_LONGEST_ID} characters")
        return None if self._unusable else np.array(self._keys, dtype=np.str_)

    def ids(self, records: Sequence[Any], name: str, kind: type[int] | type[str] = int) -> Ids | None:
        """Take ids: integers from 0 that fit 64 bits, or texts of 1 to 255 characters."""
        found: list[Any] | None
        if kind is int:
            expected = f"an integer from 0 to {_LARGEST_ID}"
            found = self.column(records, name, int, is_valid=_is_id, expected=expected, read=_as_integer)
        else:
            expected = f"a text of 1 to {_LONGEST_ID} characters"
            found = self.column(records, name, str, is_valid=is_text_id, expected=expected)
        return None if found is None else np.array(found, dtype=np.int64 if kind is int else np.str_)

    def texts(self, records: Sequence[Any], name: str) -> FlatText | None:
        """Take texts."""
        texts = self.column(records, name, str)
        return None if texts is None else flatten(texts)

    def codes(
        self,
        records: Sequence[Any],
        name: str,
        table: StringTable,
        *,
        default: str | None = None,
        may_be_blank: bool = True,
    ) -> npt.NDArray[np.int32] | None:
        """Take texts as their numbers in a table."""
        is_valid, expected = (
            (None, "") if may_be_blank else (lambda text: bool(text.strip()), "a text that is not empty")
        )
        texts = self.column(records, name, str, default=default, is_valid=is_valid, expected=expected, read=as_text)
        return None if texts is None else table.codes(texts)

    def refuse_repeated(self, records: Sequence[Any], field: str, name: str, number: int) -> None:
        """Report records that have a name more than once in an object of a list; ``number`` is how many there are."""
        if records is self._records and self._piece.count(f'"{name}"'.encode()) > number:
            for row, record in enumerate(self._exact_records()):
                if any(isinstance(one, RepeatedFields) and name in one.repeated for one in record[field]):
                    self.report(row, f'has "{name}" more than once in one object of "{field}"')

    def report(self, number: int, problem: str) -> None:
        """Note that a record, counted within those that ``take`` got, is unusable; the first reason is kept."""
        if self._first + number in self._unusable:
            return
        self._unusable.add(self._first + number)
        if len(self._problems) < _NUM_LISTED:
            key = f" ({shown(self._keys[number])})" if self._is_keyed else ""
            self._problems.append(f"record {self._first + number:,}{key} {problem}")

    def count(self, what: str, number: int = 1) -> None:
        """Count what is odd about the file but can be read, for one warning: ``FILE: WHAT: NUMBER``."""
        if number:
            self._odd[what] += number

    def pieces(self, piece_bytes: int = PIECE_BYTES) -> Iterator[list[Any]]:
        """Read the list in order, ``piece_bytes`` at a time; DataError if there is no such list of valid JSON."""
        with _opened(self.path) as text:
            start, end = self._list_start(text), 0
            for first, last, num_elements, is_end in _cuts(self.path, text, start, piece_bytes):
                self._piece = text[first:last]
                try:
                    if not self._piece.strip() and not (is_end and first == start + 1):
                        raise _NotJson(1, "an element is missing")
                    document = self._parse(self._brackets[0] + self._piece + self._brackets[1])
                except _NotJson as error:
                    at = max(error.position - 1, 0)
                    number = self.num_records + _num_before(self._piece, at)
                    raise self._not_json(text, error, first + at, f", in record {number:,}") from None
                if self._is_keyed and document and len(document) < num_elements:
                    raise self._repeated_keys()
                self._records = list(document.values()) if self._is_keyed else document
                self._keys = list(document) if self._is_keyed else []
                if self._records:
                    yield self._records
                self._progress(f"reading {self.path.name}", last, len(text))
                end = last
            self._read_frame(text, start, end)

    def _list_start(self, text: _Text) -> int:
        """Find the bracket that opens the list."""
        if self._may_be_bare and re.match(rb"\s*\[", text):
            self._key = None
        if self._key is None:
            match = re.match(rb"\s*" + re.escape(self._brackets[0]), text)
        else:
            found = re.finditer(rb'(?<!\\)"' + re.escape(self._key.encode()) + rb'"\s*:\s*\[', text)
            match = next((one for one in found if _is_in_outer_object(text, one.start())), None)
        if match is not None:
            return match.end() - 1
        try:
            document = self._parse(text[:])
        except _NotJson as error:
            raise self._not_json(text, error, error.position) from None
        raise self._no_list(document)

    def _repeated_keys(self) -> DataError:
        """Name the ids that the piece has more than once."""
        opening, closing = self._brackets
        ids = json.loads(opening + self._piece + closing, object_pairs_hook=RepeatedFields).repeated
        return DataError(f"{self.path}: id {listed(sorted(ids), len(ids))} appears more than once", "keep one of each")

    def _read_frame(self, text: _Text, start: int, end: int) -> None:
        """See that what stands around the list is valid, and that the list is where it should be."""
        try:
            frame = self._parse(content := text[:start] + b"[]" + text[end + 1 :])
        except _NotJson as error:
            position = error.position if error.position <= start else error.position - start - 1 + end
            raise self._not_json(text, error, position) from None
        if self._key is None:
            return
        if not isinstance(frame, dict) or not isinstance(frame.get(self._key), list):
            raise self._no_list(frame)
        if self._key in json.loads(content, object_pairs_hook=RepeatedFields).repeated:
            raise DataError(f'{self.path} has the list "{self._key}" more than once', "keep one of them")
        self.frame = frame

    def exact_records(self) -> Iterator[Any]:
        """Give every record with every digit of its numbers, objects as ``RepeatedFields``."""
        for _ in self.pieces():
            yield from self._exact_records()

    def _parse(self, content: bytes) -> Any:
        """Parse JSON; what only Python writes, NaN and halves of surrogate pairs, is read and counted."""
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(content)
        text, numbers = "", list[float]()

        def read_constant(name: str) -> float:
            numbers.append(float(name))
            return numbers[-1]

        try:
            text = content.decode()
            document = json.loads(text, parse_constant=read_constant)
            written = json.dumps(document, ensure_ascii=False)
        except UnicodeDecodeError as error:
            reason = f"{content[error.start]:#04x}; is it Latin-1 or Windows-1252?"
            raise _NotJson(error.start, reason, is_encoding=True) from None
        except json.JSONDecodeError as error:
            raise _NotJson(len(text[: error.pos].encode()), error.msg) from None
        except (ValueError, RecursionError):
            raise _NotJson(0, "it is nested too deeply, or has a number that is too long") from None
        self.count("numbers that JSON does not have (NaN, Infinity), in fields that are not used", len(numbers))
        written, num_halves = _HALF_PAIR.subn("\ufffd", written)
        self.count("halves of surrogate pairs in its texts, read as the unknown character U+FFFD", num_halves)
        return json.loads(written) if num_halves else document

    def _not_json(self, text: _Text, error: _NotJson, position: int, record: str = "") -> DataError:
        """Say what is no JSON, at which byte of the file and in which record."""
        where = f"near byte {position:,}{record}: {error.reason}"
        if error.is_encoding:
            what = f"{self.path} is not UTF-8 text {where}"
            return DataError(what, f"iconv -f latin1 -t utf-8 {self.path} > NEW, and put NEW in its place")
        lines = text[: 1 << 16].splitlines()[:2]
        if not record and len(lines) == 2 and all(map(_is_object, lines)):
            return DataError(f"{self.path} holds one JSON object a line", f"the layout is {self._layout}")
        what = f"{self.path} is not valid JSON {where}"
        if position >= len(text[:].rstrip()):
            return DataError(f"{what}; it seems to be cut off", _AGAIN)
        if not record:
            what += f"; it begins with {text[:40].decode(errors='replace').strip()!r}"
        return DataError(what, "correct it there, or copy the original file again")

    def _no_list(self, document: Any) -> DataError:
        """Say which layout was found instead of the one that is wanted."""
        if isinstance(document, dict):
            kinds: dict[type, str] = {dict: "an object", list: "a list"}
            names = [f"{name} ({kinds.get(type(one), 'a value')})" for name, one in document.items()]
            found = f"it holds {listed(names, len(names)) or 'nothing'}"
            lists = [name for name, one in document.items() if isinstance(one, list) and name != self._key]
            if lists and "info" in document and self._key is not None:
                what = f'{self.path} has no list "{self._key}": it holds {lists[0]}'
                return DataError(what, f"is it the file of {lists[0]}, exchanged?")
        elif isinstance(document, list):
            fields = listed(document[0], len(document[0])) if document and isinstance(document[0], dict) else ""
            found = f"it is a list of {len(document):,} elements" + (f" with the fields {fields}" if fields else "")
        else:
            found = f"it is {shown(document)}"
        what = f'{self.path} has no list "{self._key}"'
        if self._key is None:
            what = f"{self.path} does not hold {'an object of records by their ids' if self._is_keyed else 'a list'}"
        return DataError(f"{what}: {found}", f"the layout is {self._layout}")


_NUM_LISTED = 10
_AGAIN = "download it again"
_KIND_NAMES: dict[type, str] = {
    int: "an integer",
    str: "a text",
    list: "a list",
    dict: "an object",
    float: "a number with a decimal point",
    bool: "true or false",
}
_HALF_PAIR = re.compile("[\ud800-\udfff]")

_Text = mmap.mmap | bytes


class _NotJson(Exception):
    """Why some bytes are no JSON, and where in them."""

    def __init__(self, position: int, reason: str, *, is_encoding: bool = False) -> None:
        super().__init__(reason)
        self.position, self.reason, self.is_encoding = position, reason, is_encoding


class RepeatedFields(dict[str, Any]):
    """A JSON object that knows which names it has more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = {name for name, count in Counter(name for name, _ in pairs).items() if count > 1}


def as_text(value: object) -> str | None:
    """Write a value as an answer: whole numbers in digits, true and false as yes and no; None for anything else."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else None


def _is_id(number: int) -> bool:
    return 0 <= number <= _LARGEST_ID


def is_text_id(text: str) -> bool:
    """Whether a text can be an id: 1 to 255 characters."""
    # A numpy text loses the zero characters at its end.
    return 0 < len(text) <= _LONGEST_ID and "\0" not in text


def _as_integer(value: object) -> int | None:
    """Read an id that a table program has written as a text or with a decimal point; None where that loses digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value) if str(int(value)) == value else None
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else None


def shown(value: object) -> str:
    """Write a value as it stands in a JSON file, at most 40 characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return shortened(text, most=40)


def _is_object(line: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(orjson.loads(line), dict)
    return False


def refuse_duplicates(path: Path, ids: Ids, name: str) -> None:
    """Raise a DataError that names ids that appear twice, if there are any."""
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        raise DataError(f"{path}: {name} {listed(twice, len(twice))} appears more than once", "keep one of each")


def bytes_of(ids: Ids) -> bytes:
    """Write ids, in their order, as bytes to take a digest of: the same on every machine."""
    return "\0".join(ids.tolist()).encode() if ids.dtype.kind == "U" else ids.astype("<i8").tobytes()


def rows_of(wanted: Ids, ids: Ids) -> npt.NDArray[np.int64]:
    """Look up ids [W] among unique ones in any order [I]: the row of each, -1 where it is missing, [W]."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    found = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)


_QUOTE, _OPEN, _CLOSE, _COMMA, _BACKSLASH = 1, 2, 3, 4, 5
_KIND = np.zeros(256, dtype=np.uint8)
for _characters, _kind in ((b'"', _QUOTE), (b"{[", _OPEN), (b"}]", _CLOSE), (b",", _COMMA), (b"\\", _BACKSLASH)):
    for _character in _characters:
        _KIND[_character] = _kind


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Text]:
    """Give the text of a file as UTF-8: memory-mapped where it is that, else decoded."""
    with contextlib.ExitStack() as stack:
        with refusing(f"cannot read {path}", _READABLE):
            if not split_path(path)[0].is_file():
                raise DataError(f"no file {path}", _READABLE)
            file = stack.enter_context(open_raw(path))
            start = file.read(4)
            if not start:
                raise DataError(f"{path} is empty", _AGAIN)
            if start == b"PK\x03\x04":
                raise DataError(f"{path} is a zip archive", f"unpack it: unzip {path}")
            content: _Text
            if json.detect_encoding(start) == "utf-8":
                content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            else:
                file.seek(0)
                content = _decoded(path, file.read())
        yield content


def _decoded(path: Path, content: bytes) -> bytes:
    encoding = json.detect_encoding(content)
    if encoding == "utf-8-sig":
        # Spaces in place of the byte order mark keep every position.
        return b"   " + content[3:]
    try:
        return content.decode(encoding).encode()
    except UnicodeDecodeError as error:
        what = f"{path} is not valid {encoding.upper()} near byte {error.start:,}: {error.reason}"
        raise DataError(what, _AGAIN) from None


def _cuts(path: Path, text: _Text, start: int, piece_bytes: int) -> Iterator[tuple[int, int, int, bool]]:
    """Cut the list, or the object, that opens at ``start`` between elements.

    Yields:
        First byte of a piece, the byte after it (a comma, or the closing bracket), the number of its elements (1 for
        nothing but blanks), whether it is the last.
    """
    depth, is_inside_string, is_escaped = 0, False, False
    piece_start = start + 1
    size = len(text)
    for block_start in range(start, size, piece_bytes):
        positions, kinds, is_escaped = _block_tokens(text, block_start, piece_bytes, is_escaped=is_escaped)
        is_outside, depths = _structure(kinds, depth, is_inside_string=is_inside_string)
        closings = np.flatnonzero((depths == 0) & is_outside & (kinds == _CLOSE))
        stop = closings[0] if len(closings) else len(kinds)
        commas = np.flatnonzero((kinds[:stop] == _COMMA) & (depths[:stop] == 1) & is_outside[:stop])
        if len(closings):
            yield piece_start, block_start + int(positions[stop]), len(commas) + 1, True
            return
        if len(commas):
            cut = block_start + int(positions[commas[-1]])
            yield piece_start, cut, len(commas), False
            piece_start = cut + 1
        if len(kinds):
            depth, is_inside_string = int(depths[-1]), not is_outside[-1]
    raise DataError(f"{path} is cut off: it ends inside its list, after {size:,} bytes", _AGAIN)


def _is_in_outer_object(text: _Text, position: int) -> bool:
    """Whether a quote at this byte begins a name of the file's outermost object."""
    _, kinds, _ = _block_tokens(text, 0, position, is_escaped=False)
    is_outside, depths = _structure(kinds)
    return depths[-1:].tolist() == [1] and bool(is_outside[-1])


def _num_before(piece: bytes, position: int) -> int:
    """Count the elements of a piece that end before a byte of it."""
    _, kinds, _ = _block_tokens(piece, 0, position, is_escaped=False)
    is_outside, depths = _structure(kinds)
    return int(((kinds == _COMMA) & is_outside & (depths == 0)).sum())


def _structure(
    kinds: npt.NDArray[np.uint8], depth: int = 0, *, is_inside_string: bool = False
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Give for each token whether it stands outside of strings, and how deep in brackets the text is after it."""
    is_outside = (np.cumsum(kinds == _QUOTE, dtype=np.int64) + is_inside_string) % 2 == 0
    steps = ((kinds == _OPEN).astype(np.int8) - (kinds == _CLOSE)) * is_outside
    return is_outside, np.cumsum(steps, dtype=np.int64) + depth


def _block_tokens(
    text: _Text, start: int, length: int, *, is_escaped: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], bool]:
    """Find quotes, brackets and commas, leaving out escaped quotes: positions in the block [K] and kinds [K].

    ``is_escaped`` says whether a backslash before the block escapes its first byte; whether the block ends so is given.
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
