"""Where each data set keeps its files, and what should be in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trarctl.errors import DataError

DatasetName = Literal["vqa", "clevr", "easy-vqa"]


@dataclass(frozen=True)
class FileNaming:
    """How the files of an image set are named: prefix, zero-padded number, suffix."""

    prefix: str
    num_digits: int
    suffix: str

    def name(self, image_id: int) -> str:
        """Give the file name of an image."""
        return f"{self.prefix}{image_id:0{self.num_digits}d}{self.suffix}"


@dataclass(frozen=True)
class SplitFiles:
    """The raw files of one split.

    Args:
        name: the split.
        image_set: the image set that its questions are about.
        questions: questions file, relative to the raw folder.
        annotations: annotations file, relative to the raw folder; None: answers stand with the questions, or nowhere.
        is_required: whether nothing can be prepared without it.
        num_questions: questions in the published file, None where no figure is published.
        has_answers: whether the split is annotated.
    """

    name: str
    image_set: str
    questions: str
    annotations: str | None
    is_required: bool
    num_questions: int | None
    has_answers: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the split, relative to the raw folder."""
        return (self.questions,) if self.annotations is None else (self.questions, self.annotations)


@dataclass(frozen=True)
class ImageSetFiles:
    """One folder of images, and of their features.

    Args:
        name: the set, which is also the name of its folder.
        num_images: images in the published set, None where no figure is published.
        is_required: whether its features have to be there once any features are.
        images: how the image files are named.
        features: how the feature files are named, as published.
    """

    name: str
    num_images: int | None
    is_required: bool
    images: FileNaming
    features: FileNaming


@dataclass(frozen=True)
class Layout:
    """One data set: its splits in vocabulary order, its image sets in row order.

    Args:
        dataset: name of the data set.
        splits: splits, in the order in which their words enter the vocabulary.
        image_sets: image sets, in the order of their rows in the image table.
        answer_splits: splits whose answers make up the answer vocabulary, in order.
        grid_size: default cells S along one side.
        max_words: default words kept of a question; None: the longest question in the data.
        aliases: other names of splits.
        shares_image_ids: whether an image id means the same image in every set.
        download_hint: what to do about a missing file.
    """

    dataset: DatasetName
    splits: tuple[SplitFiles, ...]
    image_sets: tuple[ImageSetFiles, ...]
    answer_splits: tuple[str, ...]
    grid_size: int
    max_words: int | None
    aliases: dict[str, str]
    shares_image_ids: bool
    download_hint: str


def _vqa_split(name: str, image_set: str, num_questions: int, *, is_required: bool, has_answers: bool) -> SplitFiles:
    annotations = f"v2_mscoco_{image_set}_annotations.json" if has_answers else None
    questions = f"v2_OpenEnded_mscoco_{image_set}_questions.json"
    return SplitFiles(name, image_set, questions, annotations, is_required, num_questions, has_answers)


def _coco(name: str, num_images: int, *, is_required: bool) -> ImageSetFiles:
    prefix = f"COCO_{name}_"
    return ImageSetFiles(
        name, num_images, is_required, FileNaming(prefix, 12, ".jpg"), FileNaming(prefix, 12, ".jpg.npy")
    )


def _clevr(name: str, num_images: int, *, is_required: bool) -> ImageSetFiles:
    images = FileNaming(f"CLEVR_{name}_", 6, ".png")
    return ImageSetFiles(name, num_images, is_required, images, FileNaming("", 1, ".npz"))


def _easy_vqa(name: str, num_images: int) -> ImageSetFiles:
    return ImageSetFiles(name, num_images, True, FileNaming("", 1, ".png"), FileNaming("", 1, ".npy"))


VQA = Layout(
    dataset="vqa",
    splits=(
        _vqa_split("train", "train2014", 443_757, is_required=True, has_answers=True),
        _vqa_split("val", "val2014", 214_354, is_required=True, has_answers=True),
        _vqa_split("test", "test2015", 447_793, is_required=False, has_answers=False),
        SplitFiles(
            "vg", "train2014", "VG_questions.json", "VG_annotations.json", is_required=False, num_questions=None
        ),
    ),
    image_sets=(
        _coco("train2014", 82_783, is_required=True),
        _coco("val2014", 40_504, is_required=True),
        _coco("test2015", 81_434, is_required=False),
    ),
    answer_splits=("train", "val"),
    grid_size=8,
    max_words=14,
    aliases={},
    shares_image_ids=True,
    download_hint="unpack the questions and annotations of https://visualqa.org/download.html into the --raw folder",
)

CLEVR = Layout(
    dataset="clevr",
    splits=(
        SplitFiles("train", "train", "questions/CLEVR_train_questions.json", None, True, 699_989),
        SplitFiles("val", "val", "questions/CLEVR_val_questions.json", None, True, 149_991),
        SplitFiles("test", "test", "questions/CLEVR_test_questions.json", None, False, 149_988, has_answers=False),
    ),
    image_sets=(
        _clevr("train", 70_000, is_required=True),
        _clevr("val", 15_000, is_required=True),
        _clevr("test", 15_000, is_required=False),
    ),
    answer_splits=("train", "val"),
    grid_size=14,
    max_words=None,
    aliases={},
    shares_image_ids=False,
    download_hint="unpack CLEVR_v1.0.zip (https://cs.stanford.edu/people/jcjohns/clevr/) and pass its folder as --raw",
)

EASY_VQA = Layout(
    dataset="easy-vqa",
    splits=(
        SplitFiles("train", "train", "train/questions.json", None, True, 38_575),
        SplitFiles("val", "val", "test/questions.json", None, True, 9_673),
    ),
    image_sets=(
        _easy_vqa("train", 4_000),
        _easy_vqa("val", 1_000),
    ),
    answer_splits=("train", "val"),
    grid_size=4,
    max_words=None,
    aliases={"test": "val"},
    shares_image_ids=False,
    download_hint='pip install "trarctl[demo]"',
)

LAYOUTS: dict[str, Layout] = {layout.dataset: layout for layout in (VQA, CLEVR, EASY_VQA)}


def layout_of(dataset: str) -> Layout:
    """Give the layout of a data set.

    Raises:
        DataError: no such data set.
    """
    if dataset not in LAYOUTS:
        raise DataError(f"unknown data set {dataset!r}", f"use one of {', '.join(LAYOUTS)}")
    return LAYOUTS[dataset]


def feature_namings(images: ImageSetFiles) -> tuple[FileNaming, ...]:
    """List the names that feature files of an image set may have, the published one first."""
    prefix, digits, suffix = images.images.prefix, images.images.num_digits, images.images.suffix
    others = [
        naming
        for extension in (".npy", ".npz")
        for naming in (
            FileNaming(prefix, digits, suffix + extension),
            FileNaming(prefix, digits, extension),
            FileNaming("", 1, extension),
        )
    ]
    return tuple(dict.fromkeys([images.features, *others]))


def numbers_in_names(names: Iterable[str], naming: FileNaming) -> list[int]:
    """Pick out the image numbers of the names that follow ``naming`` to the letter."""
    pattern = re.compile(f"{re.escape(naming.prefix)}([0-9]{{{naming.num_digits},18}}){re.escape(naming.suffix)}")
    matches = (pattern.fullmatch(name) for name in names)
    numbers = ((int(match[1]), match[0]) for match in matches if match)
    return [number for number, name in numbers if naming.name(number) == name]
