"""Questions about any picture: through the extractor that made the features a model was trained on.

Axes: B questions, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trarctl.data import Progress, no_progress
from trarctl.data.features.base import Extractor, load_images
from trarctl.data.features.extract import extractor_of
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.data.text import UNK, encode, tokenize
from trarctl.engine.distributed import joined, plan_placement
from trarctl.engine.evaluating import Chosen, Request, choose, open_model
from trarctl.engine.inspecting import Insight, inspect
from trarctl.engine.loading import Loaded
from trarctl.errors import DataError, listed

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Prediction:
    """The answers to one question about one picture.

    Attributes:
        question: as it was asked.
        answers: the likeliest first, with their probabilities.
        routes: share of each span in each layer, L lists of K.
        answer_attention: see ``trarctl.engine.inspecting.Insight``, N numbers in row-major order.
        layer_attention: L lists of N.
        unknown_words: those of the question that the model never saw.
    """

    question: str
    answers: tuple[tuple[str, float], ...]
    routes: list[list[float]]
    answer_attention: list[float]
    layer_attention: list[list[float]]
    unknown_words: tuple[str, ...]


class Predictor:
    """A trained model that takes pictures and questions.

    Args:
        loaded: the model.
        data: that it was trained on.
        extractor: describes pictures as those of the data were.
    """

    def __init__(self, loaded: Loaded, data: PreparedData, extractor: Extractor) -> None:
        self._loaded = loaded
        self._data = data
        self._extractor = extractor

    @property
    def spans(self) -> tuple[int | str, ...]:
        """The order of each span; 0 sees the whole picture, r the cells within r."""
        return self._loaded.model.settings.spans

    @property
    def grid_size(self) -> int:
        """Cells along one side of a picture."""
        return self._loaded.model.settings.grid_size

    @property
    def is_hard(self) -> bool:
        """Whether the evaluation uses the heaviest span of a layer alone."""
        return self._loaded.model.settings.binarize

    @property
    def num_answers(self) -> int:
        """Answers that the model can give."""
        return len(self._data.answers)

    def trained_on(self) -> str:
        """What the model was trained on and what it can answer, in one sentence."""
        answers = self._data.answers
        few = ", ".join(answers if len(answers) <= 13 else answers[:8])
        more = "" if len(answers) <= 13 else f" and {len(answers) - 8:,} more"
        return f"trained on {self._data.spec.title}; it can only answer {few}{more}"

    def ask(self, images: Sequence[Image], questions: Sequence[str], *, top: int = 5) -> list[Prediction]:
        """Answer a question about each picture.

        Args:
            images: of any size and mode, B of them.
            questions: B of them.
            top: how many answers to give to each.

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

        Args:
            paths: image files, B of them.
            questions: B of them.
            top: how many answers to give to each.
            progress: told how many questions are answered.

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
            raise DataError(
                listed(distinct, len(distinct)), "give image files that can be opened, such as .jpg or .png"
            )
        return asked

    def _ask(self, images: Sequence[Image], questions: Sequence[str], top: int) -> list[Prediction]:
        vocabulary, answers = self._data.vocabulary, self._data.answers
        tokens = encode(questions, vocabulary.index, self._data.manifest.max_words)
        insight = self._look(tokens, self._extractor.extract(images))
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

    def _look(self, tokens: np.ndarray, features: np.ndarray) -> Insight:
        return inspect(
            self._loaded.model,
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(features),
            temperature=self._loaded.temperature,
            is_exclusive=self._loaded.settings.train.loss != "bce",
        )


def open_predictor(request: Request, weights: Path | None = None) -> tuple[Predictor, Chosen]:
    """Load a checkpoint for asking, in this process.

    Args:
        request: which checkpoint; its split is not looked at.
        weights: file of the extractor's weights, if ``prepare`` was given one.

    Raises:
        TrarError: if checkpoint and data are missing or do not fit together.
        DataError: if the features of the data were not made from pictures here.
    """
    chosen = choose(request)
    data = open_prepared(chosen.data)
    with joined(plan_placement(request.gpus or "cpu", os.environ), timeout_seconds=60.0) as world:
        loaded = open_model(chosen, data, world)
    extractor = extractor_of(data, weights)
    if extractor.width != data.features.width or extractor.grid_size != data.manifest.grid_size:
        raise DataError(
            f"the extractor in {data.path} gives {extractor.grid_size} x {extractor.grid_size} cells of"
            f" {extractor.width} numbers, the features there are {data.manifest.grid_size} x {data.manifest.grid_size}"
            f" of {data.features.width}",
            "prepare the data again",
        )
    return Predictor(loaded, data, extractor), chosen
