from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.preparing import GOLDEN, edit_json, prepare_golden
from trarctl.data.metrics import commonest_answer, question_prior
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared


def test_guesses_equal_a_plain_count(golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["clevr"])
    train, val = data.split("train"), data.split("val")
    truth, asked = train.truth(), val.truth()
    answers = [truth.strings[code] for code in truth.codes[:, 0]]
    commonest, times = Counter(answers).most_common(1)[0]
    guess = commonest_answer(data, val)
    assert len(guess) == len(val)
    assert Counter(answers)[guess[0]] == times
    types = [truth.question_types[code] for code in truth.question_type]
    by_words: dict[object, Counter[str]] = defaultdict(Counter)
    by_type: dict[object, Counter[str]] = defaultdict(Counter)
    for row, answer in enumerate(answers):
        by_words[train.question_tokens[row].tobytes()][answer] += 1
        by_type[types[row]][answer] += 1
    prior, rule = question_prior(data, val)
    numbers: Counter[str] = Counter()
    for row, answer in enumerate(prior):
        known = by_words.get(val.question_tokens[row].tobytes())
        numbers["words" if known else "type"] += 1
        known = known or by_type[asked.question_types[asked.question_type[row]]]
        assert known[answer] == max(known.values())
    assert numbers["type"] > 50
    shares = [("same words", numbers["words"]), ("same question type", numbers["type"])]
    assert rule == ", ".join(f"{name} {number} %" for name, number in shares if number)
    assert commonest in data.answers
    assert sum(map(str.__eq__, question_prior(data, train)[0], answers)) >= times


def test_what_the_question_s_beginning_tells(tmp_path: Path) -> None:
    """Types that are drawn from the answers are no help: the first words are, then nothing but the commonest."""
    raw = tmp_path / "raw"
    rows = {
        "train": [["what color is it?", "red", 0]] * 3
        + [["is it a circle?", "no", 1]] * 2
        + [["why so?", "circle", 0]],
        "test": [
            ["what color?", "blue", 0],
            ["is it round?", "yes", 0],
            ["name it!", "red", 1],
            ["why so", "circle", 1],
        ],
    }
    for split, records in rows.items():
        (raw / split / "images").mkdir(parents=True)
        (raw / split / "questions.json").write_text(json.dumps(records))
        for number in range(2):
            Image.new("RGB", (64, 64), (number * 50, 0, 0)).save(raw / split / "images" / f"{number}.png")
    prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))
    data = open_prepared(tmp_path / "out")
    assert question_prior(data, data.split("val")) == (
        ["red", "no", "red", "circle"],
        "same words 25 %, same first words 50 %, commonest answer 25 %",
    )


@pytest.mark.parametrize(("min_count", "known"), [(0, {"p", "q", "r"}), (2, {"p", "q"}), (3, {"p"})])
def test_the_ceiling_of_an_answer_list(tmp_path: Path, min_count: int, known: set[str]) -> None:
    raw = Path(shutil.copytree(GOLDEN / "mini_vqa/raw", tmp_path / "raw"))
    val = ["p"] * 10, ["q"] * 10, ["r"] * 10, ["p"] * 2 + ["r"] * 8, ["q", "x", "y", "z"] + ["r"] * 6
    for split, groups in (("train", [["p"] * 10] * 140), ("val", [*val, *[["p"] * 10] * 95])):

        def change(content: Any, groups: list[list[str]] = groups) -> None:
            for record, group in zip(content["annotations"], groups, strict=True):
                record["answers"] = [{"answer": answer} for answer in group]
                record["multiple_choice_answer"] = group[0]

        edit_json(raw / f"v2_mscoco_{split}2014_annotations.json", change)
    edit_json(raw / "v2_mscoco_val2014_annotations.json", lambda content: _name(content["annotations"]))
    for name in ("VG_questions.json", "VG_annotations.json"):
        (raw / name).unlink()
    report = prepare_golden("vqa", tmp_path / "out", raw=raw, min_answer_count=min_count)
    assert set(open_prepared(tmp_path / "out").answers) == known
    # Of each question, what the best answer that is known scores: 10 or 8 of ten is all, two of ten are 2/3 or 1/3.
    two, one = (8 * 2 / 3 + 2 * 1 / 3) / 10, 9 * (1 / 3) / 10
    best = {
        0: [1, 1, 1, 1, 1],
        2: [1, 1, 0, two, one],
        3: [1, 0, 0, two, 0],
    }[min_count]
    assert report.manifest.text.ceilings == {"val": round(100 * (sum(best) + 95) / 100, 2)}


def _name(annotations: list[dict[str, Any]]) -> None:
    for row, answer in ((1, "q"), (2, "r"), (4, "q"), (5, "q")):
        annotations[row]["multiple_choice_answer"] = answer
