from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trarctl.data.metrics import measure
from trarctl.data.prepared import open_prepared
from trarctl.engine.evaluator import Scores, probabilities
from trarctl.report.outcomes import Outcome, calibration, confusions, outcome_of, routes_by_type, type_rows


def drawn_scores(folder: Path, *, is_exclusive: bool) -> Scores:
    data = open_prepared(folder)
    random = np.random.default_rng(0)
    num_questions = len(data.split("val"))
    return Scores(
        data.split("val").question_id,
        random.normal(size=(num_questions, len(data.answers)), scale=3).astype(np.float32),
        random.dirichlet(np.ones(3), size=(num_questions, 2)).astype(np.float32),
        data.answers,
        is_exclusive,
    )


def made(right: list[float], confidence: list[float], **changes: object) -> Outcome:
    number = len(right)
    values: dict[str, object] = {
        "right": np.array(right),
        "chosen": np.zeros(number, dtype=np.int64),
        "confidence": np.array(confidence, dtype=np.float32),
        "type_of": np.zeros(number, dtype=np.int64),
        "types": ["a", "b"],
        "detail_of": np.zeros(number, dtype=np.int64),
        "details": ["x", "y"],
        "truth_of": np.zeros(number, dtype=np.int64),
        "truths": ["red", "blue"],
    }
    return Outcome(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("dataset", ["vqa", "clevr"])
@pytest.mark.parametrize("evaluator", ["official", "upstream"])
def test_the_questions_sum_up_to_what_eval_says(dataset: str, evaluator: str, golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data[dataset])
    split = data.split("val")
    scores = drawn_scores(golden_data[dataset], is_exclusive=dataset == "clevr")
    measured = measure(scores.predictions(), data, split, evaluator)  # type: ignore[arg-type]
    outcome = outcome_of(scores, split, measured)
    assert 100 * outcome.right.mean() == pytest.approx(measured.overall, abs=0.006)
    assert set(outcome.types) == set(measured.per_type)
    for index, name in enumerate(outcome.types):
        ours = 100 * outcome.right[outcome.type_of == index].mean()
        assert ours == pytest.approx(measured.per_type[name], abs=0.006)


@pytest.mark.parametrize("is_exclusive", [True, False])
def test_confidence_is_the_probability_of_the_answer(is_exclusive: bool, golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["vqa"])
    scores = drawn_scores(golden_data["vqa"], is_exclusive=is_exclusive)
    split = data.split("val")
    outcome = outcome_of(scores, split, measure(scores.predictions(), data, split, "official"))
    expected = probabilities(scores.scores, is_exclusive=is_exclusive)
    assert np.array_equal(outcome.chosen, expected.argmax(axis=1))
    assert np.abs(outcome.confidence - expected.max(axis=1)).max() < 1e-6


def test_the_truth_is_the_commonest_annotators_answer(golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["vqa"])
    split = data.split("val")
    truth = split.truth()
    scores = drawn_scores(golden_data["vqa"], is_exclusive=False)
    outcome = outcome_of(scores, split, measure(scores.predictions(), data, split, "official"))
    for codes, ours in zip(truth.codes.tolist(), outcome.truth_of.tolist(), strict=True):
        given = [code for code in codes if code >= 0]
        assert given.count(ours) == max(map(given.count, given))


def test_calibration_by_hand() -> None:
    bins, error = calibration(made([1, 0, 1, 1], [0.72, 0.78, 0.95, 1.0]))
    assert [(one.low, one.questions, one.accuracy) for one in bins] == [(0.7, 2, 0.5), (0.9, 2, 1.0)]
    assert bins[0].confidence == pytest.approx(0.75)
    assert error == pytest.approx((2 * 0.25 + 2 * 0.025) / 4)


def test_confusions_are_counted_by_type_and_only_where_wholly_wrong() -> None:
    outcome = made(
        [0, 0, 0, 0.3, 1],
        [0.5] * 5,
        chosen=np.array([1, 1, 0, 1, 1]),
        truth_of=np.array([0, 0, 1, 0, 0]),
        type_of=np.array([0, 0, 1, 0, 0]),
    )
    found = confusions(outcome, ["red", "blue"])
    assert [(one.type, one.truth, one.said, one.questions) for one in found] == [
        ("a", "red", "blue", 2),
        ("b", "blue", "red", 1),
    ]
    assert confusions(outcome, ["red", "blue"], limit=1) == found[:1]
    assert confusions(made([1, 1], [1, 1]), ["red"]) == []


def test_routes_are_means_over_the_questions_of_a_type() -> None:
    routes = np.array([[[1, 0]], [[0, 1]], [[0.5, 0.5]]], dtype=np.float32)
    outcome = made([1, 0, 1], [1, 1, 1], type_of=np.array([0, 0, 1]), detail_of=np.array([1, 1, 1]))
    assert routes_by_type(outcome, routes).tolist() == [[[0.5, 0.5]], [[0.5, 0.5]]]
    (row,) = type_rows(outcome, routes)
    assert (row.name, row.questions, row.shares) == ("y", 3, [0.5, 0.5])
    assert row.accuracy == pytest.approx(200 / 3)
