"""The networks of grid features with weights made by the rule of ``tests/golden/features/README.md``."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trarctl.data.features.base import ExtractorOptions, make_extractor
from trarctl.data.features.resnet import PhotoResNet
from trarctl.weights import Weights

GOLDEN = Path(__file__).parents[2] / "golden" / "features"
NETWORKS = {"r50": "R-50", "x101": "X-101", "x152": "X-152", "x152pp": "X-152pp"}
MAP_TOLERANCE = 1e-4  # in deviations of the map


@functools.cache
def normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal numbers that follow from a tensor's name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def photo_extractor(name: str, grid_size: int = 8, weights: Path | None = None) -> PhotoResNet:
    extractor = make_extractor(name, ExtractorOptions(grid_size, weights))
    assert isinstance(extractor, PhotoResNet)
    return extractor


def made_weights(extractor: PhotoResNet) -> dict[str, Tensor]:
    """Make the weights of a network under the names that a published file has."""
    with torch.device("meta"):
        names = extractor.build().state_dict()
    made = {}
    for name, value in names.items():
        if not name.endswith("num_batches_tracked"):
            full = f"backbone.{name}"
            made[full] = torch.from_numpy(_made(extractor, full, tuple(value.shape)))
    return made


def _made(extractor: PhotoResNet, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("running_mean"):
        return np.zeros(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return np.ones(shape, dtype=np.float32) - np.float32(1e-5)
    numbers = normal(name, shape)
    if name.endswith("conv2_offset.bias"):
        return np.float32(0.5) * numbers
    if len(shape) == 4:
        share = 0.2 if "offset" in name else 1.0
        return numbers * np.float32(share * math.sqrt(2 / math.prod(shape[1:])))
    if name.endswith("norm.bias"):
        return np.float32(0.1) * numbers
    size = 0.2 if "conv3" in name else 1.0
    if "stem" in name and extractor.name != "x101":
        size = 1 / 64
    return np.float32(size) * (1 + np.float32(0.1) * numbers)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and numbers, to compare with ``weights.json``."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def network_with(extractor: PhotoResNet, weights: Mapping[str, Tensor]) -> nn.Module:
    """Make an extractor's network of a file's tensors, as ``load`` does, but without the file."""
    network = extractor.build()
    unused = network.load_state_dict(extractor.renamed(Weights(dict(weights), {})), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in unused.missing_keys)
    return extractor.fast(network.eval().requires_grad_(False))


def small_input(golden: Mapping[str, NDArray[np.float32]]) -> Tensor:
    pixels = normal("small/70x101", (3, 70, 101)) * golden["input_scale"]
    np.testing.assert_array_equal(pixels.reshape(-1)[:8], golden["input_first"])
    return torch.from_numpy(pixels)[None]
