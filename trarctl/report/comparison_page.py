"""One page for several checkpoints: groups and differences, scores by type, curves together, where they disagree.

Axes: Q questions, G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trarctl import __version__
from trarctl.config.settings import short_names
from trarctl.engine.evaluations import run_of
from trarctl.report.charts import Line, line_chart
from trarctl.report.comparison import (
    NUM_RESAMPLES,
    SEED,
    Comparison,
    Contrast,
    Group,
    Row,
    differing,
    mean_right,
    value_of,
)
from trarctl.report.gallery import pictures_of, truth_in_words
from trarctl.report.history import History, read_history
from trarctl.report.page import styled, write_page
from trarctl.report.pictures import span_color, type_name

MOST_QUESTIONS = 48


@dataclass(frozen=True)
class Disputed:
    """A question that the groups answer differently well."""

    question: str
    type: str
    truth: str
    answers: list[tuple[str, str, float]]  # of each group: its name, what its runs answered, and percent right
    picture: str | None  # data URI; None where there is none
    image_id: int | str
    question_id: int | str


def write_comparison(
    folder: Path, rows: Sequence[Row], comparison: Comparison, images: Path | None
) -> tuple[Path, list[str]]:
    """Write ``index.html`` into a folder, whole or not at all; give its path, and what the user should know.

    Where the checkpoints answered different questions, the page has no differences.
    """
    groups, found, labels = comparison.groups, comparison.contrasts, comparison.labels
    first, missing = rows[0], []
    disputed: list[Disputed] = []
    num_disputed = 0
    if found:
        disputed, num_disputed, why = _disputed(rows, groups, labels, images)
        missing = [why] if why else []
    keys = differing([row.settings for row in rows])
    short = short_names(keys)
    content = {
        "title": f"{len(rows)} checkpoints compared on {first.data.name} {first.split.name}",
        "dataset": first.data.name,
        "split": first.split.name,
        "facts": [
            ("questions", f"{first.answered.accuracy.questions:,}"),
            ("evaluator", first.answered.accuracy.evaluator),
            ("made", f"{datetime.now().astimezone():%Y-%m-%d %H:%M} by trarctl {__version__}"),
        ],
        "groups": [
            {"name": label, "color": span_color(place), "group": group, "contrast": found[place] if found else None}
            for place, (label, group) in enumerate(zip(labels, groups, strict=True))
        ],
        "conclusion": comparison.conclusion,
        "has_seeds": comparison.has_seeds,
        "resamples": f"{NUM_RESAMPLES:,}",
        "seed": SEED,
        "types": _types(rows, groups, found),
        "headings": [short[key] for key in keys],
        "rows": [_row(row, keys) for row in rows],
        "curves": _curves(rows, groups),
        "disputed": disputed,
        "num_disputed": f"{num_disputed:,}",
        "missing": missing,
    }
    return write_page(folder, "compare.html", styled(content)), missing


def _row(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    return {
        "name": row.name,
        "values": [value_of(row.settings, key) for key in keys],
        "overall": row.answered.accuracy.overall,
        "checkpoint": row.chosen.checkpoint.name,
    }


def _types(rows: Sequence[Row], groups: Sequence[Group], found: Sequence[Contrast]) -> list[dict[str, Any]]:
    """By type and group the mean accuracy, and the difference from the best group."""
    names = sorted({name for row in rows for name in row.answered.accuracy.per_type})
    table = []
    for name in names:
        cells = []
        for place, group in enumerate(groups):
            scores = [rows[index].answered.accuracy.per_type.get(name) for index in group.members]
            held = [score for score in scores if score is not None]
            per_type = found[place].per_type if found else None
            cells.append((sum(held) / len(held) if held else None, (per_type or {}).get(name)))
        table.append({"name": name, "cells": cells})
    return table


def _curves(rows: Sequence[Row], groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The runs' curves in one chart each, in the color of their group."""
    histories: list[tuple[Row, History, str]] = []
    for place, group in enumerate(groups):
        for index in group.members:
            run = run_of(rows[index].chosen.checkpoint)
            if run is not None:
                histories.append((rows[index], read_history(run), span_color(place)))
    charts = [
        ("accuracy on val, %", [_validation(row.name, history, color) for row, history, color in histories], False),
        ("loss per sample", [Line(row.name, one.epoch, one.loss, color) for row, one, color in histories], True),
        ("learning rate", [Line(row.name, one.epoch, one.rate, color) for row, one, color in histories], True),
    ]
    drawn = [(name, line_chart(name, lines, x_label="epoch", y_from_zero=zero)) for name, lines, zero in charts]
    return [(name, chart) for name, chart in drawn if chart]


def _validation(name: str, history: History, color: str) -> Line:
    epochs = np.array([epoch for epoch, _, _ in history.validations], dtype=np.float64)
    overall = np.array([score for _, score, _ in history.validations], dtype=np.float64)
    return Line(name, epochs, overall, color, has_dots=True)


def choose_disputed(right: NDArray[np.float64], type_of: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    """Choose the questions whose accuracy differs most between groups, ``right`` [G, Q], equally many of each type.

    Of equals some are drawn, always the same ones.
    """
    spread = np.round(right.max(axis=0) - right.min(axis=0), 9)
    tie = np.random.default_rng(0).random(len(spread))
    order = np.lexsort((tie, -spread))
    order = order[spread[order] > 0]
    # Take turns: first the best of each type, then the second of each.
    seen: Counter[int] = Counter()
    turns = []
    for row in order.tolist():
        turns.append(seen[int(type_of[row])])
        seen[int(type_of[row])] += 1
    chosen: NDArray[np.int64] = order[np.argsort(np.array(turns, dtype=np.int64), kind="stable")][:most]
    return chosen


def _disputed(
    rows: Sequence[Row], groups: Sequence[Group], labels: Sequence[str], images: Path | None
) -> tuple[list[Disputed], int, str | None]:
    """Questions to look at; how many are answered differently well; and why some have no picture."""
    first = rows[0]
    data, split, accuracy = first.data, first.split, first.answered.accuracy
    right = np.stack([mean_right(group, [row.answered for row in rows]) for group in groups])
    chosen = choose_disputed(right, accuracy.type_of, most=MOST_QUESTIONS)
    number = int((np.round(right.max(axis=0) - right.min(axis=0), 9) > 0).sum())
    if not len(chosen):
        return [], 0, None
    pictures, why = pictures_of(chosen, data, split, images)
    truth = split.truth()
    found = []
    for row, picture in zip(chosen.tolist(), pictures, strict=True):
        codes = [code for code in truth.codes[row].tolist() if code >= 0]
        counted = Counter(truth.strings[code] for code in codes).most_common()
        answers = []
        for place, group in enumerate(groups):
            said = Counter(rows[index].answered.answers[row] for index in group.members).most_common()
            answers.append((labels[place], truth_in_words(said), 100 * float(right[place, row])))
        found.append(
            Disputed(
                question=split.question_text(row),
                type=type_name(accuracy.types[accuracy.type_of[row]]),
                truth=truth_in_words(counted),
                answers=answers,
                picture=picture.uri if picture else None,
                image_id=split.image_id[row].item(),
                question_id=split.question_id[row].item(),
            )
        )
    return found, number, why
