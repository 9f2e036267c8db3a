"""Features out of images: shared, resumed, and every bad image named; and found again for predict."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.preparing import edit_json, write_clevr
from trarctl.data.features import extract
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.features.extract import share_of_environment
from trarctl.data.features.origin import Stated, extractor_of
from trarctl.data.features.patches import Patches
from trarctl.data.prepare import PrepareRequest, check, prepare, prepare_share
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.errors import DataError, DeviceError, SettingsError
from trarctl.registry import EXTRACTORS


class MeanColor(Extractor):
    """Gives every cell the mean color of the image."""

    name, width = "mean-color", 3
    num_images = 0

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self._weights = options.weights.name if options.weights else "none"

    def identity(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def extract(self, images: Sequence[Image.Image]) -> np.ndarray:
        MeanColor.num_images += len(images)
        colors = np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])
        return np.repeat(colors[:, None], self.grid_size**2, axis=1)


@pytest.fixture(params=["mean-color"])
def extractor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[MeanColor]:
    """The stand-in, which counts the images that it gets."""
    monkeypatch.setattr(MeanColor, "num_images", 0)
    monkeypatch.setattr(MeanColor, "name", request.param)
    monkeypatch.setitem(EXTRACTORS._items, request.param, MeanColor)
    return MeanColor


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
    values: dict[str, Any] = {"images": tmp_path / "images", "extractor": "mean-color"}
    return PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none", **values)


def test_features_of_images(request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path) -> None:
    prepare(request_with_images)
    data = open_prepared(tmp_path / "out")
    split = data.split("val")
    features = data.features.read(split.image)
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features[:, 3], [[10 * image, 50, 3] for image in split.image_id])
    assert extractor.num_images == 9


def test_what_is_done_is_not_done_again(
    request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path
) -> None:
    prepare(request_with_images)
    assert prepare(request_with_images).was_current
    assert extractor.num_images == 9
    files = sorted((tmp_path / "out/extracted").rglob("*.npy"))
    files[0].unlink()
    os.truncate(files[1], 100)
    os.utime(tmp_path / "images/val/CLEVR_val_000002.png", (2**32, 2**32))
    prepare(request_with_images)
    # Groups that lack anything, test and val, are made whole.
    assert extractor.num_images == 9 + 6


def test_bad_images_are_named_and_the_others_kept(
    request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path
) -> None:
    good = (tmp_path / "images/train/CLEVR_train_000001.png").read_bytes()
    (tmp_path / "images/train/CLEVR_train_000001.png").write_bytes(good[:40])
    (tmp_path / "images/val/CLEVR_val_000000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 image files are unusable: .*train_000001.png .*val_000000.png"):
        prepare(request_with_images)
    for split, number in (("train", 1), ("val", 0)):
        (tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png").write_bytes(good)
    prepare(request_with_images)
    assert extractor.num_images == 7 + 6


def test_processes_share_the_images(
    request_with_images: PrepareRequest, extractor: type[MeanColor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _join(monkeypatch, "1", "2")
    prepare_share(request_with_images)
    assert extractor.num_images == 3
    monkeypatch.setenv("RANK", "0")
    prepare(request_with_images)
    assert extractor.num_images == 9


def test_processes_that_write_nothing_are_not_waited_for_for_ever(
    request_with_images: PrepareRequest, extractor: type[MeanColor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _join(monkeypatch, "0", "2")
    monkeypatch.setattr(extract, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(extract, "_LONGEST_SILENCE_SECONDS", 0.1)
    with pytest.raises(DataError, match="other processes wrote nothing to .*extracted"):
        prepare(request_with_images)
    assert extractor.num_images == 6
    monkeypatch.setenv("RANK", "1")
    prepare_share(request_with_images)
    monkeypatch.setenv("RANK", "0")
    prepare(request_with_images)
    assert extractor.num_images == 9


@pytest.mark.parametrize("content", [b"", b"x", None])
def test_a_damaged_picture_is_found_by_check_too(
    request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "images/train/CLEVR_train_000001.png"
    path.write_bytes(path.read_bytes()[:-30] if content is None else content)
    found = check(request_with_images)
    assert ["1 image file is unusable" in one.what for one in found.faults] == [True]
    assert extractor.num_images == 0
    with pytest.raises(DataError) as error:
        prepare(request_with_images)
    assert error.value.what == found.faults[0].what


def test_a_missing_image(request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path) -> None:
    (tmp_path / "images/train/CLEVR_train_000002.png").unlink()
    with pytest.raises(DataError, match=r"no images for image 2 \(.*images/train\)"):
        prepare(request_with_images)
    assert extractor.num_images == 0


def test_contradictions(request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown extractor 'vgg'"):
        prepare(replace(request_with_images, extractor="vgg"))
    with pytest.raises(SettingsError, match="--features and --images exclude each other"):
        prepare(replace(request_with_images, features=tmp_path))
    with pytest.raises(DataError, match="no folder of images"):
        prepare(replace(request_with_images, images=tmp_path / "missing"))
    with pytest.raises(SettingsError, match="only making features can be shared"):
        prepare_share(replace(request_with_images, images=None, extractor=None))


def _join(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    """Set what torchrun tells one of several processes."""
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    for name, value in (told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_a_share_that_cannot_be(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _join(monkeypatch, rank, size)
    with pytest.raises(DeviceError, match="RANK|WORLD_SIZE"):
        share_of_environment()


def test_no_torchrun_is_a_share_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert share_of_environment() == (0, 1)


@pytest.mark.parametrize("pack", [None, "float16"])
def test_features_made_of_images_name_their_extractor(
    pack: Any, request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path
) -> None:
    prepare(replace(request_with_images, pack=pack))
    data = open_prepared(tmp_path / "out")
    assert data.manifest.images.backbone == "mean-color"
    _describes_alike(data, tmp_path)
    with pytest.raises(DataError, match=r"were made by mean-color with weights other than .*weights\.pth") as raised:
        extractor_of(data.card, Stated(weights=tmp_path / "weights.pth"))
    assert raised.value.hint == "--weights FILE: the file that they were made with"


@pytest.mark.parametrize("extractor", ["resnet101"], indirect=True)
def test_version_0_1_left_the_folder_of_features_alone_to_tell(
    request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path
) -> None:
    prepare(replace(request_with_images, extractor="resnet101"))
    (tmp_path / "out/backbone.json").unlink()

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["digest"]
        manifest["images"]["backbone"] = None
        del manifest["files"]["backbone.json"]

    edit_json(tmp_path / "out/manifest.json", forget)
    data = open_prepared(tmp_path / "out")
    _describes_alike(data, tmp_path)
    with pytest.raises(DataError, match=r"were made by resnet101 with weights other than .*weights\.pth") as raised:
        extractor_of(data.card, Stated(weights=tmp_path / "weights.pth"))
    assert raised.value.hint == "--weights FILE: the file that they were made with"


def _describes_alike(data: PreparedData, folder: Path) -> None:
    described = extractor_of(data.card)[0].extract([Image.open(folder / "images/train/CLEVR_train_000000.png")])
    assert np.allclose(described[0], data.features.read(np.array([0]))[0], rtol=1e-3)


@pytest.mark.parametrize("extractor", ["resnet101"], indirect=True)
def test_what_lies_about_is_not_taken_for_it(
    request_with_images: PrepareRequest, extractor: type[MeanColor], tmp_path: Path
) -> None:
    """Features of another making, beside a folder of extracted ones that are no longer in use."""
    prepare(replace(request_with_images, extractor="resnet101"))
    (folder,) = (tmp_path / "out" / "extracted").iterdir()
    shutil.copytree(folder, tmp_path / "others")
    for file in (tmp_path / "others").rglob("*.npy"):
        np.save(file, np.load(file) + 1)
    prepare(replace(request_with_images, images=None, features=tmp_path / "others", extractor=None))
    with pytest.raises(DataError, match="came from files made elsewhere"):
        extractor_of(open_prepared(tmp_path / "out").card)


def test_patches_are_fitted_once_to_the_training_images(
    request_with_images: PrepareRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = replace(request_with_images, extractor="patches")
    prepare(request)
    data = open_prepared(tmp_path / "out")
    assert (data.manifest.images.backbone, data.features.dtype, data.features.width) == ("patches", np.float32, 56)
    train = data.features.read(np.arange(3)).reshape(-1, 56)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-4)
    _describes_alike(data, tmp_path)
    monkeypatch.setattr(Patches, "fit", None)
    _join(monkeypatch, "1", "2")
    prepare_share(request)


def test_an_extractor_that_gives_another_shape_is_named(
    request_with_images: PrepareRequest, extractor: type[MeanColor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeanColor, "width", 5)
    with pytest.raises(DataError, match=r"mean-color gave features of shape \[3, 4, 3\], expected \[3, 4, 5\]"):
        prepare(request_with_images)


def test_other_rules_of_reading_make_features_again(
    request_with_images: PrepareRequest,
    extractor: type[MeanColor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(request_with_images)
    before = extractor.num_images
    monkeypatch.setattr(extract, "READING_VERSION", 99)
    assert not prepare(request_with_images).was_current
    assert extractor.num_images == 2 * before
