"""Published maps of grid features, one file a picture, as an extractor that needs no network: the photo rule is left.

Axes: B maps, R x C cells of a map, S cells along one side of the grid, N = S * S, W feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trarctl.data.features.base import Extractor, ExtractorOptions, Float32s
from trarctl.data.features.sizes import MAP_SIDE, PIXELS_PER_CELL, Geometry, photo_geometry, refuse_photo_grid
from trarctl.errors import DataError, SettingsError
from trarctl.registry import EXTRACTORS
from trarctl.weights import WeightsReader, fault_of

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 2048
_MOST_BYTES = 256 << 20
_HINT = "give maps as grid-feats-vqa writes them: one tensor [1, 2048, rows, columns] a file, saved by torch.save"
_READER = WeightsReader("map file", DataError, _HINT)


@EXTRACTORS.register("maps")
class Maps(Extractor):
    """Pads and pools maps that others have published: tensors [1, 2048, R, C] or [2048, R, C] in ``.pth`` files.

    What network made them is not in the files, so that it describes no pictures.
    """

    name, width = "maps", WIDTH
    takes_pictures: ClassVar[bool] = False

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        refuse_photo_grid(self.grid_size, self.name)
        if options.weights is not None:
            raise SettingsError("maps need no weights, since they are what a network gave", "leave out --weights")

    def endings(self) -> frozenset[str]:
        """Name the ending of published maps."""
        return frozenset([".pth"])

    def feature_name(self, name: str) -> str:
        """Name the features of ``9.pth``, or ``COCO_val2014_000000000009.jpg.pth``, as those of the picture."""
        return f"{name[: -len('.pth')]}.npy"

    def read(self, path: Path) -> Float32s:
        """Read a map, [R, C, W]; no code in the file is run."""
        import torch

        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, more than any map", _HINT)
        found = _READER.content(path)
        if not isinstance(found, torch.Tensor):
            raise DataError(f"{path} holds an object of type {type(found).__name__}, not a tensor", _HINT)
        if not found.is_floating_point():
            raise DataError(f"{path} holds a tensor of type {str(found.dtype).removeprefix('torch.')}", _HINT)
        if fault := fault_of(found):
            raise DataError(f"{path} {fault}", _HINT)
        shape = list(found.shape)
        sides = shape[-2:]
        if shape not in ([1, WIDTH, *sides], [WIDTH, *sides]) or not all(0 < one <= MAP_SIDE for one in sides):
            what = f"{path} has the shape {shape}, expected [1, {WIDTH}, rows, columns] with at most {MAP_SIDE}"
            raise DataError(f"{what} of each", _HINT)
        cells: Float32s = found.detach().float().reshape(WIDTH, *sides).permute(1, 2, 0).numpy()
        if not np.isfinite(cells).all():
            raise DataError(f"{path} holds {(~np.isfinite(cells)).sum():,} values that are NaN or infinite", _HINT)
        return cells

    def extract(self, images: Sequence[Any]) -> Float32s:
        """Turn maps [R, C, W] of any sizes into features [B, N, W]."""
        return np.stack([self._geometry_of(one).to_grid(one) for one in images])

    def _geometry_of(self, cells: Float32s) -> Geometry:
        rows, columns = cells.shape[:2]
        return Geometry(self.grid_size, rows, columns, rows * PIXELS_PER_CELL, columns * PIXELS_PER_CELL)

    def geometry(self, width: int, height: int) -> Geometry:
        """Give where the cells lie on a picture of this size, in pixels, if the photo rule made its map."""
        return photo_geometry(self.grid_size, width, height)

    def shrink(self, image: Image) -> Image:  # noqa: ARG002 - whatever it shows
        """Refuse pictures."""
        what = "these features were pooled from published maps, and no map can be made of a picture without the network"
        raise DataError(what, "name what made the maps: --extractor x152 --weights FILE")
