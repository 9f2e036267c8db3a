"""Examples to look at: right and wrong answers with picture, route and attention.

Axes: E examples, N cells, L layers, G spans that differ on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trarctl.data.features.origin import geometry_of, known_extractor
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.engine.distributed import joined, plan_placement
from trarctl.engine.evaluator import Chosen, Scores, probabilities
from trarctl.engine.predictor import Insight, inspect
from trarctl.errors import DataError, listed
from trarctl.report.outcomes import Outcome
from trarctl.report.pictures import ShownSpans, Thumbnail, overlay, thumbnail, worth_showing

MOST_EXAMPLES = 72
ANSWERS_SHOWN = 5
_AT_ONCE = 16

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One question of the gallery."""

    question: str
    type: str
    right: float  # share of the truth that the answer has, percent
    truth: list[tuple[str, int]]  # the true answers with the number of annotators who gave each
    answers: list[tuple[str, float]]  # the likeliest with their probabilities
    routes: list[list[float]]  # share of each span that differs on the grid in each layer, L lists of G
    picture: str | None  # data URI; None where there is no picture
    overlays: list[str]  # data URIs of the attention: what the answer is read from, then each layer
    image_id: int | str
    question_id: int | str

    @property
    def is_right(self) -> bool:
        """Whether the answer counts as right, at least in part."""
        return self.right > 0


def choose_rows(outcome: Outcome, *, most: int = MOST_EXAMPLES) -> Rows:
    """Choose examples of each type, as many right as wrong; half of the wrong are the surest, the others random.

    The wrong come first, the surest of them before all. The same outcome gives the same examples.
    """
    random = np.random.default_rng(0)
    num_each = max(most // (2 * max(len(outcome.types), 1)), 1)
    all_wrong, all_right = [], []
    for index in range(len(outcome.types)):
        rows = np.flatnonzero(outcome.type_of == index)
        right, wrong = rows[outcome.right[rows] > 0], rows[outcome.right[rows] == 0]
        surest = wrong[np.argsort(-outcome.confidence[wrong], kind="stable")[: num_each // 2]]
        others = np.setdiff1d(wrong, surest)
        more = random.permutation(others)[: num_each - len(surest)]
        all_wrong += [surest, more]
        all_right.append(random.permutation(right)[:num_each])
    if not all_wrong:
        return np.zeros(0, dtype=np.int64)
    wrong, right = np.concatenate(all_wrong), np.concatenate(all_right)
    wrong = wrong[np.argsort(-outcome.confidence[wrong], kind="stable")]
    return np.concatenate([wrong, right])[:most]


def examples(
    rows: Rows,
    scores: Scores,
    outcome: Outcome,
    data: PreparedData,
    split: PreparedSplit,
    chosen: Chosen,
    images: Path | None,
    extractor: str | None = None,
) -> tuple[list[Example], list[str]]:
    """Answer chosen questions of the split, rows [E], again on the CPU; also say what is missing in the examples.

    Pictures come from the folder ``images``; None for the data set's own raw folder, if it has pictures. ``extractor``
    is the name of what made the features, where the data does not say it; without it the grid covers the pictures.
    """
    made_by, why_no_geometry = known_extractor(data, extractor)
    spans = ShownSpans(chosen.settings.model.spans, chosen.settings.model.grid_size)
    insights = _look(rows, data, split, chosen)
    pictures, why = pictures_of(rows, data, split, images)
    shares = probabilities(scores.scores[rows], is_exclusive=scores.is_exclusive)
    truth = split.truth()
    found = []
    for index, row in enumerate(rows.tolist()):
        best = np.argsort(-shares[index], kind="stable")[:ANSWERS_SHOWN].tolist()
        codes, counts = np.unique(truth.codes[row][truth.codes[row] >= 0], return_counts=True)
        given = sorted(zip(codes.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
        layers, picture = insights.layer_attention[index], pictures[index]
        geometry = geometry_of(made_by, picture and picture.size)
        found.append(
            Example(
                question=split.question_text(row),
                type=outcome.types[int(outcome.type_of[row])],
                right=100 * float(outcome.right[row]),
                truth=[(truth.strings[code], count) for code, count in given],
                answers=worth_showing([(scores.answers[answer], float(shares[index, answer])) for answer in best]),
                routes=spans.merged(insights.routes[index]).tolist(),
                picture=picture.uri if picture else None,
                overlays=[overlay(attention, geometry) for attention in (insights.answer_attention[index], *layers)],
                image_id=split.image_id[row].item(),
                question_id=split.question_id[row].item(),
            )
        )
    return found, [text for text in (why, why_no_geometry if any(pictures) else None) if text]


def _look(rows: Rows, data: PreparedData, split: PreparedSplit, chosen: Chosen) -> Insight:
    """Answers, routes and attention of a few questions."""
    with joined(plan_placement("cpu", {}), timeout_seconds=60.0) as world:
        loaded = chosen.open_model(data, world)
    parts = []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        tokens = torch.from_numpy(split.question_tokens[part].astype(np.int64))
        features = torch.from_numpy(data.features.read(split.image[part]).astype(np.float32))
        parts.append(inspect(loaded, tokens, features))
    return Insight(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))


def pictures_of(
    rows: Rows, data: PreparedData, split: PreparedSplit, images: Path | None
) -> tuple[list[Thumbnail | None], str | None]:
    """The picture of each row, None where there is none; and why there is none, with a count."""
    folder = images if images is not None else data.own_pictures()
    if folder is None:
        return [None] * len(rows), "no images: give their folder with --images DIR"
    paths = [data.picture(folder, int(split.image[row])) for row in rows.tolist()]
    if not any(paths):
        return [None] * len(rows), f"no images of this split in {folder}"
    opened: dict[Path | None, Thumbnail | None] = {None: None}
    faults: list[str] = []
    for path in dict.fromkeys(filter(None, paths)):
        try:
            opened[path] = thumbnail(path)
        except DataError as error:
            opened[path] = None
            faults.append(error.what)
    notes = [f"{paths.count(None)} of {len(paths)} examples have no image in {folder}"] if None in paths else []
    if faults:
        notes.append(f"{len(faults)} of {len(opened) - 1} images are unusable: {listed(faults, len(faults))}")
    return [opened[path] for path in paths], "; ".join(notes) or None


def truth_in_words(truth: Sequence[tuple[str, int]]) -> str:
    """What the annotators said: ``red``, or ``red (7), dark red (3)``."""
    if len(truth) == 1:
        return truth[0][0]
    return ", ".join(f"{answer} ({count})" for answer, count in truth)
