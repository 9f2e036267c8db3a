"""A few functions for notebooks and scripts: prepare, train, load, predict, score, measure, look inside.

    from trarctl import api

    data = api.prepare("easy-vqa")
    run = api.train("easy-vqa", name="demo", settings={"train.epochs": 2})
    print(api.predict("photo.png", "what shape is it?", ckpt="demo").answers)

Importing this module is cheap; each function imports what it needs. All errors are ``trarctl.errors.TrarError``.
The functions that take a checkpoint share their arguments:

    ckpt: ``RUN``, ``RUN@EPOCH`` or a file, as on the command line; None for the latest run.
    data: prepared folder; None for the one that the checkpoint was trained on.
    config: settings that belong to a checkpoint of the original program.
    gpus: devices as on the command line; None for a GPU if there is one.
    runs: folder of the runs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from trarctl.config import EvaluatorName
    from trarctl.data.metrics import Accuracy
    from trarctl.data.prepared import PreparedData
    from trarctl.engine.evaluator import Request, Scores
    from trarctl.engine.loading import Loaded
    from trarctl.engine.predictor import Insight, Prediction, Predictor
    from trarctl.engine.run import RunFolder
    from trarctl.report.history import RunOverview

__all__ = [
    "accuracy",
    "list_runs",
    "load",
    "load_model",
    "load_scores",
    "look_inside",
    "open_data",
    "open_predictor",
    "predict",
    "prepare",
    "routes_by_type",
    "score",
    "tokenize",
    "train",
]


def prepare(dataset: str, **options: Any) -> PreparedData:
    """Check raw files and turn them into prepared data, as ``trarctl prepare`` does; what is up to date is kept.

    Args:
        dataset: name of a data set; ``table`` for one's own.
        **options: those of the command, ``-`` written ``_``: ``images="photos"``, ``extractor="patches"``, ``grid=8``,
            and for a table ``name="birds"``, ``questions="questions.csv"``.
    """
    from dataclasses import fields

    from trarctl.data.prepare import PrepareRequest
    from trarctl.data.prepare import prepare as prepare_data
    from trarctl.data.prepared import open_prepared
    from trarctl.registry import load_plugins

    load_plugins()
    names = {field.name for field in fields(PrepareRequest)} - {"options"}
    paths = {"out", "raw", "features", "images", "weights", "questions", "train", "val", "test"}
    given: dict[str, Any] = {
        name: Path(value) if name in paths and value is not None else value for name, value in options.items()
    }
    described = {name: given.pop(name) for name in list(given) if name not in names}
    if unknown := sorted(set(described) - _OF_A_TABLE):
        raise TypeError(f"prepare takes no {', '.join(unknown)}; it takes {', '.join(sorted(names | _OF_A_TABLE))}")
    report = prepare_data(PrepareRequest(dataset, options=described, **given))
    for text in report.warnings:
        warnings.warn(text, stacklevel=2)
    return open_prepared(report.out)


# Options of prepare that describe a data set such as a table.
_OF_A_TABLE = {"name", "questions", "train", "val", "test", "column", "answers", "skip_missing"}


def train(
    dataset: str | None = None,
    *,
    data: str | Path | None = None,
    name: str | None = None,
    settings: Mapping[str, object] | None = None,
    recipe: str | None = None,
    init: str | Path | None = None,
    callback: Callable[[Any], None] | None = None,
    runs: str | Path = "runs",
) -> RunFolder:
    """Train a run to its end, as ``trarctl train`` does, and give its folder.

    Args:
        dataset: name of the data set, or of one's own; None for that of ``data``.
        data: prepared folder; None for ``data/DATASET/prepared``.
        name: of the run's folder; None for data set and time.
        settings: others than the recipe's by key: ``{"train.epochs": 2, "model.spans": [0, 1]}``.
        recipe: ``small``, ``published`` or a file in place of the data set's own.
        init: checkpoint to take the start weights from.
        callback: called with each event of ``trarctl.engine.callbacks``, such as ``StepDone`` and ``Validated``; a
            function of a module, where several processes train.
        runs: folder of the runs.
    """
    from trarctl.config.resolve import resolve
    from trarctl.data.manifest import read_manifest
    from trarctl.engine.callbacks import Note, no_callback
    from trarctl.engine.jobs import plan_start
    from trarctl.engine.launch import run_job

    wanted = dataset or (read_manifest(Path(data)).name if data is not None else None)
    given = {"data.path": None if data is None else Path(data), "run.name": name, "run.folder": Path(runs)}
    options = {key: (value, f"settings {key}") for key, value in {**given, **(settings or {})}.items()}
    resolved = resolve(wanted, options=options, recipe=recipe)
    job, notes = plan_start(resolved.settings, resolved.origins, init=None if init is None else str(init))
    callback = callback or no_callback
    for text in (*resolved.notes, *notes):
        callback(Note(text))
    watch: Any = functools.partial(nullcontext, callback)  # can be sent to processes that are started
    run_job(job, watch)
    return job.run


def list_runs(runs: str | Path = "runs") -> list[RunOverview]:
    """List the runs of a folder, the latest last: data, model, epochs, best accuracy, size and state."""
    from trarctl.report.history import overviews

    return overviews(Path(runs))


def tokenize(question: str) -> list[str]:
    """Split a question into its words, as models read it."""
    from trarctl.data.text import tokenize as split

    return split(question)


def open_data(path: str | Path) -> PreparedData:
    """Open a prepared folder: its words, answers, splits and features."""
    from trarctl.data.prepared import open_prepared

    return open_prepared(Path(path))


def load_model(
    ckpt: str | Path | None = None,
    *,
    data: str | Path | None = None,
    config: str | Path | None = None,
    gpus: str | None = "cpu",
    runs: str | Path = "runs",
) -> Loaded:
    """Load a checkpoint; ``.model`` is the torch module, in evaluation mode."""
    import os

    from trarctl.data.prepared import open_prepared
    from trarctl.engine.distributed import joined, plan_placement
    from trarctl.engine.evaluator import choose

    chosen = choose(_request(ckpt, data, "", config, gpus, runs))
    with joined(plan_placement(gpus, os.environ), timeout_seconds=60.0) as world:
        return chosen.open_model(open_prepared(chosen.data), world)


def score(
    ckpt: str | Path | None = None,
    *,
    split: str = "val",
    data: str | Path | None = None,
    config: str | Path | None = None,
    gpus: str | None = None,
    runs: str | Path = "runs",
) -> Scores:
    """Score every question of a split: answer logits [Q, A] and routes [Q, L, K], in file order."""
    from trarctl.engine.callbacks import no_callback
    from trarctl.engine.evaluator import choose, score_chosen

    unwatched: Any = functools.partial(nullcontext, no_callback)  # can be sent to the processes that are started
    return score_chosen(choose(_request(ckpt, data, split, config, gpus, runs)), unwatched)


def load_scores(path: str | Path, data: PreparedData, split: str) -> Scores:
    """Read finite scores of exactly a split's questions from a ``--save-scores`` file, without routes, in its order."""
    from trarctl.engine import evaluator

    return evaluator.load_scores(Path(path), data, split)[0]


def accuracy(scores: Scores, data: PreparedData, split: str, *, evaluator: EvaluatorName = "official") -> Accuracy:
    """Compare scores with the answers of a split, in percent: overall and by type; questions are matched by their ids.

    A split that has no answers, or was not scored, is a DataError.
    """
    from trarctl.data.metrics import measure

    part = data.split(split)
    return measure(scores.in_order_of(part.question_id).predictions(), data, part, evaluator)


def routes_by_type(scores: Scores, data: PreparedData, split: str) -> dict[str, NDArray[np.float64]]:
    """Average the share of each span in each layer, [L, K], by type of question, of a split that has answers."""
    from trarctl.report import outcomes

    scores = scores.in_order_of(data.split(split).question_id)
    outcome = outcomes.outcome_of(scores, data.split(split), accuracy(scores, data, split))
    return dict(zip(outcome.types, outcomes.routes_by_type(outcome, scores.routes), strict=True))


def look_inside(loaded: Loaded, data: PreparedData, split: str, rows: Sequence[int]) -> Insight:
    """Answer a few questions of a split: probabilities [B, A], routes [B, L, K] and attention over the cells.

    ``rows`` are the indices of B questions in the split of data that the model fits.
    """
    import numpy as np
    import torch

    from trarctl.engine.predictor import inspect
    from trarctl.errors import DataError

    part, index = data.split(split), np.asarray(rows, dtype=np.int64)
    if len(index) and not -len(part) <= index.min() <= index.max() < len(part):
        raise DataError(f"split {split} has {len(part):,} questions, asked for rows {index.min()} to {index.max()}")
    return inspect(
        loaded,
        torch.from_numpy(part.question_tokens[index].astype(np.int64)),
        torch.from_numpy(data.features.read(part.image[index]).astype(np.float32)),
    )


def open_predictor(
    ckpt: str | Path | None = None,
    *,
    data: str | Path | None = None,
    config: str | Path | None = None,
    gpus: str | None = "cpu",
    runs: str | Path = "runs",
    extractor: str | None = None,
    weights: str | Path | None = None,
    images: str | Path | None = None,
) -> Predictor:
    """Load a checkpoint for questions about any picture: ``predictor.ask([image], ["what is it?"])`` takes PIL images.

    ``predictor.ask_features([array], ["what is it?"])`` takes ready features of pictures, [N, W] or [S, S, W]. For
    pictures, the extractor is loaded when the first is asked about: the one that made the features of the data.
    ``extractor`` names it where the data does not say it, ``weights`` is the file of its weights (None: a download, or
    none needed), and ``images`` the folder of the data's pictures, of which one is compared with its stored features.
    """
    from trarctl.data.features.origin import Stated
    from trarctl.engine import predictor

    weights, images = (None if path is None else Path(path) for path in (weights, images))
    request = _request(ckpt, data, "", config, gpus, runs)
    return predictor.open_predictor(request, Stated(extractor, weights, images))[0]


load = open_predictor
open_asker = open_predictor  # its name in version 0.1


def predict(
    image: str | Path | Image,
    question: str,
    ckpt: str | Path | None = None,
    *,
    top: int = 5,
    **options: Any,
) -> Prediction:
    """Answer one question about one picture, a file or a PIL image; for several, ``load`` once.

    Args:
        image: of any size and mode.
        question: in words.
        ckpt: see above.
        top: answers to give.
        **options: those of ``load``.
    """
    predictor = load(ckpt, **options)
    if isinstance(image, str | Path):
        return predictor.ask_files([Path(image)], [question], top=top)[0]
    return predictor.ask([image], [question], top=top)[0]


def _request(
    ckpt: str | Path | None,
    data: str | Path | None,
    split: str,
    config: str | Path | None,
    gpus: str | None,
    runs: str | Path,
) -> Request:
    from trarctl.engine.evaluator import Request
    from trarctl.registry import load_plugins

    load_plugins()
    data, config = (None if path is None else Path(path) for path in (data, config))
    return Request(None if ckpt is None else str(ckpt), data, split, config, (f"run.folder={runs}",), gpus)
