"""One split as the raw files have it, in flat arrays: what every data set is read into.

Axes: Q questions in file order, A annotations in file order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trarctl.data.flat_text import FlatText
from trarctl.errors import DataError

NUM_ANNOTATORS = 10
_LARGEST_ID = 2**63 - 1
_NUM_LISTED = 10

Value = TypeVar("Value")


class StringTable(dict[str, int]):
    """Strings numbered in order of first appearance; asking for a new one numbers it."""

    def __missing__(self, text: str) -> int:
        """Number a new string."""
        self[text] = number = len(self)
        return number

    def codes(self, texts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Give the numbers of strings, [len(texts)]."""
        return np.fromiter(map(self.__getitem__, texts), dtype=np.int32, count=len(texts))


@dataclass(frozen=True)
class RawAnnotations:
    """Answers of a split.

    Args:
        rows: question row of each annotation, [A].
        answers: codes of the annotators' answers, [A, 10], -1 where fewer than ten.
        chosen: code of the answer that counts for the answer vocabulary, [A]; -1 for none.
        answer_type: codes into ``answer_types``, [A].
        answer_types: their names.
        question_type: codes into ``question_types``, [A].
        question_types: their names.
        has_one_answer: whether the first answer is the only one and counts for all ten annotators.
    """

    rows: npt.NDArray[np.int32]
    answers: npt.NDArray[np.int32]
    chosen: npt.NDArray[np.int32]
    answer_type: npt.NDArray[np.int16]
    answer_types: tuple[str, ...]
    question_type: npt.NDArray[np.int16]
    question_types: tuple[str, ...]
    has_one_answer: bool = False


@dataclass(frozen=True)
class RawSplit:
    """Questions of a split, and its answers where it has them.

    Args:
        name: the split.
        question_id: [Q].
        image_id: [Q].
        texts: the questions, Q of them.
        annotations: None for a split without answers.
    """

    name: str
    question_id: npt.NDArray[np.int64]
    image_id: npt.NDArray[np.int64]
    texts: FlatText
    annotations: RawAnnotations | None


def single_answers(
    answers: npt.NDArray[np.int32], types: npt.NDArray[np.int32], type_names: tuple[str, ...]
) -> RawAnnotations:
    """Describe questions that have one answer each, in the order of the questions.

    Args:
        answers: codes of the answers, [Q].
        types: codes of the question types, [Q].
        type_names: their names.
    """
    codes = np.full((len(answers), NUM_ANNOTATORS), -1, dtype=np.int32)
    codes[:, 0] = answers
    return RawAnnotations(
        rows=np.arange(len(answers), dtype=np.int32),
        answers=codes,
        chosen=answers,
        answer_type=types.astype(np.int16),
        answer_types=type_names,
        question_type=types.astype(np.int16),
        question_types=type_names,
        has_one_answer=True,
    )


@dataclass
class RawData:
    """All splits of a data set, sharing one table of answers."""

    splits: list[RawSplit] = field(default_factory=list)
    answers: StringTable = field(default_factory=StringTable)
    warnings: list[str] = field(default_factory=list)
    num_records: dict[str, int] = field(default_factory=dict)


def listed(items: Iterable[object], count: int) -> str:
    """Write out the first ten of ``count`` things: ``1, 2, 3 and 4 more``."""
    shown = [str(item) for item in islice(items, _NUM_LISTED)]
    return ", ".join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")


class RecordReader:
    """Takes fields out of the records of one file and collects what is wrong with them.

    Args:
        path: the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_records = 0
        self._first = 0
        self._problems: list[str] = []
        self._unusable: set[int] = set()

    def start(self, records: Sequence[object]) -> None:
        """Begin with the next records of the file."""
        self._first = self.num_records
        self.num_records += len(records)

    def column(
        self,
        records: Sequence[object],
        name: str,
        kind: type[Value],
        *,
        default: Value | None = None,
        is_valid: Callable[[Value], bool] | None = None,
    ) -> list[Value] | None:
        """Take a field out of every record.

        Args:
            records: JSON objects.
            name: the field.
            kind: what its values have to be, exactly: True is no int.
            default: stands in where the field is missing; None: it must not be missing.
            is_valid: what else has to be true of a value.

        Returns:
            The values, or None if some are unusable; they are reported by ``finish``.
        """
        try:
            if default is None:
                values = [record[name] for record in records]  # type: ignore[index]
            else:
                values = [record.get(name, default) for record in records]  # type: ignore[attr-defined]
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

    def ids(self, records: Sequence[object], name: str) -> list[int] | None:
        """Take a number that identifies something: an integer from 0 that fits 64 bits."""
        return self.column(records, name, int, is_valid=_is_id)

    def report(self, number: int, problem: str) -> None:
        """Note that a record, counted from where ``start`` began, is unusable; the first reason is kept."""
        if self._first + number in self._unusable:
            return
        self._unusable.add(self._first + number)
        if len(self._problems) < _NUM_LISTED:
            self._problems.append(f"record {self._first + number:,} {problem}")

    def finish(self) -> None:
        """Refuse the file if anything was wrong.

        Raises:
            DataError: naming the first ten unusable records and the number of the others.
        """
        if self._unusable:
            what = listed(self._problems, len(self._unusable))
            raise DataError(f"{self.path}: {what}", "download the file again, or mend these records")


_KIND_NAMES: dict[type, str] = {int: "an integer", str: "a text", list: "a list"}


def _is_id(value: int) -> bool:
    return 0 <= value <= _LARGEST_ID


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def refuse_duplicates(path: Path, ids: npt.NDArray[np.int64], name: str) -> None:
    """See that no id appears twice.

    Raises:
        DataError: naming those that do.
    """
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        raise DataError(f"{path}: {name} {listed(twice, len(twice))} appears more than once", "download the file again")


def rows_of(wanted: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Look up ids.

    Args:
        wanted: [W].
        ids: unique, in any order, [I].

    Returns:
        The place of each wanted id in ``ids``, -1 where it is missing, [W].
    """
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    found = order[places]
    return np.where(ids[found] == wanted, found, -1)
