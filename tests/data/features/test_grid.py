"""Feature files: what is read, and one reason for each way in which one can be unusable."""

from __future__ import annotations

import os
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.preparing import write_features
from trarctl.data.datasets.base import FileNaming
from trarctl.data.features.grid import (
    FeatureFileError,
    FeatureStore,
    convert_hint,
    fit_cells,
    read_cells,
    read_features,
    read_grid,
    read_shape,
    refuse_not_finite,
    store_cells,
    whole_grid,
)
from trarctl.data.manifest import ImageSetPart, ImagesPart, NamingPart
from trarctl.errors import DataError

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_good_files(tmp_path: Path, suffix: str, dtype: str, order: Any) -> None:
    path = tmp_path / f"1{suffix}"
    write_features(path, ARRAY.astype(dtype, order=order))
    read = read_features(path)
    np.testing.assert_array_equal(read, ARRAY)
    assert read.dtype == (np.float16 if dtype == "<f2" else np.float32)
    assert read_shape(path) == ((3, 4), read.dtype)


def test_a_file_of_python_2(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }".ljust(117) + b"\n"
    (tmp_path / "1.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + ARRAY.tobytes()
    )
    np.testing.assert_array_equal(read_features(tmp_path / "1.npy"), ARRAY)


def test_a_compressed_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "1.npz", x=ARRAY, y=ARRAY[0])
    np.testing.assert_array_equal(read_features(tmp_path / "1.npz"), ARRAY)


def _npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    stream = BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def _npz(**members: bytes) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            # A fixed date: the tests' names hold the bytes, and must be the same in every process.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content)
    return stream.getvalue()


GOOD = _npy(ARRAY)
BAD_FILES = {
    "is empty": b"",
    "is not an .npy file": b"<html>not found</html>",
    "is a pickle, which is never loaded": b"\x80\x04\x95",
    "is truncated: 7 bytes": GOOD[:7],
    "is truncated: 40 bytes": GOOD[:40],
    "is truncated: 136 of 176 bytes": GOOD[:136],
    "has 5 bytes too many": GOOD + b"extra",
    "holds pickled objects, which are never loaded": _npy(np.array([[{}]], dtype=object), allow_pickle=True),
    "holds values of type i8": _npy(np.zeros((2, 2), dtype=np.int64)),
    r"has the shape \[2, 2, 2\], expected \[rows, width\]": _npy(np.zeros((2, 2, 2), dtype=np.float32)),
    r"has the shape \[4\]": _npy(np.zeros(4, dtype=np.float32)),
    r"has the shape \[0, 4\]": _npy(np.zeros((0, 4), dtype=np.float32)),
    "holds values of type V": _npy(np.zeros((2, 2), dtype=[("a", "<f4")])),
    "has a damaged header": GOOD.replace(b"{'descr'", b"{'desc\xff'"),
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_bad_npy(tmp_path: Path, reason: str) -> None:
    (tmp_path / "1.npy").write_bytes(BAD_FILES[reason])
    for read in (read_features, read_shape):
        with pytest.raises(FeatureFileError, match=reason):
            read(tmp_path / "1.npy")


@pytest.mark.parametrize("reason", BAD_FILES)
def test_bad_arrays_in_archives(tmp_path: Path, reason: str) -> None:
    (tmp_path / "1.npz").write_bytes(_npz(x=BAD_FILES[reason]))
    with pytest.raises(FeatureFileError, match=reason):
        read_features(tmp_path / "1.npz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (_npz(x=GOOD)[:90], "is truncated or damaged"),
        (_npz(x=GOOD).replace(b"\x00\x00\x80?", b"\x00\x00\x81?"), "is truncated or damaged: bad crc-32"),
        (_npz(features=GOOD, boxes=GOOD), 'has no array "x", but features, boxes'),
        (GOOD, "is truncated or damaged"),
    ],
)
def test_bad_archives(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match=reason):
        read_features(tmp_path / "1.npz")


def test_archives_that_are_encrypted_or_compressed_in_another_way(tmp_path: Path) -> None:
    content = _npz(x=GOOD)
    for place in (6, content.index(b"PK\x01\x02") + 8):  # the flags of the file and of its entry in the directory
        content = content[:place] + bytes([content[place] | 1]) + content[place + 1 :]
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match="is encrypted"):
        read_features(tmp_path / "1.npz")
    content = _npz(x=GOOD)
    for place in (8, content.index(b"PK\x01\x02") + 10):  # the method of compression
        content = content[:place] + b"\x63" + content[place + 1 :]
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(FeatureFileError, match="compressed in a way that is not read"):
        read_features(tmp_path / "1.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_content_that_is_damaged(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "1.npz", "w", method) as archive:
        archive.writestr("x.npy", _npy(np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)))
    whole, array = (tmp_path / "1.npz").read_bytes(), read_features(tmp_path / "1.npz")
    for place in range(40, len(whole) - 120, 97):
        (tmp_path / "1.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_features(tmp_path / "1.npz"), array)  # a byte that nobody reads
        except FeatureFileError as error:
            assert str(error).startswith("is truncated or damaged")  # noqa: PT017 - see above


@pytest.mark.filterwarnings("error")
def test_float64_that_float32_cannot_hold(tmp_path: Path) -> None:
    write_features(tmp_path / "1.npy", np.array([[1e300, 1.0, -1e39], [0.5, 0.0, 3.4e38]]))
    with pytest.raises(FeatureFileError, match="holds 2 values beyond the range of float32"):
        read_features(tmp_path / "1.npy")
    write_features(tmp_path / "1.npy", np.array([[np.inf, 1.0], [np.nan, 1e-300]]))
    with pytest.raises(FeatureFileError, match="holds 2 values that are NaN or infinite"):
        refuse_not_finite(read_features(tmp_path / "1.npy"))


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    huge = GOOD.replace(b"(3, 4)", b"(9999999999, 4)").replace(b"         \n", b"\n")
    (tmp_path / "1.npy").write_bytes(huge)
    with pytest.raises(FeatureFileError, match="is truncated"):
        read_features(tmp_path / "1.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_paths_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FeatureFileError, match="is missing"):
        read_features(tmp_path / f"1{suffix}")
    (tmp_path / f"2{suffix}").symlink_to(tmp_path / f"2{suffix}")
    with pytest.raises(FeatureFileError, match="too many levels of symbolic links"):
        read_features(tmp_path / f"2{suffix}")
    (tmp_path / f"3{suffix}").mkdir()
    with pytest.raises(FeatureFileError, match="is a directory"):
        read_features(tmp_path / f"3{suffix}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_are_not_finite(value: float, dtype: Any) -> None:
    array = ARRAY.astype(dtype)
    refuse_not_finite(array)
    array[1, 2] = value
    with pytest.raises(FeatureFileError, match="holds 1 values that are NaN or infinite"):
        refuse_not_finite(array)


def test_large_values_are_no_false_alarm() -> None:
    refuse_not_finite(np.full((64, 64), 3e38, dtype=np.float32))
    refuse_not_finite(np.full((64, 64), 6e4, dtype=np.float16))


def test_rows_are_cut_and_padded() -> None:
    out = np.full((2, 4), 9, dtype=np.float32)
    fit_cells(ARRAY, out)
    np.testing.assert_array_equal(out, ARRAY[:2])
    out = np.full((5, 4), 9, dtype=np.float32)
    fit_cells(ARRAY, out)
    np.testing.assert_array_equal(out, np.vstack([ARRAY, np.zeros((2, 4))]))


def test_a_file_that_changed_since(tmp_path: Path) -> None:
    write_features(tmp_path / "1.npy", ARRAY)
    with pytest.raises(DataError, match="changed since they were prepared: the file has features of width 4.*5"):
        read_cells(tmp_path / "1.npy", np.empty((3, 5), dtype=np.float32))
    os.truncate(tmp_path / "1.npy", 100)
    with pytest.raises(DataError, match="1.npy changed since"):
        read_cells(tmp_path / "1.npy", np.empty((3, 4), dtype=np.float32))


def test_half_precision_rounds_as_numpy_does() -> None:
    bits = np.concatenate([np.arange(0, 0x477FF000, 40_009, dtype=np.uint32), _around_halves()])
    values = np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)[None]
    out = np.empty(values.shape, dtype=np.float16)
    store_cells(values, out)
    np.testing.assert_array_equal(out.view(np.uint16), values.astype(np.float16).view(np.uint16))


def _around_halves() -> np.ndarray[Any, Any]:
    """Bits of float32 numbers next to and at the middle between two float16 numbers, the smallest included."""
    halves = np.arange(0, 0x7BFF, 7, dtype=np.uint16)
    middles = (halves.view(np.float16).astype(np.float64) + (halves + 1).view(np.float16).astype(np.float64)) / 2
    bits = middles.astype(np.float32).view(np.uint32)
    return np.concatenate([bits - np.uint32(1), bits, bits + np.uint32(1)])


@pytest.mark.parametrize("value", [65520.0, -65520.0, np.inf, np.nan])
def test_half_precision_says_what_it_cannot_hold(value: float) -> None:
    out = np.empty((1, 3), dtype=np.float16)
    with pytest.raises(FeatureFileError, match="beyond the range of float16" if np.isfinite(value) else "1 values"):
        store_cells(np.array([[0, value, 1]], dtype=np.float32), out)
    store_cells(np.array([[0, 65519.0, 1]], dtype=np.float32), out)
    assert out.tolist() == [[0, 65504, 1]]


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_half_precision_is_cut_and_padded_too(rows: int, order: Any) -> None:
    out, expected = np.full((rows, 4), 9, dtype=np.float16), np.empty((rows, 4), dtype=np.float16)
    store_cells(np.array(ARRAY, order=order), out)
    fit_cells(ARRAY, expected)
    np.testing.assert_array_equal(out, expected)


IDS = {"numbers": [3, 20, 1000], "texts": ["a", "b.jpg", "äö"]}


@pytest.fixture(params=IDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """Three images in files, two packed in half precision, one without features; image i is all i, [4, 2]."""
    ids = IDS[request.param]
    digits = None if request.param == "texts" else 6
    naming = FileNaming("f_", digits, ".npy")
    for value, image_id in enumerate(ids):
        write_features(tmp_path / "feats/train" / naming.name(image_id), np.full((3, 2), value, dtype=np.float32))
    write_features(tmp_path / "prepared/features/val.npy", np.array([[[3] * 2] * 4, [[4] * 2] * 4], dtype=np.float16))
    parts: list[dict[str, Any]] = [
        {"name": "train", "num_images": 3, "kind": "files", "folder": "../feats/train", "stored_type": "float32"},
        {"name": "val", "num_images": 2, "kind": "packed", "file": "val.npy", "stored_type": "float16"},
        {"name": "test", "num_images": 1, "kind": "none"},
    ]
    parts[0]["naming"] = NamingPart(prefix="f_", num_digits=digits, suffix=".npy")
    sets = tuple(ImageSetPart(**part) for part in parts)
    part = ImagesPart(key="", grid_size=2, feature_width=2, pack=None, backbone=None, image_sets=sets)
    return FeatureStore(tmp_path / "prepared", "clevr", part, [np.array(ids), np.array(ids[:2]), np.array(ids[:1])])


def test_a_store_reads_rows_in_any_order_from_files_and_packed(store: FeatureStore) -> None:
    assert (store.num_images, store.num_cells, store.width, store.dtype) == (6, 4, 2, np.float32)
    read = store.read(np.array([4, 0, 2, 3, 2]))
    np.testing.assert_array_equal(read[:, 0, 0], [4, 0, 2, 3, 2])
    np.testing.assert_array_equal(read[:, 3, 0], [4, 0, 0, 3, 0])  # files have three rows of four cells
    assert store.read(np.array([], dtype=np.int64)).shape == (0, 4, 2)


def test_a_store_of_half_precision_stays_so(store: FeatureStore, tmp_path: Path) -> None:
    sets = (ImageSetPart(name="val", num_images=2, kind="packed", file="val.npy", stored_type="float16"),)
    part = ImagesPart(key="", grid_size=2, feature_width=2, pack="float16", backbone=None, image_sets=sets)
    read = FeatureStore(tmp_path / "prepared", "clevr", part, [np.arange(2)]).read(np.array([1, 0]))
    assert (read.dtype, read[:, 0, 0].tolist()) == (np.float16, [4, 3])


def test_a_store_gives_ids_in_their_own_type(store: FeatureStore) -> None:
    ids = [store.image_id(row) for row in range(6)]
    assert ids in ([3, 20, 1000, 3, 20, 3], ["a", "b.jpg", "äö", "a", "b.jpg", "a"])
    assert set(map(type, ids)) in ({int}, {str})
    assert [store.image_set(row) for row in range(6)] == ["train"] * 3 + ["val"] * 2 + ["test"]


def test_what_a_store_refuses(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was prepared without features of test") as raised:
        store.read(np.array([0, 5]))
    assert raised.value.hint == f"trarctl prepare clevr --features DIR --out {tmp_path / 'prepared'}"
    with pytest.raises(DataError, match="no image in row 0 or 6 of 6"):
        store.read(np.array([0, 6]))


def test_a_store_of_other_shape_is_damaged(tmp_path: Path) -> None:
    write_features(tmp_path / "features/val.npy", np.zeros((2, 4, 2), dtype=np.float16))
    sets = (ImageSetPart(name="val", num_images=2, kind="packed", file="val.npy", stored_type="float16"),)
    part = ImagesPart(key="", grid_size=2, feature_width=2, pack=None, backbone=None, image_sets=sets)
    with pytest.raises(DataError, match="is damaged: images/val.ids.npy"):
        FeatureStore(tmp_path, "clevr", part, [np.arange(3)])
    with pytest.raises(DataError, match="is damaged: .*features/val.npy"):
        FeatureStore(tmp_path, "clevr", part.model_copy(update={"feature_width": 3}), [np.arange(2)])


def test_the_only_array_of_an_archive_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.npz").write_bytes(_npz(arr_0=GOOD))
    np.testing.assert_array_equal(read_features(tmp_path / "1.npz"), ARRAY)


@pytest.mark.parametrize(
    ("start", "why", "hint"),
    [
        (b"PK\3\4" + bytes(90), "is a zip archive, as torch.save", "torch.load(FILE, weights_only=True)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file", "numpy.save(NEW"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS", "git lfs pull"),
        (_npy(np.zeros(4, dtype=np.float32)), r"has the shape \[4\]", "before it is pooled"),
    ],
)
def test_files_of_another_kind_are_named_with_what_helps(tmp_path: Path, start: bytes, why: str, hint: str) -> None:
    (tmp_path / "1.npy").write_bytes(start)
    with pytest.raises(FeatureFileError, match=why) as raised:
        read_features(tmp_path / "1.npy")
    assert hint in raised.value.hint


def test_maps_of_torch_become_rows_as_the_hint_says(tmp_path: Path) -> None:
    maps = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3)
    torch.save(torch.from_numpy(maps), tmp_path / "1.pth")
    names = {"numpy": np, "torch": torch, "FILE": tmp_path / "1.pth", "NEW": tmp_path / "1.npy"}
    eval(convert_hint(["1.pth"]).partition(": ")[2], names)  # noqa: S307
    rows = [[maps[0, channel, row, column] for channel in range(4)] for row in range(2) for column in range(3)]
    np.testing.assert_array_equal(read_features(tmp_path / "1.npy"), rows)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_whole_grid_may_come_as_a_map(tmp_path: Path, suffix: str, order: Any) -> None:
    cells = np.arange(12, dtype=np.float16).reshape(4, 3)
    for array in (cells, cells.reshape(2, 2, 3)):
        write_features(tmp_path / f"1{suffix}", np.array(array, order=order))
        read = read_grid(tmp_path / f"1{suffix}", 2, 3)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, cells)


@pytest.mark.parametrize(
    ("array", "why", "hint"),
    [
        (
            np.ones((4, 5)),
            "features of width 5, expected [4, 3] or [2, 2, 3]",
            "the extractor that the model",
        ),
        (np.ones((9, 3)), "has the shape [9, 3], a grid of 3 x 3 cells, expected", "features of the model's grid"),
        (np.ones((3, 3, 3)), "a grid of 3 x 3 cells, expected", "features of the model's grid"),
        (np.ones((8, 3)), "has the shape [8, 3], expected [4, 3]", "features of the model's grid"),
        (np.ones((5, 3)), "one row more than cells", "if the first is a class token, leave it out: array[1:]"),
        (np.ones((3, 2, 2)), "channels first", "array.reshape(3, -1).T"),
        (np.ones((3, 4)), "channels first", "array.reshape(3, -1).T"),
        (np.ones((1, 4, 3)), "a batch of one picture", "array[0]"),
        (np.ones((1, 2, 2, 3)), "a batch of one picture", "array[0]"),
        (np.ones(3), "a pooled vector", "before it is pooled"),
        (np.array(1.0), "a pooled vector", "before it is pooled"),
        (np.ones((0, 3)), "has the shape [0, 3]", "features of the model's grid"),
        (np.full((4, 3), np.nan), "holds 12 values that are NaN or infinite", "replace"),
        (np.full((4, 3), 1e39), "12 values", "replace"),
        (np.ones((4, 3), dtype=np.int64), "holds values of type i", "float32"),
    ],
)
def test_other_than_a_whole_grid_is_named(array: Any, why: str, hint: str, tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", array)
    for attempt in (lambda: whole_grid(array, 2, 3), lambda: read_grid(tmp_path / "1.npy", 2, 3)):
        with pytest.raises(FeatureFileError) as raised:
            attempt()
        assert why in str(raised.value)
        assert hint in raised.value.hint
