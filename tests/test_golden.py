"""The original's numbers through the commands, from raw files to answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import GOLDEN

Run = Callable[..., tuple[int, str, str]]
CASES = {path.stem: json.loads(path.read_text()) for path in sorted((GOLDEN / "cases").glob("*.json"))}
VALIDATION = [name for name, case in CASES.items() if case["split"] == "val"]
TEST = [name for name, case in CASES.items() if case["split"] == "test"]


def arguments_of(case: str, golden_data: dict[str, Path]) -> list[object]:
    file = GOLDEN / "cases" / case
    data = golden_data[CASES[case]["dataset"]]
    return ["--ckpt", f"{file}.pkl", "--config", f"{file}.yml", "--data", data, "--gpus", "cpu"]


def check_scores(case: str, saved: Path) -> None:
    with np.load(saved) as ours, np.load(GOLDEN / "cases" / f"{case}.npz") as theirs:
        assert np.array_equal(ours["question_id"], theirs["question_id"])
        assert np.abs(ours["scores"] - theirs["scores"]).max() < 1e-4
        assert np.abs(ours["routes"] - theirs["alphas"]).max() < 1e-4
        assert list(ours["answers"]) == CASES[case]["answers"]
        answers = [str(ours["answers"][index]) for index in ours["scores"].argmax(axis=1)]
    assert answers == CASES[case]["expected"]["answers"]


@pytest.mark.parametrize("case", VALIDATION)
def test_eval(case: str, golden_data: dict[str, Path], tmp_path: Path, trarctl: Run) -> None:
    saved = tmp_path / "scores.npz"
    for evaluator in ("official", "upstream"):
        code, out, _ = trarctl(
            "eval", *arguments_of(case, golden_data), "--save-scores", saved, "--evaluator", evaluator, "--json", "-"
        )
        assert code == 0
        document = json.loads(out)
        expected = CASES[case]["expected"]["accuracy"]
        assert document["evaluator"] == evaluator
        assert document["questions"] == 100
        if CASES[case]["dataset"] == "vqa":
            assert document["overall"] == expected[evaluator]["overall"]
            assert document["per_answer_type"] == expected[evaluator]["per_answer_type"]
        elif evaluator == "official":
            counts = {name: [part["correct"], part["total"]] for name, part in document["per_question_type"].items()}
            counts["overall"] = [document["correct"], document["total"]]
            assert counts == expected["correct_and_total_by_type"]
    check_scores(case, saved)


@pytest.mark.parametrize("case", TEST)
def test_submit(case: str, golden_data: dict[str, Path], tmp_path: Path, trarctl: Run) -> None:
    saved, out = tmp_path / "scores.npz", tmp_path / "answers"
    code, _, _ = trarctl("submit", *arguments_of(case, golden_data), "--save-scores", saved, "--out", out)
    assert code == 0
    check_scores(case, saved)
    if CASES[case]["dataset"] == "vqa":
        answers = [row["answer"] for row in json.loads(out.read_text())]
    else:
        answers = out.read_text().splitlines()
    assert answers == CASES[case]["expected"]["answers"]
