"""Second half of ``prepare``: the features of all images, checked where they are, or packed into one file a set.

Axes: Q questions, I images of a set, B images of a block, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.lib.format as npy
import orjson

from trarctl.data import Progress, in_threads
from trarctl.data.datasets.base import DatasetSpec, feature_namings
from trarctl.data.features.base import Extractor, ExtractorOptions, make_extractor
from trarctl.data.features.extract import check_pictures, extract_files, fill_from_pictures, training_images
from trarctl.data.features.grid import (
    FeatureFileError,
    FeatureStore,
    Floats,
    Problem,
    read_features,
    read_shape,
    refuse_not_finite,
    store_cells,
)
from trarctl.data.features.images import (
    Command,
    Folder,
    ImageSet,
    ImageTable,
    SetPlaces,
    build_table,
    feature_folders,
    fingerprint,
    picture_table,
    refuse_missing,
    refuse_problems,
    scan_folder,
)
from trarctl.data.features.origin import Origin, origin_of
from trarctl.data.features.reading import READING_VERSION
from trarctl.data.features.survey import Common, Survey, in_common, set_warnings
from trarctl.data.manifest import BACKBONE, FEATURES, ImageSetPart, ImagesPart, NamingPart, StoredType, key_of
from trarctl.data.records import Ids, rows_of
from trarctl.errors import DataError
from trarctl.files import remove, sync_folder, write_bytes, write_json
from trarctl.processors import usable_processors

Pack = Literal["float16", "float32", "as-found"]
Fill = Callable[[int, Floats], list[Problem]]
Fact = tuple[int, int, int]  # rows, width and bytes per number of a file
Attempt = Callable[[], AbstractContextManager[None]]

_BLOCK_BYTES = 8 << 20
_SYNC_BYTES = 256 << 20
_FILES_AT_ONCE = 64
# What reading a damaged marker or record raises.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
_NUM_THREADS = max(2, min(8, usable_processors()))


@dataclass(frozen=True)
class ImageOptions:
    """What decides the image half of prepared data: features come from files, or are made of pictures, or are none.

    Without ``pack`` feature files stay where they are; ``packs_pictures`` makes packed features without such files.
    """

    features: Path | None
    pack: Pack | None
    extractor_options: ExtractorOptions
    command: Command
    pictures: Path | None = None
    extractor: str = ""
    packs_pictures: bool = False


@dataclass(frozen=True)
class ImagePlan:
    """The image table, and a key that changes with all that the features depend on; ``extractor`` may be unfitted.

    ``origin`` is what a folder of features says of itself.
    """

    dataset: str
    options: ImageOptions
    table: ImageTable
    fingerprints: dict[str, str]
    key: str
    extractor: Extractor | None
    origin: Origin | None = None


def plan_images(
    spec: DatasetSpec,
    named: Mapping[str, Ids],
    said: Mapping[str, SetPlaces],
    options: ImageOptions,
    out: Path,
    progress: Progress,
) -> ImagePlan:
    """Look up every image that a question names, [Q] of each split; where feature files are wanted, make them first.

    ``named`` and ``said`` are as for ``build_table``.
    """
    progress("looking up images", 0, None)
    root, extractor, origin = options.features, None, None
    # The key's entries are those of version 0.1, so that what it prepared is not prepared again.
    made_by: dict[str, Any] = {"patches": None}
    if options.pictures is not None and options.packs_pictures:
        table = picture_table(spec, named, said, options.pictures, options.command)
        extractor = make_extractor(options.extractor, options.extractor_options)
        extractor.fetch(progress)
        made_by = {extractor.name: extractor.identity(), "reading": READING_VERSION}
    else:
        if options.pictures is not None:
            sets = picture_table(spec, named, said, options.pictures, options.command).sets
            root, extractor = extract_files(sets, options.extractor, options.extractor_options, out, progress)
        folders = dict[str, Folder | None]()
        if root is not None and extractor is not None:
            folders = {one.name: scan_folder(root / one.name, feature_namings(one)) for one in spec.image_sets}
        elif root is not None:
            folders = feature_folders(spec, root, named)
        table = build_table(spec, named, folders, said)
        if root is not None:
            table = replace(table, warnings=refuse_missing(table, root, spec, options.command))
        if root is not None and extractor is None:
            origin = origin_of(root, table.sets, options.extractor_options.grid_size)
            made_by |= {} if origin is None else {BACKBONE: origin.content}
    fingerprints = {images.name: fingerprint(images) for images in table.sets}
    key = {
        "grid_size": options.extractor_options.grid_size,
        "pack": options.pack,
        "check_values": True,
        "fingerprints": fingerprints,
        "folders": {one.name: str(one.folder.path.resolve()) for one in table.sets if one.folder},
    }
    return ImagePlan(spec.name, options, table, fingerprints, key_of(key | made_by), extractor, origin)


def is_current(images: ImagesPart, plan: ImagePlan, out: Path) -> bool:
    """Whether the features that a manifest describes are those of the plan, and still are what they were."""
    packed = [out / FEATURES / part.file for part in images.image_sets if part.file]
    # Version 0.1 kept no record of a packed file.
    if images.key != plan.key or any(_survey_of(path) is None for path in packed if record_of(path).exists()):
        return False
    with suppress(DataError):
        FeatureStore(out, plan.dataset, images, [one.ids for one in plan.table.sets]).verify()
        return True
    return False


def check_images(
    spec: DatasetSpec,
    named: Mapping[str, Ids],
    said: Mapping[str, SetPlaces],
    options: ImageOptions,
    progress: Progress,
    attempt: Attempt,
) -> tuple[dict[str, Folder | None], tuple[str, ...]]:
    """Look at all that the second half of ``prepare`` reads: the folder of each image set, and what is odd.

    ``named`` and ``said`` are as for ``build_table``.
    """
    if not named or (options.pictures is None and options.features is None):
        return {}, ()
    if options.pictures is not None:
        with attempt():
            extractor = make_extractor(options.extractor, options.extractor_options)
            extractor.fetch(progress)
            if not extractor.is_fitted:
                extractor.load()
        table = picture_table(spec, named, said, options.pictures, options.command)
        with attempt():
            check_pictures(table.sets, progress)
        return {images.name: images.folder for images in table.sets}, table.warnings
    assert options.features is not None  # noqa: S101 - one of both is there
    folders = feature_folders(spec, options.features, named)
    table, warnings = build_table(spec, named, folders, said), list[str]()
    with attempt():
        warnings += refuse_missing(table, options.features, spec, options.command)
    there = [replace(one, ids=one.ids[rows_of(one.ids, one.folder.ids) >= 0]) for one in table.sets if one.folder]
    with attempt():
        grid_size = options.extractor_options.grid_size
        origin = origin_of(options.features, table.sets, grid_size)
        common = check_files(there, grid_size**2, progress, check_values=True, pack_as=options.pack)
        if origin is not None:
            origin.refuse_other_width(common.width)
            warnings += origin.warnings
        parts = [_files_part(images, common, str(images.folder.path.resolve())) for images in there if images.folder]
        part = ImagesPart(
            key="", grid_size=grid_size, feature_width=common.width, pack=None, backbone=None, image_sets=tuple(parts)
        )
        store = FeatureStore(Path(), spec.name, part, [images.ids for images in there])
        warnings += [*common.warnings, *set_warnings(store.statistics())]
    return folders, tuple(warnings)


def _files_part(images: ImageSet, common: Common, folder: str) -> ImageSetPart:
    """Describe features that are read where they are; ``folder`` may be relative to the prepared folder."""
    assert images.folder is not None  # noqa: S101 - the callers pass over sets without a folder
    return ImageSetPart(
        name=images.name,
        num_images=len(images.ids),
        kind="files",
        folder=folder,
        naming=NamingPart(**vars(images.folder.naming)),
        stored_type=common.stored_type,
    )


def build_images(
    plan: ImagePlan, out: Path, building: Path, progress: Progress, *, rebuild: bool = False
) -> ImagesPart:
    """Check the features of all images, or pack them in ``out`` under names that change with their content.

    An extractor's description goes into ``building``. Packed files that are whole are kept, unless ``rebuild``.
    """
    extractor, origin, options, pack_as = plan.extractor, plan.origin, plan.options, plan.options.pack
    grid_size = options.extractor_options.grid_size
    if extractor is not None and options.packs_pictures:
        if extractor.is_fitted:
            extractor.fit(training_images(plan.table.sets[0], extractor, progress))
        extractor.load()
        pack_as = pack_as or extractor.stored_type
        common = Common(extractor.width, extractor.stored_type, ())
    else:
        # Packing reads and checks every number anyway, so shapes are enough before it.
        common = check_files(plan.table.sets, grid_size**2, progress, check_values=pack_as is None)
    width, warnings = common.width, [*plan.table.warnings, *common.warnings]
    if origin is not None:
        origin.refuse_other_width(width)
        warnings += origin.warnings
    made_by = None if origin is None else origin.content
    if extractor is not None:
        made_by = extractor.describe()
    if made_by is not None:
        write_json(building / BACKBONE, made_by)
    parts = []
    for images in plan.table.sets:
        part = ImageSetPart(name=images.name, num_images=len(images.ids), kind="none")
        if images.folder is not None and pack_as is None:
            folder = os.path.relpath(images.folder.path.resolve(), out.resolve())
            part = _files_part(images, common, folder)
        elif images.folder is not None and len(images.ids):
            stored_type = common.stored_type if pack_as == "as-found" or pack_as is None else pack_as
            path, survey = _pack_set(plan, images, width, stored_type, out, progress, rebuild=rebuild)
            warnings += survey.warnings(images.name, images.file_of_row)
            part = part.model_copy(update={"kind": "packed", "file": path.name, "stored_type": stored_type})
        parts.append(part)
    images_part = ImagesPart(
        key=plan.key,
        grid_size=grid_size,
        feature_width=width,
        pack=options.pack,
        backbone=None if made_by is None else made_by["name"],
        pictures=None if options.pictures is None else str(options.pictures.absolute()),
        image_sets=tuple(parts),
        warnings=tuple(warnings),
    )
    store = FeatureStore(out, plan.dataset, images_part, [images.ids for images in plan.table.sets])
    statistics = store.statistics()
    warnings += set_warnings(statistics)
    return images_part.model_copy(update={"statistics": statistics, "warnings": tuple(warnings)})


def _pack_set(
    plan: ImagePlan,
    images: ImageSet,
    width: int,
    stored_type: StoredType,
    out: Path,
    progress: Progress,
    *,
    rebuild: bool,
) -> tuple[Path, Survey]:
    """Pack the features of an image set in ``out``, under a name that changes with all that they depend on."""
    assert images.folder is not None  # noqa: S101 - the caller passes over sets without a folder
    shape = (len(images.ids), plan.options.extractor_options.grid_size**2, width)
    fill, made_by = partial(fill_from_files, images), None
    if plan.extractor is not None and plan.options.packs_pictures:
        fill = partial(fill_from_pictures, images, plan.extractor)
        made_by = plan.extractor.describe() | {"reading": READING_VERSION}
    folder = str(images.folder.path.resolve())
    content = [plan.fingerprints[images.name], folder, shape[1:], stored_type, made_by]
    path = out / FEATURES / f"{images.name}.{key_of({'content': content})[:16]}.npy"
    path.parent.mkdir(exist_ok=True)
    return path, pack(fill, path, shape, stored_type, progress, rebuild=rebuild)


def check_files(
    sets: Sequence[ImageSet], num_cells: int, progress: Progress, *, check_values: bool, pack_as: Pack | None = None
) -> Common:
    """Look at the features of every image; a DataError says what is unusable.

    ``check_values`` looks at all values, not only at shapes, and sees whether they can be packed as ``pack_as``.
    """
    found: defaultdict[Fact, list[Path]] = defaultdict(list)
    problems, surveys = list[Problem](), dict[str, Survey]()

    def look(images: ImageSet, first: int) -> tuple[list[tuple[Fact, Path]], Survey]:
        facts, survey = [], Survey()
        ids = images.ids[first : first + _FILES_AT_ONCE].tolist()
        for row, path in enumerate(map(images.file, ids), start=first):
            try:
                if check_values:
                    array = read_features(path)
                    (rows, width), dtype = array.shape, array.dtype
                    refuse_not_finite(array)
                    if pack_as in ("float16", "float32"):
                        store_cells(array, cells := np.empty((num_cells, width), dtype=pack_as))
                        array = cells
                    survey.look(row, array)
                else:
                    (rows, width), dtype = read_shape(path)
                facts.append(((rows, width, dtype.itemsize), path))
            except FeatureFileError as error:
                survey.problems.append(Problem.of(path, error))
        return facts, survey

    for images in sets:
        survey = surveys[images.name] = Survey()
        num_files = len(images.ids) if images.folder else 0
        looks = in_threads(partial(look, images), range(0, num_files, _FILES_AT_ONCE), _NUM_THREADS)
        for number, (facts, part) in enumerate(looks, start=1):
            survey.add(part)
            for fact, path in facts:
                found[fact].append(path)
            progress(f"checking features of {images.name}", min(number * _FILES_AT_ONCE, num_files), num_files)
        problems += survey.problems
    refuse_problems("feature", problems)
    odd = [warning for one in sets for warning in surveys[one.name].warnings(one.name, one.file_of_row)]
    common = in_common(found, num_cells) if found else Common(0, "float32", ())
    return replace(common, warnings=(*common.warnings, *odd))


def fill_from_files(images: ImageSet, first: int, out: Floats) -> list[Problem]:
    """Write features into ``out`` [B, N, W], from row ``first`` of a set on; return what is wrong with files."""
    problems = []
    for cells, image_id in zip(out, images.ids[first : first + len(out)].tolist(), strict=True):
        path = images.file(image_id)
        try:
            store_cells(read_features(path, out.shape[2]), cells)
        except FeatureFileError as error:
            problems.append(Problem.of(path, error))
    return problems


def pack(
    fill: Fill,
    path: Path,
    shape: tuple[int, int, int],
    stored_type: StoredType,
    progress: Progress,
    *,
    rebuild: bool = False,
) -> Survey:
    """Write all rows [I, N, W] of an image set into one file, going on where an earlier attempt was interrupted.

    The name of the file must change with its content: one that is whole is kept, unless ``rebuild``. ``fill`` writes
    the features from a row on into an array [B, N, W] and returns what is wrong; it is called from threads.
    A DataError names the files that are unusable; the rows before them are kept for the next attempt.
    """
    if not rebuild and (found := _survey_of(path)) is not None:
        return found
    unfinished, marker = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.progress")
    if rebuild:
        marker.unlink(missing_ok=True)
    dtype, header = np.dtype(stored_type), BytesIO()
    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, described)
    row_bytes = shape[1] * shape[2] * dtype.itemsize
    start, survey = _safe_rows(unfinished, marker, header.getvalue(), row_bytes)
    unsafe_bytes, syncing = 0, None
    with unfinished.open("r+b" if start else "wb") as file, ThreadPoolExecutor(1) as in_background:

        def make_safe(rows: int, described: dict[str, Any]) -> None:
            os.fsync(file.fileno())
            write_bytes(marker, orjson.dumps({"rows": rows, "survey": described}))

        if not start:
            file.write(header.getvalue())
        file.truncate(file.seek(len(header.getvalue()) + start * row_bytes))
        for first, block, part in _blocks(fill, shape, dtype, start, max(1, _BLOCK_BYTES // row_bytes)):
            survey.add(part)
            progress(f"packing {path.name.split('.')[0]}", first + len(block), shape[0])
            if survey.problems:
                continue
            file.write(block.data.cast("B"))
            unsafe_bytes += block.nbytes
            if unsafe_bytes >= _SYNC_BYTES or first + len(block) == shape[0]:
                if syncing is not None:
                    syncing.result()
                file.flush()
                syncing, unsafe_bytes = in_background.submit(make_safe, first + len(block), survey.described()), 0
        if syncing is not None:
            syncing.result()
    refuse_problems("feature", survey.problems)
    write_bytes(record_of(path), orjson.dumps(_state_of(unfinished) | {"survey": survey.described()}))
    if path.is_dir():
        remove(path)
    unfinished.replace(path)
    marker.unlink(missing_ok=True)
    sync_folder(path.parent)
    return survey


def record_of(path: Path) -> Path:
    """Name the file beside a packed file that says when that was finished."""
    return path.with_name(f".{path.name}.record")


def _survey_of(path: Path) -> Survey | None:
    """Give what was found in a packed file; None unless it is there and was not written to since it was finished."""
    with suppress(*_UNREADABLE):
        content = _content_of(record_of(path))
        if content | _state_of(path) == content:
            return Survey.restored(content["survey"])
    return None


def _content_of(path: Path) -> dict[str, Any]:
    return dict(orjson.loads(path.read_bytes() if path.is_file() else b""))


def _state_of(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "modified_ns": status.st_mtime_ns}


def _safe_rows(unfinished: Path, marker: Path, header: bytes, row_bytes: int) -> tuple[int, Survey]:
    """Give the rows of an interrupted attempt that are certainly on the disk, and what was found in them."""
    with suppress(*_UNREADABLE):
        content = _content_of(marker)
        rows, survey = int(content["rows"]), Survey.restored(content["survey"])
        with unfinished.open("rb") as file:
            has_header = file.read(len(header)) == header
            if has_header and rows > 0 and len(header) + rows * row_bytes <= file.seek(0, os.SEEK_END):
                return rows, survey
    return 0, Survey()


def _blocks(
    fill: Fill, shape: tuple[int, int, int], dtype: np.dtype[np.floating], start: int, rows: int
) -> Iterator[tuple[int, Floats, Survey]]:
    """Fill blocks of rows in threads and give them in order, a few ahead; their memory is used again afterwards."""
    buffers: list[Floats] = [np.empty((rows, *shape[1:]), dtype=dtype) for _ in range(_NUM_THREADS + 1)]

    def filled(first: int) -> tuple[int, Floats, Survey]:
        block = buffers[first // rows % len(buffers)][: shape[0] - first]
        survey = Survey(problems=fill(first, block))
        for row, cells in enumerate(block if not survey.problems else [], start=first):
            survey.look(row, cells)
        return first, block, survey

    return in_threads(filled, range(start, shape[0], rows), _NUM_THREADS, num_ahead=_NUM_THREADS)
