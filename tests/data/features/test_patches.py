"""The hand-made descriptor: what its numbers mean, and that it can be stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trarctl.data.features.base import ExtractorOptions, read_extractor
from trarctl.data.features.patches import Patches, PatchSettings, describe_patches
from trarctl.errors import DataError

SETTINGS, OPTIONS = PatchSettings(), ExtractorOptions(4)


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array.astype(np.uint8))


def _random(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [_picture(random.integers(0, 256, (64, 64, 3))) for _ in range(count)]


def test_mean_and_deviation_of_each_patch() -> None:
    picture = _random(1)[0]
    described = describe_patches([picture], SETTINGS)
    pixels = np.asarray(picture) / 255
    # Cell 6 is row 1, column 2 of the grid; its third patch is the lower left one.
    patch = pixels[24:32, 32:40]
    third = described[0, 6].reshape(4, 14)[2]
    np.testing.assert_allclose(third[:3], patch.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(third[3:6], patch.std(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize(("direction", "filled"), [("down", 4), ("right", 0), ("diagonal", 2)])
def test_edges_are_told_apart_by_direction(direction: str, filled: int) -> None:
    down, right = np.mgrid[:64, :64]
    ramp = {"down": down * 3, "right": right * 3, "diagonal": down + right}[direction]
    described = describe_patches([_picture(np.stack([ramp] * 3, axis=-1))], SETTINGS)
    histogram = described.reshape(-1, 14)[:, 6:]
    assert (histogram.argmax(axis=1) == filled).all()
    np.testing.assert_allclose(histogram.sum(axis=1), histogram[:, filled])


def test_the_size_of_the_picture_does_not_matter() -> None:
    flat = np.full((30, 50, 3), 100)
    np.testing.assert_array_equal(
        describe_patches([_picture(flat)], SETTINGS),
        describe_patches([_picture(np.full((64, 64, 3), 100))], SETTINGS),
    )


def test_other_shapes_of_the_descriptor() -> None:
    settings = PatchSettings(grid_size=3, patches_per_side=1, patch_pixels=5, num_directions=4)
    assert describe_patches(_random(2), settings).shape == (2, 9, 10)


def _fitted(images: list[Image.Image]) -> Patches:
    patches = Patches(OPTIONS)
    patches.fit([images[:4], images[4:]] if len(images) > 4 else [images])
    return patches


def test_standardized_over_the_images_it_was_fitted_to() -> None:
    images = _random(9)
    patches = _fitted(images)
    cells = patches.extract(images).reshape(-1, patches.width)
    np.testing.assert_allclose(cells.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(cells.std(axis=0), 1, atol=1e-4)


def test_a_feature_that_never_changes_stays_finite() -> None:
    flat = [_picture(np.full((64, 64, 3), 100))] * 2
    assert np.isfinite(_fitted(flat).extract(_random(1))).all()


def test_fitting_to_nothing() -> None:
    with pytest.raises(DataError, match="no images to fit"):
        Patches(OPTIONS).fit([])


def test_stored_and_loaded(tmp_path: Path) -> None:
    images = _random(3)
    patches = _fitted(images)
    (tmp_path / "backbone.json").write_text(json.dumps(patches.describe()))
    loaded = read_extractor(tmp_path / "backbone.json", OPTIONS)
    assert (loaded.name, loaded.grid_size, loaded.width) == ("patches", 4, 56)
    np.testing.assert_array_equal(loaded.extract(images), patches.extract(images))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "vgg"},
        {"name": None},
        {"mean": [0.0]},
        {"mean": [None] * 56},
        {"deviation": [0.0] * 56},
        {"settings": {"side": 4}},
        {"settings": {"num_directions": 8.0}},
        {"settings": {"patches_per_side": True}},
        {"settings": {"patch_pixels": 0}},
        {"mean": "x"},
    ],
)
def test_damaged_descriptions(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "backbone.json").write_text(json.dumps(_fitted(_random(2)).describe() | change))
    with pytest.raises(DataError, match="unknown extractor ('vgg'|None)|is damaged"):
        read_extractor(tmp_path / "backbone.json", OPTIONS)


def test_no_description(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no extractor is stored"):
        read_extractor(tmp_path / "backbone.json", OPTIONS)
