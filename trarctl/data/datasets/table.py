"""One's own pictures and questions: a data set that tables describe, under a name of its own."""

from __future__ import annotations

import hashlib
import re
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
from trarctl.data.question_files import Row, read_rows, why_no_picture
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
    refuse_duplicates,
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
    '"question": "what is it?", "answer": "a cat"}'
)
_NUM_THREADS = 4
_TO_THE_LETTER = ComparisonRules(str, str, str, str)
_NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"


@dataclass(frozen=True)
class _Record:
    """A row of a table: what it asks, about which picture, and what was answered."""

    line: int
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
            self._read[str(path)] = self._parted(path, records, data, progress) if is_whole else {files.name: records}
        return _raw_split(path, files.name, self._read[str(path)].get(files.name, []), data)

    def _records(self, path: Path, data: RawData, progress: Progress) -> list[_Record]:
        """Read a table; a DataError names the rows that are unusable, ten of them and a count."""
        normalize = _WAYS[self.options.get("answers") or "normalized"]
        needed = {column: self.columns[column] for column in ("image", "question")}
        records, faults, used = list[_Record](), list[str](), Counter[tuple[str, str]]()
        missing = dict[str, str]()
        known = dict[str, str | None]()
        for number, row in read_rows(path, needed, _HINT):
            if number % 10_000 == 0:
                progress(f"reading {path.name}", number, None)
            found = self._fields(row, used) if isinstance(row, dict) else row
            record = _record(number, found, normalize) if isinstance(found, dict) else found
            if isinstance(record, str):
                faults.append(f"line {number:,} {record}")
                continue
            image, fault = self._image(record.image)
            if image not in known:
                known[image] = fault or self._why_missing(image)
            if fault or (known[image] or "").endswith("expected the path of a file"):
                faults.append(f"line {number:,}: {known[image]}")
            elif known[image]:
                missing[image] = f"line {number:,}: {known[image]}"
            else:
                records.append(replace(record, image=image))
        if faults:
            raise DataError(f"{path}: {len(faults):,} unusable rows: {listed(faults)}", _HINT)
        self._judge_missing(path, missing, data)
        if not records:
            raise DataError(f"{path} holds no questions", _HINT)
        others = [f"{name} as {column}" for column, name in used if name != COLUMNS[column][0]]
        if others:
            data.notes.append(f"{path}: columns taken: {listed(others)}")
        return records

    def _judge_missing(self, path: Path, missing: Mapping[str, str], data: RawData) -> None:
        """Refuse pictures that are missing, or leave out their questions."""
        if not missing:
            return
        noun = "1 picture is" if len(missing) == 1 else f"{len(missing):,} pictures are"
        what = f"{path}: {noun} not in {self.root}: {listed(missing.values())}"
        if not self.options.get("skip_missing"):
            raise DataError(
                what, "add them, name their folder with --images, or leave their questions out: --skip-missing"
            )
        data.warnings.append(f"{what}; their questions are left out")

    def _fields(self, row: Row, used: Counter[tuple[str, str]]) -> dict[str, Any] | str:
        """Give the columns of a row by their own names."""
        if isinstance(row, RepeatedFields) and row.repeated:
            return f"has {' and '.join(sorted(row.repeated))} more than once"
        names = {name.strip().lower(): name for name in row}
        fields = {}
        for column, accepted in self.columns.items():
            name = next((one for one in accepted if one in names), None)
            if name is not None:
                fields[column] = row[names[name]]
                used[column, name] += 1
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

    def _why_missing(self, image: str) -> str | None:
        if self.options.get("features") or self.root is None:
            return None
        path = self.root / image
        fault = why_no_picture(image, path)
        return fault or (None if path.is_file() else f"{image!r} is not a file")

    def _parted(
        self, path: Path, records: Sequence[_Record], data: RawData, progress: Progress
    ) -> dict[str, list[_Record]]:
        """Part one table by its column ``split``, or by the content of its pictures."""
        given = [record for record in records if record.split is not None]
        parts: dict[str, list[_Record]] = {}
        digests = dict(self._digests({record.image for record in records}, progress))
        if given and len(given) < len(records):
            line = next(record.line for record in records if record.split is None)
            what = (
                f"{path}: {len(records) - len(given):,} of {len(records):,} rows have no split, such as line {line:,}"
            )
            raise DataError(what, "fill in the column split everywhere, or leave it out")
        for record in records:
            parts.setdefault(record.split or _split_of(digests[record.image]), []).append(record)
        if given:
            _warn_of_shared(path, parts, digests, data)
        return parts

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


def _split_of(digest: str) -> str:
    """Give the split of a picture by its content: the same however the table grows."""
    place = int(digest[:12], 16) / 16**12
    return "train" if place < _TRAIN_SHARE else "val" if place < _TRAIN_SHARE + _VAL_SHARE else "test"


def _warn_of_shared(
    path: Path, parts: Mapping[str, Sequence[_Record]], digests: Mapping[str, str], data: RawData
) -> None:
    """Warn of pictures, or copies of them, that stand in two splits."""
    held = {split: {digests[record.image] for record in records} for split, records in parts.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := held.get(one, set()) & held.get(other, set()):
            what = f"{path}: {len(shared):,} of the {len(held[other]):,} pictures of {other} stand in {one} too"
            data.warnings.append(f"{what}: an accuracy on {other} counts pictures that were learned")


def _record(line: int, fields: Mapping[str, Any], normalize: Any) -> _Record | str:
    """Give a row, or what is wrong with it as the end of a sentence."""
    texts = {}
    for column in ("image", "question"):
        value = fields.get(column)
        text = as_text(value)
        if text is None and value is not None:
            return f"has the {column} {shortened(repr(value))}, expected text"
        if not (text or "").strip():
            return f"has no {column}"
        texts[column] = str(text).strip()
    answers = _answers(fields.get("answer"))
    if isinstance(answers, str):
        return answers
    split = fields.get("split")
    if split is not None and str(split).strip():
        name = _SPLITS.get(str(split).strip().lower())
        if name is None:
            return f"has the split {shortened(repr(split))}, expected train, val or test"
    else:
        name = None
    id = fields.get("id", line)
    if isinstance(id, bool) or not isinstance(id, int | str) or id == "":
        return f"has the id {shortened(repr(id))}, expected an integer or a text"
    kind = fields.get("type")
    type = " ".join(str(kind).split()) if kind is not None else ""
    return _Record(line, texts["image"], texts["question"], tuple(map(normalize, answers)), id, type or _NO_TYPE, name)


def _answers(value: Any) -> list[str] | str:
    """Read a text or a number, several joined by ``|``, or a list; what is wrong as the end of a sentence."""
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else str(value).split("|") if isinstance(value, str) else [value]
    texts = [repr(one) if isinstance(one, float) else as_text(one) for one in values]
    if None in texts:
        return f"has the answer {shortened(repr(values[texts.index(None)]))}, expected text or a number"
    texts = [text for text in texts if text is not None and text.strip()]
    if len(texts) > NUM_ANNOTATORS:
        return f"has {len(texts)} answers, expected at most {NUM_ANNOTATORS}"
    return [str(text) for text in texts]


def _raw_split(path: Path, name: str, records: Sequence[_Record], data: RawData) -> RawSplit:
    """Turn rows into a split; rows without an answer are refused unless none has one."""
    ids = [record.id for record in records]
    as_numbers = [_number(one) for one in ids]
    are_texts = None in as_numbers
    question_id: Ids = np.array([str(one) for one in ids] if are_texts else as_numbers, None if are_texts else np.int64)
    refuse_duplicates(path, question_id, "id")
    image_id = np.array([record.image for record in records])
    texts = flatten([record.question for record in records])
    unanswered = [record.line for record in records if not record.answers]
    if not unanswered:
        annotations = _annotations(records, data)
    elif len(unanswered) == len(records) and name == "test":
        annotations = None
    else:
        what = f"{path}: {len(unanswered):,} of the {len(records):,} questions of {name} have no answer: lines "
        hint = "answer them or leave them out; only a test split may have none at all"
        raise DataError(what + listed([f"{line:,}" for line in unanswered]), hint)
    return RawSplit(name, question_id, image_id, texts, annotations)


def _number(id: int | str) -> int | None:
    """Give an id that is a number, in digits as they are written."""
    if isinstance(id, str):
        return int(id) if id.isascii() and id.isdecimal() and str(int(id)) == id and len(id) < 19 else None
    return id if abs(id) < 2**63 else None


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
        shows_baselines=True,
        answer_file=TableAnswers(),
        with_options=with_options,
    )
)
