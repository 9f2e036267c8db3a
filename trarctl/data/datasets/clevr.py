"""CLEVR v1.0: questions about rendered scenes, scored by what kind of reasoning they ask for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.config import EvaluatorName
from trarctl.data import Progress
from trarctl.data.datasets.base import (
    DatasetSpec,
    FileNaming,
    ImageSetFiles,
    Published,
    SplitFiles,
    check_declared,
    register_dataset,
)
from trarctl.data.download import Download
from trarctl.data.metrics import Accuracy, GroundTruth, count_right
from trarctl.data.records import (
    Ids,
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    refuse_duplicates,
    shown,
    single_answers,
)
from trarctl.data.submission import LineAnswers
from trarctl.errors import DataError, listed

_LAYOUT = (
    '{"questions": [{"question_index": 0, "image_index": 0, "question": "is it?", "answer": "yes",'
    ' "program": [{"function": "exist"}]}]}'
)
_PICTURE = re.compile(r"(.*?)([0-9]{1,18})\.\w+", re.ASCII)


def read_clevr_split(
    raw: Path, files: SplitFiles, data: RawData, progress: Progress, names: Sequence[str] = ("train", "val", "test")
) -> RawSplit:
    """Read one split, its types the last functions of the programs; DataError if the file is unusable.

    ``names`` are those of all splits, one of which the file may say of itself.
    """
    path = raw / files.questions
    reader = RecordReader(path, "questions", progress, warnings=data.warnings, layout=_LAYOUT)
    functions = StringTable()
    declared: Counter[tuple[str, str]] = Counter()

    def take(records: list[Any]) -> list[Any]:
        first = reader.num_records - len(records)
        images, texts = reader.ids(records, "image_index"), reader.texts(records, "question")
        if images is None or texts is None:
            return [None]
        if not any("question_index" in record for record in records):
            reader.count('records without a "question_index", numbered from 0 in file order', len(records))
            ids: Ids | None = np.arange(first, first + len(records))
        else:
            ids = reader.ids(records, "question_index")
        declared.update(_declared(reader, records, images))
        columns = [ids, images, texts]
        if files.has_answers:
            last = _last_functions(reader, records)
            # The CLEVR engine's own output has true, false and numbers, which are read as text.
            columns.append(reader.codes(records, "answer", data.answers, may_be_blank=False))
            columns.append(None if last is None else functions.codes(last))
        return columns

    question_id, image_id, texts, *answers = reader.collect(take)
    info = reader.frame.get("info")
    if isinstance(info, dict) and isinstance(info.get("split"), str):
        declared["info.split", info["split"]] = 1
    known = {name: name for name in names} | {f"CLEVR_{name}_": name for name in names}
    check_declared(path, declared, files, known, data.warnings)
    refuse_duplicates(path, question_id, "question_index")
    data.num_records[files.questions] = len(question_id)
    annotations = single_answers(answers[0], answers[1], functions) if files.has_answers else None
    return RawSplit(files.name, question_id, image_id, texts, annotations)


def _declared(reader: RecordReader, records: list[Any], images: Ids) -> Counter[tuple[str, str]]:
    """Count the splits that records name, and the beginnings of the names of their pictures."""
    splits = Counter(value for record in records if isinstance(value := record.get("split"), str))
    declared = Counter({("split", value): count for value, count in splits.items()})
    names = [str(record.get("image_filename")) for record in records]
    for (name, image), count in Counter(zip(names, images.tolist(), strict=True)).items():
        if match := _PICTURE.fullmatch(name):
            declared["image_filename", match[1]] += count
            if int(match[2]) != image:
                problem = f'has {shown(name)} as "image_filename", but {image} as "image_index"'
                reader.report(names.index(name), problem)
    return declared


def _last_functions(reader: RecordReader, records: list[Any]) -> list[str] | None:
    """Give the last function of each program; the CLEVR engine's own output calls the field ``type``."""
    programs = reader.column(records, "program", list)
    if programs is None:
        return None
    reader.refuse_repeated(records, "program", "function", sum(map(len, programs)))
    try:
        steps = [program[-1] for program in programs]
        functions = [step["function"] if "function" in step else step["type"] for step in steps]
    except (KeyError, TypeError, IndexError):
        functions = [None]
    if set(map(type, functions)) <= {str} and all(_type(name, "official") for name in set(functions)):
        return functions
    for number, program in enumerate(programs):
        step = program[-1] if program else None
        name = step.get("function", step.get("type")) if isinstance(step, dict) else None
        if not isinstance(name, str):
            reader.report(number, "has a program without a last function")
        elif _type(name, "official") is None:
            reader.report(number, f"has a program that ends in {shown(name)}, which CLEVR v1.0 does not have")
    return None


_TYPES = ("count", "exist", "compare_numbers", "query_attribute", "compare_attribute")


def clevr_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Count right CLEVR answers [Q] by question type, which the last function of a program decides.

    The evaluator ``official`` counts ``equal_integer`` among ``compare_numbers``, ``upstream`` among
    ``compare_attribute``, as in the published TRAR numbers. A DataError names functions that are unknown.
    """
    used = np.unique(truth.question_type).tolist()
    type_of_function = [_type(function, evaluator) for function in truth.question_types]
    unknown = [truth.question_types[code] for code in used if type_of_function[code] is None]
    if unknown:
        what = f"programs end in functions that CLEVR v1.0 does not have: {listed(unknown, len(unknown))}"
        raise DataError(what, "is this a CLEVR v1.0 questions file? It must be the original one")
    codes = np.array([-1 if name is None else _TYPES.index(name) for name in type_of_function], dtype=np.int64)
    return count_right(predictions, truth, codes[truth.question_type], _TYPES, evaluator)


def _type(function: str, evaluator: EvaluatorName) -> str | None:
    if function in ("count", "exist"):
        return function
    if function in ("greater_than", "less_than"):
        return "compare_numbers"
    if function == "equal_integer":
        return "compare_numbers" if evaluator == "official" else "compare_attribute"
    verb, _, attribute = function.partition("_")
    if attribute not in ("color", "shape", "size", "material"):
        return None
    return {"query": "query_attribute", "equal": "compare_attribute"}.get(verb)


def _split(name: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    questions = f"questions/CLEVR_{name}_questions.json"
    return SplitFiles(name, name, questions, None, has_answers, num_questions, has_answers)


def _images(name: str, num_images: int, *, is_required: bool = True) -> ImageSetFiles:
    images = FileNaming(f"CLEVR_{name}_", 6, ".png")
    return ImageSetFiles(name, num_images, is_required, images, FileNaming("", 1, ".npz"))


_SITE = "https://dl.fbaipublicfiles.com/clevr"
_SPLITS = (_split("train", 699_989), _split("val", 149_991), _split("test", 149_988, has_answers=False))
CLEVR = register_dataset(
    DatasetSpec(
        name="clevr",
        title="CLEVR: rendered scenes of cubes, spheres and cylinders",
        splits=_SPLITS,
        image_sets=(
            _images("train", 70_000),
            _images("val", 15_000),
            _images("test", 15_000, is_required=False),
        ),
        read_split=read_clevr_split,
        grid_size=14,
        download_hint="unpack CLEVR_v1.0.zip (https://cs.stanford.edu/people/jcjohns/clevr/) and pass its folder as"
        " --raw",
        downloads=(
            Download(
                f"{_SITE}/CLEVR_v1.0_no_images.zip",
                about_bytes=86_000_000,
                holds=tuple(split.questions for split in _SPLITS),
            ),
            Download(
                f"{_SITE}/CLEVR_v1.0.zip",
                19_021_600_724,
                sha256="5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1",
                has_images=True,
                unpack_to="images",
                unpack_prefix="CLEVR_v1.0/images/",
                num_files=100_000,
            ),
        ),
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
