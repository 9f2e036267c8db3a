"""What must be known of the data that a model was trained on, so that it can be asked about any picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trarctl.data.features.base import read_description
from trarctl.data.manifest import BACKBONE
from trarctl.data.text import Vocabulary

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData


@dataclass(frozen=True)
class DataCard:
    """Words, answers, and what pictures are turned into; a prepared folder gives it, and so does a checkpoint.

    Attributes:
        source: the prepared folder, or the checkpoint.
        title: what the data shows, in a few words.
        vocabulary: the words, in index order.
        answers: those that a model can give, in index order.
        max_words: words of a question that are read.
        grid_size: cells S along one side of a picture.
        feature_width: width W of a cell's features.
        extractor_name: of what made the features; None: nothing says it.
        extractor: what made them, as ``backbone.json`` has it; None: read it there.
        prepared: the folder itself, where it is at hand.
    """

    source: Path
    title: str
    vocabulary: Vocabulary
    answers: tuple[str, ...]
    max_words: int
    grid_size: int
    feature_width: int
    extractor_name: str | None
    extractor: Mapping[str, Any] | None = None
    prepared: PreparedData | None = None

    @property
    def features(self) -> str:
        """How messages name the features."""
        in_folder = self.prepared is not None
        return f"the features in {self.source}" if in_folder else f"the features that {self.source} was trained on"

    @property
    def extractor_source(self) -> Path:
        """The file that says what made the features."""
        return self.source if self.extractor is not None else self.source / BACKBONE

    def describe_extractor(self) -> dict[str, Any]:
        """Give what made the features, as ``backbone.json`` has it; a DataError says that it is missing or damaged."""
        return read_description(self.extractor_source) if self.extractor is None else dict(self.extractor)
