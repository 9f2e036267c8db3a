"""What a data set is made of: its files, how they are read, scored and answered, and what was published about it.

A data set is one ``DatasetSpec``, registered under its name: everything else in trarctl asks the spec. Built-in data
sets are the modules beside this one; any other module can register its own, named by ``TRARCTL_PLUGINS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trarctl.data import Progress
from trarctl.data.metrics import Metric, plain_accuracy
from trarctl.data.records import RawData, RawSplit
from trarctl.data.submission import AnswerFile, JsonAnswers
from trarctl.registry import DATASETS


@dataclass(frozen=True)
class FileNaming:
    """How the files of an image set are named: prefix, id, suffix."""

    prefix: str
    num_digits: int | None  # a number is padded to these with zeros; None: ids are text, and stand in the name as is
    suffix: str

    def name(self, image_id: int | str) -> str:
        """Give the file name of an image."""
        middle = image_id if self.num_digits is None else f"{int(image_id):0{self.num_digits}d}"
        return f"{self.prefix}{middle}{self.suffix}"

    def ids(self, names: Iterable[str]) -> list[int] | list[str]:
        """Pick out the ids of the names that follow this naming to the letter."""
        middle = ".+" if self.num_digits is None else f"[0-9]{{{self.num_digits},18}}"
        pattern = re.compile(f"{re.escape(self.prefix)}({middle}){re.escape(self.suffix)}")
        found = [match for match in map(pattern.fullmatch, names) if match]
        if self.num_digits is None:
            return [match[1] for match in found]
        return [int(match[1]) for match in found if self.name(int(match[1])) == match[0]]


@dataclass(frozen=True)
class SplitFiles:
    """The raw files of one split, relative to the raw folder."""

    name: str
    image_set: str  # its questions are about these images
    questions: str
    annotations: str | None = None  # None: answers stand with the questions, or nowhere
    is_required: bool = True  # nothing can be prepared without it
    num_questions: int | None = None  # in the published file; None: no figure is published
    has_answers: bool = True
    borrows_images: bool = False  # its images may belong to any image set, so that it defines none

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the split, relative to the raw folder."""
        return (self.questions,) if self.annotations is None else (self.questions, self.annotations)


@dataclass(frozen=True)
class ImageSetFiles:
    """One folder of images, and of their features; the set and its folder have the same name."""

    name: str
    num_images: int | None  # in the published set; None: no figure is published
    is_required: bool  # its features have to be there once any features are
    images: FileNaming
    features: FileNaming  # as published


@dataclass(frozen=True)
class Published:
    """A published result, in percent."""

    name: str  # the recipe in words; it begins with the kind of routing
    overall: float
    per_type: Mapping[str, float]  # by the types that the data set's accuracy is reported by


ReadSplit = Callable[[Path, SplitFiles, RawData, Progress], RawSplit]
"""Reads one split: the raw folder, the split's files, what all splits share and warnings are added to, progress."""


def _folder_of_set(root: Path, image_set: str) -> Path:
    return root / image_set


@dataclass(frozen=True)
class DatasetSpec:
    """Everything about one data set."""

    name: str  # what commands call it
    title: str  # what it shows, in a few words: "VQA-v2: photographs from COCO"

    # Raw files.
    splits: tuple[SplitFiles, ...]  # in the order in which their words enter the vocabulary
    image_sets: tuple[ImageSetFiles, ...]  # in the order of their rows in the image table
    read_split: ReadSplit
    grid_size: int  # default cells S along one side
    download_hint: str  # what to do about a missing file
    answer_splits: tuple[str, ...] = ("train", "val")  # their answers make up the answer list, in this order
    max_words: int | None = None  # default words kept of a question; None: the longest question in the data
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of splits
    split_notes: Mapping[str, str] = field(default_factory=dict)  # added to the name of a split in tables
    raw_folder: Callable[[], Path] | None = None  # gives the raw folder if none is named; None: data/NAME/raw

    # Images.
    shares_image_ids: bool = False  # an image id means the same image in every set
    image_folder: Callable[[Path, str], Path] = _folder_of_set  # from the folder of all pictures and an image set
    extractor: str | None = None  # describes the pictures in the raw folder; None: features are files, or of --images

    # Answers.
    normalize_answer: Callable[[str], str] = str  # how an answer is written in the answer list
    drops_rare_answers: bool = False  # the list leaves out answers rarer than --min-answer-count says
    has_one_answer: bool = True  # one answer is the true one; False: several annotators may differ
    metric: Metric = plain_accuracy
    type_label: str = "question type"  # what Accuracy.per_type groups questions by
    shows_baselines: bool = False  # the table of eval has what guessing scores
    answer_file: AnswerFile = field(default_factory=JsonAnswers)  # what submit writes and eval --answers reads

    recipe: Path | None = None  # TOML file of the settings that suit it; those of built-in sets are in config/recipes
    published: Mapping[str, tuple[Published, ...]] = field(default_factory=dict)  # by split

    def default_raw_folder(self) -> Path:
        """Give the raw folder to take if none is named.

        Raises:
            DataError: the package that brings the files is not installed.
        """
        return self.raw_folder() if self.raw_folder is not None else Path("data") / self.name / "raw"

    def image_set(self, name: str) -> ImageSetFiles:
        """Give one of the image sets."""
        return next(one for one in self.image_sets if one.name == name)

    def published_on(self, split: str) -> tuple[Published, ...]:
        """List the published results on a split; none where nothing was published."""
        return self.published.get(split, ())

    def split_title(self, split: str) -> str:
        """Name the data set and one of its splits, for the head of a table."""
        note = self.split_notes.get(split)
        return f"{self.name} {split}, {note}" if note else f"{self.name} {split}"


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Make a data set known to every command under its name."""
    DATASETS.register(spec.name)(spec)
    if spec.recipe is not None:
        # Imported late, since the settings load plugins, which import this module.
        from trarctl.config.settings import register_recipe

        register_recipe(spec.name, spec.recipe)
    return spec


def feature_namings(images: ImageSetFiles) -> tuple[FileNaming, ...]:
    """List the names that feature files of an image set may have, the published one first."""
    prefix, digits, suffix = images.images.prefix, images.images.num_digits, images.images.suffix
    others = [
        naming
        for extension in (".npy", ".npz")
        for naming in (
            FileNaming(prefix, digits, suffix + extension),
            FileNaming(prefix, digits, extension),
            FileNaming("", None if digits is None else 1, extension),
        )
    ]
    return tuple(dict.fromkeys([images.features, *others]))
