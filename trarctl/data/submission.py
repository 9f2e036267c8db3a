"""Answers to files that challenge sites take, and back: written whole, checked before they are written.

A data set chooses one of the formats here, or brings its own ``AnswerFile``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.errors import DataError, listed
from trarctl.files import write_bytes

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData, PreparedSplit

Ids = Sequence[int] | Sequence[str] | npt.NDArray[np.generic]

MOST_BYTES = 100_000_000
"""Size from which a file cannot be a submission: all 447,793 test questions of VQA-v2 make about 20 MB."""


class AnswerFile(Protocol):
    """A format for the answers to a whole split."""

    @property
    def suffix(self) -> str:
        """Ending of the files: ``.json``."""

    def write(
        self, path: Path, question_ids: Ids, answers: Sequence[str], data: PreparedData, split: PreparedSplit
    ) -> int:
        """Write answers, if the site would take them; what stood there is replaced only once all is written.

        Args:
            path: the file.
            question_ids: [Q], in any order that the format allows.
            answers: an answer for each of them, [Q].
            data: the prepared data.
            split: the questions of which each is to be answered once.

        Returns:
            Size of the file in bytes.

        Raises:
            DataError: the site would reject the file, or it cannot be written; nothing is left behind.
        """

    def problems(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:
        """List what the site would reject in a file; empty if nothing.

        Raises:
            DataError: the file cannot be read.
        """

    def read(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:
        """Read the answers to a split in file order, [Q]; a blank answer counts as one.

        Raises:
            DataError: the file cannot be read, or does not answer exactly these questions, each once.
        """


@dataclass(frozen=True)
class JsonAnswers:
    """A JSON list of ``{"question_id": ID, "answer": TEXT}`` in any order, as the VQA site takes it.

    Ids are integers or texts, as the data set has them.
    """

    suffix: str = ".json"

    def write(
        self,
        path: Path,
        question_ids: Ids,
        answers: Sequence[str],
        data: PreparedData,  # noqa: ARG002
        split: PreparedSplit,
    ) -> int:
        """Write answers; see ``AnswerFile``."""
        ids = np.asarray(question_ids).tolist()
        _check_length(ids, answers)
        rows = [{"question_id": one, "answer": answer} for one, answer in zip(ids, answers, strict=True)]
        try:
            content = orjson.dumps(rows)
        except TypeError as error:
            raise DataError(f"the answers cannot be written as JSON: {error}", "nothing was written") from error
        return _write(path, content, self._problems(content, split))

    def problems(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        """List what the site would reject; see ``AnswerFile``."""
        return self._problems(_read(path), split)

    def read(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        """Read answers; see ``AnswerFile``."""
        ids = np.asarray(split.question_id).tolist()
        rows, problems = _parse(_read(path))
        answered, faults = _answered(rows, _kind(ids))
        problems = problems or faults + _id_problems([one for one, _ in answered], ids)
        if problems:
            kind = "int" if _kind(ids) is int else "str"
            raise DataError(
                f"{path} cannot be scored: {'; '.join(problems)}",
                f'a result file is a JSON list with one {{"question_id": {kind}, "answer": str}} for each question of'
                " the split",
            )
        answer_of = dict(answered)
        return [answer_of[one] or "" for one in ids]

    def _problems(self, content: bytes, split: PreparedSplit) -> list[str]:
        rows, problems = _parse(content)
        if problems:
            return problems
        ids = np.asarray(split.question_id).tolist()
        answered, problems = _answered(rows, _kind(ids))
        blank = [one for one, answer in answered if answer is not None and not answer.strip()]
        problems += _id_problems([one for one, _ in answered], ids)
        if blank:
            many = _counted(len(blank), "answer is blank", "answers are blank")
            problems.append(f"{many}: question {listed(blank, len(blank))}")
        return problems


@dataclass(frozen=True)
class LineAnswers:
    """A text file with one answer a line, in the order of the questions, as the CLEVR site takes it.

    Attributes:
        owner: the data set in words; an answer that it does not have is a problem.
    """

    owner: str
    suffix: str = ".txt"

    def write(
        self, path: Path, question_ids: Ids, answers: Sequence[str], data: PreparedData, split: PreparedSplit
    ) -> int:
        """Write answers in the order of the questions; see ``AnswerFile``."""
        _check_length(question_ids, answers)
        try:
            content = "".join(f"{answer}\n" for answer in answers).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the answers cannot be written as UTF-8: {error}", "nothing was written") from error
        problems = self._problems(content, len(split), data.answers)
        if not problems and not np.array_equal(np.asarray(question_ids), split.question_id):
            problems = ["they are not in the order of the questions"]
        return _write(path, content, problems)

    def problems(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:
        """List what the site would reject; see ``AnswerFile``."""
        return self._problems(_read(path), len(split), data.answers)

    def read(self, path: Path, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        """Read answers; see ``AnswerFile``."""
        lines, problems = _lines(_read(path))
        problems = problems or _number_problems(len(lines), len(split))
        if problems:
            raise DataError(
                f"{path} cannot be scored: {'; '.join(problems)}",
                "a result file is a text file with one answer a line, in the order of the questions file",
            )
        return [line.rstrip("\r") for line in lines]

    def _problems(self, content: bytes, num_questions: int, known_answers: Collection[str]) -> list[str]:
        lines, problems = _lines(content)
        if problems:
            return problems
        problems = _number_problems(len(lines), num_questions)
        if any(line.endswith("\r") for line in lines):
            problems.append("lines end in CR LF instead of LF")
            lines = [line.removesuffix("\r") for line in lines]
        blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
        if blank:
            many = _counted(len(blank), "line is blank", "lines are blank")
            problems.append(f"{many}: line {listed(blank, len(blank))}")
        known = frozenset(known_answers)
        unknown = dict.fromkeys(line for line in lines if line.strip() and line not in known)
        if unknown:
            many = _counted(
                len(unknown), f"answer is none that {self.owner} has", f"answers are none that {self.owner} has"
            )
            problems.append(f"{many}: {listed(map(repr, unknown), len(unknown))}")
        return problems


def _check_length(question_ids: Ids, answers: Sequence[str]) -> None:
    if len(question_ids) != len(answers):
        raise DataError(f"{len(answers):,} answers for {len(question_ids):,} questions", "nothing was written")


def _kind(ids: Sequence[object]) -> type[int] | type[str]:
    return str if ids and isinstance(ids[0], str) else int


def _parse(content: bytes) -> tuple[list[object], list[str]]:
    """Parse the JSON list, or say why it is none."""
    problems = _size_problems(content)
    if problems:
        return [], problems
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        return [], [_encoding_problem(content) or f"it is not valid JSON: {error}"]
    if not isinstance(rows, list):
        return [], [f"it is not a JSON list but {_shown(rows)}"]
    return rows, []


def _lines(content: bytes) -> tuple[list[str], list[str]]:
    """Split a text file into its lines, or say why it is none."""
    problem = _encoding_problem(content)
    problems = _size_problems(content) or ([problem] if problem else [])
    if problems:
        return [], problems
    return content.decode().removesuffix("\n").split("\n"), []


def _size_problems(content: bytes) -> list[str]:
    if not content:
        return ["it is empty"]
    if len(content) > MOST_BYTES:
        return [
            f"it is {len(content) / 1e6:,.0f} MB large, more than the {MOST_BYTES / 1e6:,.0f} MB that are plausible"
        ]
    return []


def _encoding_problem(content: bytes) -> str | None:
    if content.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 text (byte {error.start:,})"
    return None


def _answered(rows: list[object], kind: type[int] | type[str]) -> tuple[list[tuple[int | str, str | None]], list[str]]:
    """Take question and answer from each row that names a question; an answer that is no text is None."""
    answered: list[tuple[int | str, str | None]] = []
    no_object: list[str] = []
    no_question: list[str] = []
    no_answer: list[str] = []
    for position, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            no_object.append(f"row {position} is {_shown(row)}")
            continue
        one, answer = row.get("question_id"), row.get("answer")
        if not isinstance(answer, str):
            no_answer.append(f"row {position} has {_shown(answer) if 'answer' in row else 'none'}")
            answer = None
        # The exact type, since true and false are integers to Python, but not to the site.
        if type(one) is kind:
            answered.append((one, answer))
        else:
            no_question.append(f"row {position} has {_shown(one) if 'question_id' in row else 'none'}")
    faults = {
        "not an object": no_object,
        f"with a question_id that is no {'integer' if kind is int else 'text'}": no_question,
        "with an answer that is no text": no_answer,
    }
    return answered, [
        f"{_counted(len(found), 'row', 'rows')} {what}: {listed(found, len(found))}"
        for what, found in faults.items()
        if found
    ]


def _id_problems(ids: Sequence[int | str], expected_ids: Sequence[int | str]) -> list[str]:
    """Say which questions are missing, answered twice, or none of the split's."""
    expected = dict.fromkeys(expected_ids)
    found = set(ids)
    problems = []
    missing = [one for one in expected if one not in found]
    if missing:
        problems.append(
            f"{len(missing):,} of {len(expected):,} questions have no answer: {listed(missing, len(missing))}"
        )
    if len(found) < len(ids):
        twice = [one for one, count in Counter(ids).items() if count > 1]
        many = _counted(len(twice), "question is answered", "questions are answered")
        problems.append(f"{many} more than once: {listed(twice, len(twice))}")
    unknown = found.difference(expected)
    if unknown:
        many = _counted(len(unknown), "question_id is none", "question_ids are none")
        problems.append(f"{many} of this split: {listed(sorted(unknown), len(unknown))}")
    return problems


def _number_problems(num_lines: int, num_questions: int) -> list[str]:
    if num_lines == num_questions:
        return []
    return [f"{_counted(num_lines, 'line', 'lines')} for {num_questions:,} questions"]


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else f"{text[:37]}..."


def _read(path: Path) -> bytes:
    try:
        # A pipe that nobody writes to would wait for ever.
        if not path.is_file():
            raise DataError(f"there is no file {path}", "name a file with answers")
        with path.open("rb") as file:
            # One byte more shows that a file is too large, and no more of it is worth the memory.
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}", "name a file with answers") from error


def _write(path: Path, content: bytes, problems: Sequence[str]) -> int:
    """Write a file unless something is wrong with it, and give its size."""
    if problems:
        raise DataError(f"the site would reject these answers: {'; '.join(problems)}", f"{path} was not written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {_reason(error)}", "choose another place with --out") from error
    return len(content)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
