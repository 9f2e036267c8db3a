"""easy-VQA: questions about small generated images, read from the installed package ``easy-vqa``."""

from __future__ import annotations

import filecmp
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.records import RawData, RawSplit, RecordReader, StringTable, single_answers
from trarctl.errors import DataError

_DOWNLOAD_HINT = 'pip install "trarctl[demo]"'
_COLORS = frozenset({"black", "gray", "red", "green", "blue", "yellow", "brown", "teal"})
_SHAPES = frozenset({"rectangle", "circle", "triangle"})
_FIELDS = ("question", "answer", "image_id")


def package_data() -> Path:
    """Find the files of the installed package; DataError if it is not installed."""
    package = importlib.util.find_spec("easy_vqa")
    if package is None or package.origin is None:
        raise DataError("the package easy-vqa is not installed", _DOWNLOAD_HINT)
    return Path(package.origin).parent / "data"


def image_folder(raw: Path, image_set: str) -> Path:
    """Give the folder of images of a set; the package calls ``val`` its test set."""
    return raw / ("test" if image_set == "val" else image_set) / "images"


def question_type(answer: str) -> str:
    """Tell the type of a question by its answer: ``yes/no``, ``color`` or ``shape``."""
    if answer in ("yes", "no"):
        return "yes/no"
    if answer in _COLORS:
        return "color"
    return "shape" if answer in _SHAPES else "other"


def read_easy_vqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split, its questions numbered in file order; DataError if the file is damaged."""
    for other in {split.questions for split in EASY_VQA.splits} - {files.questions}:
        if (raw / other).is_file() and filecmp.cmp(raw / other, raw / files.questions, shallow=False):
            what = f"{raw / files.questions} and {raw / other} are the same file"
            raise DataError(what, "put each split's own questions there")
    path, layout = raw / files.questions, '[["is it?", "yes", 0]]'
    reader = RecordReader(path, None, progress, warnings=data.warnings, layout=layout)
    types = StringTable()

    def take(rows: list[Any]) -> list[Any]:
        is_row = [isinstance(row, list) and len(row) == len(_FIELDS) for row in rows]
        records = [dict(zip(_FIELDS, row, strict=True)) if ok else row for row, ok in zip(rows, is_row, strict=True)]
        images, texts = reader.ids(records, "image_id"), reader.texts(records, "question")
        answers = reader.column(records, "answer", str, is_valid=lambda text: bool(text.strip()), expected="a text")
        if answers is None:
            return [None]
        kinds = types.codes([question_type(answer) for answer in answers])
        return [images, texts, data.answers.codes(answers), kinds]

    image_id, texts, answers, kinds = reader.collect(take)
    data.num_records[files.questions] = reader.num_records
    question_id = np.arange(reader.num_records, dtype=np.int64)
    return RawSplit(files.name, question_id, image_id, texts, single_answers(answers, kinds, types))


def _images(name: str, num_images: int) -> ImageSetFiles:
    return ImageSetFiles(name, num_images, True, FileNaming("", 1, ".png"), FileNaming("", 1, ".npy"))


EASY_VQA = register_dataset(
    DatasetSpec(
        name="easy-vqa",
        title="easy-VQA: 64 x 64 pictures of one colored shape each",
        splits=(
            SplitFiles("train", "train", "train/questions.json", num_questions=38_575),
            SplitFiles("val", "val", "test/questions.json", num_questions=9_673),
        ),
        image_sets=(_images("train", 4_000), _images("val", 1_000)),
        read_split=read_easy_vqa_split,
        numbers_questions=True,
        types_tell_answers=True,
        grid_size=4,
        download_hint=f"{_DOWNLOAD_HINT} brings the whole set, for which --raw is left out",
        aliases={"test": "val"},
        split_notes={"val": "the package's test set"},
        raw_folder=package_data,
        image_folder=image_folder,
        extractor="patches",
    )
)
