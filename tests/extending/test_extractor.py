"""An extractor from outside the package: one class in one file, from pictures to an answer about another picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.preparing import write_clevr
from tests.small_runs import TINY
from trarctl.data.features.base import Extractor
from trarctl.data.prepared import open_prepared
from trarctl.registry import EXTRACTORS

Run = Callable[..., tuple[int, str, str]]


@EXTRACTORS.register("mean-color-of-a-test")
class MeanColor(Extractor):
    name, width = "mean-color-of-a-test", 3

    def extract(self, images):
        colors = [np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=(0, 1)) for image in images]
        return np.repeat(np.stack(colors)[:, None], self.grid_size**2, axis=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Questions in CLEVR's layout about pictures of one color each; also the working directory."""
    write_clevr(tmp_path, num_images=8)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(8):
            color = (30 * number, 50, 200)
            Image.new("RGB", (9, 7), color).save(tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_pictures_to_an_answer(folder: Path, trarctl: Run) -> None:
    options = ("--raw", "raw", "--out", "prepared", "--grid", "2", "--vectors", "none")
    code, stdout, stderr = trarctl(
        "prepare", "clevr", "--images", "images", "--extractor", "mean-color-of-a-test", *options
    )
    assert code == 0, stderr
    assert "2 x 2 cells of 3 numbers, by mean-color-of-a-test" in stdout
    data = open_prepared(folder / "prepared")
    np.testing.assert_array_equal(data.features.read(np.array([3]))[0], [[90, 50, 200]] * 4)

    sets = [part for text in (*TINY, "model.spans=[0,1]") for part in ("--set", text)]
    code, _, stderr = trarctl(
        "train", "clevr", "--data", "prepared", "--name", "toy", "--epochs", "1", "--gpus", "cpu", *sets
    )
    assert code == 0, stderr
    Image.new("L", (30, 20), 77).save("gray.png")
    question = ("--image", "gray.png", "--question", "is val number 1?")
    code, stdout, stderr = trarctl("predict", "--ckpt", "toy", "--data", "prepared", *question)
    assert code == 0, stderr
    assert "is val number 1?" in stdout


def test_the_name_of_an_extractor_that_is_not_there_lists_those_that_are(folder: Path, trarctl: Run) -> None:
    for options in (("--images", "images"), ("--without-features",), ("--check",)):
        code, _, stderr = trarctl("prepare", "clevr", *options, "--extractor", "vgg", "--raw", "raw")
        assert code == 3
        assert "unknown extractor 'vgg'" in stderr
        assert "patches or resnet101 or" in stderr


def test_patches_make_features_of_clevr_and_answer(folder: Path, trarctl: Run) -> None:
    options = ("--raw", "raw", "--out", "prepared", "--grid", "2", "--vectors", "none")
    code, stdout, stderr = trarctl("prepare", "clevr", "--images", "images", "--backbone", "patches", *options)
    assert code == 0, stderr
    assert "2 x 2 cells of 56 numbers, by patches" in stdout
    code, stdout, stderr = trarctl("prepare", "clevr", "--images", "images", "--extractor", "patches", *options)
    assert code == 0, stderr
    assert "clevr was up to date" in stdout
