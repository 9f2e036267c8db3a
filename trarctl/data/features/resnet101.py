"""ResNet-101's third stage as an extractor, as CLEVR's published features were made; needs the extra ``features``.

Axes: B images, S cells along one side, N = S * S cells in row-major order, W feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.data.features.base import Extractor, ExtractorOptions, Float32s, resized
from trarctl.errors import DataError
from trarctl.files import refusing
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

# The third stage sees the image at a sixteenth of its size.
PIXELS_PER_CELL = 16

_WEIGHTS_HINT = "--weights FILE, as torchvision publishes it for resnet101"
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def preprocess(images: Sequence[Image], side: int) -> Float32s:
    """Resize whole images (bicubic, on 8 bits) and standardize them as ImageNet's colors, [B, 3, side, side]."""
    pixels = np.stack([np.asarray(resized(image, side), dtype=np.float32) for image in images]) / np.float32(255)
    return np.ascontiguousarray(((pixels - _MEAN) / _DEVIATION).transpose(0, 3, 1, 2))


@EXTRACTORS.register("resnet101")
class ResNet101(Extractor):
    """Runs images, resized to 16 * S pixels, through the first three stages of ResNet-101."""

    name = "resnet101"
    width = 1024

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self._weights, self._devices = options.weights, options.devices
        self._digest = "IMAGENET1K_V1" if options.weights is None else _sha256(options.weights)
        self._idle: SimpleQueue[tuple[str, nn.Module]] | None = None

    def identity(self) -> dict[str, Any]:
        """Give what identifies the weights."""
        return {"weights": self._digest}

    def load(self) -> None:
        """Put one copy of the network on each device."""
        self._idle = SimpleQueue()
        for device in self._devices:
            self._idle.put((device, _third_stage(self._weights).to(device)))

    def shrink(self, image: Image) -> Image:
        """Resize an image to the network's input."""
        return resized(image, self.grid_size * PIXELS_PER_CELL)

    def extract(self, images: Sequence[Image]) -> Float32s:
        """Run images through the network, [B, N, W]."""
        import torch

        assert self._idle is not None, "load comes first"  # noqa: S101 - a promise of the interface
        pixels = torch.from_numpy(preprocess(images, self.grid_size * PIXELS_PER_CELL))
        device, network = self._idle.get()
        try:
            with torch.inference_mode():
                maps = network(pixels.to(device))
        finally:
            self._idle.put((device, network))
        cells: Float32s = maps.flatten(2).transpose(1, 2).float().cpu().numpy()
        return cells


def _sha256(weights: Path) -> str:
    with refusing(f"cannot read the weights {weights}", _WEIGHTS_HINT), weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _third_stage(weights: Path | None) -> nn.Module:
    import torch
    from torch import nn

    try:
        from torchvision.models import ResNet101_Weights, resnet101
    except (ImportError, RuntimeError) as error:
        raise DataError(f"torchvision cannot be loaded: {error}", 'pip install "trarctl[features]"') from None
    if weights is None:
        network = resnet101(weights=ResNet101_Weights.IMAGENET1K_V1)
    else:
        network = resnet101(weights=None)
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged pickle makes its reader raise is not documented
            raise DataError(f"{weights} is not a file of PyTorch weights", _WEIGHTS_HINT) from error
        try:
            network.load_state_dict(state)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{weights} does not hold the weights of a ResNet-101", _WEIGHTS_HINT) from None
    stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return nn.Sequential(*(getattr(network, stage) for stage in stages)).eval()
