"""Pictures with one bright place, and extractors of a test that see nothing but brightness, by every size rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trarctl.data.features.base import Extractor
from trarctl.data.features.sizes import Geometry, photo_geometry, photo_size

SIDE = 0.06  # of the bright square, in lengths of the picture's shorter side


class Bright(Extractor):
    """Mean brightness of each cell of a grid that covers the picture."""

    name, width = "bright-square", 1

    def size(self, image: Image.Image) -> tuple[int, int]:  # noqa: ARG002 - for those that depend on it
        """Width and height that a picture is resized to, whole cells."""
        return 32 * self.grid_size, 32 * self.grid_size

    def extract(self, images: Sequence[Image.Image]) -> np.ndarray:
        found = []
        for image in images:
            gray = np.asarray(image.convert("L").resize(self.size(image), Image.Resampling.BOX), dtype=np.float32)
            geometry = self.geometry(*image.size)
            # Borders of a map that is rounded up are repeated.
            wanted = 32 * geometry.rows, 32 * geometry.columns
            missing = [(0, max(0, most - there)) for most, there in zip(wanted, gray.shape, strict=True)]
            padded = np.pad(gray, missing, mode="edge")[: wanted[0], : wanted[1]]
            cells = padded.reshape(geometry.rows, 32, geometry.columns, 32).mean(axis=(1, 3))
            found.append(geometry.to_grid(cells[..., None]))
        return np.stack(found)


class BrightPhoto(Bright):
    """The same by the photo rule."""

    name = "bright-photo"

    def size(self, image: Image.Image) -> tuple[int, int]:
        return photo_size(*image.size)

    def geometry(self, width: int, height: int) -> Geometry:
        return photo_geometry(self.grid_size, width, height)


class BrightClip(Bright):
    """The same by the rule of CLIP's networks: 1000 x 600 whatever the shape, and what is no whole cell is not seen."""

    name = "bright-clip"

    def size(self, image: Image.Image) -> tuple[int, int]:  # noqa: ARG002 - the same for all
        return 1000, 600

    def geometry(self, width: int, height: int) -> Geometry:  # noqa: ARG002 - as above
        return Geometry(self.grid_size, 18, 31, 600, 1000)


def picture(width: int, height: int, across: float, down: float) -> Image.Image:
    """Draw a dark picture with a bright square around a place, given in shares of its width and height."""
    pixels = np.full((height, width, 3), 20, dtype=np.uint8)
    half = round(SIDE * min(width, height) / 2)
    row, column = round(down * height), round(across * width)
    pixels[row - half : row + half, column - half : column + half] = 250
    return Image.fromarray(pixels)


def save_on_its_side(image: Image.Image, path: Path) -> None:
    """Store a picture as phones do: turned, with a tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def lightest(colors: np.ndarray) -> tuple[float, float]:
    """Find the middle of where colors [height, width, 3 or more] are lightest, in shares of width and height."""
    lightness = colors[..., :3].astype(float) @ (0.2126, 0.7152, 0.0722)
    rows, columns = np.nonzero(lightness == lightness.max())
    height, width = lightness.shape
    return (columns.min() + columns.max() + 1) / 2 / width, (rows.min() + rows.max() + 1) / 2 / height
