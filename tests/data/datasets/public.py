"""Small copies of public data sets: through every command, and exact match the plain way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.reference_accuracy import _answer, _vary
from tests.small_runs import TINY
from trarctl.data.metrics import GroundTruth

Run = Callable[..., tuple[int, str, str]]
NUM_ADVERSARIAL = 2_000
NUM_STEPS = 2


def write_picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    """Write a small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def through_every_command(
    trarctl: Run,
    folder: Path,
    dataset: str,
    *options: object,
    grid: int,
    eval_split: str,
    submit_split: str,
    train_sets: Sequence[str] = (),
) -> tuple[dict[str, Any], Path]:
    """Prepare a set, train one epoch of two steps or more, evaluate, submit, and check the file.

    Returns:
        What ``eval --json`` writes, and the file of answers.
    """
    data = folder / "prepared"
    code, out, err = trarctl("prepare", dataset, *options, "--vectors", "none", "--check")
    assert (code, "nothing stops the preparation" in out) == (0, True), err
    code, _, err = trarctl("prepare", dataset, *options, "--vectors", "none", "--out", data)
    assert code == 0, err
    settings = (*TINY, f"model.grid_size={grid}", f"run.folder={folder / 'runs'}", *train_sets)
    sets = [part for text in settings for part in ("--set", text)]
    code, _, err = trarctl(
        "train", dataset, "--data", data, "--name", "tiny", "--epochs", 1, "--gpus", "cpu", *sets, "-q"
    )
    assert code == 0, err
    steps = [json.loads(line).get("step", 0) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert max(steps) >= NUM_STEPS
    where = ["--set", f"run.folder={folder / 'runs'}"]
    code, out, err = trarctl("eval", "--ckpt", "tiny", "--split", eval_split, "--json", "-", "-q", *where)
    assert code == 0, err
    measured = json.loads(out)
    file = folder / "answers.out"
    code, _, err = trarctl("submit", "--ckpt", "tiny", "--split", submit_split, "--out", file, "-q", *where)
    assert code == 0, err
    code, out, err = trarctl("submit", "--validate", file, "--data", data, "--split", submit_split)
    assert code == 0, (out, err)
    return measured, file


def adversarial_pairs(*, seed: int, extra: Sequence[str] = (), num_pairs: int = NUM_ADVERSARIAL) -> list[list[str]]:
    """Draw true answers and predictions that differ in case, blanks, marks, articles, numbers and contractions."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    pairs = []
    for _ in range(num_pairs):
        true = draw.choice(extra) if extra and draw.random() < 0.2 else _answer(draw)
        other = draw.choice(extra) if extra and draw.random() < 0.3 else _answer(draw)
        pairs.append([true, _vary(draw, draw.choice([true, true, other]))])
    return pairs


def plain_exact_match(
    pairs: Sequence[Sequence[str]], types: Sequence[str], clean: Callable[[str], str]
) -> dict[str, tuple[int, int]]:
    """Count right answers and all, overall and by type, one question after the other."""
    counts: dict[str, tuple[int, int]] = {}
    for (true, prediction), kind in zip(pairs, types, strict=True):
        right = clean(true) == clean(prediction)
        for name in ("overall", kind):
            so_far = counts.get(name, (0, 0))
            counts[name] = (so_far[0] + right, so_far[1] + 1)
    return counts


def truth_of(answers: Sequence[str], types: Sequence[str]) -> GroundTruth:
    """Write one true answer a question as arrays."""
    strings, names = list(dict.fromkeys(answers)), list(dict.fromkeys(types))
    place = {text: number for number, text in enumerate(strings)}
    codes = np.full((len(answers), 10), -1)
    codes[:, 0] = [place[answer] for answer in answers]
    type_of = np.array([names.index(name) for name in types])
    return GroundTruth(strings, codes, type_of, names, type_of, names)
