"""Questions about any picture, through the extractor of the model's data, and a look inside while it answers.

Axes: B questions, T words, N cells, W feature width, A answers, L layers, K spans, H heads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trarctl.data import Progress, no_progress
from trarctl.data.features.base import Extractor, load_images
from trarctl.data.features.extract import extractor_of
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.data.text import UNK, encode, tokenize
from trarctl.engine.distributed import World, joined, plan_placement, use_threads
from trarctl.engine.evaluator import Chosen, Evaluator, Request, choose, probabilities
from trarctl.engine.loading import Loaded, is_exclusive
from trarctl.errors import DataError, listed
from trarctl.model.trar import TRAR

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Insight:
    """What a model says to a few questions, and how it came to say so; everything on the CPU.

    ``answer_attention`` is the share of each cell in the picture's summary that the answer is read from, mean over the
    glimpses; ``layer_attention`` that of each cell in what a layer looked at, mean over the heads, and over the looking
    cells weighted by ``answer_attention``.
    """

    probabilities: NDArray[np.float32]  # of each answer, [B, A]
    routes: NDArray[np.float32]  # span weights before binarizing, [B, L, K]
    answer_attention: NDArray[np.float32]  # [B, N]
    layer_attention: NDArray[np.float32]  # [B, L, N]


def inspect(loaded: Loaded, question_tokens: Tensor, features: Tensor) -> Insight:
    """Answer questions [B, T] about pictures with features [B, N, W], and show where the model looked."""
    scores, routes, pooled, maps = look(loaded, question_tokens, features)
    with torch.inference_mode():
        looked_at = torch.stack([torch.einsum("bn,bhnm->bm", pooled, one) / one.shape[1] for one in maps], dim=1)
    return Insight(
        probabilities(scores.float().cpu().numpy(), is_exclusive=is_exclusive(loaded.settings)),
        routes.float().cpu().numpy(),
        pooled.cpu().numpy(),
        looked_at.cpu().numpy(),
    )


def look(loaded: Loaded, question_tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """What ``inspect`` sums up, on the device; the same arguments.

    Returns:
        Scores [B, A], routes [B, L, K], weights of the cells in the picture's summary [B, N], and the blended
        attention map of each visual layer [B, H, N, N].
    """
    model = loaded.model
    evaluator = Evaluator(model, loaded.settings, loaded.temperature, World(0, 1, loaded.device))
    with (
        use_threads(loaded.settings.run.num_threads),
        evaluator.inference(),
        _recording(model) as (layer_inputs, pool_inputs),
    ):
        scores, routes = evaluator.forward(question_tokens, features)
        layers: Any = zip(model.visual_layers, layer_inputs, routes.unbind(dim=1), strict=True)
        maps = [layer.route.attention_map(*inputs, weights) for layer, inputs, weights in layers]
        return scores, routes, _pool_weights(model, *pool_inputs[0]), maps


Inputs = list[tuple[Tensor, Tensor]]


@contextmanager
def _recording(model: TRAR) -> Iterator[tuple[Inputs, Inputs]]:
    """Keep what the routed layers and the pooling of the picture are given while the block runs."""
    layer_inputs: Inputs = []
    pool_inputs: Inputs = []

    def keep(inputs: Inputs) -> Any:
        return lambda _module, arguments: inputs.append((arguments[0], arguments[1]))

    routes: list[Any] = [layer.route for layer in model.visual_layers]
    handles = [route.register_forward_pre_hook(keep(layer_inputs)) for route in routes]
    handles.append(model.image_pool.register_forward_pre_hook(keep(pool_inputs)))
    try:
        yield layer_inputs, pool_inputs
    finally:
        for handle in handles:
            handle.remove()


def _pool_weights(model: TRAR, cells: Tensor, is_padding: Tensor) -> Tensor:
    """How much of each cell goes into the summary of the picture, mean over the glimpses, [B, N]."""
    scores = model.image_pool.scorer(cells).float().masked_fill(is_padding.unsqueeze(-1), -1e9)
    return scores.softmax(dim=1).mean(dim=-1)


@dataclass(frozen=True)
class Prediction:
    """The answers to one question about one picture."""

    question: str
    answers: tuple[tuple[str, float], ...]  # the likeliest first, with their probabilities
    routes: list[list[float]]  # share of each span in each layer, L lists of K
    answer_attention: list[float]  # see ``Insight``; N numbers in row-major order
    layer_attention: list[list[float]]  # L lists of N
    unknown_words: tuple[str, ...]  # those of the question that the model never saw


class Predictor:
    """A trained model that takes pictures and questions; ``extractor`` describes pictures as those of the data were."""

    def __init__(self, loaded: Loaded, data: PreparedData, extractor: Extractor) -> None:
        self._loaded, self._data, self._extractor = loaded, data, extractor
        self.settings = loaded.model.settings  # the shape of the model

    def trained_on(self) -> str:
        """What the model was trained on and what it can answer, in one sentence."""
        answers = self._data.answers
        few = ", ".join(answers if len(answers) <= 13 else answers[:8])
        more = "" if len(answers) <= 13 else f" and {len(answers) - 8:,} more"
        return f"trained on {self._data.spec.title}; it can only answer {few}{more}"

    def ask(self, images: Sequence[Image], questions: Sequence[str], *, top: int = 5) -> list[Prediction]:
        """Answer a question about each picture, of any size and mode, with the ``top`` likeliest answers.

        Raises:
            DataError: for a question without a word.
        """
        for question in questions:
            if not tokenize(question):
                raise DataError(f"{question!r} holds no word", "ask in words: --question 'what shape is shown?'")
        asked: list[Prediction] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            chunk = slice(start, start + QUESTIONS_AT_ONCE)
            asked += self._ask(images[chunk], questions[chunk], top)
        return asked

    def ask_files(
        self, paths: Sequence[Path], questions: Sequence[str], *, top: int = 5, progress: Progress = no_progress
    ) -> list[Prediction]:
        """Answer a question about each picture file, a few files at a time.

        Raises:
            DataError: for unusable files, all of them, or a question without a word.
        """
        asked: list[Prediction] = []
        problems: list[str] = []
        for start in range(0, len(paths), QUESTIONS_AT_ONCE):
            chunk = slice(start, start + QUESTIONS_AT_ONCE)
            images, faults = load_images(paths[chunk])
            problems += faults
            if not problems:
                asked += self.ask(images, questions[chunk], top=top)
            progress("answering", min(start + QUESTIONS_AT_ONCE, len(paths)), len(paths))
        if problems:
            distinct = list(dict.fromkeys(problems))
            raise DataError(listed(distinct, len(distinct)), "give image files that open, such as .jpg or .png")
        return asked

    def _ask(self, images: Sequence[Image], questions: Sequence[str], top: int) -> list[Prediction]:
        vocabulary, answers = self._data.vocabulary, self._data.answers
        tokens = encode(questions, vocabulary.index, self._data.manifest.max_words)
        features = torch.from_numpy(self._extractor.extract(images))
        insight = inspect(self._loaded, torch.from_numpy(tokens.astype(np.int64)), features)
        best = np.argsort(-insight.probabilities, axis=1, kind="stable")[:, :top]
        return [
            Prediction(
                question,
                tuple((answers[index], float(insight.probabilities[row, index])) for index in best[row].tolist()),
                insight.routes[row].tolist(),
                insight.answer_attention[row].tolist(),
                insight.layer_attention[row].tolist(),
                tuple(word for word in tokenize(question) if vocabulary.index.get(word, UNK) == UNK),
            )
            for row, question in enumerate(questions)
        ]


def open_predictor(request: Request, weights: Path | None = None) -> tuple[Predictor, Chosen]:
    """Load a checkpoint for asking, in this process; ``weights`` are the extractor's, if ``prepare`` was given a file.

    Raises:
        TrarError: if checkpoint and data are missing or do not fit together.
        DataError: if the features of the data were not made from pictures here.
    """
    chosen = choose(request)
    data = open_prepared(chosen.data)
    with joined(plan_placement(request.gpus or "cpu", os.environ), timeout_seconds=60.0) as world:
        loaded = chosen.open_model(data, world)
    extractor = extractor_of(data, weights)
    made, kept = (extractor.grid_size, extractor.width), (data.manifest.grid_size, data.features.width)
    if made != kept:
        raise DataError(
            f"the extractor in {data.path} gives {made[0]} x {made[0]} cells of {made[1]} numbers, "
            f"the features there are {kept[0]} x {kept[0]} of {kept[1]}",
            "prepare the data again",
        )
    return Predictor(loaded, data, extractor), chosen
