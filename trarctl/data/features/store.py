"""Features of all images of prepared data, by row of the image table.

Axes: I images, R rows asked for, N cells, W feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trarctl.data.features.files import read_cells
from trarctl.data.manifest import FEATURES, ImageSetPart, ImagesPart, prepare_command
from trarctl.errors import DataError

Floats = npt.NDArray[np.floating]


class FeatureStore:
    """Reads features from packed files or from one file per image; safe to use from several threads.

    Args:
        folder: the prepared folder.
        dataset: name of the data set.
        part: what the manifest says about the features.
        ids: of each image set its image ids, ascending.
    """

    def __init__(self, folder: Path, dataset: str, part: ImagesPart, ids: Sequence[npt.NDArray[np.int64]]) -> None:
        self._folder = folder
        self._dataset = dataset
        self._sets = part.image_sets
        self._ids = ids
        self._starts = np.cumsum([0] + [images.num_images for images in part.image_sets])
        self.num_cells = part.grid_size**2
        self.width = part.feature_width
        self.num_images = int(self._starts[-1])
        stored = {images.stored_type for images in part.image_sets if images.kind != "none"}
        self.dtype: np.dtype[np.floating[Any]] = np.dtype(np.float16 if stored == {"float16"} else np.float32)
        self._packed = [self._open(images) if images.kind == "packed" else None for images in part.image_sets]
        for images, numbers in zip(part.image_sets, ids, strict=True):
            if len(numbers) != images.num_images:
                raise self._damaged(f"images/{images.name}.ids.npy")

    def has_features(self, rows: npt.NDArray[np.integer]) -> bool:
        """Tell whether there are features for all of these rows, [R]."""
        return all(self._sets[place].kind != "none" for place in np.unique(self._places(rows)).tolist())

    def image_id(self, row: int) -> int:
        """Give the id of an image."""
        place = int(self._places(np.array([row]))[0])
        return int(self._ids[place][row - self._starts[place]])

    def image_set(self, row: int) -> str:
        """Give the name of the set that an image belongs to."""
        return self._sets[int(self._places(np.array([row]))[0])].name

    def read(self, rows: npt.NDArray[np.integer]) -> Floats:
        """Read features.

        Args:
            rows: rows of the image table, in any order, [R].

        Returns:
            [R, N, W] float32, or float16 if all features are stored so; missing cells are zero.

        Raises:
            DataError: there are no features, or a file changed since it was prepared.
        """
        rows = np.asarray(rows)
        places = self._places(rows)
        out = np.empty((len(rows), self.num_cells, self.width), dtype=self.dtype)
        for place in np.unique(places).tolist():
            chosen = np.flatnonzero(places == place)
            images, packed, local = self._sets[place], self._packed[place], rows[chosen] - self._starts[place]
            if images.kind == "none":
                raise self._missing(images.name)
            if packed is not None:
                gather_into(out, chosen, packed, local)
                continue
            for target, image_id in zip(chosen.tolist(), self._ids[place][local].tolist(), strict=True):
                read_cells(self._file(images, image_id), out[target])
        return out

    def _places(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Give the place of each row's image set, [R]."""
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_images):
            raise DataError(f"no image in row {rows.min()} or {rows.max()} of {self.num_images}", self._cure())
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _file(self, images: ImageSetPart, image_id: int) -> Path:
        if images.folder is None or images.naming is None:
            raise self._damaged("manifest.json")
        return self._folder / images.folder / images.naming.naming().name(image_id)

    def _open(self, images: ImageSetPart) -> Floats:
        path = self._folder / FEATURES / str(images.file)
        try:
            array: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise self._damaged(str(path)) from None
        if array.shape != (images.num_images, self.num_cells, self.width):
            raise self._damaged(str(path))
        return array

    def _missing(self, image_set: str) -> DataError:
        return DataError(f"{self._folder} was prepared without features of {image_set}", self._cure())

    def _damaged(self, name: str) -> DataError:
        return DataError(f"prepared data in {self._folder} is damaged: {name}", self._cure())

    def _cure(self) -> str:
        return f"{prepare_command(self._dataset)} --features DIR --out {self._folder}"


def gather_into(out: Floats, places: npt.NDArray[np.int64], packed: Floats, rows: npt.NDArray[np.integer]) -> None:
    """Copy rows of a packed file to places of an array, once where they lie side by side.

    Args:
        out: [R, N, W].
        places: where to, rising, [P].
        packed: of any length, [I, N, W].
        rows: which, [P].
    """
    target = out[places[0] : places[-1] + 1]
    if len(target) == len(places) and out.dtype == packed.dtype:
        np.take(np.asarray(packed), rows, axis=0, out=target, mode="clip")  # other modes copy everything twice
    else:
        out[places] = packed[rows]
