"""CLEVR v1.0: questions about rendered scenes, scored by what kind of reasoning they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.config import EvaluatorName
from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, Published, SplitFiles, register_dataset
from trarctl.data.metrics import Accuracy, GroundTruth, count_right
from trarctl.data.records import RawData, RawSplit, RecordReader, StringTable, refuse_duplicates, single_answers
from trarctl.data.submission import LineAnswers
from trarctl.errors import DataError, listed


def read_clevr_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split; the type of a question is the last function of its program.

    Raises:
        DataError: the file is damaged, or an index appears twice.
    """
    path = raw / files.questions
    reader = RecordReader(path, "questions", progress)
    functions = StringTable()

    def take(records: list[Any]) -> list[Any]:
        columns = [
            reader.ids(records, "question_index"),
            reader.ids(records, "image_index"),
            reader.texts(records, "question"),
        ]
        if files.has_answers:
            last = _last_functions(reader, records)
            columns.append(reader.codes(records, "answer", data.answers))
            columns.append(None if last is None else functions.codes(last))
        return columns

    question_id, image_id, texts, *answers = reader.collect(take)
    refuse_duplicates(path, question_id, "question_index")
    data.num_records[files.questions] = len(question_id)
    annotations = single_answers(answers[0], answers[1], functions) if files.has_answers else None
    return RawSplit(files.name, question_id, image_id, texts, annotations)


def _last_functions(reader: RecordReader, records: list[Any]) -> list[str] | None:
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


_TYPES = ("count", "exist", "compare_numbers", "query_attribute", "compare_attribute")


def clevr_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Count right CLEVR answers by question type.

    Args:
        predictions: an answer for each question, [Q] in the order of ``truth``.
        truth: the true ones; the question types are the last functions of the programs.
        evaluator: ``official`` counts ``equal_integer`` among ``compare_numbers``, ``upstream`` among
            ``compare_attribute``, as in the published TRAR numbers.

    Raises:
        DataError: another number of predictions than questions, no question, or a function is unknown.
    """
    used = np.unique(truth.question_type).tolist()
    type_of_function = [_type(function, evaluator) for function in truth.question_types]
    unknown = [truth.question_types[code] for code in used if type_of_function[code] is None]
    if unknown:
        raise DataError(
            f"programs end in functions that CLEVR v1.0 does not have: {listed(unknown, len(unknown))}",
            "is this a CLEVR v1.0 questions file? It must be the original one",
        )
    codes = np.array([-1 if name is None else _TYPES.index(name) for name in type_of_function], dtype=np.int64)
    return count_right(predictions, truth, codes[truth.question_type], _TYPES, evaluator)


def _type(function: str, evaluator: EvaluatorName) -> str | None:
    if function in ("count", "exist"):
        return function
    if function in ("greater_than", "less_than"):
        return "compare_numbers"
    if function == "equal_integer":
        return "compare_numbers" if evaluator == "official" else "compare_attribute"
    if function.startswith("query_"):
        return "query_attribute"
    if function in ("equal_color", "equal_shape", "equal_size", "equal_material"):
        return "compare_attribute"
    return None


def _split(name: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    questions = f"questions/CLEVR_{name}_questions.json"
    return SplitFiles(name, name, questions, None, has_answers, num_questions, has_answers)


def _images(name: str, num_images: int, *, is_required: bool = True) -> ImageSetFiles:
    images = FileNaming(f"CLEVR_{name}_", 6, ".png")
    return ImageSetFiles(name, num_images, is_required, images, FileNaming("", 1, ".npz"))


CLEVR = register_dataset(
    DatasetSpec(
        name="clevr",
        title="CLEVR: rendered scenes of cubes, spheres and cylinders",
        splits=(_split("train", 699_989), _split("val", 149_991), _split("test", 149_988, has_answers=False)),
        image_sets=(
            _images("train", 70_000),
            _images("val", 15_000),
            _images("test", 15_000, is_required=False),
        ),
        read_split=read_clevr_split,
        grid_size=14,
        download_hint="unpack CLEVR_v1.0.zip (https://cs.stanford.edu/people/jcjohns/clevr/) and pass its folder as"
        " --raw",
        metric=clevr_accuracy,
        answer_file=LineAnswers("CLEVR"),
        # Model card of TRAR-VQA (2021): trained on train, by the original's evaluator.
        published={
            "val": (
                Published(
                    "hard, fc, binarize",
                    99.08,
                    dict(zip(_TYPES, (97.61, 99.54, 99.42, 99.62, 99.40), strict=True)),
                ),
            )
        },
    )
)
