"""An extractor by the photo rule from pictures to drawings: each shows what the model looked at where it is."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.preparing import write_clevr
from tests.report.bright import BrightPhoto, lightest, picture, save_on_its_side
from tests.small_runs import TINY
from trarctl.data.features.reading import read_image
from trarctl.engine import predictor
from trarctl.engine.predictor import Insight
from trarctl.registry import EXTRACTORS
from trarctl.report import gallery

Run = Callable[..., tuple[int, str, str]]
WIDTH, HEIGHT = 240, 320  # upright; 8 x 8 cells, of which 5 x 7 lie at least in part on the picture
PLACE = 0.3, 0.8
TRAIN = [part for text in (*TINY, "model.spans=[0,1]", "train.epochs=1") for part in ("--set", text)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on pictures that are stored on their sides; the model looks at what is bright."""
    monkeypatch.setitem(EXTRACTORS._items, BrightPhoto.name, BrightPhoto)
    write_clevr(tmp_path, num_images=8)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(8):
            image = picture(WIDTH, HEIGHT, *PLACE if split == "val" else (0.5, 0.2 + 0.07 * number))
            save_on_its_side(image, tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png")
    inspect = predictor.inspect

    def looking_at_the_bright(loaded: Any, tokens: Any, features: Any) -> Insight:
        insight = inspect(loaded, tokens, features)
        shares = features[..., 0].numpy()
        layers = np.repeat(shares[:, None], insight.layer_attention.shape[1], axis=1)
        return Insight(insight.probabilities, insight.routes, shares, layers)

    for module in (predictor, gallery):
        monkeypatch.setattr(module, "inspect", looking_at_the_bright)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def near(found: tuple[float, float]) -> bool:
    """Whether a place is within a cell, 128 of 600 and of 800 pixels, of the bright one."""
    return abs(found[0] - PLACE[0]) <= 0.75 * 128 / 600 and abs(found[1] - PLACE[1]) <= 0.75 * 128 / 800


def in_json(grid_size: int, asked: dict[str, Any]) -> tuple[float, float]:
    """Find the middle of the most looked-at cell by what the JSON says alone."""
    grid = np.reshape(asked["answer_attention"], (grid_size, grid_size))
    grid = grid.T if asked["grid_on_image"]["is_transposed"] else grid
    row, column = np.unravel_index(grid.argmax(), grid.shape)
    left, top, right, bottom = asked["grid_on_image"]["box"]
    across = left + (column + 0.5) / grid_size * (right - left)
    down = top + (row + 0.5) / grid_size * (bottom - top)
    return across / asked["image_size"][0], down / asked["image_size"][1]


def test_all_drawings_show_the_bright_place(folder: Path, trarctl: Run) -> None:
    options = ("--raw", "raw", "--grid", "8", "--vectors", "none")
    made = ("--images", "images", "--extractor", BrightPhoto.name, "--out", "made")
    code, _, stderr = trarctl("prepare", "clevr", *options, *made)
    assert code == 0, stderr
    # The same features, which say nothing of what made them.
    (features,) = (folder / "made/extracted").iterdir()
    for split in ("train", "val", "test"):
        shutil.copytree(features / split, folder / "feats" / split)
    code, _, stderr = trarctl("prepare", "clevr", *options, "--features", "feats", "--out", "given")
    assert code == 0, stderr
    code, _, stderr = trarctl("train", "clevr", "--data", "given", "--name", "toy", "--gpus", "cpu", *TRAIN)
    assert code == 0, stderr

    image = folder / "images/val/CLEVR_val_000001.png"
    ask = ("predict", "--ckpt", "toy", "--question", "is val number 1?", "--json", "-", "--image", str(image))
    stated = ("--extractor", BrightPhoto.name)
    feature_file = ("--features", "feats/val/1.npy")
    answers = []
    for more, said in (
        (("--data", "made"), ""),
        ((*stated, "--images", "images"), "bright-photo gives the stored features of images/train/CLEVR_train_0000"),
        (stated, "that bright-photo made the features of given could not be checked: no folder of the data's pic"),
        ((*stated, *feature_file), ""),
        (("--data", "made", *feature_file), ""),
    ):
        code, stdout, stderr = trarctl(*ask, *more, "--save", "drawn.png")
        assert code == 0, stderr
        assert said in stderr.replace(f"{folder}/", "")
        document = json.loads(stdout)
        (asked,) = document["predictions"]
        assert (document["extractor"], asked["image_size"]) == (BrightPhoto.name, [WIDTH, HEIGHT])
        assert near(in_json(8, asked))
        answers.append(asked["answers"][0]["probability"])
        drawn = np.asarray(read_image(folder / "drawn.png"))
        assert (drawn.shape[0] > 400) == (drawn.shape[1] > 900)
    assert answers == pytest.approx(answers[:1] * len(answers), abs=1e-4)

    code, stdout, stderr = trarctl(*ask, *feature_file, "--save", "drawn.png")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert (document["extractor"], document["predictions"][0]["grid_on_image"]) == (None, None)
    unknown = "what made the features of given is unknown: attention is drawn as if the grid covered the picture"
    assert f"note:  {unknown} (--extractor NAME)\n" in stderr.replace(f"{folder}/", "")

    report = ("eval", "--ckpt", "toy", "--gpus", "cpu", "--images", "images", "--report", "report")
    for more, is_known in ((stated, True), (("--data", "made"), True), ((), False)):
        code, _, stderr = trarctl(*report, *more)
        assert code == 0, stderr
        page = (folder / "report/index.html").read_text(encoding="utf-8")
        shown = re.findall(r'class="overlay" src="data:image/png;base64,(.*?)"', page)
        shades = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in shown]
        assert len(shades) == 16
        assert [near(lightest(shade)) for shade in shades] == [is_known] * 16
        assert (unknown in stderr.replace(f"{folder}/", "")) is not is_known


def test_what_is_stated_has_to_fit_the_data_before_the_work(folder: Path, trarctl: Run) -> None:
    made = ("--images", "images", "--extractor", BrightPhoto.name, "--out", "made")
    assert trarctl("prepare", "clevr", "--raw", "raw", "--grid", "8", "--vectors", "none", *made)[0] == 0
    assert trarctl("train", "clevr", "--data", "made", "--name", "toy", "--gpus", "cpu", *TRAIN)[0] == 0
    for command in (
        ("eval", "--report", "report", "--images", "images"),
        ("predict", "--image", "images/val/CLEVR_val_000001.png", "--question", "is it?"),
    ):
        code, stdout, stderr = trarctl(*command, "--ckpt", "toy", "--extractor", "patches")
        assert (code, stdout) == (3, "")
        assert "were made by bright-photo, not by patches\nhint:  leave out --extractor\n" in stderr
