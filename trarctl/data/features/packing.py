"""Features of all images of a set: checked where they are, or packed into one file that is memory-mapped.

Axes: I images of a set, B images of a block, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data import Progress
from trarctl.data.features.files import (
    FeatureFileError,
    array_header_bytes,
    fit_cells,
    read_features,
    read_shape,
    refuse_not_finite,
)
from trarctl.data.features.half import store_half
from trarctl.data.features.image_table import ImageSet
from trarctl.data.manifest import StoredType
from trarctl.errors import DataError, listed
from trarctl.files import sync_folder, write_bytes

_BLOCK_BYTES = 8 << 20
_SYNC_BYTES = 256 << 20
_NUM_THREADS = max(2, min(8, os.cpu_count() or 1))
_HINT = "replace these files by good copies"

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class FileFacts:
    """What the features of all images have in common.

    Args:
        width: feature width W.
        stored_type: float16 if every file is, else float32.
        warnings: what is odd but usable.
    """

    width: int
    stored_type: StoredType
    warnings: tuple[str, ...]


class Problems:
    """Collects what is wrong with files, of which the first ten are named.

    Args:
        kind: what kind of files they are, for the message.
    """

    def __init__(self, kind: str = "feature") -> None:
        self._kind = kind
        self._named: list[str] = []
        self.count = 0

    def add(self, problems: Sequence[str]) -> None:
        """Note problems."""
        self.count += len(problems)
        self._named += problems[: max(0, 10 - len(self._named))]

    def refuse(self, hint: str = _HINT) -> None:
        """Raise if there are any.

        Raises:
            DataError: naming the first ten.
        """
        if self.count:
            noun = f"1 {self._kind} file is" if self.count == 1 else f"{self.count:,} {self._kind} files are"
            raise DataError(f"{noun} unusable: {listed(self._named, self.count)}", hint)


def check_files(sets: Sequence[ImageSet], num_cells: int, *, check_values: bool, progress: Progress) -> FileFacts:
    """Look at the features of every image.

    Args:
        sets: the image sets; those without a folder are passed over.
        num_cells: cells N that a grid has.
        check_values: whether to read every number, to find NaN and infinity; else only shapes, types and sizes.
        progress: told the images done.

    Raises:
        DataError: naming the files that are unusable.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    odd: dict[int, list[str]] = {}
    problems = Problems()
    for images in sets:
        if images.folder is None or not len(images.ids):
            continue
        task = f"checking features of {images.files.name}"
        pieces = [images.ids[first : first + 64].tolist() for first in range(0, len(images.ids), 64)]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for number, (facts, bad) in enumerate(
                pool.map(lambda ids, images=images: _look(images, ids, check_values=check_values), pieces)
            ):
                problems.add(bad)
                for path, fact in facts:
                    found[fact] += 1
                    names = odd.setdefault(fact[1], [])
                    if len(names) <= 10:
                        names.append(path)
                progress(task, min((number + 1) * 64, len(images.ids)), len(images.ids))
    problems.refuse()
    return _facts(found, odd, num_cells)


def _look(
    images: ImageSet, ids: Sequence[int], *, check_values: bool
) -> tuple[list[tuple[str, tuple[int, int, int]]], list[str]]:
    """Give rows, width and bytes per number of each usable file, and what is wrong with the others."""
    assert images.folder is not None  # noqa: S101 - the caller passes over sets without a folder
    facts, bad = [], []
    for image_id in ids:
        path = images.folder.file(image_id)
        try:
            if check_values:
                array = read_features(path)
                refuse_not_finite(array)
                (rows, width), dtype = array.shape, array.dtype
            else:
                (rows, width), dtype = read_shape(path)
        except FeatureFileError as error:
            bad.append(f"{path} {error}")
        else:
            facts.append((str(path), (rows, width, dtype.itemsize)))
    return facts, bad


def _facts(found: Counter[tuple[int, int, int]], odd: dict[int, list[str]], num_cells: int) -> FileFacts:
    if not found:
        return FileFacts(0, "float32", ())
    widths: Counter[int] = Counter()
    rows: Counter[int] = Counter()
    for (num_rows, width, _), count in found.items():
        widths[width] += count
        rows[num_rows] += count
    width = widths.most_common(1)[0][0]
    others = [f"{path} has {other}" for other in widths if other != width for path in odd[other]]
    count = widths.total() - widths[width]
    if count:
        raise DataError(
            f"features of mixed widths: {widths[width]:,} files have {width}, but {listed(others, count)}",
            "keep features of one extractor only",
        )
    warnings = []
    smallest = min(rows)
    if smallest > num_cells:
        side = round(smallest**0.5)
        fitting = f"; --grid {side} would use all" if side * side == smallest else ""
        warnings.append(f"every feature file has at least {smallest} rows, of which {num_cells} are used{fitting}")
    if max(rows) < num_cells:
        warnings.append(f"no feature file has more than {max(rows)} rows: {num_cells} are padded with zeros")
    return FileFacts(width, "float16" if all(size == 2 for _, _, size in found) else "float32", tuple(warnings))


class RowSource(Protocol):
    """Where packed features come from."""

    def fill(self, first: int, out: Floats) -> list[str]:
        """Write the features of the images from row ``first`` on into ``out`` [B, N, W]; return what is wrong."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Rows out of one file per image; safe to fill from several threads."""

    images: ImageSet

    def fill(self, first: int, out: Floats) -> list[str]:
        """Read, check and convert files."""
        assert self.images.folder is not None  # noqa: S101 - only sets with a folder are packed
        problems = []
        for cells, image_id in zip(out, self.images.ids[first : first + len(out)].tolist(), strict=True):
            path = self.images.folder.file(image_id)
            try:
                array = read_features(path)
                if array.shape[1] != out.shape[2]:
                    raise FeatureFileError(f"has features of width {array.shape[1]}, expected {out.shape[2]}")
                _store(array, cells)
            except FeatureFileError as error:
                problems.append(f"{path} {error}")
        return problems


def _store(array: Floats, cells: Floats) -> None:
    """Convert one image's features into ``cells`` [N, W], and see that they survived it."""
    if cells.dtype != np.float16 or array.dtype == np.float16:
        refuse_not_finite(array)
        fit_cells(array, len(cells), cells)
        return
    rows = min(len(array), len(cells))
    cells[rows:] = 0
    if len(array) > rows:
        refuse_not_finite(array)
    if not store_half(array[:rows], cells[:rows]):
        refuse_not_finite(array)
        raise FeatureFileError("holds values beyond the range of float16: pack it as float32")
    # A cell is zero where its bits are, the sign apart.
    vanished = np.flatnonzero((cells[:rows].view(np.uint16) & 0x7FFF).max(axis=1) == 0)
    if len(vanished) and array[vanished].any():
        raise FeatureFileError("holds a cell that is zero in float16, which would count as padding: pack it as float32")


def pack(
    source: RowSource,
    path: Path,
    shape: tuple[int, int, int],
    stored_type: StoredType,
    *,
    progress: Progress,
    num_threads: int = _NUM_THREADS,
    sync_bytes: int = _SYNC_BYTES,
) -> None:
    """Write all rows of an image set into one file, going on where an earlier attempt was interrupted.

    Args:
        source: gives the rows.
        path: the file; its name must change with its content, a file that is there counts as whole.
        shape: [I, N, W].
        stored_type: number type of the file.
        progress: told the images done.
        num_threads: threads that fill blocks.
        sync_bytes: bytes between two points from which an interrupted attempt goes on.

    Raises:
        DataError: naming the files that are unusable; the rows before them are kept for the next attempt.
    """
    if path.exists():
        return
    dtype = np.dtype(stored_type)
    header = array_header_bytes(shape, dtype)
    row_bytes = shape[1] * shape[2] * dtype.itemsize
    problems = Problems()
    with _PartialFile(path, header, row_bytes) as file:
        block_rows = max(1, _BLOCK_BYTES // row_bytes)
        unsafe_bytes = 0
        for first, block, bad in _blocks(source, shape, dtype, file.start, block_rows, num_threads):
            problems.add(bad)
            progress(f"packing {path.name.split('.')[0]}", first + len(block), shape[0])
            if problems.count:
                continue
            file.write(block)
            unsafe_bytes += block.nbytes
            if unsafe_bytes >= sync_bytes:
                file.make_safe(first + len(block))
                unsafe_bytes = 0
        if not problems.count:
            file.make_safe(shape[0], wait=True)
    problems.refuse()
    partial, marker = _companions(path)
    partial.replace(path)
    marker.unlink(missing_ok=True)
    sync_folder(path.parent)


def _companions(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.progress")


class _PartialFile:
    """An unfinished file, opened behind its last safe row; rows become safe in a thread, while more are written."""

    def __init__(self, path: Path, header: bytes, row_bytes: int) -> None:
        self._partial, self._marker = _companions(path)
        self.start = _safe_rows(self._partial, self._marker, header, row_bytes)
        self._file = self._partial.open("r+b" if self.start else "wb")
        self._file.truncate(len(header) + self.start * row_bytes if self.start else 0)
        if not self.start:
            self._file.write(header)
        self._file.seek(0, os.SEEK_END)
        self._syncing = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> _PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._syncing.shutdown(wait=True)
        self._file.close()

    def write(self, block: Floats) -> None:
        """Append rows."""
        self._file.write(block.data.cast("B"))

    def make_safe(self, rows: int, *, wait: bool = False) -> None:
        """Have all rows so far on the disk, and note that they are; at most one such order is under way."""
        if self._last is not None:
            self._last.result()
        self._file.flush()
        self._last = self._syncing.submit(self._sync, rows)
        if wait:
            self._last.result()

    def _sync(self, rows: int) -> None:
        os.fsync(self._file.fileno())
        write_bytes(self._marker, orjson.dumps({"rows": rows}))


def _safe_rows(partial: Path, marker: Path, header: bytes, row_bytes: int) -> int:
    try:
        rows = int(orjson.loads(marker.read_bytes())["rows"])
        with partial.open("rb") as file:
            has_header = file.read(len(header)) == header
            size = file.seek(0, os.SEEK_END)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return rows if has_header and rows > 0 and len(header) + rows * row_bytes <= size else 0


def _blocks(
    source: RowSource, shape: tuple[int, int, int], dtype: np.dtype[np.floating], start: int, rows: int, threads: int
) -> Iterator[tuple[int, Floats, list[str]]]:
    """Fill blocks of rows in threads and give them in order; a block's memory is used again afterwards."""
    firsts = deque(range(start, shape[0], rows))
    free = [np.empty((rows, *shape[1:]), dtype=dtype) for _ in range(threads + 1)]
    running: deque[tuple[int, Floats, Floats, Future[list[str]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while firsts or running:
                while firsts and free:
                    buffer, first = free.pop(), firsts.popleft()
                    block = buffer[: min(rows, shape[0] - first)]
                    running.append((first, block, buffer, pool.submit(source.fill, first, block)))
                first, block, buffer, future = running.popleft()
                yield first, block, future.result()
                free.append(buffer)
        finally:
            for *_, future in running:
                future.cancel()
