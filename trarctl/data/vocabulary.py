"""The words that a model knows, and the order in which it knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from trarctl.data.text import tokenize_all
from trarctl.errors import DataError

PAD, UNK, CLS = 0, 1, 2
_SPECIAL = ("PAD", "UNK", "CLS")


@dataclass(frozen=True)
class Vocabulary(Mapping[str, int]):
    """Words in index order; as a mapping, word to index.

    The order is part of a checkpoint: row i of its word embedding belongs to ``words[i]``.

    Args:
        words: all words, starting with the three that stand for padding, unknown words and a sentence.

    Raises:
        DataError: the words do not start with PAD, UNK, CLS, or one appears twice.
    """

    words: tuple[str, ...]
    index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[: len(_SPECIAL)] != _SPECIAL:
            start = ", ".join(self.words[: len(_SPECIAL)]) or "nothing"
            raise DataError(
                f"a vocabulary starts with {', '.join(_SPECIAL)}, this one with {start}",
                "prepare the data again: trarctl prepare --help",
            )
        index = {word: position for position, word in enumerate(self.words)}
        if len(index) != len(self.words):
            twice = next(word for position, word in enumerate(self.words) if index[word] != position)
            raise DataError(f"the vocabulary holds {twice!r} twice", "prepare the data again: trarctl prepare --help")
        object.__setattr__(self, "index", index)

    @classmethod
    def build(cls, texts: Iterable[Iterable[str]]) -> Vocabulary:
        """Collect the words of raw questions, in order of first appearance.

        Args:
            texts: the question files' questions, in the order in which the files count: train, val, test (and
                Visual Genome). A published checkpoint fits no other order.
        """
        words = dict.fromkeys(_SPECIAL)
        for questions in texts:
            words.update(dict.fromkeys(chain.from_iterable(tokenize_all(questions))))
        return cls(tuple(words))

    @property
    def digest(self) -> str:
        """SHA-256 of the words in their order, hexadecimal: equal only for the same words in the same places."""
        return hashlib.sha256("\n".join(self.words).encode("utf-8", "surrogatepass")).hexdigest()

    def __getitem__(self, word: str) -> int:
        return self.index[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)
