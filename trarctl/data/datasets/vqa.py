"""VQA v2, with the questions of Visual Genome that the published recipes train on as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress
from trarctl.data.datasets.base import (
    DatasetSpec,
    FileNaming,
    ImageSetFiles,
    Published,
    SplitFiles,
    register_dataset,
)
from trarctl.data.metrics import vqa_accuracy
from trarctl.data.records import (
    NUM_ANNOTATORS,
    FlatTextBuilder,
    RawAnnotations,
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    read_records,
    refuse_duplicates,
    rows_of,
)
from trarctl.data.text import normalize_answer
from trarctl.errors import DataError, listed

_DOWNLOAD_BOTH = "download both files of the same version again"


def read_vqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split of VQA v2.

    Args:
        raw: folder of the raw files.
        files: the split's files.
        data: collects answers, warnings and record counts.
        progress: told the bytes read.

    Raises:
        DataError: a file is damaged, an id appears twice, or annotations and questions do not belong together.
    """
    split = _read_questions(raw / files.questions, files.name, progress)
    data.num_records[files.questions] = len(split.question_id)
    if files.annotations is None:
        return split
    path = raw / files.annotations
    question_id, image_id, annotations = _read_annotations(path, data.answers, progress)
    data.num_records[files.annotations] = len(question_id)
    refuse_duplicates(path, question_id, "question_id")
    rows = rows_of(question_id, split.question_id)
    if (rows < 0).any():
        unknown = question_id[rows < 0]
        raise DataError(
            f"{path} annotates questions that {files.questions} does not hold: {listed(unknown, len(unknown))}",
            _DOWNLOAD_BOTH,
        )
    _check_coverage(path, files, split, rows, data)
    return replace(
        split,
        image_id=_reconciled_images(path, split, rows, image_id, data),
        annotations=replace(annotations, rows=rows.astype(np.int32)),
    )


def _check_coverage(path: Path, files: SplitFiles, split: RawSplit, rows: npt.NDArray[np.int64], data: RawData) -> None:
    is_missing = np.ones(len(split.question_id), dtype=bool)
    is_missing[rows] = False
    missing = split.question_id[is_missing]
    if not len(missing):
        return
    what = f"{path} has no annotation of the questions {listed(missing, len(missing))}"
    if files.name == "val":
        raise DataError(what, _DOWNLOAD_BOTH)
    data.warnings.append(f"{what}: they are not trained on")


def _reconciled_images(
    path: Path, split: RawSplit, rows: npt.NDArray[np.int64], image_id: npt.NDArray[np.int64], data: RawData
) -> npt.NDArray[np.int64]:
    """Follow the annotations where they name another image than the question does, as the original program does."""
    differs = split.image_id[rows] != image_id
    if differs.any():
        questions = split.question_id[rows[differs]]
        data.warnings.append(
            f"{path} names another image than the questions file for the questions"
            f" {listed(questions, len(questions))}: the annotation's is used"
        )
    merged = split.image_id.copy()
    merged[rows] = image_id
    return merged


def _read_questions(path: Path, name: str, progress: Progress) -> RawSplit:
    reader = RecordReader(path)
    texts = FlatTextBuilder()
    question_ids: list[npt.NDArray[np.int64]] = []
    image_ids: list[npt.NDArray[np.int64]] = []
    for records in read_records(path, "questions", progress=progress):
        reader.start(records)
        ids = reader.ids(records, "question_id")
        images = reader.ids(records, "image_id")
        questions = reader.column(records, "question", str)
        if ids is not None and images is not None and questions is not None:
            question_ids.append(np.array(ids, dtype=np.int64))
            image_ids.append(np.array(images, dtype=np.int64))
            texts.extend(questions)
    reader.finish()
    if reader.num_records == 0:
        raise DataError(f"{path} holds no questions", "download it again")
    question_id = np.concatenate(question_ids)
    refuse_duplicates(path, question_id, "question_id")
    return RawSplit(name, question_id, np.concatenate(image_ids), texts.build(), None)


def _read_annotations(
    path: Path, answers: StringTable, progress: Progress
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], RawAnnotations]:
    """Read question ids [A], image ids [A] and annotations whose ``rows`` are still to be filled in."""
    reader = RecordReader(path)
    answer_types, question_types = StringTable(), StringTable()
    question_ids, image_ids = [], []
    codes, chosen, answer_type, question_type = [], [], [], []
    for records in read_records(path, "annotations", progress=progress):
        reader.start(records)
        ids = reader.ids(records, "question_id")
        images = reader.ids(records, "image_id")
        given = _answer_codes(reader, records, answers)
        best = reader.column(records, "multiple_choice_answer", str, default="")
        answer_kinds = reader.column(records, "answer_type", str, default="")
        question_kinds = reader.column(records, "question_type", str, default="")
        if ids is None or images is None or given is None:
            continue
        if best is None or answer_kinds is None or question_kinds is None:
            continue
        question_ids.append(np.array(ids, dtype=np.int64))
        image_ids.append(np.array(images, dtype=np.int64))
        codes.append(given)
        chosen.append(answers.codes(best))
        answer_type.append(answer_types.codes(answer_kinds))
        question_type.append(question_types.codes(question_kinds))
    reader.finish()
    if reader.num_records == 0:
        raise DataError(f"{path} holds no annotations", "download it again")
    annotations = RawAnnotations(
        rows=np.empty(0, dtype=np.int32),
        answers=np.concatenate(codes),
        chosen=np.concatenate(chosen),
        answer_type=np.concatenate(answer_type).astype(np.int16),
        answer_types=tuple(answer_types),
        question_type=np.concatenate(question_type).astype(np.int16),
        question_types=tuple(question_types),
    )
    return np.concatenate(question_ids), np.concatenate(image_ids), annotations


def _answer_codes(reader: RecordReader, records: list[object], table: StringTable) -> npt.NDArray[np.int32] | None:
    """Number the annotators' answers, [records, 10], -1 where there are fewer than ten."""
    groups = reader.column(records, "answers", list)
    if groups is None:
        return None
    lengths = np.fromiter(map(len, groups), dtype=np.int64, count=len(groups))
    try:
        texts = [answer["answer"] for group in groups for answer in group]
    except (KeyError, TypeError, IndexError):
        texts = [None]
    if set(map(type, texts)) <= {str} and lengths.min() > 0 and lengths.max() <= NUM_ANNOTATORS:
        codes = np.full((len(groups), NUM_ANNOTATORS), -1, dtype=np.int32)
        codes[np.arange(NUM_ANNOTATORS) < lengths[:, None]] = table.codes(texts)
        return codes
    for number, group in enumerate(groups):
        if not 0 < len(group) <= NUM_ANNOTATORS:
            reader.report(number, f"has {len(group)} answers, expected 1 to {NUM_ANNOTATORS}")
        elif not all(isinstance(answer, dict) and type(answer.get("answer")) is str for answer in group):
            reader.report(number, "has an answer that is no text")
    return None


def _split(name: str, image_set: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    questions = f"v2_OpenEnded_mscoco_{image_set}_questions.json"
    annotations = f"v2_mscoco_{image_set}_annotations.json" if has_answers else None
    return SplitFiles(name, image_set, questions, annotations, has_answers, num_questions, has_answers)


def _images(name: str, num_images: int, *, is_required: bool = True) -> ImageSetFiles:
    prefix = f"COCO_{name}_"
    return ImageSetFiles(
        name, num_images, is_required, FileNaming(prefix, 12, ".jpg"), FileNaming(prefix, 12, ".jpg.npy")
    )


VQA = register_dataset(
    DatasetSpec(
        name="vqa",
        title="VQA-v2: photographs from COCO",
        splits=(
            _split("train", "train2014", 443_757),
            _split("val", "val2014", 214_354),
            _split("test", "test2015", 447_793, has_answers=False),
            SplitFiles(
                "vg",
                "train2014",
                "VG_questions.json",
                "VG_annotations.json",
                is_required=False,
                borrows_images=True,
            ),
        ),
        image_sets=(
            _images("train2014", 82_783),
            _images("val2014", 40_504),
            _images("test2015", 81_434, is_required=False),
        ),
        read_split=read_vqa_split,
        grid_size=8,
        max_words=14,
        download_hint="unpack the questions and annotations of https://visualqa.org/download.html into the --raw"
        " folder",
        shares_image_ids=True,
        normalize_answer=normalize_answer,
        drops_rare_answers=True,
        has_one_answer=False,
        metric=vqa_accuracy,
        type_label="answer type",
        # Model card of TRAR-VQA (2021): trained on train, by the original's evaluator.
        published={
            "val": (
                Published("soft, avg", 67.62, {"yes/no": 85.36, "number": 49.89, "other": 58.83}),
                Published("hard, attention, binarize", 67.62, {"yes/no": 85.19, "number": 49.75, "other": 58.98}),
            )
        },
    )
)
