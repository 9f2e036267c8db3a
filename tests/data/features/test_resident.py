"""Features that stay in memory are those of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trarctl.data.features import resident
from trarctl.data.features.grid import FeatureStore
from trarctl.data.features.resident import ResidentFeatures, num_resident_bytes
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError


@pytest.fixture
def store(golden_data: dict[str, Path]) -> FeatureStore:
    return open_prepared(golden_data["vqa"]).features


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_is_kept_is_what_the_store_reads(
    num_threads: int, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_BLOCK_BYTES", 3 * num_resident_bytes(store, 1))  # several blocks, the last cut
    rows, asked = np.arange(3, 23), np.array([7, 22, 3, 7])
    done: list[tuple[int, int | None]] = []
    kept = ResidentFeatures(store, rows, num_threads=num_threads, progress=lambda _task, *count: done.append(count))
    out = np.empty((4, store.num_cells, store.width), store.dtype)
    assert kept.on_device is None
    assert kept.read(asked, out).tobytes() == store.read(asked).tobytes() == out.tobytes()
    assert done == [(min(first + 3, 20), 20) for first in range(0, 20, 3)]
    there = ResidentFeatures(store, rows, num_threads=num_threads, device=torch.device("cpu")).on_device
    assert there is not None
    assert there.numpy().tobytes() == store.read(rows).tobytes()
    assert there.nbytes == num_resident_bytes(store, len(rows))


def test_rows_that_are_not_kept(store: FeatureStore) -> None:
    kept = ResidentFeatures(store, np.arange(4))
    with pytest.raises(DataError, match="no features for questions that were left out of training"):
        kept.places(np.array([1, -1]))
    with pytest.raises(AssertionError, match="the features of rows \\[9\\] are not kept"):
        kept.places(np.array([1, 9]))
    assert kept.places(np.array([], dtype=np.int64)).tolist() == []
