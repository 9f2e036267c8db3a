"""From a folder of pictures and a table to a report, through feature files that ``trarctl extract`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.small_runs import TINY

Run = Callable[..., tuple[int, str, str]]
COLORS = ("red", "lime", "blue")
QUESTION = "what color?"


def from_pictures_to_a_report(folder: Path, trarctl: Run, extractor: str, weights: tuple[str, ...] = ()) -> str:
    """Extract, prepare, train, predict and report in the working directory ``folder``: all that was said."""
    rows = []
    for number in range(36):
        (folder / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (40 + number, 30), COLORS[number % 3]).save(folder / "photos" / f"{number}.png")
        split = ("train", "train", "val", "test")[number // 3 % 4]
        rows.append({"image": f"{number}.png", "question": QUESTION, "answer": COLORS[number % 3], "split": split})
    (folder / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = ""
    sets = [part for text in (*TINY, "model.spans=[0,1]") for part in ("--set", text)]
    run, data, asked = ("--ckpt", "toy"), ("--data", "prepared"), ("--image", "photos/1.png", "--question", QUESTION)
    table = ("prepare", "table", "--name", "own", "--questions", "table.jsonl", "--vectors", "none")
    for arguments in (
        ("extract", "photos", "--extractor", extractor, "--grid", "4", "--out", "feats", "--gpus", "cpu", *weights),
        (*table, "--images", "photos", "--features", "feats", "--grid", "4", "--out", "prepared"),
        ("train", "own", *data, "--name", "toy", "--epochs", "1", "--gpus", "cpu", *sets),
        ("predict", *run, *data, *asked, "--save", "attention.png", *weights),
        ("eval", *run, *data, "--gpus", "cpu", "--report", "report"),
    ):
        code, stdout, stderr = trarctl(*arguments)
        assert code == 0, (arguments, stderr)
        said += stdout + stderr
    assert f"4 x 4 cells of {_width(folder)} numbers, by {extractor}" in said
    assert (folder / "attention.png").stat().st_size > 1000
    assert 'class="photo"' in (folder / "report" / "index.html").read_text()
    return said


def _width(folder: Path) -> int:
    import numpy as np

    return int(np.load(folder / "feats" / "1.png.npy").shape[1])
