"""One way to run a model over questions: batch size, ids, saved scores, several models together."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.running import tiny_settings
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.callbacks import Note
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import (
    Evaluator,
    Scores,
    answers_to_submit,
    combine,
    likeliest,
    load_scores,
    probabilities,
)
from trarctl.engine.loading import build_model
from trarctl.errors import DataError

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
    with pytest.raises(DataError, match="scores number 2 answer other questions: 1 of 1 questions have no answer: 7"):
        combine([one, scores_of([[0.0, 0.0]], ("yes", "no"), [8], is_exclusive=True)])


def test_probabilities_of_scores_of_any_size() -> None:
    large = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert probabilities(large, is_exclusive=True).tolist() == [[1.0, 0.0, 0.0]]
    assert probabilities(large, is_exclusive=False).tolist() == [[1.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("is_exclusive", "expected"),
    [(True, [0.09003057, 0.66524096]), (False, [0.73105858, 0.88079708]), (None, [1.0, 2.0])],
)
def test_a_blank_answer_is_never_given(is_exclusive: bool | None, expected: list[float]) -> None:
    scores = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]], dtype=np.float32)
    if is_exclusive:
        expected[0] = np.exp(1) / (np.exp(3) + np.exp(1) + np.exp(0))
    chosen, share = likeliest(scores, is_exclusive=is_exclusive, but=[0])
    assert chosen.tolist() == [1, 1]
    assert share.tolist() == pytest.approx(expected)
    assert likeliest(scores, is_exclusive=is_exclusive)[0].tolist() == [0, 1]


def test_several_models_answer_together() -> None:
    one = scores_of([[0.0, 2.0]], ("", "yes"), [8], is_exclusive=False)
    two = scores_of([[0.0, -2.0]], ("no", "yes"), [8], is_exclusive=False)
    answers, share = answers_to_submit([one, two])
    assert (answers, share.tolist()) == (["yes"], [pytest.approx(0.5)])
    assert answers_to_submit([one])[1].tolist() == [pytest.approx(1 / (1 + np.exp(-2)))]


def test_several_models_are_averaged_by_the_ids_of_their_questions() -> None:
    one = scores_of([[0.0, 2.0], [3.0, 0.0], [0.0, 0.5]], ("yes", "no"), [7, 8, 9], is_exclusive=False)
    turned = replace(one, question_id=one.question_id[::-1], scores=one.scores[::-1], routes=one.routes[::-1])
    mean, _ = combine([one, turned])
    assert np.allclose(mean, probabilities(one.scores, is_exclusive=False))
    with pytest.raises(DataError, match="1 question is answered more than once: 7"):
        combine([one, replace(one, question_id=np.array([7, 7, 9]))])


# Scores in files: whose questions they answer is in the file, and compared


def val_scores(data: PreparedData, **changes: Any) -> Scores:
    part = data.split("val")
    logits = np.random.default_rng(0).normal(size=(len(part), len(data.answers))).astype(np.float32)
    routes = np.zeros((len(part), 1, 2), dtype=np.float32)
    ids = np.asarray(part.question_id)
    scores = Scores(ids, logits, routes, tuple(data.answers), False, data.dataset, "val", part.digest)
    return replace(scores, **changes)


def write_npz(path: Path, saved: Scores, **changes: Any) -> Path:
    """The file of ``Scores.save`` with some arrays replaced; None leaves one out."""
    saved.save(path)
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_scores_come_back_as_they_were(data: PreparedData, tmp_path: Path) -> None:
    scores = val_scores(data)
    scores.save(tmp_path / "scores.npz")
    loaded, odd = load_scores(tmp_path / "scores.npz", data, "val")
    assert odd == []
    assert np.array_equal(loaded.scores, scores.scores)
    assert (loaded.dataset, loaded.split, loaded.questions) == ("vqa", "val", data.split("val").digest)
    assert (loaded.answers, loaded.is_exclusive) == (scores.answers, False)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]


def test_another_order_of_questions_is_put_right(data: PreparedData, tmp_path: Path) -> None:
    scores = val_scores(data)
    order = np.random.default_rng(1).permutation(len(scores.question_id))
    path = write_npz(
        tmp_path / "s.npz",
        scores,
        question_id=scores.question_id[order],
        scores=scores.scores[order].astype(np.float64),
    )
    loaded, (odd,) = load_scores(path, data, "val")
    assert np.array_equal(loaded.question_id, scores.question_id)
    assert np.array_equal(loaded.scores, scores.scores)
    assert "stood in another order than val" in odd


def test_a_file_of_an_earlier_version_is_taken_with_a_warning(data: PreparedData, tmp_path: Path) -> None:
    scores = val_scores(data)
    path = write_npz(tmp_path / "s.npz", scores, dataset=None, split=None, questions=None, is_exclusive=None)
    loaded, (odd,) = load_scores(path, data, "val")
    assert np.array_equal(loaded.scores, scores.scores)
    assert loaded.is_exclusive is data.spec.has_one_answer
    assert "does not say which split it answers: only the ids" in odd


def first_value(value: float) -> Callable[[Scores], dict[str, Any]]:
    def change(scores: Scores) -> dict[str, Any]:
        changed = scores.scores.copy()
        changed[[2, 5], 0] = value
        return {"scores": changed}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_value(np.nan), r"scores in \S+s\.npz are not finite for 2 of 100 questions: \d+, \d+$"),
        (first_value(-np.inf), "not finite for 2 of 100 questions"),
        (lambda s: {"scores": np.full(s.scores.shape, 1e300)}, "not finite for 100 of 100 questions"),
        (lambda s: {"scores": s.scores.astype(np.complex64)}, "holds scores of shape .* and type complex64, expected"),
        (lambda s: {"scores": s.scores.astype(str)}, "type <U"),
        (lambda s: {"scores": s.scores.astype(object)}, "cut off or changed, or no .npz file of numbers and text"),
        (lambda s: {"scores": s.scores > 0}, "type bool, expected"),
        (lambda s: {"scores": s.scores[:, :-1]}, r"holds scores of shape \[100, 9\]"),
        (lambda s: {"scores": s.scores[0]}, "holds scores of shape"),
        (lambda _: {"scores": None}, "holds no scores: scores missing, there is answers, dataset"),
        (lambda s: {"question_id": s.question_id[:-1], "scores": s.scores[:-1]}, "1 of 100 questions have no answer"),
        (lambda s: {"question_id": s.question_id + 1}, r"questions have no answer.*question_ids? (is|are) not in this"),
        (lambda s: {"question_id": np.append(s.question_id[1:], s.question_id[1])}, "1 question is answered more than"),
        (lambda s: {"question_id": s.question_id.astype(str)}, "ids of type <U.*has int64"),
        (lambda s: {"question_id": s.question_id.astype(float)}, "question ids .* type float64"),
        (lambda s: {"answers": np.array(["yes"] * s.scores.shape[1])}, "lists 9 answers twice"),
        (lambda s: {"answers": np.arange(s.scores.shape[1])}, "holds answers .* type int64, expected .* of text"),
        (lambda _: {"dataset": np.array("clevr")}, "those of clevr, .* holds vqa"),
        (lambda _: {"split": np.array("test"), "questions": np.array("0")}, "the split test, asked for is val"),
        (lambda _: {"is_exclusive": np.array("no")}, "holds is_exclusive 'no', expected true or false"),
        (lambda _: {"questions": np.array("0")}, "the same ids, but other texts or images than val of"),
    ],
)
def test_scores_that_are_refused(
    change: Callable[[Scores], dict[str, Any]], message: str, data: PreparedData, tmp_path: Path
) -> None:
    scores = val_scores(data)
    path = write_npz(tmp_path / "s.npz", scores, **change(scores))
    with pytest.raises(DataError, match=message) as raised:
        load_scores(path, data, "val")
    assert "pickle" not in raised.value.what


def test_scores_that_no_trained_model_gives(data: PreparedData, tmp_path: Path) -> None:
    scores = val_scores(data)
    same = replace(scores, scores=np.repeat(scores.scores[:1], 100, axis=0))
    flat = replace(scores, scores=np.repeat(scores.scores[:, :1], len(data.answers), axis=1))
    same.save(tmp_path / "same.npz")
    flat.save(tmp_path / "flat.npz")
    assert "all 100 questions have the same scores" in load_scores(tmp_path / "same.npz", data, "val")[1][0]
    assert (
        f"all {len(data.answers)} answers have the same score" in load_scores(tmp_path / "flat.npz", data, "val")[1][0]
    )
    assert scores.oddity() is None
    other = write_npz(tmp_path / "o.npz", scores, answers=np.array([*data.answers[:-2], "unheard", "unseen"]))
    assert f"2 of {len(data.answers)} answers in" in load_scores(other, data, "val")[1][0]


def test_probabilities_in_place_of_logits_are_said(data: PreparedData, tmp_path: Path) -> None:
    saved = val_scores(data)
    shares = probabilities(saved.scores, is_exclusive=False)
    _, odd = load_scores(write_npz(tmp_path / "shares.npz", saved, scores=shares), data, "val")
    assert [text.partition(": ")[2] for text in odd] == [
        "all scores are between 0 and 1, like probabilities; they are taken for logits"
    ]


def test_files_that_hold_no_scores(data: PreparedData, tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    val_scores(data).save(path)
    whole = path.read_bytes()
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("question_id.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    for content in (b"", b"nothing", whole[:-1], whole[:1000], whole[: len(whole) // 2], whole.replace(b"<f4", b"|O8")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read scores from .*some\.npz: it is cut off or changed, or"):
            load_scores(path, data, "val")
    with zipfile.ZipFile(bomb, "a") as archive:
        archive.writestr("scores.npy", b"")
        archive.writestr("answers.npy", b"")
    with pytest.raises(DataError, match="cannot read scores from"):
        load_scores(bomb, data, "val")
    os.mkfifo(tmp_path / "pipe.npz")
    for other in (tmp_path / "pipe.npz", tmp_path):
        with pytest.raises(DataError, match="it is a folder, a pipe or a device"):
            load_scores(other, data, "val")
    with pytest.raises(DataError, match="No such file"):
        load_scores(tmp_path / "none.npz", data, "val")


def test_a_model_whose_scores_are_not_finite(data: PreparedData, tmp_path: Path) -> None:
    evaluator = evaluator_of(data, tmp_path)
    with torch.no_grad():
        evaluator.model.head.bias[3] = torch.inf
    first = int(data.split("val").question_id[0])
    with pytest.raises(DataError, match=f"the model's scores are not finite for 100 of 100 questions: {first}, "):
        evaluator.score(data, "val")
    notes: list[str] = []
    evaluator.callback = lambda event: notes.append(event.text) if isinstance(event, Note) else None
    evaluator.answer(data, "val")
    assert notes == ["the scores of 100 of 100 questions of val are not finite"]
