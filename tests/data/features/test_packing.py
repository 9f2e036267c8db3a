"""Packing: the same numbers in one file, whatever interrupted it, and every bad file named."""

from __future__ import annotations

import gc
import os
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
from trarctl.data.features.packing import fill_from_files, pack, record_of
from trarctl.data.loader import training_samples
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
    assert sorted(path.name for path in tmp_path.glob("*resumed*")) == [".resumed.npy.record", "resumed.npy"]


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
        DataError,
        match=r"16 .* unusable: .*/3.npy is empty \(and so with 4.npy, .*, 12.npy and 5 more\), .*/18.npy holds",
    ):
        _pack(images, tmp_path / "packed.npy")
    assert not (tmp_path / "packed.npy").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e5, "1.npy holds values beyond the range of float16"),
        (1e-9, "1.npy holds a cell that is zero in float16, which would count as padding"),
        (np.inf, "1.npy holds 5 values that are NaN or infinite"),
    ],
)
def test_what_float16_cannot_hold(tmp_path: Path, value: float, message: str) -> None:
    images = _images(tmp_path, 3)
    array = np.ones((4, 5), dtype=np.float32)
    array[2] = value
    write_features(tmp_path / "feats/1.npy", array)
    with pytest.raises(DataError, match=message) as error:
        _pack(images, tmp_path / "packed.npy")
    assert error.value.hint is not None
    assert ("--pack float32" in error.value.hint) == np.isfinite(value)


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


# Damage to packed files


def _packed(folder: Path) -> Path:
    return next((folder / "features").glob("train2014*.npy"))


def _set_zero(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    array[:] = 0
    array.flush()


def _change_one(path: Path) -> None:
    array = np.load(path, mmap_mode="r+")
    array[3, 2, 1] += 1
    array.flush()


DAMAGES: dict[str, Any] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1000),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 8),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "zero": _set_zero,
    "one number": _change_one,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "record lost": lambda path: record_of(path).write_bytes(b"\x00"),
}


@pytest.mark.parametrize("options", [{}, {"rebuild": True}, {"max_words": 5}], ids=str)
@pytest.mark.parametrize("damage", DAMAGES)
def test_prepare_mends_a_damaged_packed_file(tmp_path: Path, damage: str, options: dict[str, Any]) -> None:
    prepare_golden("vqa", tmp_path, pack="float16")
    whole = _packed(tmp_path).read_bytes()
    others = {path: path.read_bytes() for path in (tmp_path / "features").glob("*.npy")}
    DAMAGES[damage](_packed(tmp_path))
    assert not prepare_golden("vqa", tmp_path, pack="float16", **options).was_current
    assert _packed(tmp_path).read_bytes() == whole
    assert {path: path.read_bytes() for path in (tmp_path / "features").glob("*.npy")} == others
    training_samples(open_prepared(tmp_path), "train", "bce")
    assert prepare_golden("vqa", tmp_path, pack="float16", **options | {"rebuild": False}).was_current


def test_content_that_was_lost_in_a_power_cut_is_found_by_a_sample(tmp_path: Path) -> None:
    """Size and time of change are those of the whole file."""
    prepare_golden("vqa", tmp_path, pack="float16")
    path = _packed(tmp_path)
    whole, status = path.read_bytes(), path.stat()
    _set_zero(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="has mean 0, deviation 0, expected mean") as error:
        training_samples(open_prepared(tmp_path), "train", "bce")
    assert error.value.hint is not None
    assert not prepare_golden("vqa", tmp_path, pack="float16").was_current
    assert path.read_bytes() == whole


def test_rebuild_always_packs_again(tmp_path: Path) -> None:
    prepare_golden("vqa", tmp_path, pack="float16")
    before = _packed(tmp_path).stat()
    prepare_golden("vqa", tmp_path, pack="float16", rebuild=True)
    assert _packed(tmp_path).stat().st_ino != before.st_ino


def test_a_packed_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    prepare_golden("vqa", tmp_path, pack="float16")
    features = open_prepared(tmp_path).features
    features.read(np.arange(3))
    os.truncate(_packed(tmp_path), 200)
    with pytest.raises(DataError, match=r"is damaged: features/train2014\..*npy"):
        features.read(np.arange(3))


def test_a_packed_file_is_closed_with_its_store(tmp_path: Path) -> None:
    prepare_golden("vqa", tmp_path, pack="float16")
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    open_prepared(tmp_path).features.read(np.arange(3))
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
