"""SLAKE 1.0, its English questions: about radiology pictures, scored by exact match for closed and for open ones.

Its Chinese questions are split apart in another way, so that pictures of the English test part are in Chinese training
questions: they are never read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.datasets.vqa_rad import read_kinds
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
    single_answers,
)
from trarctl.data.submission import JsonAnswers

_LAYOUT = (
    '[{"qid": 1, "img_name": "xmlab1/source.jpg", "question": "is it?", "answer": "Yes", "q_lang": "en",'
    ' "answer_type": "CLOSED"}]'
)
_PICTURE = re.compile(r"xmlab(0|[1-9][0-9]{0,17})/source\.jpg", re.ASCII)


def read_slake_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read the English questions of one split; DataError if the file is damaged.

    Questions without an answer are left out of train, with a count.
    """
    path = raw / files.questions
    reader = RecordReader(path, None, progress, warnings=data.warnings, layout=_LAYOUT)
    types = StringTable()
    num_english = 0

    def take(records: list[Any]) -> list[Any]:
        nonlocal num_english
        ids = reader.ids(records, "qid")
        languages = reader.column(records, "q_lang", str)
        pictures = reader.column(
            records,
            "img_name",
            str,
            is_valid=lambda name: _PICTURE.fullmatch(name) is not None,
            expected="a name such as xmlab1/source.jpg",
        )
        questions = reader.column(records, "question", str)
        answers = reader.column(records, "answer", str, read=as_text)
        kinds = read_kinds(reader, records)
        if ids is None or languages is None or pictures is None or questions is None or answers is None:
            return [None]
        if kinds is None:
            return [None]
        english = [row for row, language in enumerate(languages) if language == "en"]
        num_english += len(english)
        blank = {row for row in english if not answers[row].strip()}
        if blank and files.name != "train":
            for row in blank:
                reader.report(row, "has an empty answer")
            return [None]
        reader.count("English questions with an empty answer, which are left out", len(blank))
        rows = [row for row in english if row not in blank]
        return [
            ids[rows],
            np.array([int(pictures[row][len("xmlab") : -len("/source.jpg")]) for row in rows], dtype=np.int64),
            flatten([questions[row] for row in rows]),
            data.answers.codes([answers[row] for row in rows]),
            types.codes([kinds[row] for row in rows]),
        ]

    question_id, image_id, texts, answers, kinds = reader.collect(take)
    refuse_duplicates(path, question_id, "qid")
    data.num_records[files.questions] = num_english
    return RawSplit(files.name, question_id, image_id, texts, single_answers(answers, kinds, types))


_SITE = "https://huggingface.co/datasets/BoKelvin/SLAKE/resolve/main"
SLAKE = register_dataset(
    DatasetSpec(
        name="slake",
        title="SLAKE, English: radiology pictures of the whole body",
        # Counted on the published files: English questions alone.
        splits=(
            SplitFiles("train", "imgs", "train.json", num_questions=4_919),
            SplitFiles("val", "imgs", "validate.json", num_questions=1_053, other_names=("validation.json",)),
            SplitFiles("test", "imgs", "test.json", num_questions=1_061),
        ),
        image_sets=(
            ImageSetFiles(
                "imgs", 642, True, FileNaming("xmlab", 1, "/source.jpg", is_nested=True), FileNaming("", 1, ".npy")
            ),
        ),
        read_split=read_slake_split,
        grid_size=8,
        download_hint="put train.json, validate.json and test.json of SLAKE 1.0 (https://www.med-vqa.com/slake/) into"
        " the --raw folder, and unpack imgs.zip there",
        # Sizes and hashes are those of a copy; the sizes of the hub's own files agree.
        downloads=(
            Download(f"{_SITE}/train.json", 2_964_571, md5="245d07f0584b9df52c5cc37d9eb55511", holds=("train.json",)),
            Download(
                f"{_SITE}/validate.json", 639_139, md5="1445336a1413f3d741cfebbb6fdc9157", holds=("validate.json",)
            ),
            Download(f"{_SITE}/test.json", 635_829, md5="b3603fc2ba45a9511714f8991b2711d9", holds=("test.json",)),
            Download(
                f"{_SITE}/imgs.zip",
                about_bytes=212_000_000,
                has_images=True,
                unpack_to="imgs",
                unpack_prefix="imgs/",
            ),
        ),
        shares_image_ids=True,
        extractor="patches",
        normalize_answer=str.lower,
        min_answer_count=0,
        metric=exact_match(str.lower),
        type_label="kind of answer",
        answer_file=JsonAnswers("qid", "answer"),
    )
)
