"""Questions: raw text to words, and words to the integers that the model reads."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, repeat

import numpy as np
import numpy.typing as npt

# Deleted, not spaced: "cat's" is one word. Dashes and slashes part words.
_CLEANING = str.maketrans(dict.fromkeys(".,'!?\"()*#:;") | {"-": " ", "/": " "})

# Questions that are cleaned in one go: so many that the cost of a call vanishes, so few that their text fits a cache.
_CHUNK = 4096


def tokenize(question: str) -> list[str]:
    """Split a question into its words, as the published checkpoints have them.

    Lower-case; ``. , ' ! ? " ( ) * # : ;`` deleted; ``-`` and ``/`` read as spaces; split on white space.
    """
    return question.lower().translate(_CLEANING).split()


def tokenize_all(questions: Iterable[str]) -> Iterator[list[str]]:
    """Split many questions into their words, several times as fast as one by one."""
    remaining = iter(questions)
    while chunk := list(islice(remaining, _CHUNK)):
        text = "\n".join(chunk)
        if text.count("\n") >= len(chunk):
            # Inside a question a line end parts words as a space does.
            text = "\n".join(question.replace("\n", " ") for question in chunk)
        yield from map(str.split, text.lower().translate(_CLEANING).split("\n"))


def longest_question(questions: Iterable[str]) -> int:
    """Count the words of the longest question; 0 where there is none."""
    return max(map(len, tokenize_all(questions)), default=0)


def encode(questions: Iterable[str], vocabulary: Mapping[str, int], max_words: int) -> npt.NDArray[np.int32]:
    """Turn questions into rows of word indices.

    Args:
        questions: raw text, Q of them.
        vocabulary: word to index, with the entries ``PAD`` and ``UNK``.
        max_words: words T that are kept of a question, from its start.

    Returns:
        Word indices [Q, T] int32: a word that the vocabulary lacks is ``UNK``, the rest of a short question ``PAD``.
    """
    index = dict(vocabulary)
    unknown, padding = index["UNK"], index["PAD"]
    # Real sets ask the same question of many images: each distinct one is cleaned once.
    rows: dict[str, int] = {}
    row_of_question = np.fromiter((rows.setdefault(question, len(rows)) for question in questions), dtype=np.int64)
    indices, lengths = array("i"), array("i")
    for words in tokenize_all(rows):
        kept = words[:max_words]
        indices.extend(map(index.get, kept, repeat(unknown)))
        lengths.append(len(kept))
    tokens = np.full((len(rows), max_words), padding, dtype=np.int32)
    is_word = np.arange(max_words) < np.array(lengths, dtype=np.int32)[:, None]
    tokens[is_word] = np.array(indices, dtype=np.int32)
    return tokens[row_of_question]
