"""Second half of ``prepare``: the features of all images, checked where they are, or packed into memory-mapped files.

Axes: Q questions, I images of a set, B images of a block, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.lib.format as npy
import orjson

from trarctl.data import Progress
from trarctl.data.datasets.base import Layout
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.features.extract import ExtractedRows, Share, extract_files, fit
from trarctl.data.features.grid import (
    FeatureFileError,
    Floats,
    read_features,
    read_shape,
    read_width,
    refuse_not_finite,
    store_cells,
)
from trarctl.data.features.images import (
    Ids,
    ImageSet,
    ImageTable,
    Problems,
    build_table,
    feature_folders,
    fingerprint,
    refuse_missing,
    scan_folder,
)
from trarctl.data.manifest import (
    BACKBONE,
    FEATURES,
    IMAGES,
    ImageSetPart,
    ImagesPart,
    NamingPart,
    StoredType,
    key_of,
)
from trarctl.errors import DataError, listed
from trarctl.files import sync_folder, write_array, write_bytes, write_json
from trarctl.registry import EXTRACTORS

Pack = Literal["float16", "float32", "as-found"]

_BLOCK_BYTES = 8 << 20
_SYNC_BYTES = 256 << 20
_NUM_THREADS = max(2, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class FileFacts:
    """What the features of all images have in common: width W, float16 if every file is, and what is odd but usable."""

    width: int
    stored_type: StoredType
    warnings: tuple[str, ...]


def check_files(sets: Sequence[ImageSet], num_cells: int, *, check_values: bool, progress: Progress) -> FileFacts:
    """Look at the features of every image: at all values, or only at shapes, types and sizes.

    Raises:
        DataError: naming the files that are unusable.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    odd: dict[int, list[str]] = {}
    problems = Problems("feature")
    for images in sets:
        if images.folder is None or not len(images.ids):
            continue
        task = f"checking features of {images.name}"
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
    facts, bad = [], []
    for image_id in ids:
        path = images.file(image_id)
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
        problems = []
        for cells, image_id in zip(out, self.images.ids[first : first + len(out)].tolist(), strict=True):
            path = self.images.file(image_id)
            try:
                store_cells(read_width(path, out.shape[2]), cells)
            except FeatureFileError as error:
                problems.append(f"{path} {error}")
        return problems


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
    header = BytesIO()
    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    row_bytes = shape[1] * shape[2] * dtype.itemsize
    problems = Problems("feature")
    with _PartialFile(path, header.getvalue(), row_bytes) as file:
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


@dataclass(frozen=True)
class PictureOptions:
    """Pictures to make features of, and the extractor that makes them.

    Attributes:
        root: has one folder of pictures an image set.
        is_own: whether they come with the data set: their features are then packed at once, without feature files.
    """

    root: Path
    extractor: str
    options: ExtractorOptions
    is_own: bool


@dataclass(frozen=True)
class ImageOptions:
    """What decides the image half of prepared data.

    Attributes:
        grid_size: cells S along one side.
        features: folder of feature files, one folder per image set in it; None: there are none.
        pack: number type of packed features; None leaves the files where they are.
        check_values: whether every number of every file is read.
        pictures: what features are made of; None: none are made.
    """

    grid_size: int
    features: Path | None
    pack: Pack | None
    check_values: bool
    pictures: PictureOptions | None = None


@dataclass(frozen=True)
class ImagePlan:
    """The image table, and a key that changes when anything does that the features depend on.

    Attributes:
        extractor: what makes or made the features here; None: they came in files.
        is_extracted: whether its features lie in feature files already; else ``build_images`` fits it and packs them.
    """

    table: ImageTable
    fingerprints: dict[str, str]
    key: str
    warnings: tuple[str, ...]
    extractor: Extractor | None
    is_extracted: bool


def picture_table(layout: Layout, named: Mapping[str, Ids], pictures: PictureOptions) -> ImageTable:
    """Look up the picture of every image that a question names, by split in ``named``.

    Raises:
        DataError: naming pictures that are missing.
    """
    root = pictures.root
    if not root.is_dir():
        raise DataError(f"no folder of images {root}", "pass the folder that holds them: --images DIR")
    folders = {
        files.name: scan_folder(layout.image_folder(root, files.name), [files.images]) for files in layout.image_sets
    }
    table = build_table(layout, named, folders)
    refuse_missing(table, root, layout.dataset, "images")
    return table


def make_features(
    layout: Layout, named: Mapping[str, Ids], pictures: PictureOptions, out: Path, share: Share, progress: Progress
) -> tuple[Path, Extractor]:
    """Make feature files of this process's share of the pictures; see ``extract_files``."""
    sets = picture_table(layout, named, pictures).sets
    return extract_files(sets, pictures.extractor, pictures.options, out, share, progress)


def plan_images(
    layout: Layout, named: Mapping[str, Ids], options: ImageOptions, out: Path, share: Share, progress: Progress
) -> ImagePlan:
    """Look up every image that a question names; of pictures that a user named, make feature files first.

    Args:
        layout: the data set.
        named: of each split, the image that each question names, [Q].
        options: where the features or pictures are.
        out: the prepared folder.
        share: the part of this process.
        progress: told what is being done.

    Raises:
        DataError: naming images that are missing, or pictures that are unusable.
    """
    progress("looking up images", 0, None)
    pictures, root, extractor = options.pictures, options.features, None
    warnings: tuple[str, ...] = ()
    depends_on: dict[str, Any] = {"patches": None}
    if pictures is not None and pictures.is_own:
        table = picture_table(layout, named, pictures)
        extractor = EXTRACTORS[pictures.extractor](pictures.options)
        depends_on = {extractor.name: extractor.identity()}
    else:
        if pictures is not None:
            root, extractor = make_features(layout, named, pictures, out, share, progress)
        table = build_table(layout, named, {} if root is None else feature_folders(layout, root))
        warnings = () if root is None else refuse_missing(table, root, layout.dataset)
    fingerprints = {images.name: fingerprint(images) for images in table.sets}
    key = {
        "grid_size": options.grid_size,
        "pack": options.pack,
        "check_values": options.check_values,
        "fingerprints": fingerprints,
        "folders": {one.name: str(one.folder.path.resolve()) for one in table.sets if one.folder},
    }
    is_extracted = pictures is not None and not pictures.is_own
    return ImagePlan(table, fingerprints, key_of(key | depends_on), warnings, extractor, is_extracted)


def write_table(plan: ImagePlan, folder: Path) -> None:
    """Write ids by image set and rows by split into ``folder/images``."""
    place = folder / IMAGES
    place.mkdir(exist_ok=True)
    for images in plan.table.sets:
        write_array(place / f"{images.name}.ids.npy", images.ids)
    for split, rows in plan.table.rows.items():
        write_array(place / f"{split}.rows.npy", rows)


def build_images(plan: ImagePlan, options: ImageOptions, out: Path, building: Path, progress: Progress) -> ImagesPart:
    """Check, pack or extract the features of all images.

    Args:
        plan: the image table.
        options: what the user can choose.
        out: the prepared folder; packed features are written to their place at once, under names that change with
            their content.
        building: where an extractor's description is written.
        progress: told the images done.

    Raises:
        DataError: naming feature files or images that are unusable.
    """
    extractor, num_cells, pack_as = plan.extractor, options.grid_size**2, options.pack
    if extractor is not None and not plan.is_extracted:
        if extractor.is_fitted:
            fit(extractor, plan.table.sets[0], progress)
        extractor.load()
        facts = FileFacts(extractor.width, extractor.stored_type, ())
        pack_as = pack_as or "as-found"
    else:
        # Packing reads and checks every number anyway, so shapes are enough before it.
        check_values = options.check_values and pack_as is None
        facts = check_files(plan.table.sets, num_cells, check_values=check_values, progress=progress)
    if extractor is not None:
        write_json(building / BACKBONE, extractor.describe())
    parts = []
    for images in plan.table.sets:
        found: dict[str, Any] = {"kind": "none"}
        if images.folder is not None and pack_as is None:
            naming = NamingPart(**vars(images.folder.naming))
            place = os.path.relpath(images.folder.path.resolve(), out.resolve())
            found = {"kind": "files", "folder": place, "naming": naming, "stored_type": facts.stored_type}
        elif images.folder is not None and len(images.ids):
            stored_type = facts.stored_type if pack_as is None or pack_as == "as-found" else pack_as
            shape = (len(images.ids), num_cells, facts.width)
            made_by = None if extractor is None or plan.is_extracted else extractor.describe()
            place = str(images.folder.path.resolve())
            content = [plan.fingerprints[images.name], place, list(shape[1:]), stored_type, made_by]
            file = f"{images.name}.{key_of({'content': content})[:16]}.npy"
            (out / FEATURES).mkdir(exist_ok=True)
            source = FileRows(images) if extractor is None or plan.is_extracted else ExtractedRows(images, extractor)
            pack(source, out / FEATURES / file, shape, stored_type, progress=progress)
            found = {"kind": "packed", "file": file, "stored_type": stored_type}
        parts.append(ImageSetPart(name=images.name, num_images=len(images.ids), **found))
    return ImagesPart(
        key=plan.key,
        grid_size=options.grid_size,
        feature_width=facts.width,
        pack=options.pack,
        backbone=None if extractor is None else extractor.name,
        image_sets=tuple(parts),
        warnings=plan.warnings + facts.warnings,
    )
