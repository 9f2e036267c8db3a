"""TRAR: a Transformer for visual question answering that routes each image through attention spans.

Axes: B batch, T tokens, N = S * S cells, W feature width, D hidden width, E word width, L layers, K spans, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trarctl.config.settings import ModelSettings
from trarctl.model.attention import blended_map
from trarctl.model.layers import (
    AttentionPooling,
    FeedForward,
    MultiHeadAttention,
    ResidualNorm,
    SampleNorm,
    split_heads,
)
from trarctl.model.routing import Router
from trarctl.model.spans import Spans

PAD = 0


@dataclass(frozen=True)
class ModelSizes:
    """What the data fixes: the sizes of the model's inputs and outputs.

    Attributes:
        vocabulary: words, special ones included.
        answers: answers A.
        feature_width: width W of a grid cell's features.
    """

    vocabulary: int
    answers: int
    feature_width: int


class LanguageLayer(nn.Module):
    """Self-attention over the words, then feed-forward; both post-norm."""

    def __init__(self, settings: ModelSettings, kernel: str) -> None:
        super().__init__()
        size, probability = settings.hidden_size, settings.dropout
        self.attend = MultiHeadAttention(size, settings.num_heads, dropout=probability, kernel=kernel)
        self.feed = FeedForward(size, settings.feed_forward_size, dropout=probability)
        self.attend_norm = ResidualNorm(size, dropout=probability)
        self.feed_norm = ResidualNorm(size, dropout=probability)

    def forward(self, words: Tensor, is_padding: Tensor) -> Tensor:
        """Map word states [B, T, D] to [B, T, D]; ``is_padding`` is [B, T]."""
        words = self.attend_norm(words, self.attend(words, words, is_padding))
        return self.feed_norm(words, self.feed(words))


class RoutedAttention(MultiHeadAttention):
    """Self-attention over the cells whose span a router blends for each image."""

    def __init__(self, settings: ModelSettings, spans: Spans, kernel: str) -> None:
        super().__init__(settings.hidden_size, settings.num_heads, dropout=settings.dropout, kernel=kernel)
        is_hard = settings.routing == "hard"
        self.router = Router(settings.hidden_size, len(settings.spans), pooling=settings.pooling, is_hard=is_hard)
        self.spans = spans
        self.binarize = settings.binarize

    def forward(  # type: ignore[override]
        self, cells: Tensor, is_padding: Tensor, *, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend over the cells.

        Args:
            cells: [B, N, D].
            is_padding: cells not to look at, [B, N].
            temperature: see ``Router``.

        Returns:
            New states [B, N, D], and the weights of the spans before binarizing [B, K].
        """
        weights = self.router(cells, temperature=temperature)
        used = self._used(weights)
        return self._attend(cells, cells, is_padding=is_padding, span_weights=used, spans=self.spans), weights

    def attention_map(self, cells: Tensor, is_padding: Tensor, weights: Tensor) -> Tensor:
        """Show where cells [B, N, D] look, given the weights of the spans [B, K]: [B, H, N, N] float32."""
        query = split_heads(self.query(cells), self.num_heads).float()
        key = split_heads(self.key(cells), self.num_heads).float()
        return blended_map(query, key, self._used(weights), self.spans.pair_class, self.spans.contains, is_padding)

    def _used(self, weights: Tensor) -> Tensor:
        """Binarize weights [B, K] in evaluation, if asked to: 1 for the largest of each image, 0 for the others."""
        if not self.binarize or self.training:
            return weights
        return torch.zeros_like(weights).scatter(-1, weights.argmax(dim=-1, keepdim=True), 1.0)


class VisualLayer(nn.Module):
    """Routed self-attention over the cells, attention to the words, feed-forward; all post-norm."""

    def __init__(self, settings: ModelSettings, spans: Spans, kernel: str) -> None:
        super().__init__()
        size, probability = settings.hidden_size, settings.dropout
        self.route = RoutedAttention(settings, spans, kernel)
        self.guide = MultiHeadAttention(size, settings.num_heads, dropout=probability, kernel=kernel)
        self.feed = FeedForward(size, settings.feed_forward_size, dropout=probability)
        self.route_norm = ResidualNorm(size, dropout=probability)
        self.guide_norm = ResidualNorm(size, dropout=probability)
        self.feed_norm = ResidualNorm(size, dropout=probability)

    def forward(
        self, cells: Tensor, words: Tensor, padded_cells: Tensor, padded_words: Tensor, *, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map cell states [B, N, D] to [B, N, D], looking at words [B, T, D]; also the span weights [B, K]."""
        routed, weights = self.route(cells, padded_cells, temperature=temperature)
        cells = self.route_norm(cells, routed)
        cells = self.guide_norm(cells, self.guide(cells, words, padded_words))
        return self.feed_norm(cells, self.feed(cells)), weights


class TRAR(nn.Module):
    """The whole model: question and image in, answer scores and routes out.

    A plain Transformer is the same model with ``spans=(0,)``.

    Args:
        settings: the model's shape.
        sizes: what the data fixes.
        word_vectors: start values of the word embedding [V, E]; None draws them at random.
        attention: what computes the attention: ``auto``, or a name in KERNELS.

    Raises:
        ValueError: if ``word_vectors`` is not [V, E], or for spans that are none.
    """

    def __init__(
        self, settings: ModelSettings, sizes: ModelSizes, word_vectors: Tensor | None = None, attention: str = "auto"
    ) -> None:
        super().__init__()
        size = settings.hidden_size
        spans = Spans(settings.spans, settings.grid_size)
        self.settings = settings
        self.sizes = sizes
        self.embedding = nn.Embedding(sizes.vocabulary, settings.word_embedding_size)
        if word_vectors is not None:
            if word_vectors.shape != self.embedding.weight.shape:
                expected = list(self.embedding.weight.shape)
                raise ValueError(f"got word vectors {list(word_vectors.shape)}, expected {expected}")
            with torch.no_grad():
                self.embedding.weight.copy_(word_vectors)
        self.reader = nn.LSTM(settings.word_embedding_size, size, batch_first=True)
        self.adapter = nn.Linear(sizes.feature_width, size)
        self.language_layers = nn.ModuleList(LanguageLayer(settings, attention) for _ in range(settings.num_layers))
        self.visual_layers = nn.ModuleList(VisualLayer(settings, spans, attention) for _ in range(settings.num_layers))
        num_glimpses, out_size = settings.flat_glimpses, settings.flat_out_size
        self.image_pool, self.question_pool = (
            AttentionPooling(
                size, settings.flat_mlp_size, num_glimpses=num_glimpses, out_size=out_size, dropout=settings.dropout
            )
            for _ in range(2)
        )
        self.head_norm = SampleNorm(settings.flat_out_size)
        self.head = nn.Linear(settings.flat_out_size, sizes.answers)

    def forward(
        self, question_tokens: Tensor, features: Tensor, *, temperature: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Score the answers.

        Args:
            question_tokens: word indices, 0 is padding, [B, T].
            features: grid features; a cell of zeros only is padding, [B, N, W].
            temperature: of hard routing, > 0.

        Returns:
            Answer logits [B, A], float32, and the span weights of each layer before binarizing [B, L, K].
        """
        is_word_padding = question_tokens == PAD
        is_cell_padding = ~features.any(dim=-1)
        words = self._read(question_tokens)
        cells = self.adapter(features.to(self.adapter.weight.dtype))
        for layer in self.language_layers:
            words = layer(words, is_word_padding)
        routes = []
        for layer in self.visual_layers:
            cells, weights = layer(cells, words, is_cell_padding, is_word_padding, temperature=temperature)
            routes.append(weights)
        pooled = self.image_pool(cells, is_cell_padding) + self.question_pool(words, is_word_padding)
        scores = self.head(self.head_norm(pooled))
        return scores.to(torch.promote_types(scores.dtype, torch.float32)), torch.stack(routes, dim=1)

    def _read(self, question_tokens: Tensor) -> Tensor:
        """Word states [B, T, D]; on a CPU in float32, since without AVX-512 oneDNN has no LSTM in bfloat16."""
        with torch.autocast("cpu", enabled=False):
            return self.reader(self.embedding(question_tokens))[0]


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
