"""From a folder of pictures and a table to a report, through feature files that ``trarctl extract`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.features.plain_networks import made_up, plain_features
from tests.report.bright import save_on_its_side
from tests.small_runs import TINY

Run = Callable[..., tuple[int, str, str]]
COLORS = ("red", "lime", "blue")
QUESTION = "what color?"
SIZES = ((300, 6), (6, 300), (40, 30))  # of pictures; the first two make tiny maps by the photo rule


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
    return int(np.load(folder / "feats" / "1.png.npy").shape[1])


def from_a_network_to_an_answer(folder: Path, trarctl: Run, name: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Extract by a network with made-up weights, prepare, train two steps and ask: features are what they should be.

    ``sizes`` are those that the photo rule resizes pictures of ``SIZES`` to, as many as are taken. The last picture is
    stored on its side.
    """
    grid = 2 if name == "resnet101" else 8
    tensors = made_up(name)
    torch.save(tensors, folder / "weights.pth")
    random, expected = np.random.default_rng(4), dict[str, np.ndarray]()
    (folder / "photos").mkdir()
    for number, size in enumerate(SIZES[: len(sizes)]):
        image = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        expected[f"{number}.png"] = plain_features(name, tensors, image, grid, sizes[number])
        path = folder / "photos" / f"{number}.png"
        save_on_its_side(image, path) if number == len(sizes) - 1 else image.save(path)
    splits = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    names = list(expected) * len(splits)
    rows = [f"{names[row]},what is {row}?,{row % 2},{split}" for row, split in enumerate(splits)]
    (folder / "q.csv").write_text("\n".join(["image,question,answer,split", *rows]))
    sets = [part for text in (*TINY, "model.spans=[0,1]", "train.batch_size=4") for part in ("--set", text)]
    by, data = ("--extractor", name, "--grid", str(grid), "--gpus", "cpu"), ("--data", "prepared")
    table = ("prepare", "table", "--name", "own", "--questions", "q.csv", "--vectors", "none", "--out", "prepared")
    ask, weights = ("predict", "--ckpt", "toy", *data, "--question", "what is 1?"), ("--weights", "weights.pth")
    answers = []
    for arguments in (
        ("extract", "photos", *by, *weights, "--out", "feats"),
        (*table, "--features", "feats", "--grid", str(grid)),
        ("train", "own", *data, "--name", "toy", "--epochs", "1", "--gpus", "cpu", *sets),
        (*ask, "--image", "photos/0.png", *weights, "--json", "-"),
        (*ask, "--features", "feats/0.png.npy", "--json", "-"),
    ):
        code, stdout, stderr = trarctl(*arguments)
        assert code == 0, (arguments, stderr)
        if arguments[0] == "predict":
            found = json.loads(stdout)
            assert found["extractor"] == name
            answers.append({one["answer"]: one["probability"] for one in found["predictions"][0]["answers"]})
    for one, cells in expected.items():
        stored = np.load(folder / "feats" / f"{one}.npy").astype(np.float32)
        assert (np.abs(stored - cells) <= 1e-4 * cells.std() + 2**-11 * np.abs(cells)).all(), one
    assert answers[0] == pytest.approx(answers[1], abs=2e-3)
    (folder / "weights.pth").unlink()  # up to half a GB
    torch.save({"any": torch.zeros(1)}, folder / "others.pth")
    code, _, stderr = trarctl(*ask, "--image", "photos/0.png", "--weights", "others.pth")
    assert (code, f"made by {name} with weights other than others.pth" in stderr) == (4, True), stderr
