"""GQA, its balanced questions: compositional questions about scenes, scored by exact match for binary and open ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.download import Download
from trarctl.data.metrics import exact_match
from trarctl.data.records import (
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    as_text,
    flatten,
    refuse_duplicates,
    shown,
    single_answers,
)
from trarctl.data.submission import JsonAnswers

_LAYOUT = (
    '{"07333408": {"imageId": "2405722", "question": "is it?", "answer": "yes", "isBalanced": true,'
    ' "types": {"structural": "verify"}}}'
)
_ALL = "submission"  # the split that holds unbalanced questions as well


def read_gqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read the balanced questions of one split; DataError if the file is damaged.

    Ids stay the texts that they are, with their leading zeros. A question is ``open`` if its structural type is query,
    otherwise ``binary``, as in the evaluator of GQA.
    """
    path = raw / files.questions
    # "annotations" says which words are which objects, under the names of the fields that hold the words.
    reader = RecordReader(
        path, None, progress, warnings=data.warnings, layout=_LAYOUT, is_keyed=True, inner=("annotations",)
    )
    types = StringTable()

    def take(records: list[Any]) -> list[Any]:
        ids, images = reader.keys(), reader.ids(records, "imageId", str)
        questions = reader.column(records, "question", str)
        flags = reader.column(records, "isBalanced", bool, default=True)
        if ids is None or images is None or questions is None or flags is None:
            return [None]
        is_kept = np.array(flags) | (files.name == _ALL)
        reader.count("questions that are not balanced, which are left out", int((~is_kept).sum()))
        rows = np.flatnonzero(is_kept).tolist()
        columns = [ids[rows], images[rows], flatten([questions[row] for row in rows])]
        if files.has_answers:
            answers = reader.column(
                records,
                "answer",
                str,
                is_valid=lambda text: bool(text.strip()),
                expected="a text that is not empty",
                read=as_text,
            )
            kinds = _kinds(reader, records)
            if answers is None or kinds is None:
                return [None]
            columns.append(data.answers.codes([answers[row] for row in rows]))
            columns.append(types.codes([kinds[row] for row in rows]))
        return columns

    question_id, image_id, texts, *annotated = reader.collect(take)
    refuse_duplicates(path, question_id, "id")
    data.num_records[files.questions] = reader.num_records
    annotations = single_answers(annotated[0], annotated[1], types) if files.has_answers else None
    return RawSplit(files.name, question_id, image_id, texts, annotations)


def _kinds(reader: RecordReader, records: list[Any]) -> list[str] | None:
    """Tell binary from open questions; None if some do not say what they are."""
    types = reader.column(records, "types", dict)
    if types is None:
        return None
    structural = [one.get("structural") for one in types]
    if not set(map(type, structural)) <= {str}:
        for number, kind in enumerate(structural):
            if not isinstance(kind, str):
                reader.report(number, f'has {shown(kind)} as "structural" of its "types", expected a text')
        return None
    return ["open" if kind == "query" else "binary" for kind in structural]


def _split(name: str, num_questions: int, *, is_required: bool = False, has_answers: bool = True) -> SplitFiles:
    scope = "all" if name == _ALL else "balanced"
    return SplitFiles(
        name,
        "images",
        f"{name}_{scope}_questions.json",
        is_required=is_required,
        num_questions=num_questions,
        has_answers=has_answers,
        repeats_others=name == _ALL,
    )


_SITE = "https://downloads.cs.stanford.edu/nlp/data/gqa"
_SPLITS = (
    _split("train", 943_000, is_required=True),
    _split("val", 132_062, is_required=True),
    _split("testdev", 12_578),
    _split("test", 95_336, has_answers=False),
    _split("challenge", 50_726, has_answers=False),
    _split(_ALL, 4_237_524, has_answers=False),
)
GQA = register_dataset(
    DatasetSpec(
        name="gqa",
        title="GQA: photographs of Visual Genome and COCO",
        splits=_SPLITS,
        image_sets=(ImageSetFiles("images", None, True, FileNaming("", None, ".jpg"), FileNaming("", None, ".npy")),),
        read_split=read_gqa_split,
        grid_size=8,
        download_hint="unpack questions1.2.zip, and images.zip beside it, of"
        " https://cs.stanford.edu/people/dorarad/gqa/download.html into the --raw folder",
        downloads=(
            Download(
                f"{_SITE}/questions1.2.zip",
                about_bytes=1_400_000_000,
                holds=tuple(split.questions for split in _SPLITS),
            ),
            Download(
                f"{_SITE}/images.zip",
                about_bytes=20_000_000_000,
                has_images=True,
                unpack_to="images",
                unpack_prefix="images/",
            ),
        ),
        shares_image_ids=True,
        min_answer_count=0,
        metric=exact_match(str),
        type_label="kind of question",
        split_notes={_ALL: "all that the server takes, unbalanced questions too"},
        answer_file=JsonAnswers("questionId", "prediction", "str"),
    )
)
