"""The order of the words, which a checkpoint depends on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from trarctl.data.text import CLS, PAD, UNK, Vocabulary
from trarctl.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"
ORDERS = {
    "vqa": [
        f"mini_vqa/raw/{name}_questions.json"
        for name in (
            "v2_OpenEnded_mscoco_train2014",
            "v2_OpenEnded_mscoco_val2014",
            "v2_OpenEnded_mscoco_test2015",
            "VG",
        )
    ],
    "clevr": [f"mini_clevr/raw/questions/CLEVR_{split}_questions.json" for split in ("train", "val", "test")],
}


def _questions(path: str) -> Iterator[str]:
    for question in json.loads((GOLDEN / path).read_text(encoding="utf-8"))["questions"]:
        yield question["question"]


@pytest.mark.parametrize("case", sorted((GOLDEN / "cases").glob("*.json")), ids=lambda path: path.stem)
def test_order_is_that_of_the_original(case: Path) -> None:
    expected = json.loads(case.read_text(encoding="utf-8"))
    vocabulary = Vocabulary.build(_questions(path) for path in ORDERS[expected["dataset"]])
    assert dict(vocabulary) == expected["token_to_ix"]
    assert list(vocabulary) == list(expected["token_to_ix"])


def test_special_words_stand_first() -> None:
    vocabulary = Vocabulary.build([["pad the PAD"], ["the unk"]])
    assert vocabulary.words == ("PAD", "UNK", "CLS", "pad", "the", "unk")
    assert (vocabulary["PAD"], vocabulary["UNK"], vocabulary["CLS"]) == (PAD, UNK, CLS)
    assert len(vocabulary) == 6
    assert "the" in vocabulary
    assert vocabulary.index["unk"] == 5


def test_digest_knows_words_and_order() -> None:
    first = Vocabulary.build([["red blue"]])
    assert first.digest == Vocabulary.build([["Red"], ["red, blue"]]).digest
    assert len({first.digest, Vocabulary.build([["blue red"]]).digest, Vocabulary.build([["redblue"]]).digest}) == 3


def test_processes_can_hand_it_over() -> None:
    vocabulary = Vocabulary.build([["red blue"]])
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary  # noqa: S301 - what was pickled on this line


def test_other_first_words_are_refused() -> None:
    with pytest.raises(DataError, match="a vocabulary starts with PAD, UNK, CLS, this one with red, blue") as caught:
        Vocabulary(("red", "blue"))
    assert caught.value.hint is not None
    assert "trarctl prepare" in caught.value.hint


def test_no_words_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="this one with nothing"):
        Vocabulary(())


def test_a_word_twice_is_refused() -> None:
    with pytest.raises(DataError, match="holds 'red' twice"):
        Vocabulary(("PAD", "UNK", "CLS", "red", "blue", "red"))
