"""Visual Genome's own files to questions and annotations in VQA-v2's layout, for the pictures of COCO.

The rules are those that openvqa's documentation gives for its ``VG_questions.json`` and ``VG_annotations.json``: the
picture is in COCO's train or val set, and the answer is in the answer list of VQA-v2. The files themselves have no
public address; what is made here has another order, and hence another vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from trarctl.data import Progress
from trarctl.data.download import Download
from trarctl.data.records import NUM_ANNOTATORS, Ids, RecordReader, flatten, refuse_duplicates, rows_of, shown
from trarctl.data.text import normalize_answer
from trarctl.errors import DataError
from trarctl.files import whole_file

QUESTIONS, ANNOTATIONS = "VG_questions.json", "VG_annotations.json"
_SITE = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
IMAGE_DATA = Download(
    f"{_SITE}/image_data.json.zip",
    1_780_854,
    sha256="b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a",
    holds=(QUESTIONS, ANNOTATIONS),
    part="vg",
)
QUESTION_ANSWERS = Download(f"{_SITE}/question_answers.json.zip", 24_776_315, holds=(QUESTIONS, ANNOTATIONS), part="vg")
_IMAGES = '[{"image_id": 1, "coco_id": null}]'
_PAIRS = '[{"id": 1, "qas": [{"qa_id": 2, "question": "what is it?", "answer": "A cat."}]}]'


def rebuild(raw: Path, pictures: Ids, answers: Container[str], progress: Progress) -> str:
    """Write both files into the raw folder, whole or not at all.

    Args:
        raw: the raw folder, with both archives.
        pictures: ids of COCO's pictures that are wanted, [pictures].
        answers: the answer list, normalized.
        progress: told the bytes read.

    Returns:
        What was made, for people.

    Raises:
        DataError: if an archive cannot be used, or nothing is left.
    """
    there = [name for name in (QUESTIONS, ANNOTATIONS) if (raw / name).exists()]
    if there:
        raise DataError(
            f"{raw / there[0]} is there already, and would be replaced", "move it away, or get the other file"
        )
    for one in (IMAGE_DATA, QUESTION_ANSWERS):
        if not (raw / one.file_name).is_file():
            raise DataError(f"no file {one.file_name} in {raw}", "trarctl download vg without --only")
    images, coco_of_image = _coco_ids(_inside(raw, IMAGE_DATA), progress)
    path = _inside(raw, QUESTION_ANSWERS)
    reader = RecordReader(path, None, progress, layout=_PAIRS)
    num_pairs = 0

    def take(records: list[Any]) -> list[Any]:
        nonlocal num_pairs
        ids, groups = reader.ids(records, "id"), reader.column(records, "qas", list)
        if ids is None or groups is None:
            return [None]
        rows = rows_of(ids, images)
        coco = np.where(rows < 0, -1, coco_of_image[rows])
        for number, group in enumerate(groups):
            if wrong := [pair for pair in group if not _is_pair(pair)]:
                reader.report(number, f'has {shown(wrong[0])} among its "qas"')
        if not all(map(_is_pair, chain.from_iterable(groups))):
            return [None]
        num_pairs += sum(map(len, groups))
        kept = [
            (image, pair)
            for image, group, is_wanted in zip(coco.tolist(), groups, np.isin(coco, pictures).tolist(), strict=True)
            for pair in (group if is_wanted else ())
            if pair["answer"].strip() and normalize_answer(pair["answer"]) in answers
        ]
        numbers = np.array([(pair["qa_id"], image) for image, pair in kept], dtype=np.int64).reshape(-1, 2)
        return [numbers, *(flatten([pair[name] for _, pair in kept]) for name in ("question", "answer"))]

    numbers, questions, given = reader.collect(take)
    if not len(numbers):
        what = f"{path}: none of its {num_pairs:,} questions has a picture of COCO and an answer of VQA-v2's list"
        raise DataError(what, "are the files in the raw folder those of VQA-v2 and of Visual Genome?")
    refuse_duplicates(path, numbers[:, 0], "qa_id")
    with whole_file(raw / QUESTIONS) as target, whole_file(raw / ANNOTATIONS) as other:
        ids = [{"question_id": one, "image_id": image} for one, image in numbers.tolist()]
        _write(target, "questions", (one | {"question": text} for one, text in zip(ids, questions, strict=True)))
        _write(other, "annotations", (one | _annotation(text) for one, text in zip(ids, given, strict=True)))
    return f"{QUESTIONS} and {ANNOTATIONS}: {len(numbers):,} of {num_pairs:,} questions; {_OTHER_ORDER}"


_OTHER_ORDER = "their order is not openvqa's, so that a published checkpoint does not fit a vocabulary with them"


def _inside(raw: Path, download: Download) -> Path:
    return raw / download.file_name / download.file_name.removesuffix(".zip")


def _coco_ids(path: Path, progress: Progress) -> tuple[Ids, Ids]:
    """Read the ids of Visual Genome's pictures and what COCO calls them, -1 for those of other origin, [I] each."""
    reader = RecordReader(path, None, progress, layout=_IMAGES)

    def take(records: list[Any]) -> list[Any]:
        ids = reader.ids(records, "image_id")
        if ids is None:
            return [None]
        numbers = [-1 if (number := record.get("coco_id")) is None else number for record in records]
        for row, number in enumerate(numbers):
            if type(number) is not int:
                reader.report(row, f'has {shown(number)} as "coco_id", expected an integer or null')
        return [ids, np.array(numbers, dtype=np.int64) if {*map(type, numbers)} == {int} else None]

    images, coco = reader.collect(take)
    refuse_duplicates(path, images, "image_id")
    return images, coco


def _is_pair(pair: object) -> bool:
    """Whether this is a question with its answer."""
    if not isinstance(pair, dict) or type(number := pair.get("qa_id")) is not int or not 0 <= number < 2**63:
        return False
    return isinstance(pair.get("question"), str) and isinstance(pair.get("answer"), str)


def _annotation(answer: str) -> dict[str, Any]:
    # As many as VQA-v2's annotators: one answer alone would count as one voice of ten.
    given = [{"answer": answer, "answer_id": number + 1} for number in range(NUM_ANNOTATORS)]
    return {"multiple_choice_answer": answer, "answers": given}


def _write(path: Path, name: str, records: Iterable[dict[str, Any]]) -> None:
    """Write records in VQA-v2's layout, one a line."""
    with path.open("wb") as file:
        file.write(b'{"data_subtype": "vg", "%s": [' % name.encode())
        for number, record in enumerate(records):
            file.write((b",\n" if number else b"\n") + orjson.dumps(record))
        file.write(b"\n]}\n")
