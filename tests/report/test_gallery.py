from __future__ import annotations

import numpy as np

from tests.report.test_outcomes import made
from trarctl.report.gallery import choose_rows, truth_in_words


def test_examples_of_each_type_right_and_wrong() -> None:
    random = np.random.default_rng(1)
    outcome = made(
        random.integers(2, size=400).tolist(), random.random(400).tolist(), type_of=random.integers(2, size=400)
    )
    rows = choose_rows(outcome, most=40)
    assert len(set(rows.tolist())) == 40
    for index in range(2):
        chosen = rows[outcome.type_of[rows] == index]
        wrong = chosen[outcome.right[chosen] == 0]
        assert (len(chosen), len(wrong)) == (20, 10)
        all_wrong = np.flatnonzero((outcome.type_of == index) & (outcome.right == 0))
        surest = all_wrong[np.argsort(-outcome.confidence[all_wrong])][:5]
        assert set(surest.tolist()) <= set(wrong.tolist())
    assert np.array_equal(rows, choose_rows(outcome, most=40))
    assert (outcome.right[rows[:20]] == 0).all()
    assert (np.diff(outcome.confidence[rows[:20]]) <= 0).all()


def test_few_questions_give_few_examples() -> None:
    assert choose_rows(made([1, 1], [0.5, 0.5])).tolist() in ([0, 1], [1, 0])


def test_what_the_annotators_said() -> None:
    assert truth_in_words([("red", 10)]) == "red"
    assert truth_in_words([("red", 7), ("dark red", 3)]) == "red (7), dark red (3)"
