"""First half of ``prepare``: questions, answers and word vectors, from raw files to flat arrays.

Axes: Q questions in file order, A annotations in file order, T words, V vocabulary, E width of the word vectors.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data.answers import build_answers
from trarctl.data.datasets.base import Layout, SplitFiles
from trarctl.data.flat_text import flatten
from trarctl.data.manifest import ANSWERS, VECTORS, VOCABULARY, SourceFile, SplitPart, TextPart, VectorsPart, digest_of
from trarctl.data.progress import Progress
from trarctl.data.raw_splits import RawAnnotations, RawData, RawSplit, listed
from trarctl.data.text import encode, longest_question, tokenize
from trarctl.data.vocabulary import Vocabulary
from trarctl.errors import DataError
from trarctl.files import file_sha256, write_array, write_json

LONGEST_SENSIBLE_QUESTION = 512
_NUM_EXAMPLES = 10


@dataclass(frozen=True)
class TextOptions:
    """What decides the text half of prepared data."""

    max_words: int | None
    min_answer_count: int
    vectors: str


def present_splits(layout: Layout, raw: Path) -> list[SplitFiles]:
    """List the splits whose files are there.

    Raises:
        DataError: a split that is needed lacks a file, or an optional one has only some of its files.
    """
    missing: list[str] = []
    present = []
    for split in layout.splits:
        absent = [name for name in split.files if not (raw / name).is_file()]
        if not absent:
            present.append(split)
        elif split.is_required or len(absent) < len(split.files):
            missing += absent
    if missing:
        noun = "file" if len(missing) == 1 else "files"
        raise DataError(f"no {noun} {listed(missing, len(missing))} in {raw}", layout.download_hint)
    return present


def vocabulary_warning(layout: Layout, present: Sequence[SplitFiles]) -> str | None:
    """Say what the absence of a split does to the order of words; None if all are there."""
    absent = [split.name for split in layout.splits if split not in present]
    if not absent:
        return None
    return (
        f"without the questions of {' and '.join(absent)} the vocabulary lacks their words and their places:"
        " a published checkpoint will not fit"
    )


def build_text(layout: Layout, raw: Path, options: TextOptions, folder: Path, progress: Progress) -> TextPart:
    """Read the raw files and write the text half of a prepared folder.

    Args:
        layout: the data set.
        raw: folder of the raw files.
        options: what the user can choose.
        folder: where to write.
        progress: told what is being done.

    Returns:
        What the manifest says about it.

    Raises:
        DataError: a file is missing or damaged.
    """
    data, sources = _read_raw(layout, raw, progress)
    progress("building the vocabulary", 0, None)
    vocabulary = Vocabulary.build(split.texts for split in data.splits)
    answers, answer_index = _answers(layout, data, options.min_answer_count)
    vectors = _write_vectors(options.vectors, vocabulary, folder, progress)
    max_words = options.max_words or layout.max_words or _longest(data)
    write_json(folder / VOCABULARY, list(vocabulary.words))
    write_json(folder / ANSWERS, answers)
    strings = list(data.answers)
    parts = {}
    for number, split in enumerate(data.splits):
        progress("writing questions and answers", number, len(data.splits))
        _warn_of_empty_questions(split, data)
        parts[split.name] = _write_split(folder / split.name, split, vocabulary, max_words, answer_index, strings)
    progress("writing questions and answers", len(data.splits), len(data.splits))
    return TextPart(
        max_words=max_words,
        requested_max_words=options.max_words,
        min_answer_count=options.min_answer_count,
        vocabulary_digest=vocabulary.digest,
        answers_digest=digest_of(answers),
        vectors=vectors,
        requested_vectors=options.vectors,
        vectors_fingerprint=vectors_fingerprint(options.vectors),
        sources=sources,
        splits=parts,
        warnings=tuple(data.warnings),
    )


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from looking for circles among millions of parsed objects, which have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_raw(layout: Layout, raw: Path, progress: Progress) -> tuple[RawData, dict[str, SourceFile]]:
    """Read the files of every split that is there; a second thread takes their hashes meanwhile."""
    present = present_splits(layout, raw)
    data = RawData()
    with ThreadPoolExecutor(1) as pool, _collection_paused():
        hashes = {name: pool.submit(_source, raw / name) for split in present for name in split.files}
        data.splits += [layout.read_split(raw, split, data, progress) for split in present]
        sources = {
            name: future.result().model_copy(update={"records": data.num_records[name]})
            for name, future in hashes.items()
        }
    warning = vocabulary_warning(layout, present)
    data.warnings += [warning] if warning else []
    return data, sources


def _source(path: Path) -> SourceFile:
    # The status comes first: a file that changes while it is read then looks changed, not current.
    status = path.stat()
    return SourceFile(size=status.st_size, modified_ns=status.st_mtime_ns, sha256=file_sha256(path), records=0)


def _answers(layout: Layout, data: RawData, min_count: int) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Choose the answer list, and tell the place in it of every string of the table (-1: none), [strings]."""
    strings = list(data.answers)
    chosen = [
        split.annotations.chosen
        for split in data.splits
        if split.annotations is not None and split.name in layout.answer_splits
    ]
    codes = np.concatenate(chosen).tolist()
    given = (strings[code] for code in codes)
    min_count = min_count if layout.drops_rare_answers else 0
    answers = build_answers(given, normalize=layout.normalize_answer, min_count=min_count)
    if not answers:
        raise DataError(
            f"no answer occurs more than {min_count} times in the annotations", "lower the limit: --min-answer-count 0"
        )
    index = {answer: place for place, answer in enumerate(answers)}
    return answers, np.array([index.get(answer, -1) for answer in map(layout.normalize_answer, strings)], np.int32)


def _longest(data: RawData) -> int:
    longest = max(longest_question(split.texts) for split in data.splits)
    if longest > LONGEST_SENSIBLE_QUESTION:
        raise DataError(
            f"the longest question has {longest:,} words, so that a file is probably damaged",
            "if it is right, say how many words to keep: --max-words 64",
        )
    return max(longest, 1)


def _write_vectors(source: str, vocabulary: Vocabulary, folder: Path, progress: Progress) -> VectorsPart | None:
    if source == "none":
        return None
    from trarctl.data.word_vectors import load_vectors

    vectors = load_vectors(source, vocabulary.words, progress)
    if vectors is None:
        return None
    write_array(folder / VECTORS, vectors.matrix)
    return VectorsPart(
        source=vectors.source,
        digest=vectors.digest,
        width=vectors.matrix.shape[1],
        found=vectors.found,
        missing=tuple(vectors.missing[:_NUM_EXAMPLES]),
    )


def vectors_fingerprint(source: str) -> str:
    """Identify vectors: what ``auto`` finds, or size and time of change of a file or folder; empty for a package."""
    path = Path(source)
    if source == "auto":
        from trarctl.data.word_vectors import installed_vectors

        return installed_vectors()
    if source == "none" or not path.exists():
        return ""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in (file.stat() for file in files))


def _warn_of_empty_questions(split: RawSplit, data: RawData) -> None:
    lengths = np.diff(split.texts.offsets)
    empty = [row for row in np.flatnonzero(lengths < 8).tolist() if not tokenize(split.texts[row])]
    if empty:
        ids = [int(split.question_id[row]) for row in empty]
        data.warnings.append(f"questions without a word in {split.name}: {listed(ids, len(ids))}")


def _write_split(
    folder: Path,
    split: RawSplit,
    vocabulary: Vocabulary,
    max_words: int,
    answer_index: npt.NDArray[np.int32],
    strings: Sequence[str],
) -> SplitPart:
    folder.mkdir(exist_ok=True)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "question_id": split.question_id,
        "question_tokens": encode(split.texts, vocabulary, max_words),
        "image_id": split.image_id,
        "question_text": split.texts.content,
        "question_text_offsets": split.texts.offsets,
    }
    annotations = split.annotations
    if annotations is not None:
        arrays |= annotation_arrays(annotations, len(split.question_id), answer_index, strings)
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", array)
    return SplitPart(
        questions=len(split.question_id),
        annotated=0 if annotations is None else len(annotations.rows),
        images=len(np.unique(split.image_id)),
        answer_types=() if annotations is None else annotations.answer_types,
        question_types=() if annotations is None else annotations.question_types,
    )


def annotation_arrays(
    annotations: RawAnnotations, num_questions: int, answer_index: npt.NDArray[np.int32], strings: Sequence[str]
) -> Mapping[str, npt.NDArray[np.generic]]:
    """Lay out the answers of a split, question by question.

    Args:
        annotations: the answers.
        num_questions: questions Q of the split.
        answer_index: of every answer string its place in the answer list, -1 if it is not there.
        strings: the answer strings.

    Returns:
        Arrays by file name; targets as ``target_offsets`` [Q + 1] into ``target_answer`` and ``target_count``.
    """
    rows = annotations.rows
    offsets, answer, count = _targets(annotations, num_questions, answer_index)
    used = np.unique(annotations.answers[annotations.answers >= 0])
    local = np.full(len(strings) + 1, -1, dtype=np.int32)
    local[used] = np.arange(len(used), dtype=np.int32)
    truth_codes = np.full((num_questions, annotations.answers.shape[1]), -1, dtype=np.int32)
    truth_codes[rows] = local[annotations.answers]
    answer_type = np.full(num_questions, -1, dtype=np.int16)
    answer_type[rows] = annotations.answer_type
    question_type = np.full(num_questions, -1, dtype=np.int16)
    question_type[rows] = annotations.question_type
    truth = flatten([strings[code] for code in used.tolist()])
    return {
        "training_order": rows,
        "target_offsets": offsets,
        "target_answer": answer,
        "target_count": count,
        "truth_codes": truth_codes,
        "truth_text": truth.content,
        "truth_text_offsets": truth.offsets,
        "answer_type": answer_type,
        "question_type": question_type,
    }


def _targets(
    annotations: RawAnnotations, num_questions: int, answer_index: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Count how many annotators gave each answer of the answer list, question by question."""
    size = int(answer_index.max(initial=-1)) + 2
    places = np.append(answer_index, -1)[annotations.answers]
    keys = (annotations.rows.astype(np.int64)[:, None] * size + places)[places >= 0]
    distinct, count = np.unique(keys, return_counts=True)
    row, answer = np.divmod(distinct, size)
    if annotations.has_one_answer:
        count = np.full(len(count), annotations.answers.shape[1])
    offsets = np.zeros(num_questions + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=num_questions), out=offsets[1:])
    return offsets, answer.astype(np.int32), count.astype(np.uint8)
