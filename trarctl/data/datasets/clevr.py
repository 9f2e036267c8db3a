"""Read questions and answers in the layout of CLEVR v1.0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data.datasets.base import SplitFiles
from trarctl.data.flat_text import FlatTextBuilder
from trarctl.data.progress import Progress
from trarctl.data.raw_splits import (
    NUM_ANNOTATORS,
    RawAnnotations,
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    refuse_duplicates,
)
from trarctl.data.records import read_records
from trarctl.errors import DataError


def read_clevr_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split of CLEVR; the type of a question is the last function of its program.

    Args:
        raw: folder of the raw files.
        files: the split's files.
        data: collects answers and record counts.
        progress: told the bytes read.

    Raises:
        DataError: the file is damaged, or an index appears twice.
    """
    path = raw / files.questions
    reader = RecordReader(path)
    texts = FlatTextBuilder()
    functions = StringTable()
    question_ids, image_ids, answers, types = [], [], [], []
    for records in read_records(path, "questions", progress=progress):
        reader.start(records)
        ids = reader.ids(records, "question_index")
        images = reader.ids(records, "image_index")
        questions = reader.column(records, "question", str)
        given = reader.column(records, "answer", str) if files.has_answers else []
        last_functions = _last_functions(reader, records) if files.has_answers else []
        if ids is None or images is None or questions is None or given is None or last_functions is None:
            continue
        question_ids.append(np.array(ids, dtype=np.int64))
        image_ids.append(np.array(images, dtype=np.int64))
        texts.extend(questions)
        answers.append(data.answers.codes(given))
        types.append(functions.codes(last_functions))
    reader.finish()
    if reader.num_records == 0:
        raise DataError(f"{path} holds no questions", "download it again")
    question_id = np.concatenate(question_ids)
    refuse_duplicates(path, question_id, "question_index")
    data.num_records[files.questions] = len(question_id)
    annotations = None
    if files.has_answers:
        annotations = single_answers(np.concatenate(answers), np.concatenate(types), tuple(functions))
    return RawSplit(files.name, question_id, np.concatenate(image_ids), texts.build(), annotations)


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


def _last_functions(reader: RecordReader, records: list[object]) -> list[str] | None:
    """Give the last function of each program; some copies call the field ``type``."""
    programs = reader.column(records, "program", list)
    if programs is None:
        return None
    try:
        steps = [program[-1] for program in programs]
        functions = [step["function"] if "function" in step else step["type"] for step in steps]
    except (KeyError, TypeError, IndexError):
        functions = [None]
    if set(map(type, functions)) <= {str}:
        return functions
    for number, program in enumerate(programs):
        step = program[-1] if program else None
        if not (isinstance(step, dict) and type(step.get("function", step.get("type"))) is str):
            reader.report(number, "has a program without a last function")
    return None
