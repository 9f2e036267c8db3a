"""A few functions for notebooks and scripts: open data, load a checkpoint, score, measure, look inside, predict.

    from trarctl import api

    data = api.open_data("data/easy-vqa/prepared")
    scores = api.score("demo", split="val")
    print(api.accuracy(scores, data, "val").per_type)

Importing this module is cheap; each function imports what it needs. All errors are ``trarctl.errors.TrarError``.
The functions that take a checkpoint share their arguments:

    ckpt: ``RUN``, ``RUN@EPOCH`` or a file, as on the command line; None for the latest run.
    data: prepared folder; None for the one that the checkpoint was trained on, where it is needed: a checkpoint stands
        alone for questions about pictures.
    config: settings that belong to a checkpoint of the original program.
    gpus: devices as on the command line; None for a GPU if there is one.
    runs: folder of the runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trarctl.config import EvaluatorName
    from trarctl.data.metrics import Accuracy
    from trarctl.data.prepared import PreparedData
    from trarctl.engine.evaluator import Request, Scores
    from trarctl.engine.loading import Loaded
    from trarctl.engine.predictor import Insight, Predictor

__all__ = [
    "accuracy",
    "load_model",
    "load_scores",
    "look_inside",
    "open_data",
    "open_predictor",
    "routes_by_type",
    "score",
]


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

    from trarctl.engine.distributed import joined, plan_placement
    from trarctl.engine.evaluator import choose

    chosen = choose(_request(ckpt, data, "", config, gpus, runs), needs_data=False)
    with joined(plan_placement(gpus, os.environ), timeout_seconds=60.0) as world:
        return chosen.open_model(None if chosen.data is None else chosen.open_data(), world)


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


open_asker = open_predictor  # its name in version 0.1


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
