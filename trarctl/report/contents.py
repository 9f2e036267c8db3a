"""What prepared data holds: counts, words and answers by split, and samples to look at before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from trarctl import __version__
from trarctl.data.metrics import ceiling
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.report.gallery import pictures_of
from trarctl.report.page import styled

MOST_SHOWN = 10


@dataclass(frozen=True)
class Contents:
    """One split; shares are percent of its questions or of their answers."""

    name: str
    questions: int
    images: int
    mean_words: float  # of a question, as far as they are kept
    most_words: int
    cut: int  # questions that have as many words as are kept
    unknown_words: float  # share of the words that the vocabulary lacks
    answered: int  # questions with an answer
    reachable: float | None  # percent that the answer list can reach at most; None without answers
    answers: list[tuple[str, float]]  # the commonest, with their shares
    first_words: list[tuple[str, float]]  # the commonest first words of a question
    types: list[tuple[str, int]]  # questions by type, the commonest first


@dataclass(frozen=True)
class Sample:
    """One question to look at."""

    question: str
    answers: list[str]
    type: str
    picture: str | None  # data URI; None where there is none
    image_id: int | str
    question_id: int | str


def contents_of(data: PreparedData, split: PreparedSplit) -> Contents:
    """Count what a split holds; a DataError says that the data is damaged."""
    tokens = split.question_tokens
    lengths = (tokens > 0).sum(axis=1)
    words = data.vocabulary.words
    starts = Counter(words[token] for token in tokens[:, 0].tolist() if token > 0)
    answers: list[tuple[str, float]] = []
    types: list[tuple[str, int]] = []
    reachable, answered = None, 0
    if split.is_annotated:
        truth = split.truth()
        answered = int((truth.codes >= 0).any(axis=1).sum())
        counts = np.bincount(truth.codes[truth.codes >= 0], minlength=len(truth.strings))
        total = max(int(counts.sum()), 1)
        best = np.argsort(-counts, kind="stable")[:MOST_SHOWN].tolist()
        answers = [(truth.strings[code], 100 * int(counts[code]) / total) for code in best if counts[code]]
        place = {answer: number for number, answer in enumerate(data.answers)}
        normalize = data.spec.normalize_answer
        index = np.array([place.get(normalize(text), -1) for text in truth.strings], dtype=np.int32)
        reachable = ceiling(data.spec.metric, truth, data.answers, index)
        kinds = np.bincount(truth.question_type[truth.question_type >= 0], minlength=len(truth.question_types))
        types = [(truth.question_types[code], int(kinds[code])) for code in np.argsort(-kinds, kind="stable").tolist()]
    return Contents(
        name=split.name,
        questions=len(split),
        images=len(np.unique(split.image_id)),
        mean_words=float(lengths.mean()),
        most_words=int(lengths.max()),
        cut=int((lengths == tokens.shape[1]).sum()),
        unknown_words=100 * float((tokens == 1).sum() / max(int(lengths.sum()), 1)),
        answered=answered,
        reachable=reachable,
        answers=answers,
        first_words=[(word, 100 * count / len(split)) for word, count in starts.most_common(MOST_SHOWN)],
        types=[(name, count) for name, count in types if count][:MOST_SHOWN],
    )


def samples_of(
    data: PreparedData, split: PreparedSplit, number: int, images: Path | None, seed: int = 0
) -> tuple[list[Sample], str | None]:
    """Draw random questions, and say why some have no picture; the same seed draws the same."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:number])
    pictures, why = pictures_of(rows, data, split, images)
    truth = split.truth() if split.is_annotated else None
    has_types = truth is not None and len(truth.question_types) > 1
    found = []
    for row, picture in zip(rows.tolist(), pictures, strict=True):
        codes = [] if truth is None else [code for code in truth.codes[row].tolist() if code >= 0]
        found.append(
            Sample(
                question=split.question_text(row),
                answers=[] if truth is None else list(dict.fromkeys(truth.strings[code] for code in codes)),
                type=truth.question_types[truth.question_type[row]] if truth is not None and has_types else "",
                picture=picture.uri if picture else None,
                image_id=split.image_id[row].item(),
                question_id=split.question_id[row].item(),
            )
        )
    return found, why


def page_of(data: PreparedData, splits: list[Contents], samples: list[Sample], why: str | None) -> dict[str, Any]:
    """Give what the page shows."""
    now = datetime.now().astimezone()
    images, text = data.manifest.images, data.manifest.text
    features = f"{images.grid_size} x {images.grid_size} cells of {images.feature_width} numbers"
    features += f", by {images.backbone}" if images.backbone else ""
    facts = [
        ("words", f"{len(data.vocabulary):,}"),
        ("answers", f"{len(data.answers):,}"),
        ("features", features if images.feature_width else "none yet"),
        ("word vectors", text.vectors.source if text.vectors else "none"),
        ("folder", str(data.path)),
        ("made", f"{now:%Y-%m-%d %H:%M} by trarctl {__version__}"),
    ]
    return styled({
        "title": f"{data.name}: what it holds",
        "name": data.name,
        "facts": facts,
        "warnings": [*text.warnings, *images.warnings],
        "splits": splits,
        "samples": samples,
        "why_no_pictures": why,
    })  # fmt: skip
