"""Features out of images: shared, resumed, and every bad image named; the extractor is a stand-in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.preparing import write_clevr
from trarctl.data.features.extract import Share, share_of_environment
from trarctl.data.features.extract_stage import ExtractorOptions
from trarctl.data.prepare import PrepareRequest, prepare, prepare_share
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError


class MeanColor:
    """Gives every cell of a 2 x 2 grid the mean color of the image."""

    name, grid_size, width = "resnet101", 2, 3

    def __init__(self) -> None:
        self.num_images = 0

    def describe(self) -> dict[str, Any]:
        return {}

    def extract(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.num_images += len(images)
        colors = np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])
        return np.repeat(colors[:, None], 4, axis=1)


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> MeanColor:
    """The stand-in, which counts the images that it gets."""
    stand_in = MeanColor()
    monkeypatch.setattr(ExtractorOptions, "make", lambda _: stand_in)
    return stand_in


@pytest.fixture
def request_with_images(tmp_path: Path) -> PrepareRequest:
    """A small CLEVR set with images instead of features."""
    raw = write_clevr(tmp_path)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(3):
            color = (10 * number, 50, len(split))
            Image.new("RGB", (8, 6), color).save(tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png")
    return PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none", images=tmp_path / "images")


def test_features_of_images(request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path) -> None:
    prepare(request_with_images)
    data = open_prepared(tmp_path / "out")
    split = data.split("val")
    features = data.features.read(split.image)
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features[:, 3], [[10 * image, 50, 3] for image in split.image_id])
    assert extractor.num_images == 9


def test_what_is_done_is_not_done_again(
    request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path
) -> None:
    prepare(request_with_images)
    assert prepare(request_with_images).was_current
    assert extractor.num_images == 9
    files = sorted((tmp_path / "out/extracted").rglob("*.npy"))
    files[0].unlink()
    os.truncate(files[1], 100)
    os.utime(tmp_path / "images/val/CLEVR_val_000002.png", (2**32, 2**32))
    prepare(request_with_images)
    assert extractor.num_images == 12


def test_bad_images_are_named_and_the_others_kept(
    request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path
) -> None:
    good = (tmp_path / "images/train/CLEVR_train_000001.png").read_bytes()
    (tmp_path / "images/train/CLEVR_train_000001.png").write_bytes(good[:40])
    (tmp_path / "images/val/CLEVR_val_000000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 image files are unusable: .*train_000001.png .*val_000000.png"):
        prepare(request_with_images)
    for split, number in (("train", 1), ("val", 0)):
        (tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png").write_bytes(good)
    prepare(request_with_images)
    assert extractor.num_images == 9 + 2


def test_processes_share_the_images(
    request_with_images: PrepareRequest, extractor: MeanColor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    prepare_share(request_with_images)
    assert extractor.num_images == 3
    monkeypatch.setenv("RANK", "0")
    prepare(request_with_images)
    assert extractor.num_images == 9


def test_a_missing_image(request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path) -> None:
    (tmp_path / "images/train/CLEVR_train_000002.png").unlink()
    with pytest.raises(DataError, match=r"no images for image 2 \(.*images/train\)"):
        prepare(request_with_images)
    assert extractor.num_images == 0


def test_contradictions(request_with_images: PrepareRequest, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(SettingsError, match="unknown extractor 'vgg'"):
        prepare(replace(request_with_images, extractor="vgg"))
    with pytest.raises(SettingsError, match="takes no --features"):
        prepare(replace(request_with_images, features=tmp_path))
    with pytest.raises(DataError, match="no folder of images"):
        prepare(replace(request_with_images, images=tmp_path / "missing"))
    with pytest.raises(SettingsError, match="only making features can be shared"):
        prepare_share(replace(request_with_images, images=None))


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_share_that_cannot_be(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(DataError, match="do not fit together"):
        share_of_environment()


def test_no_torchrun_is_a_share_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert share_of_environment() == Share(0, 1)
