"""Answers to files that challenge sites take, and back: checked before they are written, and written whole.

A data set chooses one of the formats here, or brings an ``AnswerFile`` of its own.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trarctl.data.records import Ids, shown
from trarctl.errors import DataError, listed
from trarctl.files import write_output

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData, PreparedSplit

MOST_BYTES = 400_000_000
"""Size from which a file cannot be a submission: the 4.2 million questions that GQA's server takes make 200 MB."""


class AnswerFile(ABC):
    """A format for the answers to a whole split; a subclass says how answers are encoded, checked and decoded."""

    suffix: str  # ending of the files
    encoding: str  # what they are written in, for messages
    form: str  # what such a file is, for the hint of an error
    is_ordered = False  # whether the answers have to be in the order of the questions

    @abstractmethod
    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        """Turn an answer to each question into the content of a file; may raise UnicodeError or TypeError."""

    @abstractmethod
    def faults(self, content: bytes, data: PreparedData, split: PreparedSplit) -> list[str]:
        """List what the site would reject in the content of a file; empty if nothing."""

    @abstractmethod
    def decode(self, content: bytes, split: PreparedSplit) -> tuple[list[str], list[str]]:
        """Give the answers to the questions of a split in file order, a blank one counting as one; and problems."""

    def for_file(self, path: Path, probabilities: NDArray[np.float32] | None = None) -> AnswerFile:  # noqa: ARG002
        """Give the format of a file by its ending; with probabilities of the answers [Q], if it has room for them."""
        return self

    def write(
        self, path: Path, question_ids: Ids, answers: Sequence[str], data: PreparedData, split: PreparedSplit
    ) -> int:
        """Write answers to the questions [Q] of a split, and give the size of the file in bytes.

        What stood there is replaced only once all is written. A DataError says why the site would reject the file, or
        why it cannot be written.
        """
        if len(question_ids) != len(answers):
            raise DataError(f"{len(answers):,} answers for {len(question_ids):,} questions", "nothing was written")
        try:
            content = self.encode(question_ids, answers)
        except (UnicodeError, TypeError) as error:
            what = f"the answers cannot be written as {self.encoding}: {error}"
            raise DataError(what, "nothing was written") from error
        problems = self.faults(content, data, split)
        if self.is_ordered and not problems and not np.array_equal(question_ids, split.question_id):
            problems = ["they are not in the order of the questions"]
        if problems:
            raise DataError(f"the site would reject these answers: {'; '.join(problems)}", f"{path} was not written")
        hint = "choose another file with --out"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_output(path, content, hint)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot write {path}: {_reason(error)}", hint) from error
        return len(content)

    def problems(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:
        """List what the site would reject in a file; DataError if it cannot be read."""
        return self.faults(_read(path), data, split)

    def read(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        """Read the answers to a split, [Q]; DataError if the file does not answer exactly its questions, each once."""
        answers, problems = self.decode(_read(path), split)
        if problems:
            raise DataError(f"{path} cannot be scored: {'; '.join(problems)}", self.form)
        return answers


class JsonAnswers(AnswerFile):
    """A JSON list as the VQA site takes it, in any order; ids are integers or texts, as the data set has them.

    ``id_name`` and ``answer_name`` are its fields; ``id_kind`` is what an id is, for messages.
    """

    suffix = ".json"
    encoding = "JSON"

    def __init__(self, id_name: str = "question_id", answer_name: str = "answer", id_kind: str = "int") -> None:
        self.id_name, self.answer_name = id_name, answer_name
        row = f'{{"{id_name}": {id_kind}, "{answer_name}": str}}'
        self.form = f"a result file is a JSON list with one {row} for each question of the split"

    def records(self, question_ids: Ids, answers: Sequence[str]) -> list[dict[str, Any]]:
        """Give each question's row."""
        ids = np.asarray(question_ids).tolist()
        return [{self.id_name: one, self.answer_name: answer} for one, answer in zip(ids, answers, strict=True)]

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        """See ``AnswerFile``."""
        return orjson.dumps(self.records(question_ids, answers))

    def faults(self, content: bytes, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        """See ``AnswerFile``."""
        answered, problems = self._answered(content, split)
        if answered is None:
            return problems
        blank = [one for one, answer in answered if answer is not None and not answer.strip()]
        if blank:
            many = _counted(len(blank), "answer is blank", "answers are blank")
            problems.append(f"{many}: question {listed(blank)}")
        return problems

    def decode(self, content: bytes, split: PreparedSplit) -> tuple[list[str], list[str]]:
        """See ``AnswerFile``."""
        answered, problems = self._answered(content, split)
        answer_of = dict(answered or [])
        return [answer_of.get(one) or "" for one in np.asarray(split.question_id).tolist()], problems

    def _rows(self, content: bytes, kind: type) -> tuple[list[object] | None, str]:  # noqa: ARG002
        """List the answers as objects with both fields, or say why there are none; ``kind`` is the type of an id."""
        return _parsed(content)

    def _answered(
        self, content: bytes, split: PreparedSplit
    ) -> tuple[list[tuple[int | str, str | None]] | None, list[str]]:
        """Take question and answer from each row that names a question (None: an answer that is not text); problems."""
        expected = np.asarray(split.question_id).tolist()
        kind = str if expected and isinstance(expected[0], str) else int
        rows, problem = self._rows(content, kind)
        if rows is None:
            return None, [problem]
        answered: list[tuple[int | str, str | None]] = []
        no_object, no_question, no_answer = list[str](), list[str](), list[str]()
        no_id = f"with {_article(self.id_name)} that is not {'an integer' if kind is int else 'text'}"
        no_text = f"with {_article(self.answer_name)} that is not text"
        odd = {"not an object": no_object, no_id: no_question, no_text: no_answer}
        fields: dict[str, None] = {}
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                no_object.append(f"row {number} is {_shown(row)}")
                continue
            one, answer = row.get(self.id_name), row.get(self.answer_name)
            if not isinstance(answer, str):
                no_answer.append(f"row {number} has {_shown(answer) if self.answer_name in row else 'none'}")
                answer = None
            if not {self.id_name, self.answer_name} <= row.keys():
                fields |= dict.fromkeys(row)
            # The exact type, since true and false are integers to Python, but not to the site.
            if type(one) is kind:
                answered.append((one, answer))
            else:
                no_question.append(f"row {number} has {_shown(one) if self.id_name in row else 'none'}")
        rows_of = {what: f"{_counted(len(found), 'row', 'rows')} {what}" for what, found in odd.items()}
        problems = [f"{rows_of[what]}: {listed(found)}" for what, found in odd.items() if found]
        if others := [_shown(name) for name in fields if name not in (self.id_name, self.answer_name)]:
            problems[-1] += f"; their other fields: {listed(others)}"
        ids = [one for one, _ in answered]
        is_part = 0 < len(set(ids)) < len(expected) and set(ids) <= set(expected)
        if is_part and not split.is_annotated:
            problems.append(f"only a part of {split.name} is answered, such as test-dev; the site takes all of it")
        return answered, problems + id_problems(ids, expected, self.id_name)


class ObjectAnswers(JsonAnswers):
    """A JSON object that has an object with the answer for each question's id, which is text, as A-OKVQA's site does.

    ``answer_name`` is the answer's field; others may stand beside it. Answers that are texts alone are read, as
    A-OKVQA's own evaluation script reads them, but its site does not take them.
    """

    def __init__(self, answer_name: str) -> None:
        super().__init__("question_id", answer_name)
        row = f'{{"QUESTION_ID": {{"{answer_name}": str}}}}'
        self.form = f"a result file is a JSON object {row} with one entry for each question of the split"

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        """See ``AnswerFile``."""
        ids = np.asarray(question_ids).tolist()
        return orjson.dumps({one: {self.answer_name: answer} for one, answer in zip(ids, answers, strict=True)})

    def _rows(self, content: bytes, kind: type) -> tuple[list[object] | None, str]:  # noqa: ARG002
        """See ``JsonAnswers``."""
        document, problem = _json(content)
        if problem or not isinstance(document, dict):
            return None, problem or f"it is not a JSON object but {_shown(document)}"
        pairs: list[tuple[str, object]] = []

        def keep_all(found: list[tuple[str, object]]) -> dict[str, object]:
            # The outermost object is the last one to end; a name that stands in it twice is two answers.
            pairs[:] = found
            return dict(found)

        try:
            json.loads(content, object_pairs_hook=keep_all)
        except RecursionError:
            return None, "it is nested too deeply"
        rows = ((one, {self.answer_name: row} if isinstance(row, str) else row) for one, row in pairs)
        return [row | {self.id_name: one} if isinstance(row, dict) else row for one, row in rows], ""

    def faults(self, content: bytes, data: PreparedData, split: PreparedSplit) -> list[str]:
        """See ``AnswerFile``."""
        problems = super().faults(content, data, split)
        document, _ = _json(content)
        alone = [one for one, row in document.items() if isinstance(row, str)] if isinstance(document, dict) else []
        if alone:
            many = _counted(len(alone), "answer is a text", "answers are texts")
            problems.append(f"{many} alone, not an object with {self.answer_name}: question {listed(alone)}")
        return problems


class TableAnswers(JsonAnswers):
    """One JSON object a line, with the id of a question of one's own, the answer to it, and its probability.

    A file that ends in ``.csv`` has the same as columns. Probabilities are not read again.
    """

    suffix = ".jsonl"
    encoding = "JSON Lines"

    def __init__(self, probabilities: NDArray[np.float32] | None = None) -> None:
        super().__init__("id")
        self.probabilities = probabilities
        self.form = 'a result file has a line {"id": ID, "answer": str} for each question of the split'

    def for_file(self, path: Path, probabilities: NDArray[np.float32] | None = None) -> AnswerFile:
        """See ``AnswerFile``."""
        return (CsvAnswers if path.suffix.lower() == ".csv" else TableAnswers)(probabilities)

    def records(self, question_ids: Ids, answers: Sequence[str]) -> list[dict[str, Any]]:
        """See ``JsonAnswers``."""
        rows = super().records(question_ids, answers)
        if self.probabilities is not None:
            for row, share in zip(rows, self.probabilities.tolist(), strict=True):
                row["probability"] = round(share, 4)
        return rows

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        """See ``AnswerFile``."""
        return b"".join(orjson.dumps(row) + b"\n" for row in self.records(question_ids, answers))

    def _rows(self, content: bytes, kind: type) -> tuple[list[object] | None, str]:  # noqa: ARG002
        """See ``JsonAnswers``."""
        if problem := _no_text(content):
            return None, problem
        rows = list[object]()
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                rows += [orjson.loads(line)] if line.strip() else []
            except orjson.JSONDecodeError as error:
                return None, f"line {number:,} is not valid JSON: {error}"
        return rows, ""


class CsvAnswers(TableAnswers):
    """``TableAnswers`` as comma-separated columns under the names of its fields."""

    suffix = ".csv"
    encoding = "CSV"

    def __init__(self, probabilities: NDArray[np.float32] | None = None) -> None:
        super().__init__(probabilities)
        self.form = "a result file has the header id,answer and a line for each question of the split"

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        """See ``AnswerFile``."""
        rows, text = self.records(question_ids, answers), io.StringIO()
        writer = csv.DictWriter(text, rows[0] if rows else (self.id_name, self.answer_name), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def _rows(self, content: bytes, kind: type) -> tuple[list[object] | None, str]:
        """See ``JsonAnswers``."""
        content = content.removeprefix(codecs.BOM_UTF8)  # which spreadsheets write
        if problem := _no_text(content):
            return None, problem
        try:
            rows: list[Any] = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
        except csv.Error as error:
            return None, f"it is not valid CSV: {error}"
        for row in rows:
            text = row.get(self.id_name)
            if kind is int and text is not None and re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII):
                row[self.id_name] = int(text)
        return rows, ""


class LineAnswers(AnswerFile):
    """A text file with one answer a line, as the CLEVR site takes it; ``owner`` is the data set in words."""

    suffix = ".txt"
    encoding = "UTF-8"
    is_ordered = True
    form = "a result file is a text file with one answer a line, in the order of the questions file"

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:  # noqa: ARG002
        """See ``AnswerFile``."""
        return "".join(f"{answer}\n" for answer in answers).encode()

    def faults(self, content: bytes, data: PreparedData, split: PreparedSplit) -> list[str]:
        """See ``AnswerFile``."""
        lines, problems = self._lines(content, split)
        if any("\r" in line for line in lines):
            is_pair = all(line.find("\r") in (-1, len(line) - 1) for line in lines) and len(lines) > 1
            problems.append(f"lines end in {'CR LF' if is_pair else 'CR'} instead of LF")
            lines = [line for text in lines for line in text.removesuffix("\r").split("\r")]
        blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
        if blank:
            many = _counted(len(blank), "line is blank", "lines are blank")
            problems.append(f"{many}: line {listed(blank)}")
        known = frozenset(data.answers)
        unknown = [line for line in lines if line.strip() and line not in known]
        if unknown:
            distinct = dict.fromkeys(unknown)
            almost = sum(line.strip().lower() in known for line in unknown)
            why = f" ({almost:,} for a blank or a capital letter alone)" if almost else ""
            what = f"{len(unknown):,} of {len(lines):,} answers are none that {self.owner} has{why}"
            problems.append(f"{what}: {listed(map(repr, distinct))}")
        return problems

    def decode(self, content: bytes, split: PreparedSplit) -> tuple[list[str], list[str]]:
        """See ``AnswerFile``."""
        lines, problems = self._lines(content, split)
        return [line.rstrip("\r") for line in lines], problems

    def _lines(self, content: bytes, split: PreparedSplit) -> tuple[list[str], list[str]]:
        if problem := _no_text(content):
            return [], [problem]
        lines = content.decode().removesuffix("\n").split("\n")
        is_complete = len(lines) == len(split)
        return lines, [] if is_complete else [f"{_counted(len(lines), 'line', 'lines')} for {len(split):,} questions"]


def _json(content: bytes) -> tuple[object, str]:
    """Parse JSON, or say why it is none."""
    problem = _wrong_size(content)
    if problem:
        return None, problem
    try:
        return orjson.loads(content), ""
    except orjson.JSONDecodeError as error:
        return None, _no_text(content) or _json_lines(content) or f"it is not valid JSON: {error}"


def _parsed(content: bytes) -> tuple[list[object] | None, str]:
    """Parse a JSON list, or say why it is none."""
    rows, problem = _json(content)
    if problem:
        return None, problem
    if isinstance(rows, list):
        return rows, ""
    lists = [(key, value) for key, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
    inside = "".join(f"; its key {_shown(key)} holds a list of {len(value):,}" for key, value in lists[:3])
    return None, f"it is not a JSON list but {_shown(rows)}{inside}"


def _json_lines(content: bytes) -> str:
    """Say that content is one JSON object a line; empty if it is not."""
    lines = content.split(b"\n", 2)
    try:
        is_lines = len(lines) > 1 and all(isinstance(orjson.loads(line), dict) for line in lines[:2] if line.strip())
    except orjson.JSONDecodeError:
        is_lines = False
    return "it is JSON Lines, one object a line; expected one list of all" if is_lines else ""


def _wrong_size(content: bytes) -> str:
    if not content:
        return "it is empty"
    if len(content) > MOST_BYTES:
        return f"it is {len(content) / 1e6:,.0f} MB large, more than the {MOST_BYTES / 1e6:,.0f} MB that are plausible"
    return ""


def _no_text(content: bytes) -> str:
    """Say why content is no text of a sensible size; empty if it is."""
    if content.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return _wrong_size(content) or f"it is not UTF-8 text (byte {error.start:,})"
    return _wrong_size(content)


def id_problems(ids: Sequence[int | str], expected_ids: Sequence[int | str], id_name: str = "question_id") -> list[str]:
    """Say which questions are missing, answered twice, or none of the split's."""
    expected = dict.fromkeys(expected_ids)
    found = set(ids)
    problems = []
    missing = [one for one in expected if one not in found]
    if missing:
        many = f"{len(missing):,} of {len(expected):,} questions"
        problems.append(f"{many} have no answer: {listed(missing)}")
    if len(found) < len(ids):
        twice = [one for one, count in Counter(ids).items() if count > 1]
        many = _counted(len(twice), "question is answered", "questions are answered")
        problems.append(f"{many} more than once: {listed(twice)}")
    unknown = found.difference(expected)
    if unknown:
        many = _counted(len(unknown), f"{id_name} is", f"{id_name}s are")
        problems.append(f"{many} not in this split: {listed(sorted(unknown))}")
    return problems


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return shown(value)


def _read(path: Path) -> bytes:
    try:
        # A pipe that nobody writes to would wait forever.
        if not path.is_file():
            raise DataError(f"there is no file {path}", "name a file with answers")
        with path.open("rb") as file:
            # One byte more shows that a file is too large, and no more of it is worth the memory.
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}", "name a file with answers") from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
