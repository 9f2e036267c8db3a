"""Grid features as they are read: from one file an image, without trusting it, and from a prepared folder.

Axes: I images, R rows asked for, N cells, W feature width.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from trarctl.data.features import zipped
from trarctl.data.manifest import FEATURES, FeatureStatistics, ImageSetPart, ImagesPart, prepare_command
from trarctl.errors import DataError

Floats = npt.NDArray[np.floating]

_LARGEST_MEMBER_BYTES = 1 << 30
_LARGEST_HEADER = 1024
_AS_FLOAT32 = "pack them as float32: --pack float32"
REPLACE = "replace these files with good copies"
_NUM_SAMPLED, _NUM_VERIFIED = 64, 16  # images of a set


# How files begin that are taken for .npy files, what they are, and what helps.
_SAVE_TORCH = (
    "for maps [1, width, rows, columns]: numpy.save(NEW, torch.load(FILE, weights_only=True)[0].flatten(1).T.numpy())"
)
_SAVE_HDF5 = (
    "write each image's map [width, rows, columns] to a file of its own: numpy.save(NEW, array.reshape(width, -1).T)"
)
_OTHER_KINDS = (
    (b"\x80", "is a pickle, which is never loaded", "save the array by numpy.save"),
    (b"PK\3\4", "is a zip archive, as torch.save and numpy.savez write, not an .npy file", _SAVE_TORCH),
    (b"\x89HDF", "is an HDF5 file, not an .npy file", _SAVE_HDF5),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "git lfs pull"),
)
_OTHER_ENDINGS = {".pth": _SAVE_TORCH, ".pt": _SAVE_TORCH, ".h5": _SAVE_HDF5, ".hdf5": _SAVE_HDF5}


def convert_hint(names: Sequence[str]) -> str:
    """Say how files of another kind become feature files, by the first ending that tells; empty if none does."""
    endings = (Path(name).suffix.lower() for name in names)
    return next((_OTHER_ENDINGS[one] for one in endings if one in _OTHER_ENDINGS), "")


class FeatureFileError(Exception):
    """One feature file cannot be used; the message says why, without the file's name, and ``hint`` what helps."""

    def __init__(self, why: str, hint: str = REPLACE) -> None:
        super().__init__(why)
        self.hint = hint


class Problem(NamedTuple):
    """Which file is unusable, why, and what helps."""

    path: Path
    why: str
    hint: str

    @classmethod
    def of(cls, path: Path, error: FeatureFileError) -> Problem:
        """Give what an error says about a file."""
        return cls(path, str(error), error.hint)


class ArrayHeader(NamedTuple):
    """What the first bytes of an array say: shape and type, the type to give it in, and the size of the whole file."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.floating]
    native: np.dtype[np.floating]
    is_fortran: bool
    start: int
    num_bytes: int


def read_features(path: Path, width: int | None = None) -> Floats:
    """Read one image's features, [rows, W] float16 or float32, from ``.npy`` or ``.npz``, or raise FeatureFileError."""
    content = _content(path)
    header = _header(bytes(content[:_LARGEST_HEADER]), len(content))
    _refuse_other_shape(header.shape)
    if width is not None and header.shape[1] != width:
        raise FeatureFileError(f"has features of width {header.shape[1]}, expected {width}")
    return _numbers(content, header)


def read_grid(path: Path, grid_size: int, width: int) -> Floats:
    """Read the features of a whole grid, [N, W] or [S, S, W], from a file as above; raises as ``whole_grid`` does."""
    content = _content(path)
    return whole_grid(_numbers(content, _header(bytes(content[:_LARGEST_HEADER]), len(content))), grid_size, width)


def whole_grid(array: npt.NDArray[Any], grid_size: int, width: int) -> Floats:
    """Give features of every cell, [N, W] or [S, S, W], as float32 [N, W], or raise a FeatureFileError."""
    shape, num_cells = array.shape, grid_size**2
    expected = f"expected [{num_cells}, {width}] or [{grid_size}, {grid_size}, {width}]"
    if array.dtype.kind != "f":
        what = f"holds values of type {array.dtype}, expected float16 or float32"
        raise FeatureFileError(what, "array.astype('float32')")
    if shape not in ((num_cells, width), (grid_size, grid_size, width)):
        why, hint = _why_no_grid(shape, num_cells, width)
        raise FeatureFileError(f"has the shape {list(shape)}{why}, {expected}", hint)
    with np.errstate(over="ignore"):
        cells: Floats = array.reshape(num_cells, width).astype(np.float32)
    refuse_not_finite(cells)
    return cells


def _why_no_grid(shape: tuple[int, ...], num_cells: int, width: int) -> tuple[str, str]:
    """Say what features of another shape may be, and what helps."""
    if shape == (num_cells + 1, width):
        return ", one row more than cells", "if the first is a class token, leave it out: array[1:]"
    if len(shape) > 1 and shape[0] == width != shape[-1]:
        return ", channels first", f"put them last: array.reshape({width}, -1).T"
    if len(shape) > 2 and shape[0] == 1:
        return ", a batch of one picture", "give the picture alone: array[0]"
    if len(shape) < 2:
        return ", a pooled vector", "give the map of cells before it is pooled"
    if shape[-1] != width:
        return f", features of width {shape[-1]}", "give features of the extractor that the model was trained with"
    rows = math.prod(shape[:-1])
    side = math.isqrt(rows)
    grid = f", a grid of {side} x {side} cells" if side * side == rows else ""
    return grid, "give features of the model's grid; trarctl extract pools published maps to it"


def _content(path: Path) -> bytearray:
    """Read the bytes of an array in the format ``.npy``, out of an archive or not."""
    with _opened(path) as (file, size):
        if path.suffix == ".npz":
            return bytearray(_npz_member(file))
        content = bytearray(size)  # writable, as torch wants what it converts
        del content[file.readinto(content) :]
        return content


def _numbers(content: bytearray, header: ArrayHeader) -> Floats:
    """Give the numbers of an array as float16 or float32; those beyond float32 are refused."""
    numbers: Floats = np.frombuffer(content, dtype=header.dtype, offset=header.start)
    array = numbers.reshape(header.shape, order="F" if header.is_fortran else "C")
    if header.dtype.itemsize <= header.native.itemsize:
        return array.astype(header.native, copy=False)
    with np.errstate(over="ignore"):
        narrowed: Floats = array.astype(header.native)
    beyond = int((np.isinf(narrowed) & np.isfinite(array)).sum())
    if beyond:
        raise FeatureFileError(f"holds {beyond:,} values beyond the range of float32")
    return narrowed


def read_shape(path: Path) -> tuple[tuple[int, int], np.dtype[np.floating]]:
    """Read shape and type of one image's features, without the numbers where the format allows; raises as above."""
    if path.suffix == ".npz":
        array = read_features(path)
        return (array.shape[0], array.shape[1]), array.dtype
    with _opened(path, _LARGEST_HEADER) as (file, size):
        header = _header(file.read(_LARGEST_HEADER), size)
    _refuse_other_shape(header.shape)
    return (header.shape[0], header.shape[1]), header.native


def refuse_not_finite(array: Floats) -> None:
    """Raise a FeatureFileError unless every number is finite."""
    # The sum is finite only if every term is; it is far cheaper than a mask, and a false alarm is settled below.
    with np.errstate(all="ignore"):
        total = np.sum(array, dtype=np.float32 if array.dtype == np.float16 else array.dtype)
    if not np.isfinite(total) and not np.isfinite(array).all():
        raise FeatureFileError(f"holds {(~np.isfinite(array)).sum():,} values that are NaN or infinite")


def fit_cells(array: Floats, out: Floats) -> None:
    """Write the features of an image into ``out`` [N, W]: more rows are cut, missing ones are zero."""
    rows = min(len(array), len(out))
    out[:rows] = array[:rows]
    out[rows:] = 0


def store_cells(array: Floats, out: Floats) -> None:
    """Convert the features of an image into ``out`` [N, W] as ``fit_cells`` does, and see that they survive it."""
    if out.dtype != np.float16 or array.dtype == np.float16:
        refuse_not_finite(array)
        fit_cells(array, out)
        return
    import torch

    rows = min(len(array), len(out))
    out[rows:] = 0
    if len(array) > rows:
        refuse_not_finite(array)
    # numpy rounds to the same bits in twenty times the time.
    torch.from_numpy(out[:rows]).copy_(torch.from_numpy(array[:rows]))
    magnitudes = (out[:rows].view(np.uint16) & np.uint16(0x7FFF)).max(axis=1)
    if magnitudes.max() >= 0x7C00:
        refuse_not_finite(array)
        raise FeatureFileError("holds values beyond the range of float16", _AS_FLOAT32)
    vanished = np.flatnonzero(magnitudes == 0)
    if len(vanished) and array[vanished].any():
        raise FeatureFileError("holds a cell that is zero in float16, which would count as padding", _AS_FLOAT32)


def read_cells(path: Path, out: Floats, again: str = "run trarctl prepare again") -> None:
    """Read one image's features into ``out`` [N, W]; a DataError says why that cannot be done."""
    try:
        fit_cells(read_features(path, out.shape[1]), out)
    except FeatureFileError as error:
        what = f"the features in {path} changed since they were prepared: the file {error}"
        raise DataError(what, again) from None


@contextlib.contextmanager
def _opened(path: Path, most_bytes: int | None = None) -> Iterator[tuple[BufferedReader | BytesIO, int]]:
    """Open a file and give its size; pipes and devices, which would be read forever, are refused.

    Of one that lies in an archive, no more than ``most_bytes`` can be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FeatureFileError("is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if status.st_size == 0:
            raise FeatureFileError("is empty")
        with path.open("rb") as file:
            yield file, status.st_size
    except FileNotFoundError:
        yield _packed(path, most_bytes)
    except OSError as error:
        raise FeatureFileError(f"cannot be read: {error.strerror or error}".lower()) from None


def _packed(path: Path, most_bytes: int | None) -> tuple[BytesIO, int]:
    """Read a file that is not there out of an archive, and give its size."""
    try:
        found = zipped.find(path)
        if found is None:
            raise FeatureFileError("is missing")
        archive, member = found
        if not member.is_stored:
            raise FeatureFileError(f"is compressed in {zipped.ARCHIVE}", f"unzip {zipped.ARCHIVE}, and remove it")
        return BytesIO(archive.read(member, most_bytes)), member.num_bytes
    except DataError as error:
        raise FeatureFileError(f"cannot be read: {error.what}", error.hint or REPLACE) from error
    except OSError as error:
        raise FeatureFileError(f"cannot be read: {error.strerror or error}".lower()) from None


def _npz_member(file: BufferedReader | BytesIO) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = {member.filename: member for member in archive.infolist() if member.filename.endswith(".npy")}
            # A file of one array leaves no doubt, whatever its name.
            info = arrays.get("x.npy", next(iter(arrays.values())) if len(arrays) == 1 else None)
            if info is None:
                names = ", ".join(name.removesuffix(".npy") for name in list(arrays)[:5]) or "no array"
                why = f'has no array "x", but {names}'
                raise FeatureFileError(why, "save the features as x: numpy.savez(FILE, x=array)")
            if info.file_size > _LARGEST_MEMBER_BYTES:
                raise FeatureFileError(f"unpacks to {info.file_size:,} bytes, more than any grid of features")
            if info.flag_bits & 1:
                raise FeatureFileError("is encrypted", "save them without a password")
            return archive.read(info)
    except NotImplementedError:
        raise FeatureFileError("is compressed in a way that is not read here", "save them by numpy.savez") from None
    except (FeatureFileError, MemoryError):
        raise
    except Exception as error:  # what zipfile and the decompressors raise over a damaged archive is not documented
        raise FeatureFileError(f"is truncated or damaged: {str(error).lower() or 'bad archive'}") from error


def _header(start: bytes, size: int) -> ArrayHeader:
    """Read the header of an array from its first bytes, and see that the file has the size that it promises."""
    if not start:
        raise FeatureFileError("is empty")
    if not start.startswith(npy.MAGIC_PREFIX):
        for beginning, why, hint in _OTHER_KINDS:
            if start.startswith(beginning):
                raise FeatureFileError(why, hint)
        raise FeatureFileError("is not an .npy file")
    begin = 10 if start[6:7] == b"\x01" else 12
    end = begin + int.from_bytes(start[8:begin], "little")
    if len(start) < 12 or len(start) < end <= _LARGEST_HEADER:
        raise FeatureFileError(f"is truncated: {len(start)} bytes")
    if start[6] not in (1, 2, 3) or end > _LARGEST_HEADER:
        raise FeatureFileError("has a damaged header")
    header = _parsed_header(start[:end])
    if size < header.num_bytes:
        raise FeatureFileError(f"is truncated: {size:,} of {header.num_bytes:,} bytes")
    if size > header.num_bytes:
        raise FeatureFileError(f"has {size - header.num_bytes:,} bytes too many")
    return header


@lru_cache(maxsize=256)
def _parsed_header(header: bytes) -> ArrayHeader:
    """Let numpy read a header, a few of which repeat over all files of a real set."""
    # Python 2 wrote 64L, on which numpy warns. Versions 2 and 3 differ in the encoding of field names alone.
    stream = BytesIO(re.sub(rb"(?<=[0-9])L", b" ", header))
    stream.seek(npy.MAGIC_LEN)
    read = npy.read_array_header_1_0 if header[6] == 1 else npy.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(stream, max_header_size=_LARGEST_HEADER)
    except Exception as error:  # what numpy raises over a damaged header is not documented
        raise FeatureFileError("has a damaged header") from error
    if dtype.hasobject:
        raise FeatureFileError("holds pickled objects, which are never loaded")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        what = f"holds values of type {dtype.str[1:]}, expected float16 or float32"
        raise FeatureFileError(what, "save them as they were before: numpy.save(FILE, array.astype('float32'))")
    native: np.dtype[Any] = np.dtype(np.float16 if dtype.itemsize == 2 else np.float32)
    num_bytes = len(header) + math.prod(shape) * dtype.itemsize
    return ArrayHeader(shape, dtype, native, is_fortran, len(header), num_bytes)


def _refuse_other_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or min(shape) < 1:
        raise FeatureFileError(f"has the shape {list(shape)}, expected [rows, width]", _how_to_reshape(shape))


def _how_to_reshape(shape: tuple[int, ...]) -> str:
    """Say how arrays of another shape become [rows, width]: maps of a network, channels first or last, or a batch."""
    sizes = [size for size in shape if size != 1] if len(shape) > 3 else list(shape)
    if len(sizes) == 3 and sizes[0] == 1:
        return "save array[0] in their place"
    if len(sizes) == 3 and min(sizes) > 0:
        if sizes[0] == sizes[1] != sizes[2]:
            return f"save array.reshape({sizes[0] * sizes[1]}, {sizes[2]}) in their place"
        return f"save array.reshape({sizes[0]}, {sizes[1] * sizes[2]}).T in their place, if channels come first"
    if len(sizes) < 2:
        return "save the map of cells before it is pooled to one vector"
    return REPLACE


class _PackedFile:
    """Reads images of a packed file [I, N, W] by their rows.

    It is not memory-mapped: a mapped file that is cut or whose disk fails ends the process by a bus error.
    """

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.shape, self._dtype, self._start = array.shape, array.dtype, array.offset
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, row: int, out: Floats) -> bool:
        """Read one image into ``out`` [N, W]; False if the file ends before it or cannot be read."""
        cells = out if out.dtype == self._dtype else np.empty(out.shape, self._dtype)
        try:
            content: Any = cells.view(np.uint8)
            size = os.preadv(self._descriptor, [content], self._start + row * cells.nbytes)
        except OSError:
            return False
        if cells is not out:
            out[:] = cells
        return size == cells.nbytes


class FeatureStore:
    """Features of all images of prepared data, by row of the image table; safe to use from several threads.

    ``part`` is what the manifest says about them, ``ids`` has the image ids of each set, ascending: numbers or texts;
    ``again`` is the command that prepares them again.
    """

    def __init__(
        self, folder: Path, dataset: str, part: ImagesPart, ids: Sequence[npt.NDArray[Any]], again: str | None = None
    ) -> None:
        self._folder = folder
        self._missing = f"{prepare_command(dataset)} --features DIR --out {folder}"
        self._cure = again or self._missing
        self._sets = part.image_sets
        self._ids = ids
        self._starts = np.cumsum([0] + [images.num_images for images in part.image_sets])
        self.num_cells = part.grid_size**2
        self.width = part.feature_width
        self._statistics = part.statistics
        self.num_images = int(self._starts[-1])
        stored = {images.stored_type for images in part.image_sets if images.kind != "none"}
        self.dtype: np.dtype[np.floating[Any]] = np.dtype(np.float16 if stored == {"float16"} else np.float32)
        self._packed = [self._open(images) if images.kind == "packed" else None for images in part.image_sets]
        for images, own in zip(part.image_sets, ids, strict=True):
            if len(own) != images.num_images:
                raise self._damaged(f"images/{images.name}.ids.npy")

    def image_id(self, row: int) -> Any:
        """Give the id of an image, an int or a str as it came."""
        index = int(self._set_indices(np.array([row]))[0])
        return self._ids[index][row - self._starts[index]].item()

    def image_set(self, row: int) -> str:
        """Give the name of the set that an image belongs to."""
        return self._sets[int(self._set_indices(np.array([row]))[0])].name

    def read(self, rows: npt.NDArray[np.integer], out: Floats | None = None) -> Floats:
        """Read the features [R, N, W] of rows of the image table, in any order; missing cells are zero.

        They are float32, or float16 if all features are stored so, and go to ``out`` if that is given. A DataError says
        that there are none, or that a file changed since it was prepared.
        """
        rows = np.asarray(rows)
        set_indices = self._set_indices(rows)
        if out is None:
            out = np.empty((len(rows), self.num_cells, self.width), dtype=self.dtype)
        for index in np.unique(set_indices).tolist():
            targets = np.flatnonzero(set_indices == index)
            images, packed, local = self._sets[index], self._packed[index], rows[targets] - self._starts[index]
            if images.kind == "none":
                raise DataError(f"{self._folder} was prepared without features of {images.name}", self._missing)
            if packed is not None:
                for target, row in zip(targets.tolist(), local.tolist(), strict=True):
                    if not packed.read(row, out[target]):
                        raise self._damaged(f"{FEATURES}/{images.file}")
                continue
            for row, image_id in zip(targets.tolist(), self._ids[index][local].tolist(), strict=True):
                read_cells(self._file(images, image_id), out[row], self._cure)
        return out

    def statistics(self, num_images: int = _NUM_SAMPLED) -> FeatureStatistics | None:
        """Describe the features by a fixed sample of ``num_images`` of every set; None while there are none.

        Which images are taken depends on their ids alone, so that other tables of the same images share most of them.
        """

        def rounded(value: Any) -> float:
            return float(f"{value:.6g}")  # the last digits of a sum depend on the processor

        images: dict[str, dict[str, tuple[float, ...]]] = {}
        zero_cells, squares = list[float](), list[float]()
        along_cells, along_width = np.linspace(-1, 1, self.num_cells), np.linspace(-1, 1, self.width)
        for start, part, ids in zip(self._starts.tolist(), self._sets, self._ids, strict=False):
            if part.kind == "none":
                continue
            sums = np.array([zlib.crc32(str(one).encode()) for one in ids.tolist()], dtype=np.uint32)
            for row in np.argsort(sums, kind="stable")[:num_images].tolist():
                cells = self.read(np.array([start + row]))[0].astype(np.float64)
                if not np.isfinite(cells).all():
                    what = f"the features of image {part.name}/{ids[row]} in {self._folder} are NaN or infinite"
                    raise DataError(what, self._cure)
                by_cell, by_width = cells.mean(axis=1) @ along_cells, cells.mean(axis=0) @ along_width
                moments = cells.mean(), cells.std(), by_cell / self.num_cells, by_width / self.width
                images.setdefault(part.name, {})[str(ids[row])] = tuple(map(rounded, moments))
                zero_cells.append(float((~cells.any(axis=1)).mean()))
                squares.append(float(np.square(cells).mean()))
        if not images:
            return None
        mean = float(np.mean([moments[0] for one in images.values() for moments in one.values()]))
        deviation = max(float(np.mean(squares)) - mean**2, 0.0) ** 0.5
        mean, deviation, zeros = map(rounded, (mean, deviation, np.mean(zero_cells)))
        return FeatureStatistics(mean=mean, deviation=deviation, zero_cells=zeros, images=images)

    def verify(self) -> None:
        """Compare some images with what they were when they were prepared; a DataError says how they differ."""
        if self._statistics is None:
            return
        found = self.statistics(_NUM_VERIFIED)
        if found is not None and (what := found.difference(self._statistics)):
            raise DataError(f"the features of {self._folder} changed since they were prepared: {what}", self._cure)

    def _set_indices(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        if len(rows) and rows.min() == -1:
            what = f"{self._folder} has no features for questions that were left out of training"
            raise DataError(what, f"add those of their images, and {self._cure}")
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_images):
            raise DataError(f"no image in row {rows.min()} or {rows.max()} of {self.num_images}", self._cure)
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _file(self, images: ImageSetPart, image_id: Any) -> Path:
        if images.folder is None or images.naming is None:
            raise self._damaged("manifest.json")
        return self._folder / images.folder / images.naming.naming().name(image_id)

    def _open(self, images: ImageSetPart) -> _PackedFile:
        name = f"{FEATURES}/{images.file}"
        try:
            file = _PackedFile(self._folder / name)
        except Exception as error:  # what numpy raises over a damaged header is not documented
            raise self._damaged(name) from error
        if file.shape != (images.num_images, self.num_cells, self.width):
            raise self._damaged(name)
        return file

    def _damaged(self, name: str) -> DataError:
        return DataError(f"prepared data in {self._folder} is damaged: {name}", self._cure)
