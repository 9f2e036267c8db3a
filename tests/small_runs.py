"""A tiny data set with pictures and a run on it, made by the program itself in a few seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trarctl import cli

HOSTILE = '<img src=x onerror="alert(1)"> what shape is it?'
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}
TINY = (
    "model.num_layers=2",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.feed_forward_size=32",
    "model.word_embedding_size=8",
    "model.flat_mlp_size=8",
    "model.flat_out_size=16",
    "train.batch_size=16",
    "train.warmup_epochs=0",
    "run.log_every=2",
    "run.keep=0",
    "data.num_workers=0",
)


@dataclass(frozen=True)
class SmallRun:
    """Where everything is."""

    raw: Path
    prepared: Path
    runs: Path
    name: str

    @property
    def folder_option(self) -> list[str]:
        return ["--set", f"run.folder={self.runs}"]

    @property
    def picture(self) -> Path:
        return self.raw / "test" / "images" / "0.png"


def draw(shape: str, color: str, offset: int) -> Image.Image:
    """A picture in the manner of easy-VQA: one shape of one color."""
    image = Image.new("RGB", (64, 64), (235, 235, 245))
    box = (8 + offset, 8 + offset, 36 + offset, 36 + offset)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[color])
    else:
        pen.rectangle(box, fill=COLOURS[color])
    return image


def make_raw(raw: Path, *, num_train: int = 24, num_test: int = 12) -> None:
    """Write pictures and questions as the package easy-vqa keeps them."""
    random = np.random.default_rng(0)
    for split, number in (("train", num_train), ("test", num_test)):
        folder = raw / split / "images"
        folder.mkdir(parents=True)
        questions: list[tuple[str, str, int]] = []
        for index in range(number):
            shape = ("circle", "rectangle")[int(random.integers(2))]
            color = tuple(COLOURS)[int(random.integers(3))]
            draw(shape, color, int(random.integers(18))).save(folder / f"{index}.png")
            questions += [
                (HOSTILE if index % 2 else "what shape is it?", shape, index),
                ("what color is the shape?", color, index),
                (f"is there a {color} shape?", "yes", index),
                ("is there a circle?", "yes" if shape == "circle" else "no", index),
            ]
        (raw / split / "questions.json").write_text(json.dumps(questions))


def make_run(folder: Path, *settings: str, name: str = "tiny", epochs: int = 2) -> SmallRun:
    """Prepare the data and train on it."""
    run = SmallRun(folder / "raw", folder / "prepared", folder / "runs", name)
    if not run.raw.exists():
        make_raw(run.raw)
        assert cli.run(["prepare", "easy-vqa", "--raw", str(run.raw), "--out", str(run.prepared)]) == 0
    sets = [part for text in (*TINY, f"run.folder={run.runs}", *settings) for part in ("--set", text)]
    arguments = ["train", "easy-vqa", "--data", str(run.prepared), "--name", name, "--epochs", str(epochs)]
    assert cli.run([*arguments, "--gpus", "cpu", *sets]) == 0
    return run
