"""The ResNet extractor: preprocessing to the pixel, and messages; the network itself where torchvision fits torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trarctl.data.features.base import ExtractorOptions
from trarctl.data.features.resnet101 import PIXELS_PER_CELL, ResNet101, preprocess
from trarctl.errors import DataError


def _loaded(grid_size: int, weights: Path | None = None) -> ResNet101:
    extractor = ResNet101(ExtractorOptions(grid_size, weights))
    extractor.load()
    return extractor


def _pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(0, 256, (320, 480, 3), dtype=np.uint8))
    return [color, color.convert("L"), color.convert("RGBA").resize((50, 70)), color.convert("P")]


@pytest.mark.parametrize("side", [224, 128, 256])
def test_preprocessing_to_the_pixel(side: int) -> None:
    prepared = preprocess(_pictures(), side)
    assert (prepared.shape, prepared.dtype) == ((4, 3, side, side), np.float32)
    for picture, array in zip(_pictures(), prepared, strict=True):
        resized = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
            expected = (resized[..., channel] / 255 - mean) / deviation
            np.testing.assert_allclose(array[channel], expected, atol=2e-6)


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(DataError, match="torchvision cannot be loaded") as error:
        _loaded(14)
    assert error.value.hint == 'pip install "trarctl[features]"'


def test_weights_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the weights .*: No such file"):
        _loaded(14, tmp_path / "resnet101.pth")


def test_maps_become_cells_in_row_order_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    network = torch.nn.Conv2d(3, 1024, PIXELS_PER_CELL, PIXELS_PER_CELL)
    monkeypatch.setattr("trarctl.data.features.resnet101._third_stage", lambda _: network)
    extractor = ResNet101(ExtractorOptions(3, devices=("cpu", "cpu")))
    assert extractor.describe() == {"name": "resnet101", "grid_size": 3, "weights": "IMAGENET1K_V1"}
    extractor.load()
    for _ in range(3):
        features = extractor.extract(_pictures()[:2])
        with torch.inference_mode():
            maps = network(torch.from_numpy(preprocess(_pictures()[:2], 48)))
        np.testing.assert_allclose(features[:, 5], maps[:, :, 1, 2].numpy(), rtol=1e-5)


@pytest.fixture
def torchvision() -> Any:
    """The package, where it is installed and fits torch."""
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")


def test_the_third_stage_of_torchvision(torchvision: Any, tmp_path: Path) -> None:
    import torch

    network = torchvision.models.resnet101(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    pictures = _pictures()[:2]
    maps: list[torch.Tensor] = []
    network.layer3.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.inference_mode():
        network(torch.from_numpy(preprocess(pictures, 224)))
    features = _loaded(14, tmp_path / "weights.pth").extract(pictures)
    np.testing.assert_allclose(features, maps[0].reshape(2, 1024, 196).transpose(1, 2).numpy(), rtol=1e-5)
    assert _loaded(8, tmp_path / "weights.pth").extract(pictures).shape == (2, 64, 1024)


def test_other_weights(torchvision: Any, tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="does not hold the weights of a ResNet-101"):
        _loaded(14, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(DataError, match="is not a file of PyTorch weights"):
        _loaded(14, tmp_path / "text.pth")
