"""OK-VQA v1.1: questions about COCO's photographs that need knowledge from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, SplitFiles, register_dataset
from trarctl.data.datasets.vqa import COCO_PICTURES, coco_images, read_pair
from trarctl.data.download import Download
from trarctl.data.metrics import vqa_accuracy
from trarctl.data.records import RawData, RawSplit
from trarctl.data.text import normalize_answer

# The files number the topics in words.
_TOPICS = {
    "one": "vehicles and transportation",
    "two": "brands, companies and products",
    "three": "objects, material and clothing",
    "four": "sports and recreation",
    "five": "cooking and food",
    "six": "geography, history, language and culture",
    "seven": "people and everyday life",
    "eight": "plants and animals",
    "nine": "science and technology",
    "ten": "weather and climate",
}


def read_okvqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split, its question types the topics; errors as in ``read_pair``.

    Of the answers' fields ``answer`` counts, which is stemmed; ``raw_answer`` is what was typed, and not scored.
    """
    split = read_pair(raw, files, data, progress, splits=OKVQA.splits, lists_all_answers=True)
    if split.annotations is None:
        return split
    topics = tuple(_TOPICS.get(name, name) for name in split.annotations.question_types)
    return replace(split, annotations=replace(split.annotations, question_types=topics))


def _split(name: str, num_questions: int) -> SplitFiles:
    questions, annotations = f"OpenEnded_mscoco_{name}2014_questions.json", f"mscoco_{name}2014_annotations.json"
    return SplitFiles(name, f"{name}2014", questions, annotations, num_questions=num_questions)


_SPLITS = (_split("train", 9_009), _split("val", 5_046))
OKVQA = register_dataset(
    DatasetSpec(
        name="okvqa",
        title="OK-VQA v1.1: photographs from COCO, and questions that need outside knowledge",
        splits=_SPLITS,
        image_sets=(coco_images("train2014", 82_783), coco_images("val2014", 40_504)),
        read_split=read_okvqa_split,
        grid_size=8,
        max_words=14,
        download_hint="unpack OpenEnded_mscoco_{train,val}2014_questions.json.zip and"
        " mscoco_{train,val}2014_annotations.json.zip of https://okvqa.allenai.org/static/data/ into the --raw folder,"
        " a folder of their own: VQA v1's files have the same names. The images are COCO's train2014 and val2014",
        downloads=(
            *(
                Download(f"https://okvqa.allenai.org/static/data/{file}.zip", holds=(file,))
                for split in _SPLITS
                for file in split.files
            ),
            *COCO_PICTURES[:2],
        ),
        answer_splits=("train",),
        # The published test questions are those about val2014, and there are no others to choose an epoch by.
        aliases={"test": "val"},
        split_notes={"val": "the published test set"},
        shares_image_ids=True,
        normalize_answer=normalize_answer,
        # Every annotator's answer counts: those given ten times or more, which in version 1.1 are 2,250.
        min_answer_count=9,
        has_one_answer=False,
        metric=vqa_accuracy,
        type_label="answer type",
    )
)
