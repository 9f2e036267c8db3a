"""Write files of the size and shape of VQA v2 and CLEVR v1.0, to measure with; the text is generated.

    python benchmarks/make_full_size.py vqa FOLDER
    python benchmarks/make_full_size.py clevr FOLDER --scale 0.1

Counts and layout are the published ones; words and answers follow a Zipf law over 20,000 words and 30,000 answers, of
which about 3,000 are common, as in the real files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

VQA_QUESTIONS = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793, "test-dev2015": 107_394}
VQA_IMAGES = {"train2014": 82_783, "val2014": 40_504, "test2015": 81_434, "test-dev2015": 36_807}
VG_QUESTIONS = 500_000
CLEVR_QUESTIONS = {"train": 699_989, "val": 149_991, "test": 149_988}
CLEVR_IMAGES = {"train": 70_000, "val": 15_000, "test": 15_000}

_LETTERS = np.array(list("etaoinshrdlcumwfgypbvk"))
_OPENINGS = ("What is", "Is the", "How many", "What color is", "Is this a", "Are there", "Where is", "What kind of")
_ANSWER_TYPES = ("other", "yes/no", "number")
_CHAIN = ("scene", "filter_size", "filter_color", "filter_material", "filter_shape", "unique", "relate", "filter_color")
_CLEVR_ENDS = {
    "count": tuple("0123456789"),
    "exist": ("yes", "no"),
    "greater_than": ("yes", "no"),
    "less_than": ("yes", "no"),
    "equal_integer": ("yes", "no"),
    "query_color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    "query_shape": ("cube", "sphere", "cylinder"),
    "query_size": ("large", "small"),
    "query_material": ("rubber", "metal"),
    "equal_color": ("yes", "no"),
    "equal_shape": ("yes", "no"),
    "equal_size": ("yes", "no"),
    "equal_material": ("yes", "no"),
}
_CLEVR_WORDS = (
    *("what", "is", "the", "color", "of", "large", "metal", "sphere", "that", "to", "left", "right", "behind", "in"),
    *("front", "thing", "small", "cube", "rubber", "any"),
)


def main() -> None:
    """Write one of the two sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("vqa", "clevr"))
    parser.add_argument("folder", type=Path, help="raw folder to write")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the real number of questions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write = write_vqa if options.dataset == "vqa" else write_clevr
    write(options.folder, scale=options.scale, seed=options.seed)


def write_table(raw: Path, num_questions: int, num_pictures: int) -> None:
    """Write a table of questions about pictures of noise, 32 x 32 pixels, in folders of a hundred."""
    from PIL import Image

    chance = np.random.default_rng(0)
    names = [f"{number // 100:03d}/picture {number}.png" for number in range(num_pictures)]
    for name in names:
        path = raw / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    words = _zipf_words(chance, 20_000)
    asked = chance.choice(words, size=(num_questions, 5), p=_zipf(len(words), 1.0)).tolist()
    answers = chance.choice(words, size=num_questions, p=_zipf(len(words), 1.3)).tolist()
    with (raw / "questions.jsonl").open("w") as file:
        for number, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            row = {"image": names[number % num_pictures], "question": f"what {' '.join(question)}?", "answer": answer}
            file.write(json.dumps(row) + "\n")


def write_vqa(folder: Path, *, scale: float = 1.0, seed: int = 0) -> None:
    """Write questions and annotations of every split, Visual Genome included."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _VqaText(np.random.default_rng(seed))
    first_image = 1
    for split, published in VQA_QUESTIONS.items():
        num_questions = max(1, round(published * scale))
        num_images = max(1, round(VQA_IMAGES[split] * scale))
        images = first_image + np.arange(num_questions) * num_images // num_questions
        first_image += num_images
        ids = images * 1000 + np.arange(num_questions) % 1000
        _write_questions(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", split, images, ids, text)
        if split in ("train2014", "val2014"):
            _write_annotations(folder / f"v2_mscoco_{split}_annotations.json", split, images, ids, text)
    num_questions = max(1, round(VG_QUESTIONS * scale))
    num_images = round(scale * (VQA_IMAGES["train2014"] + VQA_IMAGES["val2014"])) - 1
    images = 1 + np.arange(num_questions) * num_images // num_questions
    ids = 10**9 + np.arange(num_questions)
    _write_questions(folder / "VG_questions.json", "vg", images, ids, text)
    _write_annotations(folder / "VG_annotations.json", "vg", images, ids, text)


def write_clevr(folder: Path, *, scale: float = 1.0, seed: int = 0) -> None:
    """Write the questions files, with answers and programs for train and val."""
    (folder / "questions").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    ends = list(_CLEVR_ENDS)
    for split, published in CLEVR_QUESTIONS.items():
        num_questions = max(1, round(published * scale))
        num_images = max(1, round(CLEVR_IMAGES[split] * scale))
        images = np.arange(num_questions) * num_images // num_questions
        records = (
            _clevr_record(split, int(image), index, ends[end], length, draw)
            for index, (image, end, length, draw) in enumerate(
                zip(
                    images,
                    random.integers(0, len(ends), num_questions).tolist(),
                    random.integers(4, 44, num_questions).tolist(),
                    random.integers(0, 2**31, num_questions).tolist(),
                    strict=True,
                )
            )
        )
        header = f'{{"info": {{"split": "{split}", "version": "1.0"}}, "questions": ['
        _write(folder / "questions" / f"CLEVR_{split}_questions.json", header, records, "]}")


class _VqaText:
    """Draws words and answers, thousands at a time."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._words = _zipf_words(random, 20_000)
        self._word_odds = _zipf(20_000, 1.05)
        common = ["yes", "no", *map(str, range(20)), *_zipf_words(random, 3_000)]
        rare = [f"{first} {second}" for first, second in zip(common * 9, common[7:] * 9, strict=False)]
        self._answers = (common + rare)[:30_000]
        self._answer_odds = _zipf(len(self._answers), 1.1)

    def questions(self, count: int) -> Iterator[str]:
        """Draw questions of 4 to 14 words, as JSON strings."""
        lengths = self._random.integers(2, 12, count)
        words = iter(self._random.choice(self._words, int(lengths.sum()), p=self._word_odds).tolist())
        openings = self._random.integers(0, len(_OPENINGS), count).tolist()
        for opening, length in zip(openings, lengths.tolist(), strict=True):
            yield json.dumps(f"{_OPENINGS[opening]} {' '.join(islice(words, length))}?")

    def answers(self, count: int) -> Iterator[list[str]]:
        """Draw ten answers at a time: mostly the same one, as annotators give them."""
        main = self._random.choice(self._answers, count, p=self._answer_odds).tolist()
        others = iter(self._random.choice(self._answers, count * 10, p=self._answer_odds).tolist())
        agrees = self._random.random((count, 10)) < 0.6
        for answer, places in zip(main, agrees.tolist(), strict=True):
            yield [
                answer,
                *(answer if agree else other for agree, other in zip(places, islice(others, 10), strict=True)),
            ]


def _zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    odds = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return odds / odds.sum()


def _zipf_words(random: np.random.Generator, count: int) -> list[str]:
    lengths = random.integers(2, 10, 2 * count)
    words = ("".join(random.choice(_LETTERS, length)) for length in lengths)
    return list(islice(dict.fromkeys(words), count))


def _vqa_header(split: str, name: str) -> str:
    info = '{"info": {"description": "generated, VQA v2.0 layout", "version": "2.0"}, "data_type": "mscoco", '
    return f'{info}"data_subtype": "{split}", "{name}": ['


def _write_questions(
    path: Path, split: str, images: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], text: _VqaText
) -> None:
    records = (
        f'{{"image_id": {image}, "question": {question}, "question_id": {number}}}'
        for image, number, question in zip(images.tolist(), ids.tolist(), text.questions(len(ids)), strict=True)
    )
    _write(path, _vqa_header(split, "questions"), records, "]}")


def _write_annotations(
    path: Path, split: str, images: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], text: _VqaText
) -> None:
    types = "" if split == "vg" else '"question_type": "what is", "answer_type": "%s", '
    records = (
        "{"
        + (types and types % _ANSWER_TYPES[number % 3])
        + f'"multiple_choice_answer": "{best}", "answers": ['
        + ", ".join(
            f'{{"answer": "{answer}", "answer_confidence": "yes", "answer_id": {place}}}'
            for place, answer in enumerate(given, 1)
        )
        + f'], "image_id": {image}, "question_id": {number}}}'
        for image, number, (best, *given) in zip(images.tolist(), ids.tolist(), text.answers(len(ids)), strict=True)
    )
    _write(path, _vqa_header(split, "annotations"), records, "]}")


def _clevr_record(split: str, image: int, index: int, end: str, length: int, draw: int) -> str:
    words = [_CLEVR_WORDS[(draw >> (place % 20)) % len(_CLEVR_WORDS)] for place in range(length)]
    record: dict[str, object] = {
        "image_index": image,
        "split": split,
        "image_filename": f"CLEVR_{split}_{image:06d}.png",
        "question_index": index,
        "question": " ".join(words).capitalize() + "?",
    }
    if split != "test":
        steps = [*(_CHAIN[place % len(_CHAIN)] for place in range(max(2, length // 3))), end]
        answers = _CLEVR_ENDS[end]
        record |= {
            "question_family_index": draw % 90,
            "program": [
                {
                    "inputs": [place - 1] if place else [],
                    "function": step,
                    "value_inputs": ["red"] * (step[:3] == "fil"),
                }
                for place, step in enumerate(steps)
            ],
            "answer": answers[draw % len(answers)],
        }
    return json.dumps(record)


def _write(path: Path, header: str, records: Iterable[str], footer: str) -> None:
    with path.open("w") as file:
        file.write(header)
        file.writelines(record if number == 0 else f", {record}" for number, record in enumerate(records))
        file.write(footer)


if __name__ == "__main__":
    main()
