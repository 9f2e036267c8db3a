"""Questions about any picture, through the extractor of the model's data, and a look inside while it answers.

Axes: B questions, T words, N cells, W feature width, A answers, L layers, K spans, H heads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trarctl.data import Progress, batched, no_progress
from trarctl.data.card import DataCard
from trarctl.data.features.base import Extractor
from trarctl.data.features.grid import FeatureFileError, Floats, read_grid, whole_grid
from trarctl.data.features.origin import Stated, extractor_of, geometry_of, known_extractor
from trarctl.data.features.reading import read_images, to_rgb
from trarctl.data.features.sizes import Geometry
from trarctl.data.features.survey import Oddity, oddity_of
from trarctl.data.prepared import open_prepared
from trarctl.data.text import UNK, encode, tokenize
from trarctl.engine.distributed import World, joined, plan_placement, use_threads
from trarctl.engine.evaluator import Chosen, Evaluator, Request, choose, probabilities, recorded_folder
from trarctl.engine.loading import Loaded, is_exclusive
from trarctl.errors import CheckpointError, DataError, listed, shortened
from trarctl.model.trar import TRAR

if TYPE_CHECKING:
    from PIL.Image import Image

QUESTIONS_AT_ONCE = 64

_TELLING_NOTHING = (Oddity.ZERO, Oddity.CONSTANT, Oddity.REPEATED)

Size = tuple[int, int]
"""Width and height of an upright picture, in pixels."""


class Described(NamedTuple):
    """A picture as the model sees it."""

    features: Floats  # [N, W]
    is_plain: bool = False  # whether it has one color only
    size: Size | None = None  # None: it is not at hand
    oddity: Oddity | None = None  # of features that were not made here


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

    def __repr__(self) -> str:
        questions, layers, spans = self.routes.shape
        cells = self.answer_attention.shape[1]
        return f"<Insight: questions {questions}, layers {layers}, spans {spans}, cells {cells}>"


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
    """Give what ``inspect`` sums up, on the device.

    Scores [B, A], routes [B, L, K], weights of the cells in the picture's summary [B, N], and the blended attention map
    of each visual layer [B, H, N, N].
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
    is_plain: bool = False  # whether the picture has one color only
    num_cut: int = 0  # words at the question's end that the model does not see
    image_size: Size | None = None  # width and height of the upright picture; None: only its features were given
    geometry: Geometry | None = None  # lays ``answer_attention`` over the picture; None: it is unknown where cells lie
    oddity: Oddity | None = None  # of features that were not made here, where the answer is a guess for it

    def __repr__(self) -> str:
        likeliest = ", ".join(f"{answer} {100 * share:.1f} %" for answer, share in self.answers[:3])
        return f"<Prediction {self.question!r}: {likeliest}>"


class Predictor:
    """A trained model that takes questions about pictures, or about ready features.

    Pictures are described as those of the data were; the extractor is loaded when the first is asked about. ``card`` is
    that of the data, or the checkpoint's own; ``stated`` is what a user says about the extractor, ``images`` included.
    """

    def __init__(self, loaded: Loaded, card: DataCard, stated: Stated | None = None) -> None:
        self._loaded, self._card, self._stated = loaded, card, stated or Stated()
        self._extractor: Extractor | None = None
        self._known = known_extractor(card, self._stated.extractor)
        self.settings = loaded.model.settings  # the shape of the model
        self.notes: tuple[str, ...] = ()  # how it is known what made the features; complete after the first answer

    def __repr__(self) -> str:
        return f"<Predictor {self._loaded.source}, {self.trained_on()}>"

    @property
    def extractor_name(self) -> str | None:
        """Name of the extractor that made the features of the data, or is said to have; None: unknown."""
        known = self._extractor or self._known[0]
        return None if known is None else known.name

    @property
    def why_no_geometry(self) -> str | None:
        """Why it is unknown where cells lie on a picture; None if it is known."""
        return self._known[1] if self._extractor is None else None

    def load_extractor(self, progress: Progress = no_progress) -> Extractor:
        """Load what describes pictures, once; a TrarError says that it is unknown, or does not fit the data."""
        if self._extractor is None:
            devices = (str(self._loaded.device),)
            self._extractor, self.notes = extractor_of(self._card, self._stated, devices, progress)
        return self._extractor

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the checkpoint, or could not be checked."""
        return self._loaded.warnings

    def trained_on(self) -> str:
        """What the model was trained on and what it can answer, in one sentence."""
        answers = self._card.answers
        few = listed(answers, most=13 if len(answers) <= 13 else 8)
        return f"trained on {self._card.title}; it can only answer {few}"

    def ask(self, images: Sequence[Image], questions: Sequence[str], *, top: int = 5) -> list[Prediction]:
        """Answer a question about each picture, of any size and mode; errors as in ``ask_files``."""
        if wordless := [question for question in questions if not tokenize(question)]:
            raise DataError(_wordless(wordless[0]), _IN_WORDS)
        extractor = self.load_extractor()
        asked: list[Prediction] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            chunk = slice(start, start + QUESTIONS_AT_ONCE)
            sizes: list[Size] = []
            shrunk = [_shrunk(extractor, sizes, to_rgb(image)) for image in images[chunk]]
            described = self._describe(shrunk, sizes)
            asked += self._answer(described, questions[chunk], top)
        return asked

    def ask_features(
        self,
        features: Sequence[NDArray[np.floating] | str | Path],
        questions: Sequence[str],
        *,
        top: int = 5,
        sizes: Sequence[Size] | None = None,
    ) -> list[Prediction]:
        """Answer a question about each picture of which there are features only.

        Args:
            features: of each picture, [N, W] or [S, S, W], or a file of them; made as those of the data were.
            questions: one about each.
            top: answers to give.
            sizes: width and height of each upright picture, to lay attention over it; None: they are not at hand.

        Raises:
            DataError: for features of another shape, values that are not finite, and questions without a word.
            CheckpointError: if the model gives no numbers.
        """
        if wordless := [question for question in questions if not tokenize(question)]:
            raise DataError(_wordless(wordless[0]), _IN_WORDS)
        if len(features) != len(questions):
            what = f"{len(features):,} pictures' features and {len(questions):,} questions do not match"
            raise DataError(what, "give the features of one picture for each question")
        described = [self._given(one, number) for number, one in enumerate(features, start=1)]
        if sizes is not None:
            described = [one._replace(size=size) for one, size in zip(described, sizes, strict=True)]
        asked: list[Prediction] = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            chunk = slice(start, start + QUESTIONS_AT_ONCE)
            asked += self._answer(described[chunk], questions[chunk], top)
        return asked

    def _given(self, features: NDArray[np.floating] | str | Path, number: int) -> Described:
        """Take features of a picture, the ``number``-th."""
        shape = self.settings.grid_size, self._card.feature_width
        name = str(features) if isinstance(features, str | Path) else f"array {number} of features"
        try:
            if isinstance(features, str | Path):
                cells = read_grid(Path(features), *shape)
            else:
                cells = whole_grid(np.asarray(features), *shape)
        except FeatureFileError as error:
            raise DataError(f"{name} {error}", error.hint) from None
        oddity = oddity_of(cells)
        return Described(cells, oddity=oddity if oddity in _TELLING_NOTHING else None)

    def ask_files(
        self,
        paths: Sequence[Path],
        questions: Sequence[str],
        *,
        top: int = 5,
        places: Sequence[str] = (),
        progress: Progress = no_progress,
    ) -> list[Prediction]:
        """Answer a question about each picture file, which is decoded once however many questions there are.

        ``places`` says where each question stands, for messages: ``line 2``. A DataError names all unusable files and
        questions without a word; a CheckpointError says that the model gives no numbers.
        """
        extractor = self.load_extractor(progress)
        where = [f"{place}: " for place in places] or [""] * len(paths)
        problems = [at + _wordless(text) for at, text in zip(where, questions, strict=True) if not tokenize(text)]
        hints: list[str | None] = [_IN_WORDS] if problems else []
        rows_of: dict[Path, list[int]] = {}
        for row, path in enumerate(paths):
            rows_of.setdefault(path, []).append(row)
        asked: dict[int, Prediction] = {}
        for part in batched(list(rows_of), QUESTIONS_AT_ONCE):
            sizes: list[Size] = []
            images, faults = read_images(part, partial(_shrunk, extractor, sizes))
            for path, error in faults.items():
                # Only the reader names the file, not the extractor that finds it too narrow.
                what = error.what if str(path) in error.what else f"{path}: {error.what}"
                problems.append(where[rows_of[path][0]] + what)
            hints += [error.hint for error in faults.values()]
            if problems:
                continue  # the other files are still looked at
            described = dict(zip(part, self._describe(list(images.values()), sizes), strict=True))
            for rows in batched([row for path in part for row in rows_of[path]], QUESTIONS_AT_ONCE):
                answers = self._answer([described[paths[row]] for row in rows], [questions[row] for row in rows], top)
                asked |= zip(rows, answers, strict=True)
                progress("answering", len(asked), len(paths))
        if problems:
            raise DataError(listed(problems), hints[0])
        return [asked[row] for row in range(len(paths))]

    def _describe(self, images: Sequence[Image], sizes: Sequence[Size]) -> list[Described]:
        extractor = self.load_extractor()
        features = extractor.extract(images)
        if not np.isfinite(features).all():
            name = type(extractor).__name__
            raise DataError(f"{name} gives features that are NaN or infinite", "prepare the data again")
        is_plain = [image.convert("RGB").getcolors(1) is not None for image in images]
        return [Described(*one) for one in zip(features, is_plain, sizes, strict=True)]

    def _answer(self, described: Sequence[Described], questions: Sequence[str], top: int) -> list[Prediction]:
        vocabulary, answers, max_words = self._card.vocabulary, self._card.answers, self._card.max_words
        tokens = encode(questions, vocabulary.index, max_words)
        features = torch.from_numpy(np.stack([one.features for one in described]))
        insight = inspect(self._loaded, torch.from_numpy(tokens.astype(np.int64)), features)
        if not all(np.isfinite(values).all() for values in vars(insight).values()):
            what = "the model gives numbers that are NaN or infinite"
            raise CheckpointError(what, "choose an earlier epoch: --ckpt RUN@EPOCH")
        extractor = self._extractor or self._known[0]
        best = np.argsort(-insight.probabilities, axis=1, kind="stable")[:, :top]
        return [
            Prediction(
                question,
                tuple((answers[index], float(insight.probabilities[row, index])) for index in best[row].tolist()),
                insight.routes[row].tolist(),
                insight.answer_attention[row].tolist(),
                insight.layer_attention[row].tolist(),
                tuple(word for word in tokenize(question) if vocabulary.index.get(word, UNK) == UNK),
                described[row].is_plain,
                max(len(tokenize(question)) - max_words, 0),
                described[row].size,
                geometry_of(extractor, described[row].size),
                described[row].oddity,
            )
            for row, question in enumerate(questions)
        ]


_IN_WORDS = "ask in words: --question 'what shape is shown?'"


def _wordless(question: str) -> str:
    return f"{shortened(question)!r} holds no word"


def _shrunk(extractor: Extractor, sizes: list[Size], image: Image) -> Image:
    """Shrink a picture, and note its size if that can be done."""
    small = extractor.shrink(image)
    sizes.append(image.size)
    return small


def notes_on(asked: Sequence[Prediction]) -> list[str]:
    """Say what is odd about questions and pictures that were answered all the same, each once and with a count."""
    unknown = [one for one in asked if one.unknown_words]
    lost = [one for one in unknown if len(one.unknown_words) == len(tokenize(one.question))]
    partly = [one for one in unknown if one not in lost]
    notes = []
    if lost:
        notes.append(f"no word of {_questions(lost)} is in the model's vocabulary: the answer is a guess")
    if partly:
        words = list(dict.fromkeys(repr(shortened(word)) for one in partly for word in one.unknown_words))
        has = "has" if len(partly) == 1 else "have"
        unknown_words = listed(words)
        notes.append(f"{_questions(partly)} {has} words that are not in the model's vocabulary: {unknown_words}")
    if cut := [one for one in asked if one.num_cut]:
        last = f"{cut[0].num_cut} words" if cut[0].num_cut > 1 else "word"
        notes.append(f"the last {last} of {_questions(cut)} are left out, since the model reads no longer questions")
    if plain := [one for one in asked if one.is_plain]:
        notes.append(f"the picture of {_questions(plain)} has one color only: the answer is a guess")
    for oddity in dict.fromkeys(one.oddity for one in asked if one.oddity):
        guessed = [one for one in asked if one.oddity == oddity]
        notes.append(f"the features of {_questions(guessed)} are {oddity}: the answer is a guess")
    return notes


def _questions(asked: Sequence[Prediction]) -> str:
    first, more = repr(shortened(asked[0].question)), len(asked) - 1
    return first if not more else f"{first} and {more:,} more {'question' if more == 1 else 'questions'}"


def open_predictor(request: Request, stated: Stated | None = None) -> tuple[Predictor, Chosen]:
    """Load a checkpoint for asking, but no extractor yet; a TrarError says what does not fit together.

    Prepared data is only needed by checkpoints that do not stand alone, and to check a stated extractor against.
    """
    chosen = choose(request, needs_data=False)
    folder = chosen.data if stated is None or stated.extractor is None else recorded_folder(chosen)
    data = None if folder is None else open_prepared(folder)
    with joined(plan_placement(request.gpus or "cpu", os.environ), timeout_seconds=60.0) as world:
        loaded = chosen.open_model(data, world)
    return Predictor(loaded, loaded.card, stated), chosen
