"""Answers to the files that the challenge sites take, and back: written whole, checked before they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data.raw_splits import listed
from trarctl.errors import DataError
from trarctl.files import write_bytes

Ids = Sequence[int] | npt.NDArray[np.integer]

MOST_BYTES = 100_000_000
"""Size from which a file cannot be a submission: all 447,793 test questions of VQA-v2 make about 20 MB."""

_VQA_FORM = 'a result file is a JSON list with one {"question_id": int, "answer": str} for each question of the split'
_CLEVR_FORM = "a result file is a text file with one answer a line, in the order of the questions file"


def write_vqa(path: Path, question_ids: Ids, answers: Sequence[str], expected_ids: Ids) -> int:
    """Write a VQA submission, if the site would take it.

    Args:
        path: the file; what stood there is replaced only once the new one is complete.
        question_ids: [Q], any order.
        answers: an answer for each of them, [Q].
        expected_ids: the questions of the whole test split, each to be answered once.

    Returns:
        Size of the file in bytes.

    Raises:
        DataError: the site would reject the file, or it cannot be written; nothing is left behind.
    """
    numbers = np.asarray(question_ids).tolist()
    if len(numbers) != len(answers):
        raise DataError(f"{len(answers):,} answers for {len(numbers):,} questions", "nothing was written")
    rows = [{"question_id": number, "answer": answer} for number, answer in zip(numbers, answers, strict=True)]
    try:
        content = orjson.dumps(rows)
    except TypeError as error:
        raise DataError(f"the answers cannot be written as JSON: {error}", "nothing was written") from error
    _refuse(vqa_problems(content, expected_ids), path)
    _write_whole(path, content)
    return len(content)


def write_clevr(
    path: Path, answers: Sequence[str], num_questions: int, known_answers: Collection[str] | None = None
) -> int:
    """Write a CLEVR submission, one answer a line in question order, if it is complete.

    Args:
        path: the file; what stood there is replaced only once the new one is complete.
        answers: in the order of the questions file, [Q].
        num_questions: questions of the split.
        known_answers: all answers that CLEVR has, if known.

    Returns:
        Size of the file in bytes.

    Raises:
        DataError: the file would be rejected, or it cannot be written; nothing is left behind.
    """
    try:
        content = "".join(f"{answer}\n" for answer in answers).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the answers cannot be written as UTF-8: {error}", "nothing was written") from error
    _refuse(clevr_problems(content, num_questions, known_answers), path)
    _write_whole(path, content)
    return len(content)


def validate_vqa(path: Path, expected_ids: Ids) -> list[str]:
    """List what the VQA site would reject in a file; empty if nothing.

    Raises:
        DataError: the file cannot be read.
    """
    return vqa_problems(_read(path), expected_ids)


def validate_clevr(path: Path, num_questions: int, known_answers: Collection[str] | None = None) -> list[str]:
    """List what is wrong with a CLEVR submission; empty if nothing.

    Raises:
        DataError: the file cannot be read.
    """
    return clevr_problems(_read(path), num_questions, known_answers)


def read_vqa(path: Path, question_ids: Ids) -> list[str]:
    """Read the answers of a VQA result file that any program made.

    Args:
        path: a JSON list of ``{"question_id": int, "answer": str}``, any order; a blank answer counts as one.
        question_ids: the questions to be answered, [Q].

    Returns:
        Answers in the order of ``question_ids``, [Q].

    Raises:
        DataError: the file cannot be read, or does not answer exactly these questions, each once.
    """
    rows, problems = _parse(_read(path))
    answered, faults = _answered(rows)
    if not problems:
        problems = faults + _id_problems([number for number, _ in answered], question_ids)
    if problems:
        raise DataError(f"{path} cannot be scored: {'; '.join(problems)}", _VQA_FORM)
    answer_of = {number: answer for number, answer in answered if answer is not None}
    return [answer_of[number] for number in np.asarray(question_ids).tolist()]


def read_clevr(path: Path, num_questions: int) -> list[str]:
    """Read the answers of a CLEVR result file: one a line, in question order; a blank line counts as an answer.

    Raises:
        DataError: the file cannot be read, or has another number of lines than there are questions.
    """
    lines, problems = _lines(_read(path))
    problems = problems or _number_problems(len(lines), num_questions)
    if problems:
        raise DataError(f"{path} cannot be scored: {'; '.join(problems)}", _CLEVR_FORM)
    return [line.rstrip("\r") for line in lines]


def vqa_problems(content: bytes, expected_ids: Ids) -> list[str]:
    """List what the VQA site would reject in a file's content; empty if nothing."""
    rows, problems = _parse(content)
    if problems:
        return problems
    answered, problems = _answered(rows)
    blank = [number for number, answer in answered if answer is not None and not answer.strip()]
    problems += _id_problems([number for number, _ in answered], expected_ids)
    if blank:
        problems.append(
            f"{_counted(len(blank), 'answer is blank', 'answers are blank')}: question {listed(blank, len(blank))}"
        )
    return problems


def clevr_problems(content: bytes, num_questions: int, known_answers: Collection[str] | None = None) -> list[str]:
    """List what is wrong with the content of a CLEVR submission; empty if nothing."""
    lines, problems = _lines(content)
    if problems:
        return problems
    problems = _number_problems(len(lines), num_questions)
    if any(line.endswith("\r") for line in lines):
        problems.append("lines end in CR LF instead of LF")
        lines = [line.removesuffix("\r") for line in lines]
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        problems.append(f"{_counted(len(blank), 'line is blank', 'lines are blank')}: line {listed(blank, len(blank))}")
    if known_answers is not None:
        known = frozenset(known_answers)
        unknown = dict.fromkeys(line for line in lines if line.strip() and line not in known)
        if unknown:
            many = _counted(len(unknown), "answer is none that CLEVR has", "answers are none that CLEVR has")
            problems.append(f"{many}: {listed(map(repr, unknown), len(unknown))}")
    return problems


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


def _answered(rows: list[object]) -> tuple[list[tuple[int, str | None]], list[str]]:
    """Take question and answer from each row that names a question; an answer that is no text is None."""
    answered: list[tuple[int, str | None]] = []
    no_object: list[str] = []
    no_question: list[str] = []
    no_answer: list[str] = []
    for position, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            no_object.append(f"row {position} is {_shown(row)}")
            continue
        number, answer = row.get("question_id"), row.get("answer")
        if not isinstance(answer, str):
            no_answer.append(f"row {position} has {_shown(answer) if 'answer' in row else 'none'}")
            answer = None
        # true and false are integers to Python, but not to the site.
        if isinstance(number, int) and not isinstance(number, bool):
            answered.append((number, answer))
        else:
            no_question.append(f"row {position} has {_shown(number) if 'question_id' in row else 'none'}")
    faults = {
        "not an object": no_object,
        "with a question_id that is no integer": no_question,
        "with an answer that is no text": no_answer,
    }
    return answered, [
        f"{_counted(len(found), 'row', 'rows')} {what}: {listed(found, len(found))}"
        for what, found in faults.items()
        if found
    ]


def _id_problems(numbers: list[int], expected_ids: Ids) -> list[str]:
    """Say which questions are missing, answered twice, or none of the split's."""
    expected = dict.fromkeys(np.asarray(expected_ids).tolist())
    found = set(numbers)
    problems = []
    missing = [number for number in expected if number not in found]
    if missing:
        problems.append(
            f"{len(missing):,} of {len(expected):,} questions have no answer: {listed(missing, len(missing))}"
        )
    if len(found) < len(numbers):
        twice = [number for number, count in Counter(numbers).items() if count > 1]
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


def _refuse(problems: Iterable[str], path: Path) -> None:
    together = "; ".join(problems)
    if together:
        raise DataError(f"the site would reject these answers: {together}", f"{path} was not written")


def _write_whole(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write {path}: {_reason(error)}", "choose another place with --out") from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
