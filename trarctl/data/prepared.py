"""Prepared data, cheap to open: arrays are read when they are needed, nothing is parsed but words and answers.

Axes: Q questions in file order, A annotations in file order, T words, V vocabulary, E width of the word vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import ValidationError

from trarctl.data.datasets.base import DatasetSpec
from trarctl.data.features.grid import FeatureStore
from trarctl.data.manifest import (
    ANSWERS,
    IMAGES,
    MANIFEST,
    VECTORS,
    VOCABULARY,
    FeatureStatistics,
    Manifest,
    SplitPart,
    digest_of,
    key_of,
    prepare_command,
    read_manifest,
)
from trarctl.data.metrics import GroundTruth
from trarctl.data.records import FlatText, Ids, RawAnnotations, RawSplit, bytes_of, flatten
from trarctl.data.text import Vocabulary, encode
from trarctl.errors import DataError, listed
from trarctl.files import file_sha256, write_array
from trarctl.registry import DATASETS


def default_folder(dataset: str) -> Path:
    """Give the folder of a data set's prepared data if none is named."""
    return Path("data") / dataset / "prepared"


def open_prepared(path: Path) -> PreparedData:
    """Open a prepared folder; DataError if it is missing, of another version, or changed."""
    manifest = read_manifest(path)
    wrong = [name for name, size in manifest.files.items() if not _is_whole(path / name, size)]
    if wrong:
        what = f"prepared data in {path} is damaged: missing or changed {listed(wrong, len(wrong))}"
        raise DataError(what, manifest.command_to(path))
    return PreparedData(path, manifest)


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


@dataclass(frozen=True)
class _Files:
    """Reads the files of a prepared folder."""

    path: Path
    manifest: Manifest

    def strings(self, name: str) -> tuple[str, ...]:
        try:
            content = orjson.loads((self.path / name).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            content = None
        if not isinstance(content, list) or not set(map(type, content)) <= {str}:
            raise self.damaged(name)
        return tuple(content)

    def array(self, name: str, length: int | None = None) -> npt.NDArray[Any]:
        """Read an array that is what it was when it was prepared.

        It is not memory-mapped: a mapped file that is cut later ends the process by a bus error.
        """
        checksum = self.manifest.checksums.get(name)
        if checksum is not None and checksum != file_sha256(self.path / name):
            raise self.damaged(name)
        try:
            array: npt.NDArray[Any] = np.load(self.path / name, allow_pickle=False)
        except Exception as error:  # what numpy raises over a damaged header is not documented
            raise self.damaged(name) from error
        if length is not None and len(array) != length:
            raise self.damaged(name)
        return array

    def damaged(self, name: str) -> DataError:
        what = f"prepared data in {self.path} is damaged: {name}"
        return DataError(what, self.manifest.command_to(self.path))


class PreparedData:
    """A prepared folder; copies sent to other processes open it again instead of carrying its arrays."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._files = _Files(path, manifest)
        self._splits: dict[str, PreparedSplit] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return open_prepared, (self.path,)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {part.questions:,}" for name, part in self.manifest.text.splits.items())
        images = self.manifest.images
        cells = f"{images.grid_size} x {images.grid_size} cells of {images.feature_width}"
        return f"<PreparedData {self.name} in {self.path}: questions {splits}; {cells}>"

    @property
    def dataset(self) -> str:
        """Name of the data set, as it is registered."""
        return self.manifest.dataset

    @property
    def name(self) -> str:
        """What commands and pages call it; see ``Manifest.name``."""
        return self.manifest.name

    @cached_property
    def spec(self) -> DatasetSpec:
        """Everything else about the data set."""
        spec: DatasetSpec = DATASETS[self.dataset]
        return spec if spec.with_options is None else spec.with_options(self.manifest.text.options)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that are there, in vocabulary order."""
        return tuple(self.manifest.text.splits)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words, in index order."""
        vocabulary = Vocabulary(self._files.strings(VOCABULARY))
        if vocabulary.digest != self.manifest.text.vocabulary_digest:
            raise self._files.damaged(VOCABULARY)
        return vocabulary

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The answers that a model can give, in index order."""
        answers = self._files.strings(ANSWERS)
        if digest_of(answers) != self.manifest.text.answers_digest:
            raise self._files.damaged(ANSWERS)
        return answers

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32] | None:
        """Word vectors [V, E], None if the data was prepared without."""
        return None if self.manifest.text.vectors is None else self._files.array(VECTORS)

    @cached_property
    def features(self) -> FeatureStore:
        """The features of all images."""
        ids = [self._files.array(f"{IMAGES}/{part.name}.ids.npy") for part in self.manifest.images.image_sets]
        again = self.manifest.command_to(self.path)
        return FeatureStore(self.path, self.dataset, self.manifest.images, ids, again)

    @cached_property
    def digests(self) -> dict[str, str]:
        """What identifies the words, the answers, the word vectors and the features: equal for equal content."""
        text, images = self.manifest.text, self.manifest.images
        shape = [images.grid_size, images.feature_width]
        features = {"extractor": images.backbone, "shape": shape, "statistics": self.feature_statistics()}
        return {
            "words": text.vocabulary_digest,
            "answers": text.answers_digest,
            "vectors": text.vectors.digest if text.vectors else "none",
            "features": key_of(features),
        }

    def feature_statistics(self) -> dict[str, Any] | None:
        """Describe the features by a fixed sample of images, None while there are none; see ``FeatureStatistics``."""
        statistics = self._statistics
        return None if statistics is None else statistics.model_dump(mode="json")

    def feature_difference(self, statistics: Mapping[str, Any] | None) -> str | None:
        """Say how the features differ from what ``feature_statistics`` gave, beyond float16's rounding; None: not."""
        if statistics is None or self._statistics is None:
            return None
        try:
            return self._statistics.difference(FeatureStatistics.model_validate(statistics))
        except ValidationError:
            return "what is said of the others cannot be read"

    @cached_property
    def _statistics(self) -> FeatureStatistics | None:
        images = self.manifest.images
        return images.statistics or (self.features.statistics() if images.feature_width else None)

    def own_pictures(self) -> Path | None:
        """Give the folder of pictures that the data was prepared from, or that the set has; None: neither is there."""
        made_of = self.manifest.images.pictures
        if made_of is not None and Path(made_of).is_dir():
            return Path(made_of)
        if self.spec.extractor is None:
            pictures = self.spec.pictures
            return pictures if pictures is not None and pictures.is_dir() else None
        try:
            folder = self.spec.default_raw_folder()
        except DataError:
            return None
        files = [(folder / name, source.size) for name, source in self.manifest.text.sources.items()]
        return folder if all(file.is_file() and file.stat().st_size == size for file, size in files) else None

    def picture(self, folder: Path, row: int) -> Path | None:
        """Give the file of an image of the image table, in the data set's own folders or straight in ``folder``."""
        name = self.features.image_set(row)
        file = self.spec.image_set(name).images.name(self.features.image_id(row))
        own = self.spec.image_folder(folder, name)
        return next((path for path in (own / file, folder / file) if path.is_file()), None)

    def split(self, name: str) -> PreparedSplit:
        """Give one split, DataError if there is none; ``test`` may be another name for ``val``."""
        real = self.manifest.aliases.get(name, name)
        if real not in self.manifest.text.splits:
            what = f"no split {name!r} in {self.path}, which holds {', '.join(self.split_names)}"
            raise DataError(what, f"add its raw files and run {prepare_command(self.dataset)} --out {self.path}")
        if real not in self._splits:
            self._splits[real] = PreparedSplit(self._files, real, self.manifest.text.splits[real])
        return self._splits[real]


class PreparedSplit:
    """One split, as arrays that are read when they are first asked for."""

    def __init__(self, files: _Files, name: str, part: SplitPart) -> None:
        self.name = name
        self._files = files
        self._part = part

    def __len__(self) -> int:
        return len(self.question_id)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the questions' ids, texts and image ids in their order: equal for the same questions."""
        digest = hashlib.sha256()
        for ids in (self.question_id, self.image_id):
            digest.update(ids.dtype.kind.encode())
            content = bytes_of(ids)
            digest.update(len(content).to_bytes(8, "little") + content)
        texts = self._texts("question_text")
        digest.update(texts.offsets.astype("<i8").tobytes())
        digest.update(texts.content.tobytes())
        return digest.hexdigest()

    @property
    def is_annotated(self) -> bool:
        """Whether answers are known."""
        return self._part.annotated > 0

    @cached_property
    def question_id(self) -> Ids:
        """Ids in file order, int64 or text as the data set has them, [Q]."""
        return self._load("question_id", self._part.questions)

    @cached_property
    def question_tokens(self) -> npt.NDArray[np.int32]:
        """Word indices, 0 after each question, [Q, T]."""
        return self._load("question_tokens", len(self))

    @cached_property
    def image_id(self) -> Ids:
        """Id of each question's image, [Q]."""
        return self._load("image_id", len(self))

    @cached_property
    def image(self) -> npt.NDArray[np.int32]:
        """Row of each question's image in the image table, [Q]; -1 for questions that are left out of training."""
        return self._files.array(f"{IMAGES}/{self.name}.rows.npy", len(self))

    @cached_property
    def training_order(self) -> npt.NDArray[np.int32]:
        """Question rows to train on in the order of the annotations, [A]; a DataError if there are none."""
        self._need_answers()
        order = self._load("training_order", self._part.annotated)
        has_image = self.image[order] >= 0
        return order if has_image.all() else order[has_image]

    @cached_property
    def targets(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Answers out of the answer list, and how many of ten annotators gave each; a DataError if there are none.

        ``offsets`` [Q + 1], ``answer`` and ``count``: those of question q are ``[offsets[q]:offsets[q + 1]]``.
        """
        self._need_answers()
        offsets = self._load("target_offsets", len(self) + 1)
        num_targets = int(offsets[-1])
        return offsets, self._load("target_answer", num_targets), self._load("target_count", num_targets)

    def truth(self) -> GroundTruth:
        """Give what the annotators said, in the order of the questions; DataError if the split has no answers."""
        self._need_answers()
        truth = GroundTruth(
            strings=list(self._texts("truth_text")),
            codes=self._load("truth_codes", len(self)),
            answer_type=self._load("answer_type", len(self)),
            answer_types=self._part.answer_types,
            question_type=self._load("question_type", len(self)),
            question_types=self._part.question_types,
        )
        named = (truth.answer_type, truth.answer_types), (truth.question_type, truth.question_types)
        if any(codes.max(initial=-1) >= len(names) for codes, names in named):
            raise self._files.damaged(f"{MANIFEST}: types of {self.name}")
        return truth

    def question_text(self, row: int) -> str:
        """Give a question as it was asked."""
        return self._questions[row]

    @cached_property
    def _questions(self) -> FlatText:
        return self._texts("question_text")

    def _texts(self, name: str) -> FlatText:
        return FlatText(self._load(name, None), self._load(f"{name}_offsets", None))

    def _load(self, name: str, length: int | None) -> npt.NDArray[Any]:
        return self._files.array(f"{self.name}/{name}.npy", length)

    def _need_answers(self) -> None:
        if not self.is_annotated:
            raise DataError(f"the split {self.name!r} has no answers", "use trarctl submit to answer its questions")


def write_split(
    folder: Path,
    split: RawSplit,
    vocabulary: Vocabulary,
    max_words: int,
    answer_index: npt.NDArray[np.int32],
    strings: Sequence[str],
) -> SplitPart:
    """Write the arrays that ``PreparedSplit`` reads into the split's folder.

    ``strings`` are the answers of all splits; ``answer_index`` has the index of each in the answer list, or -1.
    """
    folder.mkdir(exist_ok=True)
    num_questions, annotations = len(split.question_id), split.annotations
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "question_id": split.question_id,
        "question_tokens": encode(split.texts, vocabulary, max_words),
        "image_id": split.image_id,
        "question_text": split.texts.content,
        "question_text_offsets": split.texts.offsets,
    }
    if split.image_set is not None:
        arrays["image_set"] = split.image_set
    if annotations is not None:
        rows = annotations.rows
        used = np.unique(annotations.answers[annotations.answers >= 0])
        local = np.full(len(strings) + 1, -1, dtype=np.int32)
        local[used] = np.arange(len(used), dtype=np.int32)
        truth = flatten([strings[code] for code in used.tolist()])
        arrays |= _targets(annotations, num_questions, answer_index) | {
            "training_order": rows,
            "truth_codes": _by_question(num_questions, rows, local[annotations.answers]),
            "truth_text": truth.content,
            "truth_text_offsets": truth.offsets,
            "answer_type": _by_question(num_questions, rows, annotations.answer_type),
            "question_type": _by_question(num_questions, rows, annotations.question_type),
        }
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", array)
    return SplitPart(
        questions=num_questions,
        annotated=0 if annotations is None else len(annotations.rows),
        images=len(np.unique(split.image_id)),
        answer_types=() if annotations is None else annotations.answer_types,
        question_types=() if annotations is None else annotations.question_types,
    )


def _by_question(
    num_questions: int, rows: npt.NDArray[np.int32], values: npt.NDArray[np.integer]
) -> npt.NDArray[np.integer]:
    """Put the values of annotations at their questions' rows, -1 where there is none."""
    array = np.full((num_questions, *values.shape[1:]), -1, dtype=values.dtype)
    array[rows] = values
    return array


def _targets(
    annotations: RawAnnotations, num_questions: int, answer_index: npt.NDArray[np.int32]
) -> dict[str, npt.NDArray[np.generic]]:
    """Count how many annotators gave each answer of the answer list, question by question."""
    size = int(answer_index.max(initial=-1)) + 2
    indices = np.append(answer_index, -1)[annotations.answers]
    keys = (annotations.rows.astype(np.int64)[:, None] * size + indices)[indices >= 0]
    distinct, count = np.unique(keys, return_counts=True)
    row, answer = np.divmod(distinct, size)
    if annotations.counts_for_ten:
        num_annotators = np.ones(num_questions, dtype=np.int64)
        num_annotators[annotations.rows] = (annotations.answers >= 0).sum(axis=1)
        count = np.rint(count * (annotations.answers.shape[1] / num_annotators[row]))
    offsets = np.zeros(num_questions + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=num_questions), out=offsets[1:])
    return {
        "target_offsets": offsets,
        "target_answer": answer.astype(np.int32),
        "target_count": count.astype(np.uint8),
    }
