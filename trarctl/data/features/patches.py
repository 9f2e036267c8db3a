"""A hand-made descriptor of small drawings, which needs no trained network; easy-VQA's features are made by it.

Axes: B images, C colors, S cells along one side, N = S * S cells in row-major order, W feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from trarctl.data.features.base import Extractor, ExtractorOptions, Float32s, resized
from trarctl.data.manifest import StoredType
from trarctl.errors import DataError, SettingsError
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PatchSettings:
    """Shape of the descriptor: a cell joins patches_per_side ** 2 patches; directions share 180 degrees."""

    grid_size: int = 4
    patches_per_side: int = 2
    patch_pixels: int = 8
    num_directions: int = 8

    @property
    def image_pixels(self) -> int:
        """Pixels along one side of the image that is described; others are resized to it."""
        return self.grid_size * self.patches_per_side * self.patch_pixels

    @property
    def width(self) -> int:
        """Feature width W."""
        return self.patches_per_side**2 * (6 + self.num_directions)


@EXTRACTORS.register("patches")
class Patches(Extractor):
    """Color and edges of each patch; over the training images, to which it is fitted, with mean 0 and deviation 1."""

    name = "patches"
    stored_type: ClassVar[StoredType] = "float32"
    is_fitted = True

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        if options.weights is not None:
            raise SettingsError("patches need no weights, since they are fitted to the pictures", "leave out --weights")
        self.settings = PatchSettings(options.grid_size)
        self.width = self.settings.width
        self._mean, self._deviation = np.zeros(self.width), np.ones(self.width)

    def fit(self, batches: Iterable[Sequence[Image]]) -> None:
        """Choose the statistics."""
        count, total, squares = 0, np.zeros(self.width), np.zeros(self.width)
        for images in batches:
            cells = describe_patches(images, self.settings).reshape(-1, self.width).astype(np.float64)
            count += len(cells)
            total += cells.sum(axis=0)
            squares += (cells**2).sum(axis=0)
        if not count:
            raise DataError("no images to fit the patch descriptor to", "add training images")
        self._mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - self._mean**2, 0))
        self._deviation = np.where(deviation > 1e-6, deviation, 1.0)

    def identity(self) -> dict[str, Any]:
        """Give the settings."""
        return dict(vars(self.settings))

    def describe(self) -> dict[str, Any]:
        """Give settings and statistics."""
        statistics = {"mean": self._mean.tolist(), "deviation": self._deviation.tolist()}
        return {"name": self.name, "settings": self.identity(), **statistics}

    def restore(self, description: dict[str, Any]) -> None:
        """Take over settings and statistics."""
        self.settings = replace(self.settings, **description["settings"])
        if not all(type(value) is int and value > 0 for value in vars(self.settings).values()):
            raise ValueError("its settings")
        self.grid_size, self.width = self.settings.grid_size, self.settings.width
        self._mean = np.array(description["mean"], dtype=np.float64)
        self._deviation = np.array(description["deviation"], dtype=np.float64)
        is_whole = self._mean.shape == self._deviation.shape == (self.width,) and np.isfinite(self._mean).all()
        if not is_whole or not (self._deviation > 0).all():
            raise ValueError("its statistics")

    def shrink(self, image: Image) -> Image:
        """Resize an image to the descriptor's size."""
        return resized(image, self.settings.image_pixels)

    def extract(self, images: Sequence[Image]) -> Float32s:
        """Describe images, [B, N, W], standardized by the fitted statistics."""
        cells = describe_patches(images, self.settings)
        return ((cells - self._mean) / self._deviation).astype(np.float32)


def describe_patches(images: Sequence[Image], settings: PatchSettings) -> Float32s:
    """Describe patches, [B, N, W]: mean and deviation of red, green, blue in 0..1, and edge strength by direction."""
    pixels = _pixels(images, settings.image_pixels)
    mean = _patch_means(pixels, settings)
    variance = _patch_means(pixels**2, settings) - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    histogram = _direction_histogram(pixels.mean(axis=1), settings)
    described = np.concatenate([mean, deviation, histogram], axis=1).transpose(0, 2, 3, 1)
    grid, side = settings.grid_size, settings.patches_per_side
    cells = described.reshape(len(pixels), grid, side, grid, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(len(pixels), grid * grid, settings.width).astype(np.float32)


def _patch_means(values: Doubles, settings: PatchSettings) -> Doubles:
    """Average over each patch: [B, C, pixels, pixels] -> [B, C, patches, patches]."""
    patch_of_pixel = np.arange(settings.image_pixels) // settings.patch_pixels
    is_in_patch = (patch_of_pixel[:, None] == np.arange(patch_of_pixel[-1] + 1)) / settings.patch_pixels
    means: Doubles = is_in_patch.T @ (values @ is_in_patch)
    return means


def _pixels(images: Sequence[Image], side: int) -> Doubles:
    """Give images as [B, 3, side, side], 0..1."""
    return np.stack([np.asarray(resized(image, side)) for image in images]).transpose(0, 3, 1, 2) / 255.0


def _direction_histogram(gray: Doubles, settings: PatchSettings) -> Doubles:
    """Sum up edge strength by direction in every patch: [B, pixels, pixels] -> [B, directions, patches, patches]."""
    down, right = np.gradient(gray, axis=(1, 2))
    strength = np.hypot(down, right)
    half_turns = np.arctan2(down, right) / np.pi % 1
    directions = settings.num_directions
    # Bins are centered on the axes and diagonals: edges often lie on them, and must not fall to both sides by rounding.
    direction = (half_turns * directions + 0.5).astype(np.int64) % directions
    patches = gray.shape[1] // settings.patch_pixels
    row_or_column = np.arange(gray.shape[1]) // settings.patch_pixels
    patch = (np.arange(len(gray))[:, None, None] * patches + row_or_column[:, None]) * patches + row_or_column
    bins = (patch * directions + direction).reshape(-1)
    num_bins = len(gray) * patches**2 * directions
    sums: Doubles = np.bincount(bins, weights=strength.reshape(-1), minlength=num_bins).astype(np.float64)
    return sums.reshape(len(gray), patches, patches, directions).transpose(0, 3, 1, 2)
