"""The text of questions and answers: words, the vocabulary, normalized answers and the answer list."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import numpy as np
import numpy.typing as npt

from trarctl.errors import DataError

# Deleted, not spaced: "cat's" is one word. Dashes and slashes part words.
_CLEANING = str.maketrans(dict.fromkeys(".,'!?\"()*#:;") | {"-": " ", "/": " "})

# Questions cleaned in one go: enough for the cost of a call to vanish, few enough for their text to fit a cache.
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
    """Turn questions into rows of word indices, [Q, T]: of each question the first ``max_words`` T.

    A word that the vocabulary lacks is ``UNK``, the rest of a short question ``PAD``.
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


PAD, UNK, CLS = 0, 1, 2
_SPECIAL = ("PAD", "UNK", "CLS")


@dataclass(frozen=True)
class Vocabulary(Mapping[str, int]):
    """Words in index order; as a mapping, word to index.

    The order is part of a checkpoint: row i of its word embedding belongs to ``words[i]``. A DataError says that words
    do not start with those for padding, unknown words and a sentence, or that one appears twice.
    """

    words: tuple[str, ...]
    index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.words[: len(_SPECIAL)] != _SPECIAL:
            start = ", ".join(self.words[: len(_SPECIAL)]) or "nothing"
            what = f"a vocabulary starts with {', '.join(_SPECIAL)}, this one with {start}"
            raise DataError(what, "prepare the data again: trarctl prepare --help")
        index = {word: position for position, word in enumerate(self.words)}
        if len(index) != len(self.words):
            twice = next(word for position, word in enumerate(self.words) if index[word] != position)
            raise DataError(f"the vocabulary holds {twice!r} twice", "prepare the data again: trarctl prepare --help")
        object.__setattr__(self, "index", index)

    @classmethod
    def build(cls, texts: Iterable[Iterable[str]]) -> Vocabulary:
        """Collect the words of the files' questions, in order of first appearance; a checkpoint fits no other order."""
        words = dict.fromkeys(_SPECIAL)
        for questions in texts:
            words.update(dict.fromkeys(chain.from_iterable(tokenize_all(questions))))
        return cls(tuple(words))

    @property
    def digest(self) -> str:
        """SHA-256 of the words in their order, hexadecimal."""
        return hashlib.sha256("\n".join(self.words).encode("utf-8", "surrogatepass")).hexdigest()

    def __getitem__(self, word: str) -> int:
        return self.index[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)


# Contractions by their ending. One is recognized where exactly one of its apostrophes is missing, so those that would
# then be another word are left out: it's, she'd, we'd, we'll, we're, I'll.
_STEMS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you couldn't hadn't mightn't shouldn't wouldn't "
    "he'd it'd she'd somebody'd someone'd something'd there'd they'd we'd who'd you'd y'all'd",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "": "ma'am o'clock 'ow's'at 'twas y'all",
}
_CONTRACTIONS = [stem + ending for ending, stems in _STEMS.items() for stem in stems.split()]

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The evaluators hand a regular expression's flag to the parameter that limits the replacements.
_MOST_PERIODS = int(re.UNICODE)

_SOFT_SCORES = np.array([0.0, 0.3, 0.6, 0.9, 1.0], dtype=np.float32)


def _missing_one_apostrophe(contraction: str) -> list[str]:
    return [contraction[:at] + contraction[at + 1 :] for at, letter in enumerate(contraction) if letter == "'"]


# "somebody'd" goes the wrong way in the evaluators, and so here.
_EXPANDED = {short: full for full in _CONTRACTIONS for short in _missing_one_apostrophe(full)} | {
    "somebody'd": "somebodyd"
}


def strip_punctuation(text: str) -> str:
    """Do the punctuation step of the VQA evaluators.

    A mark that touches a space anywhere in the text is deleted everywhere, any other becomes a space; a comma between
    digits has all marks deleted. Apostrophes and colons stay. Then the first 32 periods that no digit follows go.
    """
    marks = _PUNCTUATION.intersection(text)
    if marks:
        delete_all = _THOUSANDS.search(text) is not None
        text = text.translate(
            {ord(mark): "" if delete_all or f"{mark} " in text or f" {mark}" in text else " " for mark in marks}
        )
    return _PERIOD.sub("", text, count=_MOST_PERIODS) if "." in text else text


def strip_words(text: str) -> str:
    """Do the word step of the VQA evaluators: lower-case, number words to digits, no articles, contractions whole."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_EXPANDED.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(text: str) -> str:
    """Normalize an answer as training targets and the answer vocabulary have it; ``none`` is ``0``, ``a`` is empty."""
    return strip_words(strip_punctuation(text)).replace(",", "")


def build_answers(
    answers: Iterable[str],
    *,
    normalize: Callable[[str], str] = normalize_answer,
    min_count: int = 0,
    most: int | None = None,
) -> list[str]:
    """Choose the answers that a model can give, in order of first appearance: index i is the model's output i.

    ``answers`` are those of all annotations (VQA: the most common one), train before val, in file order; one is kept if
    it is that of more than ``min_count`` annotations, and among the ``most`` commonest, of equals the first.
    """
    counts: Counter[str] = Counter()
    for answer, count in Counter(answers).items():
        counts[normalize(answer)] += count
    kept = dict(counts.most_common(most))
    return [answer for answer, count in counts.items() if count > min_count and answer in kept]


def soft_scores(counts: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Turn the number of annotators who gave an answer into its target: 0, .3, .6, .9, and 1 from four on."""
    return _SOFT_SCORES[np.minimum(counts, len(_SOFT_SCORES) - 1)]
