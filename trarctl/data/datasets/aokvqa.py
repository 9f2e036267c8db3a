"""A-OKVQA v1.0, direct answers: questions about COCO's photographs that need common sense and knowledge."""

from __future__ import annotations

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
from trarctl.data.datasets.vqa import COCO_PICTURES, coco_images
from trarctl.data.download import Download
from trarctl.data.metrics import Accuracy, GroundTruth, matched_thirds
from trarctl.data.records import (
    NUM_ANNOTATORS,
    RawAnnotations,
    RawData,
    RawSplit,
    RecordReader,
    annotators_codes,
    other_numbers,
    refuse_duplicates,
)
from trarctl.data.submission import ObjectAnswers

_LAYOUT = (
    '[{"question_id": "a1", "image_id": 2, "question": "is it?", "choices": ["yes", "no"], "correct_choice_idx": 0,'
    ' "direct_answers": ["yes", "yes"], "difficult_direct_answer": false}]'
)
# Answers to few questions, and wrong choices that few questions offer, are not worth a place in the answer list.
_FEWEST_QUESTIONS = 3
_DIFFICULT = "difficult, not counted"
_TYPES = ("direct answer", _DIFFICULT)


def read_aokvqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split; DataError if the file is damaged. The answer list is drawn from the choices of train as well.

    Source of that rule: the data set's own build_vocab.py.
    """
    path = raw / files.questions
    reader = RecordReader(path, None, progress, warnings=data.warnings, layout=_LAYOUT)
    declared: Counter[tuple[str, str]] = Counter()
    correct, offered, given = set[str](), Counter[str](), Counter[str]()

    def take(records: list[Any]) -> list[Any]:
        ids = reader.ids(records, "question_id", str), reader.ids(records, "image_id")
        columns = [*ids, reader.texts(records, "question")]
        if any(column is None for column in columns):
            return [None]
        declared.update(("split", one["split"]) for one in records if isinstance(one.get("split"), str))
        if not files.has_answers:
            return columns
        answers = _texts(reader, records, "direct_answers", NUM_ANNOTATORS)
        is_difficult = reader.column(records, "difficult_direct_answer", bool)
        if answers is None or is_difficult is None:
            return [None]
        if files.name == "train":
            choices = _texts(reader, records, "choices")
            places = reader.column(records, "correct_choice_idx", int)
            if choices is None or places is None:
                return [None]
            for number, (texts, place) in enumerate(zip(choices, places, strict=True)):
                if not 0 <= place < len(texts):
                    reader.report(number, f'has {place} as "correct_choice_idx", but {len(texts)} "choices"')
                    continue
                correct.add(texts[place])
                offered.update(texts)
            for texts in answers:
                given.update(set(texts))
        lengths = np.fromiter(map(len, answers), dtype=np.int64, count=len(answers))
        codes = annotators_codes([one for texts in answers for one in texts], lengths, data.answers)
        return [*columns, codes, np.array(is_difficult, dtype=np.int16)]

    question_id, image_id, texts, *annotated = reader.collect(take)
    check_declared(path, declared, files, {split.name: split.name for split in AOKVQA.splits}, data.warnings)
    refuse_duplicates(path, question_id, "question_id")
    data.num_records[files.questions] = len(question_id)
    if not files.has_answers:
        return RawSplit(files.name, question_id, image_id, texts, None)
    codes, types = annotated
    data.warnings += other_numbers(path, codes)
    frequent = {text for counts in (offered, given) for text, count in counts.items() if count >= _FEWEST_QUESTIONS}
    chosen = data.answers.codes(sorted(text for text in correct | frequent if text.strip()))
    rows = np.arange(len(codes), dtype=np.int32)
    annotations = RawAnnotations(rows, codes, chosen, types, _TYPES, types, _TYPES)
    return RawSplit(files.name, question_id, image_id, texts, annotations)


def _texts(reader: RecordReader, records: Sequence[Any], name: str, most: int | None = None) -> list[list[str]] | None:
    """Take lists of 1 to ``most`` texts; None if some records have another value."""

    def is_valid(texts: list[Any]) -> bool:
        return 0 < len(texts) <= (most or len(texts)) and set(map(type, texts)) == {str}

    expected = f"a list of {f'1 to {most}' if most else '1 or more'} texts"
    return reader.column(records, name, list, is_valid=is_valid, expected=expected)


def aokvqa_accuracy(predictions: Sequence[str], truth: GroundTruth, evaluator: EvaluatorName = "official") -> Accuracy:
    """Score direct answers [Q] by min(1, matches / 3), to the letter, over questions that are not difficult.

    Those are the ones without ``difficult_direct_answer``; the others are shown as a type of their own. Both evaluators
    are the same. Errors as in ``matched_thirds``.

    Source: the data set's own eval_predictions.py, and its README.
    """
    is_counted = np.array([name != _DIFFICULT for name in truth.answer_types])[truth.answer_type]
    num_difficult = len(truth) - int(is_counted.sum())
    note = f"{num_difficult:,} of {len(truth):,} questions are marked as difficult to answer directly, and not counted"
    return matched_thirds(predictions, truth, is_counted, evaluator, note if num_difficult else None)


def _images(name: str, num_images: int, *instead: str, is_required: bool = True) -> ImageSetFiles:
    pictures, features = (FileNaming("", 12, suffix) for suffix in (".jpg", ".npy"))
    return ImageSetFiles(name, num_images, is_required, pictures, features, instead)


def _split(name: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    file = f"aokvqa_v1p0_{name}.json"
    return SplitFiles(name, f"{name}2017", file, None, has_answers, num_questions, has_answers)


_SPLITS = (_split("train", 17_056), _split("val", 1_145), _split("test", 6_702, has_answers=False))
AOKVQA = register_dataset(
    DatasetSpec(
        name="aokvqa",
        title="A-OKVQA v1.0, direct answers: photographs from COCO, and questions that need common sense",
        splits=_SPLITS,
        # COCO's sets of 2017 hold the images of 2014 and 2015 under the same ids, divided in another way.
        image_sets=(
            _images("train2017", 118_287, "train2014", "val2014"),
            _images("val2017", 5_000, "train2014", "val2014"),
            _images("test2017", 40_670, "test2015", is_required=False),
            coco_images("train2014", 82_783, is_required=False),
            coco_images("val2014", 40_504, is_required=False),
            coco_images("test2015", 81_434, is_required=False),
        ),
        read_split=read_aokvqa_split,
        grid_size=8,
        download_hint="unpack https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz into the"
        " --raw folder. The images are COCO's train2017, val2017 and test2017; features of train2014, val2014 and"
        " test2015 serve too",
        downloads=(
            Download(
                "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz",
                holds=tuple(split.questions for split in _SPLITS),
            ),
            *COCO_PICTURES,
        ),
        answer_splits=("train",),
        shares_image_ids=True,
        has_one_answer=False,
        metric=aokvqa_accuracy,
        type_label="kind of question",
        answer_file=ObjectAnswers("direct_answer"),
    )
)
