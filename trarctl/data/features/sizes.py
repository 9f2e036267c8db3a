"""Where the cells of a grid lie on a picture: the square rule, and the photo rule of grid features for VQA-v2.

Square: a picture is resized to S cells of one stride, whatever its shape, and the grid covers it.

Photo: the shorter side becomes 600 pixels, but the longer at most 1000. A network gives a map of at most 32 x 32 cells,
one for 32 x 32 pixels. A map that is higher than wide is turned over its diagonal, zeros are put around it to 32 x 32,
and the largest value of each 2 x 2 or 4 x 4 cells is kept: 16 x 16 or 8 x 8.

Source: grid-feats-vqa (CVPR 2020) for the size, TRAR's feature extraction (ICCV 2021) for the rest.
Axes: S cells along one side of the grid, N = S * S, R x C cells of a map, W feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trarctl.errors import DataError, SettingsError

Float32s = npt.NDArray[np.float32]

SHORTER_SIDE, LONGER_SIDE = 600, 1000
PIXELS_PER_CELL = 32
MAP_SIDE = 32  # cells: the photo rule gives no more
PHOTO_GRIDS = (8, 16, 32)


def photo_size(width: int, height: int) -> tuple[int, int]:
    """Give width and height, in pixels, that the photo rule resizes a picture to.

    Raises:
        DataError: if one side is more than 2000 times the other, so that nothing would be left.
    """
    # The order of these steps decides about rounding: 640 x 360 becomes 562 rows, though half of 1125 is 562.5.
    shorter, longer = float(SHORTER_SIDE), SHORTER_SIDE / min(width, height) * max(width, height)
    if longer > LONGER_SIDE:
        shorter, longer = (side * (LONGER_SIDE / longer) for side in (shorter, longer))
    sides = int(shorter + 0.5), int(longer + 0.5)
    if not sides[0]:
        raise DataError(f"its {width:,} x {height:,} pixels are too narrow", "crop it")
    return sides if width <= height else (sides[1], sides[0])


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a grid lie on a picture, upright, that a network saw resized.

    Attributes:
        grid_size: cells S along one side of the grid.
        rows, columns: R and C of the map.
        height, width: pixels of the resized picture, in units in which a cell of the map has ``cell`` along a side.
        cell: size of a cell of the map.
        is_padded: by the photo rule; otherwise the map is the grid.
    """

    grid_size: int
    rows: int
    columns: int
    height: int
    width: int
    cell: int = PIXELS_PER_CELL
    is_padded: bool = True

    @classmethod
    def whole(cls, grid_size: int) -> Geometry:
        """A grid that covers the picture."""
        return cls(grid_size, grid_size, grid_size, grid_size, grid_size, cell=1, is_padded=False)

    @property
    def is_transposed(self) -> bool:
        """Whether rows of the grid are columns of the picture."""
        return self.is_padded and self.rows > self.columns

    @property
    def _corner(self) -> tuple[int, int]:
        """Rows and columns of zeros above and to the left of the map."""
        rows, columns = (self.columns, self.rows) if self.is_transposed else (self.rows, self.columns)
        return (MAP_SIDE - rows) // 2, (MAP_SIDE - columns) // 2

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the whole grid, in shares of the picture's width and height.

        The grid, turned over its diagonal where ``is_transposed``, is stretched over it; what lies beyond the picture,
        below 0 or above 1, is padding.
        """
        if not self.is_padded:
            return 0.0, 0.0, 1.0, 1.0
        top, left = self._corner[::-1] if self.is_transposed else self._corner
        first, last = (-left, -top), (MAP_SIDE - left, MAP_SIDE - top)
        sides = self.width / self.cell, self.height / self.cell
        return first[0] / sides[0], first[1] / sides[1], last[0] / sides[0], last[1] / sides[1]

    def to_grid(self, cells: Float32s) -> Float32s:
        """Turn a map [R, C, W] into the grid's cells [N, W]."""
        if not self.is_padded:
            return cells.reshape(self.grid_size**2, -1)
        if self.is_transposed:
            cells = cells.swapaxes(0, 1)
        top, left = self._corner
        padded = np.zeros((MAP_SIDE, MAP_SIDE, cells.shape[2]), dtype=cells.dtype)
        padded[top : top + cells.shape[0], left : left + cells.shape[1]] = cells
        pooled = MAP_SIDE // self.grid_size
        blocks = padded.reshape(self.grid_size, pooled, self.grid_size, pooled, -1)
        grid: Float32s = blocks.max(axis=(1, 3)).reshape(self.grid_size**2, -1)
        return grid

    def on_picture(self, values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Lay a number a cell, [N], over the picture: an array [height, width] of it, to be stretched over it."""
        side = self.grid_size
        shown = np.asarray(values).reshape(side, side)
        if not self.is_padded:
            return shown
        top, left = self._corner
        shown = shown.repeat(MAP_SIDE // side, axis=0).repeat(MAP_SIDE // side, axis=1)
        if self.is_transposed:
            shown = shown[top : top + self.columns, left : left + self.rows].T
        else:
            shown = shown[top : top + self.rows, left : left + self.columns]
        shown = shown.repeat(self.cell, axis=0).repeat(self.cell, axis=1)[: self.height, : self.width]
        # Networks that round down leave a part of a cell at the end unseen.
        missing = ((0, self.height - shown.shape[0]), (0, self.width - shown.shape[1]))
        return np.pad(shown, missing, mode="edge")


def photo_geometry(grid_size: int, width: int, height: int) -> Geometry:
    """Give the geometry of the photo rule for a picture of this size, in pixels, whose map is rounded up."""
    width, height = photo_size(width, height)
    return Geometry(grid_size, -(-height // PIXELS_PER_CELL), -(-width // PIXELS_PER_CELL), height, width)


class NoSuchGridError(SettingsError):
    """An extractor's rule gives no grid of this size."""


def refuse_photo_grid(grid_size: int, name: str) -> None:
    """Refuse grids that the photo rule cannot give, by a NoSuchGridError."""
    if grid_size not in PHOTO_GRIDS:
        grids = " or ".join(f"--grid {size}" for size in PHOTO_GRIDS)
        raise NoSuchGridError(f"{name} gives no grid of {grid_size} x {grid_size} cells", grids)
