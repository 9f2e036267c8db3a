"""Second half of ``prepare``: the features of all images, checked where they are, or packed into memory-mapped files.

Axes: Q questions, I images of a set, B images of a block, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.lib.format as npy
import orjson

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.features.extract import extract_files, fill_from_pictures, training_images
from trarctl.data.features.grid import (
    FeatureFileError,
    FeatureStore,
    Floats,
    read_features,
    read_shape,
    refuse_not_finite,
    store_cells,
)
from trarctl.data.features.images import (
    ImageSet,
    ImageTable,
    batched,
    build_table,
    feature_folders,
    fingerprint,
    picture_table,
    refuse_missing,
    refuse_problems,
)
from trarctl.data.manifest import BACKBONE, FEATURES, ImageSetPart, ImagesPart, NamingPart, StoredType, key_of
from trarctl.data.records import Ids
from trarctl.errors import DataError, listed
from trarctl.files import sync_folder, write_bytes, write_json
from trarctl.registry import EXTRACTORS

Pack = Literal["float16", "float32", "as-found"]
Fill = Callable[[int, Floats], list[str]]
# What feature files have in common: width W, number type, and what is odd but usable.
Common = tuple[int, StoredType, tuple[str, ...]]

_BLOCK_BYTES = 8 << 20
_SYNC_BYTES = 256 << 20
_NUM_THREADS = max(2, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class ImageOptions:
    """What decides the image half of prepared data: features come from files, or are made of pictures, or are none.

    Without ``pack`` feature files stay where they are; ``packs_pictures`` makes packed features without such files.
    """

    features: Path | None
    pack: Pack | None
    extractor_options: ExtractorOptions
    pictures: Path | None = None
    extractor: str = ""
    packs_pictures: bool = False


@dataclass(frozen=True)
class ImagePlan:
    """The image table, and a key that changes with all that the features depend on; ``extractor`` may be unfitted."""

    dataset: str
    options: ImageOptions
    table: ImageTable
    fingerprints: dict[str, str]
    key: str
    warnings: tuple[str, ...]
    extractor: Extractor | None


def plan_images(
    spec: DatasetSpec, named: Mapping[str, Ids], options: ImageOptions, out: Path, progress: Progress
) -> ImagePlan:
    """Look up every image that a question names, [Q] of each split; where feature files are wanted, make them first."""
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
            sets = picture_table(spec, named, options.pictures).sets
            root, extractor = extract_files(sets, options.extractor, options.extractor_options, out, progress)
        table = build_table(spec, named, {} if root is None else feature_folders(spec, root))
        warnings = () if root is None else refuse_missing(table, root, spec.name)
    fingerprints = {images.name: fingerprint(images) for images in table.sets}
    key = {
        "grid_size": options.extractor_options.grid_size,
        "pack": options.pack,
        "check_values": True,
        "fingerprints": fingerprints,
        "folders": {one.name: str(one.folder.path.resolve()) for one in table.sets if one.folder},
    }
    return ImagePlan(spec.name, options, table, fingerprints, key_of(key | made_by), warnings, extractor)


def build_images(plan: ImagePlan, out: Path, building: Path, progress: Progress) -> ImagesPart:
    """Check or pack the features of all images; an extractor's description goes into ``building``.

    Packed features are written to ``out`` at once, under names that change with their content.
    """
    extractor, options, pack_as = plan.extractor, plan.options, plan.options.pack
    num_cells = options.extractor_options.grid_size**2
    if extractor is not None and options.packs_pictures:
        if extractor.is_fitted:
            extractor.fit(training_images(plan.table.sets[0], extractor, progress))
        extractor.load()
        pack_as = pack_as or extractor.stored_type
        width, common_type, warnings = extractor.width, extractor.stored_type, plan.warnings
    else:
        # Packing reads and checks every number anyway, so shapes are enough before it.
        check_values = pack_as is None
        width, common_type, odd = check_files(plan.table.sets, num_cells, check_values=check_values, progress=progress)
        warnings = plan.warnings + odd
    if extractor is not None:
        write_json(building / BACKBONE, extractor.describe())
    parts = []
    for images in plan.table.sets:
        part: dict[str, Any] = {"kind": "none"}
        folder = "" if images.folder is None else images.folder.path.resolve()
        if images.folder is not None and pack_as is None:
            part = {"kind": "files", "folder": os.path.relpath(folder, out.resolve())}
            part |= {"naming": NamingPart(**vars(images.folder.naming)), "stored_type": common_type}
        elif images.folder is not None and len(images.ids):
            fill, made_by = partial(fill_from_files, images), None
            if extractor is not None and options.packs_pictures:
                fill, made_by = partial(fill_from_pictures, images, extractor), extractor.describe()
            stored_type = common_type if pack_as == "as-found" or pack_as is None else pack_as
            content = [plan.fingerprints[images.name], str(folder), [num_cells, width], stored_type, made_by]
            path = out / FEATURES / f"{images.name}.{key_of({'content': content})[:16]}.npy"
            path.parent.mkdir(exist_ok=True)
            pack(fill, path, (len(images.ids), num_cells, width), stored_type, progress)
            part = {"kind": "packed", "file": path.name, "stored_type": stored_type}
        parts.append(ImageSetPart(name=images.name, num_images=len(images.ids), **part))
    images_part = ImagesPart(
        key=plan.key,
        grid_size=options.extractor_options.grid_size,
        feature_width=width,
        pack=options.pack,
        backbone=None if extractor is None else extractor.name,
        image_sets=tuple(parts),
        warnings=warnings,
    )
    store = FeatureStore(out, plan.dataset, images_part, [images.ids for images in plan.table.sets])
    return images_part.model_copy(update={"statistics": store.statistics()})


def check_files(sets: Sequence[ImageSet], num_cells: int, *, check_values: bool, progress: Progress) -> Common:
    """Look at the features of every image: at all values, or only at shapes, types and sizes."""
    found: defaultdict[tuple[int, int, int], list[Path]] = defaultdict(list)
    problems: list[str] = []

    def look(paths: Sequence[Path]) -> tuple[list[tuple[tuple[int, int, int], Path]], list[str]]:
        good, bad = [], []
        for path in paths:
            try:
                if check_values:
                    array = read_features(path)
                    refuse_not_finite(array)
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
                problems += bad
                for fact, path in good:
                    found[fact].append(path)
                progress(f"checking features of {images.name}", min(number * 64, len(images.ids)), len(images.ids))
    refuse_problems("feature", problems)
    return _in_common(found, num_cells) if found else (0, "float32", ())


def _in_common(found: Mapping[tuple[int, int, int], list[Path]], num_cells: int) -> Common:
    """Compare all files, listed by rows, width and bytes per number."""
    counts: defaultdict[int, int] = defaultdict(int)
    for (_, one, _), paths in found.items():
        counts[one] += len(paths)
    width = max(counts, key=lambda one: counts[one])
    others = sorted(f"{path} has {one}" for (_, one, _), paths in found.items() if one != width for path in paths)
    if others:
        what = f"features of mixed widths: {counts[width]:,} files have {width}, but {listed(others, len(others))}"
        raise DataError(what, "keep features of one extractor only")
    warnings = []
    smallest, largest = min(rows for rows, _, _ in found), max(rows for rows, _, _ in found)
    if smallest > num_cells:
        side = round(smallest**0.5)
        fitting = f"; --grid {side} would use all" if side * side == smallest else ""
        warnings.append(f"every feature file has at least {smallest} rows, of which {num_cells} are used{fitting}")
    if largest < num_cells:
        warnings.append(f"no feature file has more than {largest} rows: {num_cells} are padded with zeros")
    return width, "float16" if all(size == 2 for _, _, size in found) else "float32", tuple(warnings)


def fill_from_files(images: ImageSet, first: int, out: Floats) -> list[str]:
    """Write features into ``out`` [B, N, W], from row ``first`` of a set on; return what is wrong with files."""
    problems = []
    for cells, image_id in zip(out, images.ids[first : first + len(out)].tolist(), strict=True):
        path = images.file(image_id)
        try:
            store_cells(read_features(path, out.shape[2]), cells)
        except FeatureFileError as error:
            problems.append(f"{path} {error}")
    return problems


def pack(fill: Fill, path: Path, shape: tuple[int, int, int], stored_type: StoredType, progress: Progress) -> None:
    """Write all rows [I, N, W] of an image set into one file, going on where an earlier attempt was interrupted.

    The name of the file must change with its content: one that is there counts as whole. ``fill`` writes the features
    from a row on into an array [B, N, W] and returns what is wrong; it is called from threads.

    Raises:
        DataError: naming the files that are unusable; the rows before them are kept for the next attempt.
    """
    if path.exists():
        return
    unfinished, marker = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.progress")
    dtype, header = np.dtype(stored_type), BytesIO()
    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    row_bytes = shape[1] * shape[2] * dtype.itemsize
    start = _safe_rows(unfinished, marker, header.getvalue(), row_bytes)
    problems, unsafe_bytes, syncing = list[str](), 0, None
    with unfinished.open("r+b" if start else "wb") as file, ThreadPoolExecutor(1) as in_background:

        def make_safe(rows: int) -> None:
            os.fsync(file.fileno())
            write_bytes(marker, orjson.dumps({"rows": rows}))

        if not start:
            file.write(header.getvalue())
        file.truncate(file.seek(len(header.getvalue()) + start * row_bytes))
        for first, block, bad in _blocks(fill, shape, dtype, start, max(1, _BLOCK_BYTES // row_bytes)):
            problems += bad
            progress(f"packing {path.name.split('.')[0]}", first + len(block), shape[0])
            if problems:
                continue
            file.write(block.data.cast("B"))
            unsafe_bytes += block.nbytes
            if unsafe_bytes >= _SYNC_BYTES or first + len(block) == shape[0]:
                if syncing is not None:
                    syncing.result()
                file.flush()
                syncing, unsafe_bytes = in_background.submit(make_safe, first + len(block)), 0
        if syncing is not None:
            syncing.result()
    refuse_problems("feature", problems)
    unfinished.replace(path)
    marker.unlink(missing_ok=True)
    sync_folder(path.parent)


def _safe_rows(unfinished: Path, marker: Path, header: bytes, row_bytes: int) -> int:
    """Give the rows of an interrupted attempt that are certainly on the disk."""
    try:
        rows = int(orjson.loads(marker.read_bytes())["rows"])
        with unfinished.open("rb") as file:
            has_header = file.read(len(header)) == header
            size = file.seek(0, os.SEEK_END)
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return rows if has_header and rows > 0 and len(header) + rows * row_bytes <= size else 0


def _blocks(
    fill: Fill, shape: tuple[int, int, int], dtype: np.dtype[np.floating], start: int, rows: int
) -> Iterator[tuple[int, Floats, list[str]]]:
    """Fill blocks of rows in threads and give them in order, a few ahead; their memory is used again afterwards."""
    buffers: list[Floats] = [np.empty((rows, *shape[1:]), dtype=dtype) for _ in range(_NUM_THREADS + 1)]

    def filled(number: int, first: int) -> tuple[int, Floats, list[str]]:
        block = buffers[number % len(buffers)][: shape[0] - first]
        return first, block, fill(first, block)

    pool, running = ThreadPoolExecutor(_NUM_THREADS), deque[Future[tuple[int, Floats, list[str]]]]()
    try:
        for number, first in enumerate(range(start, shape[0], rows)):
            running.append(pool.submit(filled, number, first))
            if len(running) > _NUM_THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
