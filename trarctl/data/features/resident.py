"""Features that stay in memory: of this machine, or of the device that computes with them.

Axes: I images that are kept, R rows asked for, N cells, W feature width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trarctl.data import Progress, in_threads, no_progress
from trarctl.data.features.grid import FeatureStore, Floats

_BLOCK_BYTES = 32 * 2**20  # that a thread reads at once


def num_resident_bytes(store: FeatureStore, num_images: int) -> int:
    """The memory that the features of so many images take."""
    return num_images * store.num_cells * store.width * store.dtype.itemsize


class ResidentFeatures:
    """Features of some images, read once from their store and kept.

    Args:
        store: where they are read from.
        rows: of its image table, ascending.
        device: whose memory keeps them; None for this machine's, from where each batch is copied.
        num_threads: that read.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: npt.NDArray[np.integer],
        *,
        device: torch.device | None = None,
        num_threads: int = 1,
        progress: Progress = no_progress,
    ) -> None:
        self._store = store
        self._places = np.full(store.num_images + 1, -1, dtype=np.int64)  # the last is of row -1: no image
        self._places[rows] = np.arange(len(rows))
        shape = len(rows), store.num_cells, store.width
        kind = getattr(torch, store.dtype.name)
        kept = torch.empty(shape, dtype=kind, device="cpu" if device is None else device)
        self.on_device: Tensor | None = None if device is None else kept  # [I, N, W]
        self._array: Floats | None = kept.numpy() if device is None else None
        step = max(1, _BLOCK_BYTES // num_resident_bytes(store, 1))

        def read(first: int) -> tuple[int, Floats]:
            block = rows[first : first + step]
            return first, store.read(block, None if self._array is None else self._array[first : first + step])

        for first, block in in_threads(read, range(0, len(rows), step), num_threads):
            if device is not None:
                kept[first : first + len(block)].copy_(torch.from_numpy(block))
            progress("reading features into memory", first + len(block), len(rows))

    def places(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Where in ``on_device`` the features of rows [R] of the image table are; DataError for a row without image."""
        places = self._places[rows]
        if len(places) and places.min() < 0:
            missing = rows[places < 0]
            self._store.read(missing)  # says what is wrong with the rows, if anything is
            raise AssertionError(f"the features of rows {missing[:3]} are not kept in memory")
        return places

    def read(self, rows: npt.NDArray[np.integer], out: Floats) -> Floats:
        """Copy the features [R, N, W] of rows of the image table, as ``FeatureStore.read`` does."""
        if self._array is None:
            raise AssertionError("features on a device are not copied, but indexed")
        # With its usual mode, numpy would copy to a buffer first.
        return self._array.take(self.places(rows), axis=0, out=out, mode="clip")
