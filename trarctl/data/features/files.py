"""Grid features in files: one ``.npy`` or ``.npz`` per image, read without trusting it.

Axes: N cells, W feature width.
"""

from __future__ import annotations

import contextlib
import math
import re
import stat
import struct
import zipfile
import zlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trarctl.errors import DataError

NPZ_KEY = "x"
_MAGIC = b"\x93NUMPY"
_LARGEST_MEMBER_BYTES = 1 << 30
# What numpy writes for a plain array, also on Python 2 (64L); anything else is no grid of features.
_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'([<>=|]?)([A-Za-z])([0-9]*)',\s*'fortran_order':\s*(True|False),"
    rb"\s*'shape':\s*\(([0-9L,\s]*)\),?\s*\}\s*"
)
_NOT_A_PLAIN_ARRAY = "is no plain array of numbers"


class FeatureFileError(Exception):
    """One feature file cannot be used; the message says why, without the file's name."""


class ArrayHeader(NamedTuple):
    """What the first bytes of an array say: shape, type, order, and where the numbers begin."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.floating]
    is_fortran: bool
    start: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_features(path: Path) -> npt.NDArray[np.floating]:
    """Read the features of one image.

    Args:
        path: ``.npy``, or ``.npz`` with the array ``x``.

    Returns:
        [rows, W], as stored: float16 or float32 (float64 becomes float32).

    Raises:
        FeatureFileError: missing, truncated, pickled, of another shape or type, or otherwise unusable.
    """
    content = _content(path)
    header = _header(content[:1024])
    if len(content) != header.start + header.num_bytes:
        raise FeatureFileError(_wrong_size(len(content), header.start + header.num_bytes))
    numbers: npt.NDArray[np.floating] = np.frombuffer(content, dtype=header.dtype, offset=header.start)
    rows, width = header.shape
    array = numbers.reshape(width, rows).T if header.is_fortran else numbers.reshape(rows, width)
    return array.astype(_native(header.dtype), copy=False)


def read_shape(path: Path) -> tuple[tuple[int, int], np.dtype[np.floating]]:
    """Read shape and type of one image's features, without the numbers where the format allows.

    Raises:
        FeatureFileError: as ``read_features``.
    """
    if path.suffix == ".npz":
        array = read_features(path)
        return (array.shape[0], array.shape[1]), array.dtype
    _refuse_special(path)
    try:
        with path.open("rb") as file:
            header = _header(file.read(1024))
            size = file.seek(0, 2)
    except OSError as error:
        raise FeatureFileError(_why(error)) from None
    if size != header.start + header.num_bytes:
        raise FeatureFileError(_wrong_size(size, header.start + header.num_bytes))
    return (header.shape[0], header.shape[1]), _native(header.dtype)


def refuse_not_finite(array: npt.NDArray[np.floating]) -> None:
    """See that every number is finite.

    Raises:
        FeatureFileError: some are not.
    """
    # The sum is finite only if every term is; it is far cheaper than a mask, and a false alarm is settled below.
    with np.errstate(all="ignore"):
        total = np.sum(array, dtype=np.float32 if array.dtype == np.float16 else array.dtype)
    if not np.isfinite(total) and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise FeatureFileError(f"holds {count:,} values that are NaN or infinite")


def fit_cells(array: npt.NDArray[np.floating], num_cells: int, out: npt.NDArray[np.floating]) -> None:
    """Write the features of an image into ``out`` [N, W]: more rows are cut, missing ones are zero."""
    rows = min(len(array), num_cells)
    out[:rows] = array[:rows]
    out[rows:] = 0


def read_cells(path: Path, out: npt.NDArray[np.floating]) -> None:
    """Read one image's features into ``out`` [N, W].

    Raises:
        DataError: the file is missing or cannot be used.
    """
    try:
        array = read_features(path)
        if array.shape[1] != out.shape[1]:
            raise FeatureFileError(f"has features of width {array.shape[1]}, expected {out.shape[1]}")
    except FeatureFileError as error:
        raise DataError(
            f"the features in {path} changed since they were prepared: the file {error}", "run trarctl prepare again"
        ) from None
    fit_cells(array, len(out), out)


def _content(path: Path) -> bytes:
    _refuse_special(path)
    if path.suffix == ".npz":
        return _npz_member(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise FeatureFileError(_why(error)) from None


def _refuse_special(path: Path) -> None:
    """Refuse pipes and devices, which would be read forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FeatureFileError(_why(error)) from None
    if not stat.S_ISREG(mode):
        raise FeatureFileError("is a directory" if stat.S_ISDIR(mode) else "is no regular file")


def _npz_member(path: Path) -> bytes:
    name = f"{NPZ_KEY}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            info = next((member for member in archive.infolist() if member.filename == name), None)
            if info is None:
                raise FeatureFileError(f'has no array "{NPZ_KEY}"')
            if info.file_size > _LARGEST_MEMBER_BYTES:
                raise FeatureFileError(f"unpacks to {info.file_size:,} bytes, more than any grid of features")
            return archive.read(info)
    except (OSError, EOFError) as error:
        raise FeatureFileError(_why(error)) from None
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, OverflowError) as error:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                raise FeatureFileError("is empty") from None
        raise FeatureFileError(f"is truncated or damaged: {str(error).lower() or 'bad archive'}") from None


def _why(error: OSError | EOFError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}".lower()


def _wrong_size(found: int, expected: int) -> str:
    if found < expected:
        return f"is truncated: {found:,} of {expected:,} bytes"
    return f"has {found - expected:,} bytes too many"


def _native(dtype: np.dtype[np.floating]) -> np.dtype[np.floating]:
    return np.dtype(np.float16 if dtype.itemsize == 2 else np.float32)


def _header(start: bytes) -> ArrayHeader:
    if not start:
        raise FeatureFileError("is empty")
    if not start.startswith(_MAGIC):
        is_pickle = start[:1] == b"\x80"
        raise FeatureFileError("is a pickle, which is never loaded" if is_pickle else "is no .npy file")
    if len(start) < 12:
        raise FeatureFileError(f"is truncated: {len(start)} bytes")
    length_bytes = 2 if start[6] == 1 else 4
    begin = 8 + length_bytes
    end = begin + int.from_bytes(start[8:begin], "little")
    if start[6] not in (1, 2, 3) or end > 1024:
        raise FeatureFileError("has a damaged header")
    if len(start) < end:
        raise FeatureFileError(f"is truncated: {len(start)} bytes")
    return _parsed_header(start[:end], begin)


@lru_cache(maxsize=256)
def _parsed_header(header: bytes, begin: int) -> ArrayHeader:
    """Understand a header; real sets repeat a few headers over all files."""
    match = _HEADER.fullmatch(header[begin:])
    if match is None:
        raise FeatureFileError(_NOT_A_PLAIN_ARRAY if b"descr" in header else "has a damaged header")
    byte_order, letter, size, is_fortran, shape_text = match.groups()
    if letter == b"O":
        raise FeatureFileError("holds pickled objects, which are never loaded")
    if letter != b"f" or size not in (b"2", b"4", b"8"):
        raise FeatureFileError(f"holds values of type {(letter + size).decode()}, expected float16 or float32")
    try:
        shape = tuple(int(part.strip().removesuffix(b"L")) for part in shape_text.split(b",") if part.strip())
    except ValueError:
        raise FeatureFileError("has a damaged header") from None
    if len(shape) != 2 or 0 in shape:
        raise FeatureFileError(f"has the shape {list(shape)}, expected [rows, width]")
    dtype = np.dtype((byte_order.replace(b"|", b"=") + letter + size).decode())
    return ArrayHeader(shape, dtype, is_fortran == b"True", len(header))


def array_header_bytes(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """Give the first bytes of a ``.npy`` file, to write its numbers behind."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()
