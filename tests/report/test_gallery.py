from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tests.report.test_outcomes import made
from trarctl.report.gallery import choose_rows, overlay, truth_in_words


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


def test_few_questions_give_few_examples() -> None:
    assert choose_rows(made([1, 1], [0.5, 0.5])).tolist() in ([0, 1], [1, 0])


def test_an_overlay_is_clear_where_the_most_is_looked_at() -> None:
    uri = overlay(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32))
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        opacity = np.asarray(image)[..., 3]
    assert opacity.shape == (2, 2)
    assert opacity[1, 1] == 0
    assert (np.diff(opacity.reshape(-1).astype(int)) < 0).all()


def test_what_the_annotators_said() -> None:
    assert truth_in_words([("red", 10)]) == "red"
    assert truth_in_words([("red", 7), ("dark red", 3)]) == "red (7), dark red (3)"
