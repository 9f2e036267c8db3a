"""One way to run a model over questions: batch size, ids, saved scores, several models together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.running import tiny_settings
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Evaluator, Scores, combine, load_scores, nonblank_answers, probabilities
from trarctl.engine.loading import build_model
from trarctl.errors import CheckpointError, DataError

ALONE = World(0, 1, torch.device("cpu"))


def evaluator_of(data: PreparedData, folder: Path, world: World = ALONE, **changes: object) -> Evaluator:
    settings = tiny_settings(data.path, folder, model__grid_size=4, **changes)
    return Evaluator(build_model(settings, data), settings, 1.0, world)


@pytest.fixture(scope="module")
def data(golden_data: dict[str, Path]) -> PreparedData:
    return open_prepared(golden_data["vqa"])


@pytest.mark.parametrize(
    ("batch", "accumulation", "expected"), [(20, 1, 64), (256, 1, 256), (256, 2, 128), (512, 16, 64)]
)
def test_the_batch_size_does_not_depend_on_the_number_of_processes(
    batch: int, accumulation: int, expected: int, data: PreparedData, tmp_path: Path
) -> None:
    for size in (1, 4):
        changes = {"train__batch_size": batch, "train__accumulation": accumulation}
        evaluator = evaluator_of(data, tmp_path, World(0, size, torch.device("cpu")), **changes)
        assert evaluator.batch_size == expected


def test_scores_are_those_of_the_model_without_dropout(data: PreparedData, tmp_path: Path) -> None:
    evaluator = evaluator_of(data, tmp_path, model__dropout=0.5)
    model = evaluator.model.train()
    scores = evaluator.score(data, "val")
    assert model.training
    split = data.split("val")
    rows = np.arange(len(split))
    with torch.no_grad():
        expected, routes = model.eval()(
            torch.from_numpy(split.question_tokens[rows].astype(np.int64)),
            torch.from_numpy(data.features.read(split.image[rows]).astype(np.float32)),
            temperature=1.0,
        )
    assert np.abs(scores.scores - expected.numpy()).max() < 1e-5
    assert np.abs(scores.routes - routes.numpy()).max() < 1e-5
    chosen, shares = evaluator.answer(data, "val")
    assert np.array_equal(chosen, scores.scores.argmax(axis=1))
    assert np.array_equal(shares, scores.routes)


def test_ids_stay_text(tmp_path: Path) -> None:
    ids = np.array(["q-7", "q-08"])
    scores = Scores(ids, np.eye(2, 3, dtype=np.float32), np.zeros((2, 1, 2), np.float32), ("a", "b", "c"), False)
    scores.save(tmp_path / "scores.npz")
    loaded = load_scores(tmp_path / "scores.npz", is_exclusive=True)
    assert loaded.question_id.tolist() == ["q-7", "q-08"]
    assert not loaded.is_exclusive
    assert combine([scores, loaded])[0].shape == (2, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]


def scores_of(logits: list[list[float]], answers: tuple[str, ...], ids: list[int], *, is_exclusive: bool) -> Scores:
    routes = np.zeros((len(ids), 1, 2), dtype=np.float32)
    return Scores(np.array(ids), np.array(logits, dtype=np.float32), routes, answers, is_exclusive)


def test_several_models_are_averaged_by_the_text_of_their_answers() -> None:
    one = scores_of([[0.0, 2.0]], ("yes", "no"), [7], is_exclusive=True)
    two = scores_of([[1.0, -1.0]], ("no", "two"), [7], is_exclusive=False)
    mean, answers = combine([one, two])
    assert answers == ("yes", "no", "two")
    no = (np.exp(2) / (1 + np.exp(2)) + 1 / (1 + np.exp(-1))) / 2
    assert mean[0] == pytest.approx([1 / (1 + np.exp(2)) / 2, no, 1 / (1 + np.exp(1)) / 2], abs=1e-6)
    with pytest.raises(CheckpointError, match="scores number 2 answer other questions"):
        combine([one, scores_of([[0.0, 0.0]], ("yes", "no"), [8], is_exclusive=True)])


def test_probabilities_of_scores_of_any_size() -> None:
    large = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert probabilities(large, is_exclusive=True).tolist() == [[1.0, 0.0, 0.0]]
    assert probabilities(large, is_exclusive=False).tolist() == [[1.0, 0.0, 0.5]]


def test_a_blank_answer_is_never_given() -> None:
    assert nonblank_answers(np.array([[0.9, 0.8], [0.1, 0.2]]), ("", "yes")) == ["yes", "yes"]


def test_a_file_that_holds_no_scores(tmp_path: Path) -> None:
    (tmp_path / "some.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read scores from"):
        load_scores(tmp_path / "some.npz", is_exclusive=True)
