"""Second half of ``prepare``: the features of all images, checked where they are, or packed into memory-mapped files.

Axes: Q questions, I images of a set, B images of a block, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
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
from trarctl.data.datasets.base import DatasetSpec
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.features.extract import ExtractedRows, Share, extract_files, fit
from trarctl.data.features.grid import FeatureFileError, Floats, read_features, read_shape, read_width, store_cells
from trarctl.data.features.grid import refuse_not_finite as refuse_infinite
from trarctl.data.features.images import (
    Ids,
    ImageSet,
    ImageTable,
    Problems,
    batched,
    build_table,
    feature_folders,
    fingerprint,
    picture_table,
    refuse_missing,
)
from trarctl.data.manifest import BACKBONE, FEATURES, ImageSetPart, ImagesPart, NamingPart, StoredType, key_of
from trarctl.errors import DataError, listed
from trarctl.files import sync_folder, write_bytes, write_json
from trarctl.registry import EXTRACTORS

Pack = Literal["float16", "float32", "as-found"]

_BLOCK_BYTES = 8 << 20
_SYNC_BYTES = 256 << 20
_NUM_THREADS = max(2, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class ImageOptions:
    """What decides the image half of prepared data.

    Attributes:
        features: folder of feature files, one folder per image set in it; None: there are none.
        pack: number type of packed features; None leaves the files where they are.
        check_values: whether every number of every file is read.
        pictures: folder of pictures to make features of; None: none are made.
        extractor: name of what makes them.
        packs_pictures: whether they go straight into packed files, not into feature files.
    """

    features: Path | None
    pack: Pack | None
    check_values: bool
    extractor_options: ExtractorOptions
    pictures: Path | None = None
    extractor: str = ""
    packs_pictures: bool = False


@dataclass(frozen=True)
class ImagePlan:
    """The image table, and a key that changes when anything does that the features depend on.

    ``extractor`` makes or made the features here; with ``options.packs_pictures`` it has yet to be fitted.
    """

    options: ImageOptions
    table: ImageTable
    fingerprints: dict[str, str]
    key: str
    warnings: tuple[str, ...]
    extractor: Extractor | None


def make_features(
    spec: DatasetSpec, named: Mapping[str, Ids], options: ImageOptions, out: Path, share: Share, progress: Progress
) -> tuple[Path, Extractor]:
    """Make feature files of this process's share of the pictures; see ``extract_files``."""
    assert options.pictures is not None  # noqa: S101 - the callers have looked
    sets = picture_table(spec, named, options.pictures).sets
    return extract_files(sets, options.extractor, options.extractor_options, out, share, progress)


def plan_images(
    spec: DatasetSpec, named: Mapping[str, Ids], options: ImageOptions, out: Path, share: Share, progress: Progress
) -> ImagePlan:
    """Look up every image that a question names, [Q] of each split; where feature files are wanted, make them first.

    Raises:
        DataError: naming images that are missing, or pictures that are unusable.
    """
    progress("looking up images", 0, None)
    root, extractor, warnings = options.features, None, tuple[str, ...]()
    # The key's entries are those of version 0.1, so that what it prepared is not prepared again.
    made_by: dict[str, Any] = {"patches": None}
    if options.pictures is not None and options.packs_pictures:
        table = picture_table(spec, named, options.pictures)
        extractor = EXTRACTORS[options.extractor](options.extractor_options)
        made_by = {extractor.name: extractor.identity()}
    else:
        if options.pictures is not None:
            root, extractor = make_features(spec, named, options, out, share, progress)
        table = build_table(spec, named, {} if root is None else feature_folders(spec, root))
        warnings = () if root is None else refuse_missing(table, root, spec.name)
    fingerprints = {images.name: fingerprint(images) for images in table.sets}
    key = {
        "grid_size": options.extractor_options.grid_size,
        "pack": options.pack,
        "check_values": options.check_values,
        "fingerprints": fingerprints,
        "folders": {one.name: str(one.folder.path.resolve()) for one in table.sets if one.folder},
    }
    return ImagePlan(options, table, fingerprints, key_of(key | made_by), warnings, extractor)


def build_images(plan: ImagePlan, out: Path, building: Path, progress: Progress) -> ImagesPart:
    """Check, pack or extract the features of all images.

    Args:
        plan: the image table.
        out: the prepared folder; packed features are written to their place at once, under names that change with
            their content.
        building: where an extractor's description is written.
        progress: told the images done.

    Raises:
        DataError: naming feature files or images that are unusable.
    """
    extractor, options, pack_as = plan.extractor, plan.options, plan.options.pack
    num_cells = options.extractor_options.grid_size**2
    if extractor is not None and options.packs_pictures:
        if extractor.is_fitted:
            fit(extractor, plan.table.sets[0], progress)
        extractor.load()
        pack_as = pack_as or extractor.stored_type
        facts = FileFacts(extractor.width, extractor.stored_type, ())
    else:
        # Packing reads and checks every number anyway, so shapes are enough before it.
        check_values = options.check_values and pack_as is None
        facts = check_files(plan.table.sets, num_cells, check_values=check_values, progress=progress)
    if extractor is not None:
        write_json(building / BACKBONE, extractor.describe())
    parts = []
    for images in plan.table.sets:
        part: dict[str, Any] = {"kind": "none"}
        folder = "" if images.folder is None else images.folder.path.resolve()
        if images.folder is not None and pack_as is None:
            part = {"kind": "files", "folder": os.path.relpath(folder, out.resolve())}
            part |= {"naming": NamingPart(**vars(images.folder.naming)), "stored_type": facts.stored_type}
        elif images.folder is not None and len(images.ids):
            source: RowSource = FileRows(images)
            made_by = None
            if extractor is not None and options.packs_pictures:
                source, made_by = ExtractedRows(images, extractor), extractor.describe()
            stored_type = facts.stored_type if pack_as == "as-found" or pack_as is None else pack_as
            content = [plan.fingerprints[images.name], str(folder), [num_cells, facts.width], stored_type, made_by]
            path = out / FEATURES / f"{images.name}.{key_of({'content': content})[:16]}.npy"
            path.parent.mkdir(exist_ok=True)
            pack(source, path, (len(images.ids), num_cells, facts.width), stored_type, progress=progress)
            part = {"kind": "packed", "file": path.name, "stored_type": stored_type}
        parts.append(ImageSetPart(name=images.name, num_images=len(images.ids), **part))
    return ImagesPart(
        key=plan.key,
        grid_size=options.extractor_options.grid_size,
        feature_width=facts.width,
        pack=options.pack,
        backbone=None if extractor is None else extractor.name,
        image_sets=tuple(parts),
        warnings=plan.warnings + facts.warnings,
    )


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
    found: defaultdict[tuple[int, int, int], list[Path]] = defaultdict(list)
    problems = Problems("feature")

    def look(paths: Sequence[Path]) -> tuple[list[tuple[tuple[int, int, int], Path]], list[str]]:
        good, bad = [], []
        for path in paths:
            try:
                if check_values:
                    array = read_features(path)
                    refuse_infinite(array)
                    (rows, width), dtype = array.shape, array.dtype
                else:
                    (rows, width), dtype = read_shape(path)
                good.append(((rows, width, dtype.itemsize), path))
            except FeatureFileError as error:
                bad.append(f"{path} {error}")
        return good, bad

    for images in sets:
        pieces = batched([images.file(one) for one in images.ids.tolist()] if images.folder else [], 64)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for number, (good, bad) in enumerate(pool.map(look, pieces), start=1):
                problems.add(bad)
                for fact, path in good:
                    found[fact].append(path)
                progress(f"checking features of {images.name}", min(number * 64, len(images.ids)), len(images.ids))
    problems.refuse()
    return _facts(found, num_cells) if found else FileFacts(0, "float32", ())


def _facts(found: Mapping[tuple[int, int, int], list[Path]], num_cells: int) -> FileFacts:
    """Find what all files have in common, by rows, width and bytes per number."""
    counts: defaultdict[int, int] = defaultdict(int)
    for (_, one, _), paths in found.items():
        counts[one] += len(paths)
    width = max(counts, key=lambda one: counts[one])
    others = sorted(f"{path} has {one}" for (_, one, _), paths in found.items() if one != width for path in paths)
    if others:
        raise DataError(
            f"features of mixed widths: {counts[width]:,} files have {width}, but {listed(others, len(others))}",
            "keep features of one extractor only",
        )
    warnings = []
    smallest, largest = min(rows for rows, _, _ in found), max(rows for rows, _, _ in found)
    if smallest > num_cells:
        side = round(smallest**0.5)
        fitting = f"; --grid {side} would use all" if side * side == smallest else ""
        warnings.append(f"every feature file has at least {smallest} rows, of which {num_cells} are used{fitting}")
    if largest < num_cells:
        warnings.append(f"no feature file has more than {largest} rows: {num_cells} are padded with zeros")
    return FileFacts(width, "float16" if all(size == 2 for _, _, size in found) else "float32", tuple(warnings))


class RowSource(Protocol):
    """Where packed features come from; filled from several threads."""

    def fill(self, first: int, out: Floats) -> list[str]:
        """Write the features of the images from row ``first`` on into ``out`` [B, N, W]; return what is wrong."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Rows out of one file per image."""

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
    partial, marker = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.progress")
    dtype, header = np.dtype(stored_type), BytesIO()
    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    row_bytes = shape[1] * shape[2] * dtype.itemsize
    start = _safe_rows(partial, marker, header.getvalue(), row_bytes)
    problems, unsafe_bytes, syncing = Problems("feature"), 0, None
    with partial.open("r+b" if start else "wb") as file, ThreadPoolExecutor(1) as in_background:

        def make_safe(rows: int) -> None:
            os.fsync(file.fileno())
            write_bytes(marker, orjson.dumps({"rows": rows}))

        if not start:
            file.write(header.getvalue())
        file.truncate(file.seek(len(header.getvalue()) + start * row_bytes))
        for first, block, bad in _blocks(source, shape, dtype, start, max(1, _BLOCK_BYTES // row_bytes), num_threads):
            problems.add(bad)
            progress(f"packing {path.name.split('.')[0]}", first + len(block), shape[0])
            if problems.count:
                continue
            file.write(block.data.cast("B"))
            unsafe_bytes += block.nbytes
            if unsafe_bytes >= sync_bytes or first + len(block) == shape[0]:
                if syncing is not None:
                    syncing.result()
                file.flush()
                syncing, unsafe_bytes = in_background.submit(make_safe, first + len(block)), 0
        if syncing is not None:
            syncing.result()
    problems.refuse()
    partial.replace(path)
    marker.unlink(missing_ok=True)
    sync_folder(path.parent)


def _safe_rows(partial: Path, marker: Path, header: bytes, row_bytes: int) -> int:
    """Give the rows of an interrupted attempt that are certainly on the disk."""
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
