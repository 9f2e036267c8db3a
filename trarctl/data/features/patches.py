"""Images to grid features, through one interface for every kind of extractor.

Axes: B images, S cells along one side, N = S * S cells in row-major order, W feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Extractor(Protocol):
    """Whatever turns images into a grid of feature vectors."""

    @property
    def name(self) -> str:
        """Name for messages and manifests."""
        ...

    @property
    def grid_size(self) -> int:
        """Cells S along one side."""
        ...

    @property
    def width(self) -> int:
        """Feature width W."""
        ...

    def describe(self) -> dict[str, Any]:
        """Give all that is needed to make the same extractor again, as JSON can hold it."""
        ...

    def extract(self, images: Sequence[Image]) -> Floats:
        """Turn images of any size and mode into features [B, N, W] float32."""
        ...


@dataclass(frozen=True)
class PatchSettings:
    """Shape of the hand-made descriptor.

    Args:
        grid_size: cells S along one side.
        patches_per_side: patches along one side of a cell; their descriptions are joined.
        patch_pixels: pixels along one side of a patch.
        num_directions: bins of the histogram of gradient directions, over 180 degrees.
    """

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


@dataclass(frozen=True)
class PatchExtractor:
    """Describes each patch by hand: mean and deviation of red, green and blue, and the directions of its edges.

    Good for simple drawings, where it serves as well as a pretrained network and needs none.

    Args:
        settings: shape of the descriptor.
        mean: what is subtracted from each feature, [W].
        deviation: what it is then divided by, [W].
    """

    settings: PatchSettings
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, settings: PatchSettings, batches: Iterator[Sequence[Image]]) -> PatchExtractor:
        """Choose the statistics so that the cells of these images have mean 0 and deviation 1."""
        count, total, squares = 0, np.zeros(settings.width), np.zeros(settings.width)
        for images in batches:
            cells = describe_patches(images, settings).reshape(-1, settings.width).astype(np.float64)
            count += len(cells)
            total += cells.sum(axis=0)
            squares += (cells**2).sum(axis=0)
        if not count:
            raise DataError("no images to fit the patch descriptor to", "add training images")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return cls(settings, mean, np.where(deviation > 1e-6, deviation, 1.0))

    @property
    def name(self) -> str:
        """Name for messages and manifests."""
        return "patches"

    @property
    def grid_size(self) -> int:
        """Cells S along one side."""
        return self.settings.grid_size

    @property
    def width(self) -> int:
        """Feature width W."""
        return self.settings.width

    def describe(self) -> dict[str, Any]:
        """Give settings and statistics."""
        return {
            "name": self.name,
            "settings": vars(self.settings),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
        }

    def extract(self, images: Sequence[Image]) -> Floats:
        """Describe images, [B, N, W], standardized by the fitted statistics."""
        cells = describe_patches(images, self.settings)
        return ((cells - self.mean) / self.deviation).astype(np.float32)


def describe_patches(images: Sequence[Image], settings: PatchSettings) -> Floats:
    """Describe every patch of images, four or so joined to a cell.

    Args:
        images: of any size and mode.
        settings: shape of the descriptor.

    Returns:
        [B, N, W]; of each patch mean and deviation of red, green, blue in 0..1, then edge strength by direction.
    """
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
    from PIL.Image import Resampling

    fitted = (image.convert("RGB") for image in images)
    resized = (
        image if image.size == (side, side) else image.resize((side, side), Resampling.BICUBIC) for image in fitted
    )
    return np.stack([np.asarray(image) for image in resized]).transpose(0, 3, 1, 2) / 255.0


def _direction_histogram(gray: Doubles, settings: PatchSettings) -> Doubles:
    """Sum up edge strength by direction in every patch: [B, pixels, pixels] -> [B, directions, patches, patches]."""
    down, right = np.gradient(gray, axis=(1, 2))
    strength = np.hypot(down, right)
    half_turns = np.arctan2(down, right) / np.pi % 1
    directions = settings.num_directions
    # Bins are centered on the axes and diagonals: edges often lie on them, and must not fall to both sides by rounding.
    direction = (half_turns * directions + 0.5).astype(np.int64) % directions
    patches = gray.shape[1] // settings.patch_pixels
    place = np.arange(gray.shape[1]) // settings.patch_pixels
    patch = (np.arange(len(gray))[:, None, None] * patches + place[:, None]) * patches + place
    bins = (patch * directions + direction).reshape(-1)
    num_bins = len(gray) * patches**2 * directions
    sums: Doubles = np.bincount(bins, weights=strength.reshape(-1), minlength=num_bins).astype(np.float64)
    return sums.reshape(len(gray), patches, patches, directions).transpose(0, 3, 1, 2)


def extractor_from(description: Mapping[str, Any]) -> Extractor:
    """Make the extractor that ``describe`` described.

    Raises:
        DataError: the description is damaged, or of an unknown extractor.
    """
    if description.get("name") != "patches":
        raise DataError(f"unknown extractor {description.get('name')!r}", "prepare the data again")
    try:
        settings = PatchSettings(**description["settings"])
        mean = np.array(description["mean"], dtype=np.float64)
        deviation = np.array(description["deviation"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the description of the extractor is damaged: {error}", "prepare the data again") from None
    if mean.shape != (settings.width,) or deviation.shape != mean.shape or not (deviation > 0).all():
        raise DataError("the description of the extractor is damaged: its statistics", "prepare the data again")
    return PatchExtractor(settings, mean, deviation)


def load_extractor(path: Path) -> Extractor:
    """Read an extractor's description from a file.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        description = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"no extractor is stored as {path}", "prepare from images to have one") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", "prepare the data again") from None
    if not isinstance(description, dict):
        raise DataError(f"{path} is damaged", "prepare the data again")
    return extractor_from(description)


def load_images(paths: Sequence[Path]) -> tuple[list[Image], list[str]]:
    """Decode image files.

    Returns:
        Images in RGB, for unusable files a black pixel; and what is wrong with those.
    """
    import PIL.Image

    images, problems = [], []
    for path in paths:
        if path.exists() and not path.is_file():
            problems.append(f"{path} is no file")
            images.append(PIL.Image.new("RGB", (1, 1)))
            continue
        try:
            with PIL.Image.open(path) as image:
                images.append(image.convert("RGB"))
        except FileNotFoundError:
            problems.append(f"{path} is missing")
        except PIL.UnidentifiedImageError:
            problems.append(f"{path} is no image, or empty")
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            problems.append(f"{path} is truncated or damaged: {error}")
        else:
            continue
        images.append(PIL.Image.new("RGB", (1, 1)))
    return images, problems
