"""Questions: raw text to words, and words to the integers that the model reads."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt

# Deleted, not spaced: "cat's" is one word. Dashes and slashes part words.
_CLEANING = str.maketrans(dict.fromkeys(".,'!?\"()*#:;") | {"-": " ", "/": " "})

# Questions that are cleaned in one go when only their words matter: large enough that the cost of a call vanishes,
# small enough that the joined text stays in the processor's cache.
_CHUNK = 4096


def tokenize(question: str) -> list[str]:
    """Split a question into its words, as the published checkpoints have them.

    Lower-case; ``. , ' ! ? " ( ) * # : ;`` deleted; ``-`` and ``/`` read as spaces; split on white space.
    """
    return question.lower().translate(_CLEANING).split()


def words_of(questions: Iterable[str]) -> Iterator[str]:
    """Run through the words of all questions, in order; the fast way where question boundaries do not matter."""
    remaining = iter(questions)
    while chunk := list(islice(remaining, _CHUNK)):
        yield from tokenize(" ".join(chunk))


def longest_question(questions: Iterable[str]) -> int:
    """Count the words of the longest question; 0 where there is none."""
    return max((len(tokenize(question)) for question in questions), default=0)


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
    for question in rows:
        words = tokenize(question)[:max_words]
        indices.extend([index.get(word, unknown) for word in words])
        lengths.append(len(words))
    tokens = np.full((len(rows), max_words), padding, dtype=np.int32)
    is_word = np.arange(max_words) < np.array(lengths, dtype=np.int32)[:, None]
    tokens[is_word] = np.array(indices, dtype=np.int32)
    return tokens[row_of_question]
