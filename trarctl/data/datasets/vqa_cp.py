"""VQA-CP v2: the questions of VQA-v2, divided anew so that the usual answers of train and test differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, SplitFiles, register_dataset
from trarctl.data.datasets.vqa import COCO_PICTURES, coco_images, read_pair
from trarctl.data.metrics import vqa_accuracy
from trarctl.data.records import RawData, RawSplit, cut_split
from trarctl.data.text import normalize_answer

VAL_STEP = 10
"""Training questions are those of ``val`` if this divides their image's COCO id."""


def read_vqa_cp_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split, ``val`` out of the files of train; errors as in ``read_pair``.

    The list of records may be wrapped as VQA-v2's is, or bare, as it was published.
    """
    whole = data.whole.get(files.questions)
    if whole is None:
        sets = [images.name for images in VQA_CP.image_sets]
        whole = read_pair(raw, files, data, progress, image_sets=sets, may_be_bare=True)
    if files.name not in ("train", "val"):
        return whole
    data.whole[files.questions] = whole
    is_cut = whole.image_id % VAL_STEP == 0
    if whole.annotations is not None:
        # A question without answers cannot be scored, and costs nothing in train.
        is_annotated = np.zeros(len(is_cut), dtype=bool)
        is_annotated[whole.annotations.rows] = True
        is_cut &= is_annotated
    return cut_split(whole, files.name, is_cut if files.name == "val" else ~is_cut)


def _split(name: str, half: str, image_set: str, num_questions: int | None) -> SplitFiles:
    questions, annotations = (f"vqacp_v2_{half}_{kind}.json" for kind in ("questions", "annotations"))
    return SplitFiles(name, image_set, questions, annotations, num_questions=num_questions)


VQA_CP = register_dataset(
    DatasetSpec(
        name="vqa-cp",
        title="VQA-CP v2: VQA-v2 with other usual answers in train than in test",
        # Both halves have images of both image sets, which their records name. The figures are those of the files.
        splits=(
            _split("train", "train", "train2014", 438_183),
            _split("val", "train", "train2014", None),
            _split("test", "test", "val2014", 219_928),
        ),
        image_sets=(coco_images("train2014", 82_783), coco_images("val2014", 40_504)),
        read_split=read_vqa_cp_split,
        grid_size=8,
        max_words=14,
        download_hint="put vqacp_v2_{train,test}_{questions,annotations}.json of"
        " https://computing.ece.vt.edu/~aish/vqacp/ into the --raw folder; that server is often down, and there is no"
        " other official one. The images are COCO's train2014 and val2014",
        downloads=COCO_PICTURES[:2],
        split_notes={"val": "cut from train"},
        shares_image_ids=True,
        normalize_answer=normalize_answer,
        min_answer_count=8,
        has_one_answer=False,
        metric=vqa_accuracy,
        type_label="answer type",
    )
)
