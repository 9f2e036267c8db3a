"""VizWiz-VQA: photographs that blind people took, and what they asked about them aloud."""

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
    SplitFiles,
    check_declared,
    register_dataset,
)
from trarctl.data.datasets.vqa import answer_codes
from trarctl.data.download import Download
from trarctl.data.metrics import Accuracy, ComparisonRules, GroundTruth, clean_and_normalize, vqa_accuracy
from trarctl.data.records import (
    RawAnnotations,
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    other_numbers,
    refuse_duplicates,
    shown,
)
from trarctl.data.submission import JsonAnswers
from trarctl.data.text import normalize_answer

_LAYOUT = (
    '[{"image": "VizWiz_train_00000000.jpg", "question": "what is this?", "answer_type": "other",'
    ' "answers": [{"answer": "soap"}]}]'
)
# The release of 2018 has 12 digits, and other images under some of its numbers.
_NUM_DIGITS = 8
_NAME = re.compile(rf"(VizWiz_\w+_)([0-9]{{{_NUM_DIGITS}}})\.jpg", re.ASCII)


def read_vizwiz_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split, an image's name the id of its one question; DataError if the file is damaged."""
    path = raw / files.questions
    reader = RecordReader(path, None, progress, warnings=data.warnings, layout=_LAYOUT)
    types = StringTable()
    declared: Counter[tuple[str, str]] = Counter()

    def take(records: list[Any]) -> list[Any]:
        names = reader.ids(records, "image", str)
        if names is None:
            return [None]
        numbers = np.zeros(len(names), dtype=np.int64)
        for row, name in enumerate(names.tolist()):
            if match := _NAME.fullmatch(name):
                declared["image", match[1]] += 1
                numbers[row] = int(match[2])
            else:
                expected = VIZWIZ.image_set(files.image_set).images.name(row)
                reader.report(row, f'has {shown(name)} as "image", expected a name like {expected}')
        columns = [names, numbers, reader.texts(records, "question")]
        if not files.has_answers:
            return columns
        num_lacking = sum("answer_type" not in record for record in records)
        reader.count('records without "answer_type", by which accuracy is reported', num_lacking)
        answers = answer_codes(reader, records, data.answers)
        return [*columns, answers, reader.codes(records, "answer_type", types, default="")]

    question_id, image_id, texts, *annotated = reader.collect(take)
    known = {VIZWIZ.image_set(split.image_set).images.prefix: split.name for split in VIZWIZ.splits}
    check_declared(path, declared, files, known, data.warnings)
    refuse_duplicates(path, question_id, "image")
    data.num_records[files.questions] = len(question_id)
    if not files.has_answers:
        return RawSplit(files.name, question_id, image_id, texts, None)
    codes, kinds = annotated[0], annotated[1].astype(np.int16)
    data.warnings += other_numbers(path, codes)
    # Some answers are empty, and so are articles alone once they are normalized: none to give.
    is_word = np.array([bool(normalize_answer(text)) for text in data.answers])
    chosen = np.where((codes >= 0) & is_word[codes], codes, -1)
    rows = np.arange(len(codes), dtype=np.int32)
    annotations = RawAnnotations(rows, codes, chosen, kinds, tuple(types), kinds, tuple(types))
    return RawSplit(files.name, question_id, image_id, texts, annotations)


_RULES = ComparisonRules(str, clean_and_normalize, str, clean_and_normalize)


def vizwiz_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Score answers [Q] as VQA's are, but always with the prediction normalized, and never what the annotators said.

    ``unanswerable`` is an answer like others. Both evaluators are the same. Errors as in ``vqa_accuracy``.

    Source: the data set's evaluation code. The copy of it that we found writes some contractions with a typographic
    apostrophe (of "dont", for one), which is not followed: here all are VQA's.
    """
    return vqa_accuracy(predictions, truth, evaluator, _RULES)


def _split(name: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    return SplitFiles(name, name, f"{name}.json", None, has_answers, num_questions, has_answers)


def _images(name: str, num_images: int, *, is_required: bool = True) -> ImageSetFiles:
    pictures, features = (FileNaming(f"VizWiz_{name}_", _NUM_DIGITS, suffix) for suffix in (".jpg", ".npy"))
    return ImageSetFiles(name, num_images, is_required, pictures, features)


_SITE = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_SPLITS = (_split("train", 20_523), _split("val", 4_319), _split("test", 8_000, has_answers=False))
_IMAGE_SETS = (_images("train", 20_523), _images("val", 4_319), _images("test", 8_000, is_required=False))
VIZWIZ = register_dataset(
    DatasetSpec(
        name="vizwiz",
        title="VizWiz-VQA: photographs and spoken questions of blind people",
        splits=_SPLITS,
        image_sets=_IMAGE_SETS,
        read_split=read_vizwiz_split,
        grid_size=8,
        download_hint="unpack https://vizwiz.cs.colorado.edu/VizWiz_final/vqa_data/Annotations.zip into the --raw"
        " folder; the images are train.zip, val.zip and test.zip of https://vizwiz.cs.colorado.edu/VizWiz_final/images/",
        downloads=(
            Download(f"{_SITE}/vqa_data/Annotations.zip", holds=tuple(split.questions for split in _SPLITS)),
            *(
                Download(
                    f"{_SITE}/images/{images.name}.zip",
                    name=f"{images.name}_images.zip",
                    has_images=True,
                    unpack_to=f"images/{images.name}",
                    unpack_prefix=f"{images.name}/",
                    num_files=images.num_images,
                )
                for images in _IMAGE_SETS
            ),
        ),
        answer_splits=("train",),
        normalize_answer=normalize_answer,
        max_answers=3_000,
        has_one_answer=False,
        metric=vizwiz_accuracy,
        types_tell_answers=True,
        type_label="answer type",
        answer_file=JsonAnswers("image", id_kind="str"),
    )
)
