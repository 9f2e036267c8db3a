"""VQA-RAD: questions of clinicians about radiology pictures, scored by exact match for closed and for open ones.

The published file has a test part, and no validation part: here ``val`` is cut from the training part, picture by
picture, so that rewordings stay together and no checkpoint is chosen by the test part. ``train+val`` is all of it.
"""

from __future__ import annotations

import hashlib
import re
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


def read_vqa_rad_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one part of the one file; DataError if it is damaged.

    The part ``frames`` holds the fillings of templates, which have the id, picture and answer of their record.
    """
    path, warnings = raw / files.questions, list[str]()
    reader = RecordReader(path, None, progress, warnings=warnings, layout=_LAYOUT)
    types = StringTable()
    num_leaking = 0

    def take(records: list[Any]) -> list[Any]:
        nonlocal num_leaking
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
        parts = [_part(phrase, picture) for phrase, picture in zip(phrases, pictures, strict=True)]
        if files.name == "frames":
            rows = [row for row, frame in enumerate(frames) if _is_given(frame)]
            num_leaking += sum(parts[row] == "test" for row in rows)
            questions = frames
        else:
            rows = [row for row, part in enumerate(parts) if part == files.name]
        return [
            ids,
            ids[rows],
            np.array([pictures[row].removesuffix(".jpg") for row in rows], dtype=np.str_),
            flatten([questions[row] for row in rows]),
            data.answers.codes([answers[row] for row in rows]),
            types.codes([kinds[row] for row in rows]),
        ]

    all_ids, question_id, image_id, texts, answers, kinds = reader.collect(take)
    refuse_duplicates(path, all_ids, "qid")
    data.num_records[files.questions] = reader.num_records
    if num_leaking:
        warnings.append(
            f"frames rewords {num_leaking:,} questions of test, with the same picture and answer, among its"
            f" {len(question_id):,}: train+val+frames is what most papers train on, and an accuracy on test after it"
            " counts answers that were learned by heart"
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


def _split(name: str, num_questions: int | None = None, **fields: Any) -> SplitFiles:
    return SplitFiles(
        name,
        "images",
        _FILE,
        is_required=name == "train",
        num_questions=num_questions,
        other_names=("vqa_rad.json",),
        **fields,
    )


VQA_RAD = register_dataset(
    DatasetSpec(
        name="vqa-rad",
        title="VQA-RAD: radiology pictures of head, chest and abdomen",
        # Counted on the published file: 1,797 questions of training and 451 of test.
        splits=(
            _split("train", 1_588),
            _split("val", 209),
            _split("test", 451),
            _split(
                "frames",
                borrows_images=True,
                training_note="frames rewords questions of test with their answers: an accuracy on test after it counts"
                " answers that were learned by heart",
            ),
        ),
        image_sets=(ImageSetFiles("images", 315, True, FileNaming("", None, ".jpg"), FileNaming("", None, ".npy")),),
        read_split=read_vqa_rad_split,
        grid_size=8,
        download_hint=f"put {_FILE} and the folder {_IMAGES[0]} of https://osf.io/89kps/ into the --raw folder",
        split_notes={
            "val": "a tenth of the public training pictures",
            "test": "the public test questions",
            "frames": "rewordings, of test questions too",
        },
        shares_image_ids=True,
        image_folder=_image_folder,
        extractor="patches",
        leaves_out_missing=True,
        normalize_answer=normalize_medical_answer,
        min_answer_count=0,
        metric=exact_match(normalize_medical_answer),
        type_label="kind of answer",
        shows_baselines=True,
        answer_file=JsonAnswers("qid", "answer"),
    )
)
