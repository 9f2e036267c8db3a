"""Answers: normalizing them, and choosing those that a model can give."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

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
    places = [place for place, letter in enumerate(contraction) if letter == "'"]
    return [contraction[:place] + contraction[place + 1 :] for place in places]


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
    answers: Iterable[str], *, normalize: Callable[[str], str] = normalize_answer, min_count: int = 0
) -> list[str]:
    """Choose the answers that a model can give.

    Args:
        answers: each annotation's answer (VQA: its most common one), train before val, in file order.
        normalize: how an answer is written in the list.
        min_count: an answer is kept if it is that of more annotations than this.

    Returns:
        Normalized answers, in order of first appearance: index i is the model's output i.
    """
    counts: Counter[str] = Counter()
    for answer, count in Counter(answers).items():
        counts[normalize(answer)] += count
    return [answer for answer, count in counts.items() if count > min_count]


def soft_scores(counts: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Turn the number of annotators who gave an answer into its target: 0, .3, .6, .9, and 1 from four on.

    Args:
        counts: annotators out of ten, integers of any shape.

    Returns:
        Targets of the same shape, float32.
    """
    return _SOFT_SCORES[np.minimum(counts, len(_SOFT_SCORES) - 1)]
