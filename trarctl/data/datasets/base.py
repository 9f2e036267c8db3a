"""What a data set is made of: its files, how they are read, scored and answered, and what was published about it.

A data set is one ``DatasetSpec``, registered under its name: everything else in trarctl asks the spec. Built-in data
sets are the modules beside this one; any other module can register its own, named by ``TRARCTL_PLUGINS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trarctl.config.settings import register_recipe
from trarctl.data.metrics import Metric, plain_accuracy
from trarctl.data.progress import Progress
from trarctl.data.raw_splits import RawData, RawSplit
from trarctl.data.submission import AnswerFile, JsonAnswers
from trarctl.registry import DATASETS


@dataclass(frozen=True)
class FileNaming:
    """How the files of an image set are named: prefix, id, suffix.

    Attributes:
        num_digits: digits that a number is padded to with zeros; None: ids are text, and stand in the name as they are.
    """

    prefix: str
    num_digits: int | None
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
    """The raw files of one split.

    Attributes:
        name: the split.
        image_set: the image set that its questions are about.
        questions: questions file, relative to the raw folder.
        annotations: annotations file, relative to the raw folder; None: answers stand with the questions, or nowhere.
        is_required: whether nothing can be prepared without it.
        num_questions: questions in the published file, None where no figure is published.
        has_answers: whether the split is annotated.
        borrows_images: whether its images may belong to any image set, so that it defines none.
    """

    name: str
    image_set: str
    questions: str
    annotations: str | None = None
    is_required: bool = True
    num_questions: int | None = None
    has_answers: bool = True
    borrows_images: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the split, relative to the raw folder."""
        return (self.questions,) if self.annotations is None else (self.questions, self.annotations)


@dataclass(frozen=True)
class ImageSetFiles:
    """One folder of images, and of their features.

    Attributes:
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
class Published:
    """A published result, in percent.

    Attributes:
        name: the recipe in words; it begins with the kind of routing.
        per_type: by the types that the data set's accuracy is reported by.
    """

    name: str
    overall: float
    per_type: Mapping[str, float]


ReadSplit = Callable[[Path, SplitFiles, RawData, Progress], RawSplit]


def _as_it_is(answer: str) -> str:
    return answer


def _folder_of_set(root: Path, image_set: str) -> Path:
    return root / image_set


@dataclass(frozen=True)
class DatasetSpec:
    """Everything about one data set.

    Attributes:
        name: what commands call it.
        title: what it shows, in a few words: ``VQA-v2: photographs from COCO``.
        splits: in the order in which their words enter the vocabulary.
        image_sets: in the order of their rows in the image table.
        read_split: reads one split: raw folder, its files, where answers and warnings are collected, progress.
        answer_splits: splits whose answers make up the answer list, in order.
        grid_size: default cells S along one side.
        max_words: default words kept of a question; None: the longest question in the data.
        download_hint: what to do about a missing file.
        aliases: other names of splits.
        split_notes: what to add to the name of a split in tables.
        shares_image_ids: whether an image id means the same image in every set.
        raw_folder: the raw folder if none is named; None: data/NAME/raw.
        image_folder: folder of an image set's pictures under the folder of all pictures.
        extractor: what makes features of the pictures in the raw folder; None: features come from files or --images.
        normalize_answer: how an answer is written in the answer list.
        drops_rare_answers: whether answers that are rarer than ``--min-answer-count`` says are left out of the list.
        has_one_answer: whether one answer is the true one; otherwise several annotators may differ.
        metric: accuracy of answers.
        type_label: what ``Accuracy.per_type`` groups questions by.
        shows_baselines: whether the table of ``eval`` has what guessing scores.
        answer_file: what ``submit`` writes and ``eval --answers`` reads.
        recipe: TOML file of the settings that suit the data set; None for the built-in data sets, whose recipes are
            in trarctl/config.
        published: published results by split.
    """

    name: str
    title: str
    splits: tuple[SplitFiles, ...]
    image_sets: tuple[ImageSetFiles, ...]
    read_split: ReadSplit
    grid_size: int
    download_hint: str
    answer_splits: tuple[str, ...] = ("train", "val")
    max_words: int | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    split_notes: Mapping[str, str] = field(default_factory=dict)
    shares_image_ids: bool = False
    raw_folder: Callable[[], Path] | None = None
    image_folder: Callable[[Path, str], Path] = _folder_of_set
    extractor: str | None = None
    normalize_answer: Callable[[str], str] = _as_it_is
    drops_rare_answers: bool = False
    has_one_answer: bool = True
    metric: Metric = plain_accuracy
    type_label: str = "question type"
    shows_baselines: bool = False
    answer_file: AnswerFile = field(default_factory=JsonAnswers)
    recipe: Path | None = None
    published: Mapping[str, tuple[Published, ...]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The name."""
        return self.name

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
        register_recipe(spec.name, spec.recipe)
    return spec


Layout = DatasetSpec


def layout_of(dataset: str) -> DatasetSpec:
    """Give the specification of a data set.

    Raises:
        SettingsError: no such data set.
    """
    return DATASETS[dataset]


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


def numbers_in_names(names: Iterable[str], naming: FileNaming) -> list[int] | list[str]:
    """Pick out the ids of the names that follow ``naming`` to the letter."""
    return naming.ids(names)
