"""One's own pictures and questions: a data set that tables describe, under a name of its own."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress, in_threads
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.metrics import Accuracy, ComparisonRules, GroundTruth, count_right, vqa_accuracy
from trarctl.data.question_files import Place, Row, holds_types, read_rows, why_no_picture
from trarctl.data.records import (
    NUM_ANNOTATORS,
    Ids,
    RawAnnotations,
    RawData,
    RawSplit,
    RepeatedFields,
    StringTable,
    as_text,
    flatten,
    is_text_id,
    refuse_duplicates,
    shown,
)
from trarctl.data.submission import TableAnswers
from trarctl.data.text import normalize_answer
from trarctl.errors import DataError, SettingsError, listed, shortened
from trarctl.files import file_sha256
from trarctl.registry import DATASETS

# Names that a column may have, in lower case; the first is the column's own.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": (
        "image",
        "image_name",
        "image_path",
        "image_file",
        "file_name",
        "filename",
        "file",
        "picture",
        "img_name",
    ),
    "question": ("question", "query", "sentence"),
    "answer": ("answer", "answers", "label", "direct_answers"),
    "id": ("id", "question_id", "qid"),
    "type": ("type", "question_type", "answer_type", "category"),
    "split": ("split", "set", "subset", "partition"),
}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLITS |= {"test": "test", "testing": "test"}
# Shares of the pictures, by their content.
_TRAIN_SHARE, _VAL_SHARE = 0.8, 0.1
_NO_TYPE = "no type"
_HINT = (
    'a .csv file starts with a line such as image,question,answer; a .jsonl line is {"image": "a.png", '
    '"question": "what is it?", "answer": "a cat"}; other names: --column answer=NAME'
)
_PICTURE_HINT = "pictures are files in the folder of --images, or beside the table; download others first"
_MOST_NAMED = 100  # pictures that are missing
_NUM_THREADS = 4
_TO_THE_LETTER = ComparisonRules(str, str, str, str)
_LONGEST_PATH = 1000  # characters; every image has room for the longest
_NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"


@dataclass(slots=True)
class _Record:
    """A row of a table: what it asks, about which picture, and what was answered."""

    place: Place
    image: str  # relative to the folder of pictures, with "/"
    question: str
    answers: tuple[str, ...]
    id: int | str
    type: str
    split: str | None


def _normalized(text: str) -> str:
    """Normalize an answer as VQA v2's are; one that would vanish, such as ``a``, stays what it is."""
    return normalize_answer(text) or _trimmed(text)


def _trimmed(text: str) -> str:
    return " ".join(text.split()).casefold()


_WAYS = {"normalized": _normalized, "raw": _trimmed}


class Tables:
    """The tables of a data set, read once for all splits.

    Args:
        options: of ``prepare table``: ``name``; ``questions``, or ``train``, ``val`` and ``test``; ``answers``;
            ``column``, such as ``type=answer_type``; ``skip_missing``; ``images``, the folder of pictures, else that of
            the table; ``features``, true where features are given instead of pictures.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        names = ("questions", "train", "val", "test")
        self.files = {name: Path(options[name]) for name in names if options.get(name) is not None}
        self.columns = dict(COLUMNS)
        for pair in options.get("column") or ():
            column, _, name = pair.partition("=")
            if column not in COLUMNS or not name:
                hint = f"such as --column type=answer_type; columns are {', '.join(COLUMNS)}"
                raise SettingsError(f"--column {pair} names no column", hint)
            self.columns[column] = (name.strip().lower(),)
        name = options.get("name")
        if name is None or not self.files or ("questions" in self.files) == ("train" in self.files):
            what = "a table needs a name, and one file of questions or one for each split"
            raise SettingsError(
                what, "--name NAME --questions FILE, or --name NAME --train FILE --val FILE --test FILE"
            )
        if not re.fullmatch(_NAME, name) or name in DATASETS.names():
            what = f"--name {shortened(name)} cannot be the name of your own data"
            taken = f"letters a to z, digits, '.', '_' and '-', other than {', '.join(DATASETS.names())}"
            raise SettingsError(what, taken)
        self._read: dict[str, dict[str, list[_Record]]] = {}
        self._pictures: dict[str, set[str]] = {}  # digests of what stands in each split

    @property
    def root(self) -> Path | None:
        """The folder of the pictures."""
        first = next(iter(self.files.values()), None)
        images = self.options.get("images")
        return Path(images) if images is not None else first and first.parent

    def splits(self) -> tuple[SplitFiles, ...]:
        """Name the table of each split."""
        one = self.files.get("questions")
        return tuple(
            SplitFiles(name, name, str(one or self.files[name]), is_required=name == "train")
            for name in ("train", "val", "test")
            if one is not None or name in self.files
        )

    def read_split(self, raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
        """Read one split, empty if no row belongs to it; a DataError names all rows that are unusable."""
        path = raw / files.questions
        is_whole = "questions" in self.files
        if str(path) not in self._read:
            records = self._records(path, data, progress)
            data.num_records[files.questions] = len(records)
            digests = dict(self._digests({record.image for record in records}, progress))
            parts = _parted(path, records, digests) if is_whole else {files.name: records}
            self._warn_of_shared(path, parts, digests, data)
            self._read[str(path)] = parts
        return _raw_split(path, files.name, self._read[str(path)].get(files.name, []), data)

    def _records(self, path: Path, data: RawData, progress: Progress) -> list[_Record]:
        """Read a table; a DataError names the rows that are unusable, ten of them and a count."""
        normalize = _WAYS[self.options.get("answers") or "normalized"]
        needed = {column: self.columns[column] for column in ("image", "question")}
        others = {column: self.columns[column] for column in self.columns if column not in needed}
        records, faults, used = list[_Record](), list[str](), Counter[tuple[str, str]]()
        missing, known = dict[str, str](), dict[str, str | None]()
        num_pictures, num_missing, lists = 0, 0, list[Place]()
        for place, row in read_rows(path, needed, _HINT, others):
            if place.number % 10_000 == 0:
                progress(f"reading {path.name}", place.number, None)
            found = self._fields(row, used) if isinstance(row, dict) else row
            record = _record(place, found, normalize) if isinstance(found, dict) else found
            if isinstance(record, str) or isinstance(found, str):
                faults.append(f"{place} {record}")
                continue
            answer = found.get("answer")
            if isinstance(answer, str) and re.fullmatch(r"\s*\[.*,.*\]\s*", answer, re.DOTALL):
                lists.append(place)
            image, fault = self._image(record.image)
            if image not in known:
                known[image] = fault or self._why_missing(record.image, image)
            if fault or (known[image] or "").endswith("expected the path of a file"):
                faults.append(f"{place}: {known[image]}")
                num_pictures += 1
            elif known[image]:
                missing.setdefault(image, f"{place}: {known[image]}")
                num_missing += 1
            else:
                record.image = sys.intern(image)  # asked about several times
                records.append(record)
        if faults:
            noun = "1 unusable row" if len(faults) == 1 else f"{len(faults):,} unusable rows"
            hint = _PICTURE_HINT if num_pictures == len(faults) else _HINT
            raise DataError(f"{path}: {noun}: {listed(faults)}", hint)
        self._judge_missing(path, missing, num_missing, data)
        if not records:
            raise DataError(f"{path} holds no questions", _HINT)
        self._tell_columns(path, used, data)
        if lists:
            what = f"{path}: answers that look like lists, but are one text each: {listed(lists)}"
            data.warnings.append(f"{what}; in CSV, several answers are separated by |")
        _settle_ids(path, records, data)
        return records

    def _tell_columns(self, path: Path, used: Counter[tuple[str, str]], data: RawData) -> None:
        """Note which columns were taken under other names; a DataError names one that ``--column`` promised."""
        for column, accepted in self.columns.items():
            may_lack = column == "answer" and path == self.files.get("test")
            if accepted is not COLUMNS[column] and not may_lack and (column, accepted[0]) not in used:
                raise DataError(f"{path} has no column {accepted[0]}", f"correct --column {column}={accepted[0]}")
        taken = [f"{name} as {column}" for column, name in used if column and name != COLUMNS[column][0]]
        aside = [name for column, name in used if not column]
        said = [f"columns taken: {listed(taken)}"] if taken else []
        said += [f"columns left aside: {listed(aside)}"] if aside else []
        data.notes += [f"{path}: {'; '.join(said)}"] if said else []

    def _judge_missing(self, path: Path, missing: Mapping[str, str], num_rows: int, data: RawData) -> None:
        """Refuse pictures that are missing, or leave out their questions."""
        if not missing:
            return
        noun = "1 picture is" if len(missing) == 1 else f"{len(missing):,} pictures are"
        what = f"{path}: {noun} not in {self.root}: "
        if not self.options.get("skip_missing"):
            above = self.root.absolute().parent if self.root is not None else None
            is_above = above is not None and all((above / image).is_file() for image in missing)
            hint = f"they are in its parent: --images {shlex.quote(str(above))}"
            others = "add them, name their folder with --images, or leave their questions out: --skip-missing"
            raise DataError(what + listed(missing.values(), most=_MOST_NAMED), hint if is_above else others)
        data.warnings.append(f"{what}{listed(missing.values())}; {num_rows:,} questions are left out")

    def _fields(self, row: Row, used: Counter[tuple[str, str]]) -> dict[str, Any] | str:
        """Give the columns of a row by their own names."""
        if isinstance(row, RepeatedFields) and row.repeated:
            return f"has {' and '.join(sorted(row.repeated))} more than once"
        names = {name.strip().lower(): name for name in row}
        is_twice = len(names) < len(row)
        fields = {}
        for column, accepted in self.columns.items():
            for number, name in enumerate(one for one in accepted if one in names):
                used["" if number else column, name] += 1
                if number == 0:
                    value = row[names[name]]
                    is_missing = isinstance(value, float) and math.isnan(value)  # as pandas writes it
                    fields[column] = None if is_missing else value
                if is_twice and sum(one.strip().lower() == name for one in row) > 1:
                    return f"has {name} more than once"
        return fields

    def _image(self, text: str) -> tuple[str, str | None]:
        """Give a picture's path relative to the folder of pictures, and what is wrong with it."""
        path = PurePosixPath(text.replace("\\", "/"))
        if path.is_absolute() and self.root is not None:
            root = PurePosixPath(self.root.absolute().as_posix())
            path = path.relative_to(root) if path.is_relative_to(root) else path
        shown = repr(shortened(text))
        if path.is_absolute() or ".." in path.parts:
            return str(path), f"{shown} leads out of the folder of pictures, {self.root}"
        return str(path), None

    def _why_missing(self, text: str, image: str) -> str | None:
        if self.options.get("features") or self.root is None:
            return None
        path = self.root / image
        fault = why_no_picture(text, path)
        return fault or (None if path.is_file() else f"{image!r} is not a file")

    def _warn_of_shared(
        self, path: Path, parts: Mapping[str, Sequence[_Record]], digests: Mapping[str, str], data: RawData
    ) -> None:
        """Warn of pictures, or copies of them, that stand in a split and in one before it."""
        for split, records in parts.items():
            held = {digests[record.image] for record in records}
            for one, others in self._pictures.items():
                if shared := held & others:
                    what = f"{path}: {len(shared):,} of the {len(held):,} pictures of {split} stand in {one} too"
                    data.warnings.append(f"{what}: an accuracy on {split} counts pictures that were learned")
            self._pictures[split] = held

    def _digests(self, images: set[str], progress: Progress) -> Iterator[tuple[str, str]]:
        """SHA-256 of each picture's content; of its name where only its features are there."""
        ordered = sorted(images)
        if self.options.get("features") or self.root is None:
            yield from ((image, hashlib.sha256(image.encode()).hexdigest()) for image in ordered)
            return
        root = self.root
        found = in_threads(lambda image: file_sha256(root / image), ordered, _NUM_THREADS)
        for number, (image, digest) in enumerate(zip(ordered, found, strict=True), start=1):
            progress("comparing pictures", number, len(ordered))
            yield image, digest


def _parted(path: Path, records: Sequence[_Record], digests: Mapping[str, str]) -> dict[str, list[_Record]]:
    """Part one table by its column ``split``, or by the content of its pictures."""
    without = [record.place for record in records if record.split is None]
    if 0 < len(without) < len(records):
        what = f"{path}: {len(without):,} of {len(records):,} rows have no split, such as {without[0]}"
        raise DataError(what, "fill in the column split everywhere, or leave it out")
    parts: dict[str, list[_Record]] = {"train": [], "val": [], "test": []}
    for record in records:
        parts[record.split or _split_of(digests[record.image])].append(record)
    return {split: part for split, part in parts.items() if part}


def _split_of(digest: str) -> str:
    """Give the split of a picture by its content: the same however the table grows."""
    place = int(digest[:12], 16) / 16**12
    return "train" if place < _TRAIN_SHARE else "val" if place < _TRAIN_SHARE + _VAL_SHARE else "test"


def _settle_ids(path: Path, records: Sequence[_Record], data: RawData) -> None:
    """Make the ids of a table all integers of 64 bits, or else all texts; a DataError names those that come twice.

    A table that does not tell numbers from texts has integers where all are in digits as integers are written.
    """
    ids: list[Any] = [record.id for record in records]
    if not holds_types(path) and all(re.fullmatch("0|-?[1-9][0-9]{0,18}", str(one)) for one in ids):
        ids = list(map(int, ids))
    numbers = [one for one in ids if isinstance(one, int)]
    if len(numbers) < len(ids) or max(map(abs, numbers)) >= 2**63:
        if numbers and holds_types(path):
            why = "beside ids that are texts" if len(numbers) < len(ids) else "some of more than 64 bits"
            data.warnings.append(f"{path}: ids that are numbers, {why}, return as texts: {len(numbers):,}")
        ids = list(map(str, ids))
    refuse_duplicates(path, np.array(ids), "id")
    for record, one in zip(records, ids, strict=True):
        record.id = one


def _record(place: Place, fields: Mapping[str, Any], normalize: Any) -> _Record | str:
    """Give a row, or what is wrong with it as the end of a sentence."""
    texts = {}
    for column in ("image", "question"):
        value = fields.get(column)
        text = as_text(value)
        if text is None and value is not None:
            return f"has the {column} {shown(value)}, expected text"
        if not (text or "").strip():
            return f"has no {column}"
        if column == "image" and len(str(text)) > _LONGEST_PATH and not str(text).startswith("data:"):
            return f"has an {column} of {len(str(text)):,} characters, expected at most {_LONGEST_PATH:,}"
        texts[column] = str(text).strip()
    answers = _answers(fields.get("answer"))
    if isinstance(answers, str):
        return answers
    split = fields.get("split")
    if split is not None and str(split).strip():
        name = _SPLITS.get(str(split).strip().lower())
        if name is None:
            return f"has the split {shown(split)}, expected train, val or test"
    else:
        name = None
    id = fields.get("id", place.number)
    if id is None or id == "":
        return "has no id"
    if isinstance(id, bool) or not isinstance(id, int | str) or not is_text_id(str(id)):
        return f"has the id {shown(id)}, expected an integer or a text of 1 to 255 characters"
    kind = fields.get("type")
    type = " ".join(str(kind).split()) if kind is not None else ""
    said = tuple(sys.intern(normalize(answer)) for answer in answers)
    return _Record(place, texts["image"], texts["question"], said, id, sys.intern(type) or _NO_TYPE, name)


def _answers(value: Any) -> list[str] | str:
    """Read a text or a number, several joined by ``|``, or a list; what is wrong as the end of a sentence."""
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else str(value).split("|") if isinstance(value, str) else [value]
    texts = [repr(one) if isinstance(one, float) else as_text(one) for one in values]
    if None in texts:
        return f"has the answer {shown(values[texts.index(None)])}, expected text or a number"
    texts = [text for text in texts if text is not None and text.strip()]
    if len(texts) > NUM_ANNOTATORS:
        return f"has {len(texts)} answers, expected at most {NUM_ANNOTATORS}"
    return [str(text) for text in texts]


def _raw_split(path: Path, name: str, records: Sequence[_Record], data: RawData) -> RawSplit:
    """Turn rows into a split; rows without an answer are refused unless none has one."""
    ids = [record.id for record in records]
    question_id: Ids = np.array(ids, np.int64 if all(isinstance(one, int) for one in ids) else np.str_)
    image_id = np.array([record.image for record in records])
    texts = flatten([record.question for record in records])
    unanswered = [record.place for record in records if not record.answers]
    if not unanswered:
        annotations = _annotations(records, data)
    elif len(unanswered) == len(records) and name == "test":
        annotations = None
    elif len(unanswered) == len(records):
        what = f"{path}: no question of {name} has an answer"
        raise DataError(what, "name their column: --column answer=NAME; only a test split may have none")
    else:
        what = f"{path}: {len(unanswered):,} of the {len(records):,} questions of {name} have no answer: "
        hint = "answer them or leave them out; only a test split may have none at all"
        raise DataError(what + listed(unanswered), hint)
    return RawSplit(name, question_id, image_id, texts, annotations)


def _annotations(records: Sequence[_Record], data: RawData) -> RawAnnotations:
    codes = np.full((len(records), NUM_ANNOTATORS), -1, dtype=np.int32)
    chosen = np.empty(len(records), dtype=np.int32)
    for row, record in enumerate(records):
        codes[row, : len(record.answers)] = data.answers.codes(record.answers)
        commonest = Counter(record.answers).most_common(1)[0][0]
        chosen[row] = data.answers[commonest]
    names = StringTable()
    kinds = names.codes([record.type for record in records]).astype(np.int16)
    types = tuple(names)
    rows: npt.NDArray[np.int32] = np.arange(len(records), dtype=np.int32)
    return RawAnnotations(rows, codes, chosen, kinds, types, kinds, types, counts_for_ten=True)


def _accuracy(normalize: Any, predictions: Sequence[str], truth: GroundTruth, evaluator: Any = "official") -> Accuracy:
    """Compare by exact match where there is one answer a question, else by VQA's rule for K annotators."""
    forms = {text: normalize(text) for text in set(predictions)}
    predictions = [forms[text] for text in predictions]
    if (truth.codes[:, 1:] < 0).all():
        measured = count_right(predictions, truth, truth.question_type, truth.question_types, evaluator)
    else:
        measured = replace(vqa_accuracy(predictions, truth, evaluator, _TO_THE_LETTER), per_question_type={})
    return replace(measured, per_type={}) if measured.types == (_NO_TYPE,) else measured


def with_options(options: Mapping[str, Any]) -> DatasetSpec:
    """Give the data set that tables make, or that was made of some; see ``Tables``."""
    tables = Tables(options)
    way = options.get("answers") or "normalized"
    if way not in _WAYS:
        raise SettingsError(f"--answers {way} is no way to write answers", f"--answers {' or '.join(_WAYS)}")
    splits = tables.splits()
    return replace(
        TABLE,
        name=options["name"],
        title=f"{options['name']}, one's own pictures and questions",
        splits=splits,
        image_sets=_image_sets(splits),
        read_split=tables.read_split,
        raw_folder=Path,
        image_folder=lambda root, _: root,
        feature_folder=lambda root, _: root,
        pictures=tables.root,
        metric=partial(_accuracy, _WAYS[way]),
        with_options=with_options,
    )


def _image_sets(splits: Sequence[SplitFiles]) -> tuple[ImageSetFiles, ...]:
    """Give each split the pictures that it asks about, all in one folder."""
    pictures, features = (FileNaming("", None, suffix, is_nested=True) for suffix in ("", ".npy"))
    return tuple(ImageSetFiles(one.name, None, one.is_required, pictures, features) for one in splits)


_SPLIT_FILES = tuple(SplitFiles(name, name, name, is_required=name == "train") for name in ("train", "val", "test"))


def _no_table(*_: Any) -> RawSplit:
    raise AssertionError("the options describe the table")


TABLE = register_dataset(
    DatasetSpec(
        name="table",
        title="one's own pictures and questions, from a table",
        splits=_SPLIT_FILES,
        image_sets=_image_sets(_SPLIT_FILES),
        read_split=_no_table,
        grid_size=8,
        download_hint="name the table: --questions FILE, or --train, --val and --test",
        answer_splits=("train",),
        shares_image_ids=True,
        default_extractor="patches",
        min_answer_count=0,
        has_one_answer=False,
        type_label="type",
        answer_file=TableAnswers(),
        with_options=with_options,
    )
)
