"""Packing: the same numbers in one file, whatever interrupted it, and every bad file named."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import prepare_golden, write_clevr, write_features
from trarctl.data import no_progress
from trarctl.data.datasets.base import FileNaming
from trarctl.data.datasets.clevr import CLEVR
from trarctl.data.features import packing
from trarctl.data.features.images import ImageSet, scan_folder
from trarctl.data.features.packing import fill_from_files, pack
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError


@pytest.mark.parametrize("stored", ["float32", "float16", "as-found"])
def test_packed_features_are_those_in_place(tmp_path: Path, stored: Any) -> None:
    for dataset in ("vqa", "clevr"):
        prepare_golden(dataset, tmp_path / dataset)
        prepare_golden(dataset, tmp_path / f"{dataset}-packed", pack=stored)
        in_place = open_prepared(tmp_path / dataset).features
        packed = open_prepared(tmp_path / f"{dataset}-packed").features
        rows = np.arange(in_place.num_images)[::-1]
        assert packed.dtype == (np.float16 if stored == "float16" else np.float32)
        np.testing.assert_array_equal(packed.read(rows), in_place.read(rows).astype(packed.dtype))


def _images(tmp_path: Path, count: int, width: int = 5) -> ImageSet:
    random = np.random.default_rng(0)
    for image in range(count):
        write_features(tmp_path / f"feats/{image}.npy", random.standard_normal((4, width)).astype(np.float32))
    folder = scan_folder(tmp_path / "feats", [FileNaming("", 1, ".npy")])
    assert folder is not None
    return ImageSet(CLEVR.image_sets[0], folder.ids, folder)


def _pack(images: ImageSet, path: Path) -> None:
    pack(partial(fill_from_files, images), path, (len(images.ids), 4, 5), "float16", no_progress)


def _in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a block, each made safe at once, in one thread."""
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 3 * 40)
    monkeypatch.setattr(packing, "_SYNC_BYTES", 120)
    monkeypatch.setattr(packing, "_NUM_THREADS", 1)


@pytest.mark.parametrize("stop_after", [1, 9, 10, 25, 38])
def test_interrupted_and_resumed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    _in_small_steps(monkeypatch)
    images = _images(tmp_path, 40)
    _pack(images, tmp_path / "whole.npy")

    def stopping(first: int, out: Any) -> list[str]:
        if first > stop_after:
            raise KeyboardInterrupt
        return fill_from_files(images, first, out)

    with pytest.raises(KeyboardInterrupt):
        pack(stopping, tmp_path / "resumed.npy", (40, 4, 5), "float16", no_progress)
    assert not (tmp_path / "resumed.npy").exists()
    partial = tmp_path / ".resumed.npy.partial"
    if partial.exists():
        with partial.open("ab") as file:
            file.write(b"what a dying process wrote behind the last safe row")

    monkeypatch.setattr(packing, "_NUM_THREADS", 3)
    _pack(images, tmp_path / "resumed.npy")
    assert (tmp_path / "resumed.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*resumed*")) == ["resumed.npy"]


def test_a_resumed_attempt_does_not_read_safe_rows_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _in_small_steps(monkeypatch)
    images = _images(tmp_path, 40)
    (tmp_path / "feats/35.npy").rename(tmp_path / "kept")
    with pytest.raises(DataError, match="35.npy is missing"):
        _pack(images, tmp_path / "packed.npy")
    (tmp_path / "kept").rename(tmp_path / "feats/35.npy")
    for image in range(30):
        (tmp_path / f"feats/{image}.npy").unlink()
    _pack(images, tmp_path / "packed.npy")
    assert np.load(tmp_path / "packed.npy").shape == (40, 4, 5)


def test_all_bad_files_are_counted(tmp_path: Path) -> None:
    images = _images(tmp_path, 40)
    for image in range(3, 18):
        (tmp_path / f"feats/{image}.npy").write_bytes(b"")
    write_features(tmp_path / "feats/18.npy", np.full((4, 5), np.nan, dtype=np.float32))
    with pytest.raises(
        DataError, match=r"16 feature files are unusable: .*/3.npy is empty, .*/12.npy is empty and 6 more"
    ):
        _pack(images, tmp_path / "packed.npy")
    assert not (tmp_path / "packed.npy").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e5, "1.npy holds values beyond the range of float16: pack it as float32"),
        (1e-9, "1.npy holds a cell that is zero in float16, which would count as padding"),
        (np.inf, "1.npy holds 5 values that are NaN or infinite"),
    ],
)
def test_what_float16_cannot_hold(tmp_path: Path, value: float, message: str) -> None:
    images = _images(tmp_path, 3)
    array = np.ones((4, 5), dtype=np.float32)
    array[2] = value
    write_features(tmp_path / "feats/1.npy", array)
    with pytest.raises(DataError, match=message):
        _pack(images, tmp_path / "packed.npy")


def test_nan_in_place_is_found(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    write_features(tmp_path / "feats/test/2.npz", np.full((4, 6), np.nan, dtype=np.float32))
    request = {"raw": raw, "grid": 2, "vectors": "none"}
    with pytest.raises(DataError, match="1 feature file is unusable: .*test/2.npz holds 24 values that are NaN"):
        prepare(PrepareRequest("clevr", out=tmp_path / "a", **request))


def test_packing_again_with_other_words_keeps_the_packed_files(tmp_path: Path) -> None:
    prepare_golden("vqa", tmp_path, pack="float16")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    prepare_golden("vqa", tmp_path, pack="float16", max_words=5)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == before
    prepare_golden("vqa", tmp_path, pack="float32")
    assert not before.keys() & {path.name for path in (tmp_path / "features").iterdir()}
