"""What a data set is made of: its files, how they are read, scored and answered, and what was published about it.

A data set is one ``DatasetSpec``, registered under its name: everything else in trarctl asks the spec. Built-in data
sets are the modules beside this one; any other module can register its own, named by ``TRARCTL_PLUGINS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from trarctl.data import Progress
from trarctl.data.download import Download
from trarctl.data.metrics import Metric, plain_accuracy
from trarctl.data.records import RawData, RawSplit, rows_of
from trarctl.data.submission import AnswerFile, JsonAnswers
from trarctl.errors import DataError
from trarctl.registry import DATASETS


@dataclass(frozen=True)
class FileNaming:
    """How the files of an image set are named: prefix, id, suffix."""

    prefix: str
    num_digits: int | None  # a number is padded to these with zeros; None: ids are text, and stand in the name as is
    suffix: str
    is_nested: bool = False  # names may lie in folders within the set's: relative paths with "/"
    replaces_suffix: bool = False  # the suffix stands in place of the one that the id itself has: a.npy of a.jpg

    def name(self, image_id: int | str) -> str:
        """Give the file name of an image."""
        middle = image_id if self.num_digits is None else f"{int(image_id):0{self.num_digits}d}"
        middle = str(PurePosixPath(str(middle)).with_suffix("")) if self.replaces_suffix else middle
        return f"{self.prefix}{middle}{self.suffix}"

    def ids(self, names: Iterable[str], asked: Iterable[str] | None = None) -> list[int] | list[str]:
        """Pick out the ids of the names that follow this naming to the letter; of those ``asked`` for, if any are."""
        if asked is not None:
            there = frozenset(names)
            return [one for one in asked if self.name(one) in there]
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
    download_hint: str | None = None  # what to do about a missing file; None: as for the data set
    other_names: tuple[str, ...] = ()  # that the file of questions may have instead
    repeats_others: bool = False  # it holds questions of other splits as well
    training_note: str | None = None  # what whoever trains on it should know

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
    instead: tuple[str, ...] = ()  # sets whose folders may hold its images too, for the same ids


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
    downloads: tuple[Download, ...] = ()  # what `trarctl download` fetches; none: download_hint says how
    raw_folder: Callable[[], Path] | None = None  # gives the raw folder if none is named; None: data/NAME/raw

    # Images.
    numbers_questions: bool = False  # the files have no ids of questions: they are numbered in file order
    shares_image_ids: bool = False  # an image id means the same image in every set
    image_folder: Callable[[Path, str], Path] = _folder_of_set  # from the folder of all pictures and an image set
    feature_folder: Callable[[Path, str], Path] = _folder_of_set  # from the folder of --features and an image set
    extractor: str | None = None  # describes the pictures in the raw folder; None: features are files, or of --images
    pictures: Path | None = None  # the folder of pictures if neither that nor features are named
    default_extractor: str = "resnet101"  # what describes pictures if none is named
    leaves_out_missing: bool = False  # questions about images that are not there are left out, with a count

    # Answers.
    normalize_answer: Callable[[str], str] = str  # how an answer is written in the answer list
    min_answer_count: int | None = None  # default of --min-answer-count; None: the list leaves out no answer
    max_answers: int | None = None  # the list holds the commonest, at most as many
    has_one_answer: bool = True  # one answer is the true one; False: several annotators may differ
    metric: Metric = plain_accuracy
    types_tell_answers: bool = False  # the question types are drawn from the true answers
    type_label: str = "question type"  # what Accuracy.per_type groups questions by
    answer_file: AnswerFile = field(default_factory=JsonAnswers)  # what submit writes and eval --answers reads

    with_options: Callable[[Mapping[str, Any]], DatasetSpec] | None = None  # makes it by options of prepare that it has
    recipe: Path | None = None  # TOML file of the settings that suit it; those of built-in sets are in config/recipes
    published: Mapping[str, tuple[Published, ...]] = field(default_factory=dict)  # by split

    def default_raw_folder(self) -> Path:
        """Give the raw folder to take if none is named; DataError if a package that brings it is not installed."""
        return self.raw_folder() if self.raw_folder is not None else Path("data") / self.name / "raw"

    def found_in(self, raw: Path, packed: Container[str] = ()) -> DatasetSpec:
        """Give the spec with the names that its files have in a raw folder, or packed, where they may have several."""

        def name_of(split: SplitFiles) -> str:
            names = (split.questions, *split.other_names)
            return next((name for name in names if (raw / name).is_file() or name in packed), split.questions)

        return replace(self, splits=tuple(replace(split, questions=name_of(split)) for split in self.splits))

    def image_set(self, name: str) -> ImageSetFiles:
        """Give one of the image sets."""
        return next(one for one in self.image_sets if one.name == name)

    def published_on(self, split: str, num_questions: int | None = None) -> tuple[Published, ...]:
        """List the published results on a split; none where it has another number of questions than theirs."""
        whole = next((one.num_questions for one in self.splits if one.name == split), None)
        is_other = None not in (whole, num_questions) and whole != num_questions
        return () if is_other else self.published.get(split, ())

    def split_name(self, name: str) -> str:
        """Give the name of a split that may go by another one."""
        return self.aliases.get(name, name)

    def split_title(self, split: str) -> str:
        """Name the data set and one of its splits, for the head of a table."""
        note = self.split_notes.get(split)
        return f"{self.name} {split}, {note}" if note else f"{self.name} {split}"


def check_declared(
    path: Path,
    declared: Mapping[tuple[str, str], int],
    files: SplitFiles,
    known: Mapping[str, str],
    warnings: list[str],
) -> None:
    """Raise a DataError if a file says that it is another split than the one it is read as.

    Args:
        path: the file.
        declared: how many records, or 1 for the file's head, say what: by field and value.
        files: the split that the file is read as.
        known: what a file of each split would say, to the split's name.
        warnings: one is added if what the file says is no split that is known.
    """
    odd = {said: count for said, count in declared.items() if known.get(said[1]) != files.name}
    if not odd:
        return
    times = {pair: f" ({count:,} times)" if count > 1 else "" for pair, count in odd.items()}
    said = ", ".join(f'"{field}": "{value}"{times[field, value]}' for field, value in list(odd)[:10])
    expected = " or ".join(f'"{value}"' for value, name in known.items() if name == files.name)
    what = f"{path} is read as {files.name}, but says of itself {said}, where {expected} is expected"
    others = sorted({known[value] for _, value in odd if value in known})
    if others and not files.borrows_images:
        raise DataError(what, f"is it the file of {' or '.join(others)}? Put that of {files.name} there")
    warnings.append(what)


def compare_splits(spec: DatasetSpec, splits: Iterable[RawSplit]) -> list[str]:
    """Warn of each two splits that share questions, which are about the same image in the same words.

    Where image ids mean another image in each split, the question's id has to be the same as well. Splits that borrow
    their images are only trained on, and left out, as are those that repeat others. A DataError says that all questions
    of val are in train.
    """
    warnings = list[str]()
    if spec.numbers_questions:
        return warnings
    left_out = {files.name for files in spec.splits if files.borrows_images or files.repeats_others}
    for one, other in combinations([split for split in splits if split.name not in left_out], 2):
        shared = _num_shared(one, other, shares_image_ids=spec.shares_image_ids)
        what = f"{shared:,} of the {len(other.texts):,} questions of {other.name} are in {one.name} too"
        what += ", about the same image in the same words"
        if shared == len(other.texts) and (one.name, other.name) == tuple(map(spec.split_name, ("train", "val"))):
            hint = f"put {one.name}'s own files there; data.split={one.name}+{other.name} trains on both"
            raise DataError(what, hint)
        if shared:
            warnings.append(f"{what}: an accuracy on {other.name} counts answers that were learned by heart")
    return warnings


def _num_shared(one: RawSplit, other: RawSplit, *, shares_image_ids: bool) -> int:
    """Count the questions of ``other`` that ``one`` holds."""
    if not shares_image_ids:
        rows = rows_of(other.question_id, one.question_id)
        is_candidate = (rows >= 0) & (one.image_id[rows] == other.image_id)
        return sum(other.texts[row] == one.texts[rows[row]] for row in np.flatnonzero(is_candidate).tolist())
    rows = np.flatnonzero(np.isin(one.image_id, other.image_id))
    known = {(one.image_id[row], one.texts[row]) for row in rows.tolist()}
    rows = np.flatnonzero(np.isin(other.image_id, one.image_id))
    return sum((other.image_id[row], other.texts[row]) in known for row in rows.tolist())


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Make a data set known to every command under its name."""
    DATASETS.register(spec.name)(spec)
    if spec.recipe is not None:
        # Imported late, since the settings load plugins, which import this module.
        from trarctl.config.settings import register_recipe

        register_recipe(spec.name, spec.recipe)
    return spec


def downloads_by_name() -> dict[str, tuple[DatasetSpec, tuple[Download, ...]]]:
    """List what can be downloaded: by the name of a data set or of a part of one, the data set and the files."""
    found = dict[str, tuple[DatasetSpec, tuple[Download, ...]]]()
    for name in DATASETS.names():
        spec: DatasetSpec = DATASETS[name]
        for part in dict.fromkeys([None, *(one.part for one in spec.downloads)]):
            found[part or name] = spec, tuple(one for one in spec.downloads if one.part == part)
    return found


def feature_namings(images: ImageSetFiles) -> tuple[FileNaming, ...]:
    """List the names that feature files of an image set may have, the published one first."""
    prefix, digits, suffix = images.images.prefix, images.images.num_digits, images.images.suffix
    others = [
        naming
        for extension in (".npy", ".npz")
        for naming in (
            FileNaming(prefix, digits, suffix + extension, images.images.is_nested),
            FileNaming(prefix, digits, extension, images.images.is_nested),
            FileNaming("", None if digits is None else 1, extension, images.images.is_nested),
        )
    ]
    return tuple(dict.fromkeys([images.features, *others]))
