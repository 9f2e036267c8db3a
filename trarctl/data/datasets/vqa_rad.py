"""VQA-RAD: questions of clinicians about radiology pictures, scored by exact match for closed and for open ones.

The published file has a test part, and no validation part: here ``val`` is cut from the training part, picture by
picture, so that rewordings stay together and no checkpoint is chosen by the test part. ``train+val`` is all of it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
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
from trarctl.data.text import normalize_answer

_FILE = "VQA_RAD Dataset Public.json"
_IMAGES = ("VQA_RAD Image Folder", "images")
_LAYOUT = (
    '[{"qid": 0, "phrase_type": "freeform", "image_name": "synpic54610.jpg", "question": "is it?", "answer": "Yes",'
    ' "answer_type": "CLOSED", "question_frame": "NULL"}]'
)
_PICTURE = re.compile(r"[^/\\\0]{1,250}\.jpg")
_NO_VALUE = "NULL"  # how the file writes that a value is missing
_KINDS = ("CLOSED", "OPEN")
_VAL_SHARE = 10  # one picture in so many is in val


def normalize_medical_answer(text: str) -> str:
    """Do the clean-up of the VQA evaluators, and write ``x ray`` as one word.

    Source: the published programs for VQA-RAD, which build their answer lists so (MEVF, QCR).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return normalize_answer(text).replace("x ray", "xray")


def read_vqa_rad_split(
    raw: Path, files: SplitFiles, data: RawData, progress: Progress, *, has_frames: bool = False
) -> RawSplit:
    """Read one part of the one file; DataError if it is damaged.

    ``has_frames``: rewordings of questions by templates are training questions too, those of the test part included,
    and all questions are numbered anew from 1, each before its rewording.
    """
    path, warnings = raw / files.questions, list[str]()
    reader = RecordReader(path, None, progress, warnings=warnings, layout=_LAYOUT)
    types = StringTable()
    number = num_leaking = 0

    def take(records: list[Any]) -> list[Any]:
        nonlocal number, num_leaking
        ids = reader.ids(records, "qid")
        pictures = reader.column(
            records, "image_name", str, is_valid=_is_picture, expected="a name such as synpic54610.jpg"
        )
        phrases = reader.column(records, "phrase_type", str)
        questions = reader.column(records, "question", str, is_valid=_is_given, expected="a text that is not empty")
        frames = reader.column(records, "question_frame", str, default=_NO_VALUE)
        answers = reader.column(
            records, "answer", str, is_valid=_is_given, expected="a text that is not empty", read=as_text
        )
        kinds = read_kinds(reader, records)
        if ids is None or pictures is None or phrases is None or questions is None or frames is None or answers is None:
            return [None]
        if kinds is None:
            return [None]
        is_padded = [answer != answer.strip() or "\t" in answer for answer in answers]
        reader.count('"answer" with tabs, or with blanks around it, which do not count', sum(is_padded))
        found = list[tuple[int, int, str]]()  # id, row and text of the questions of the part
        for row, (phrase, picture) in enumerate(zip(phrases, pictures, strict=True)):
            number += 1
            part = _part(phrase, picture)
            if part == files.name:
                found.append((number if has_frames else int(ids[row]), row, questions[row]))
            if has_frames and _is_given(frames[row]):
                number += 1
                if _part("", picture) == files.name:
                    found.append((number, row, frames[row]))
                    num_leaking += part == "test"
        rows = [row for _, row, _ in found]
        return [
            ids,
            np.array([one for one, _, _ in found], dtype=np.int64),
            np.array([pictures[row].removesuffix(".jpg") for row in rows], dtype=np.str_),
            flatten([text for _, _, text in found]),
            data.answers.codes([answers[row] for row in rows]),
            types.codes([kinds[row] for row in rows]),
        ]

    all_ids, question_id, image_id, texts, answers, kinds = reader.collect(take)
    refuse_duplicates(path, all_ids, "qid")
    data.num_records[files.questions] = reader.num_records
    if num_leaking:
        warnings.append(
            f"{num_leaking:,} of the {len(question_id):,} questions of {files.name} reword questions of test, with the"
            " same picture and answer: an accuracy on test counts answers that were learned by heart. vqa-rad is"
            " without them"
        )
    data.warnings += [warning for warning in warnings if warning not in data.warnings]
    return RawSplit(files.name, question_id, image_id, texts, single_answers(answers, kinds, types))


def read_kinds(reader: RecordReader, records: list[Any]) -> list[str] | None:
    """Take whether each question is closed or open; what stands around the words is counted."""
    kinds = reader.column(
        records,
        "answer_type",
        str,
        is_valid=lambda kind: kind.strip().upper() in _KINDS,
        expected='"CLOSED" or "OPEN"',
    )
    if kinds is None:
        return None
    reader.count('"answer_type" with blanks or small letters, which do not count', sum(k not in _KINDS for k in kinds))
    return [kind.strip().upper() for kind in kinds]


def _is_given(text: str) -> bool:
    return text.strip() not in ("", _NO_VALUE)


def _is_picture(name: str) -> bool:
    return _PICTURE.fullmatch(name) is not None


def _part(phrase_type: str, picture: str) -> str:
    """Tell which part a question is in; by the name of its picture, so that no other record moves it."""
    if phrase_type.strip().lower().startswith("test"):
        return "test"
    number = int.from_bytes(hashlib.sha256(picture.encode()).digest()[:8], "big")
    return "train" if number % _VAL_SHARE else "val"


def _image_folder(raw: Path, image_set: str) -> Path:  # noqa: ARG001 - all pictures are in one folder
    return next((raw / name for name in _IMAGES if (raw / name).is_dir()), raw / _IMAGES[0])


_TRAIN = SplitFiles("train", "images", _FILE, num_questions=1_588, other_names=("vqa_rad.json",))

VQA_RAD = register_dataset(
    DatasetSpec(
        name="vqa-rad",
        title="VQA-RAD: radiology pictures of head, chest and abdomen",
        # Counted on the published file: 1,797 questions of training and 451 of test.
        splits=(
            _TRAIN,
            replace(_TRAIN, name="val", num_questions=209, is_required=False),
            replace(_TRAIN, name="test", num_questions=451, is_required=False),
        ),
        image_sets=(ImageSetFiles("images", 315, True, FileNaming("", None, ".jpg"), FileNaming("", None, ".npy")),),
        read_split=read_vqa_rad_split,
        grid_size=8,
        download_hint=f"put {_FILE} and the folder {_IMAGES[0]} of https://osf.io/89kps/ into the --raw folder",
        split_notes={"val": "a tenth of the public training pictures", "test": "the public test questions"},
        shares_image_ids=True,
        image_folder=_image_folder,
        extractor="patches",
        leaves_out_missing=True,
        normalize_answer=normalize_medical_answer,
        min_answer_count=0,
        metric=exact_match(normalize_medical_answer),
        type_label="kind of answer",
        answer_file=JsonAnswers("qid", "answer"),
    )
)

_NOTE = "vqa-rad-frames trains on rewordings of test questions: an accuracy on test counts answers learned by heart"

# What most papers train on, 3,064 questions; and so their answer lists hold answers that only the test part has.
VQA_RAD_FRAMES = register_dataset(
    replace(
        VQA_RAD,
        name="vqa-rad-frames",
        title="VQA-RAD as most papers split it, which leaks test questions into training",
        splits=tuple(
            replace(split, num_questions=None, training_note=None if split.name == "test" else _NOTE)
            for split in VQA_RAD.splits
        ),
        read_split=partial(read_vqa_rad_split, has_frames=True),
    )
)
