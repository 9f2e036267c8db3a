"""Pictures to features through an extractor: going on where an earlier attempt stopped, damaged pictures named.

Pictures that a user names become one ``.npy`` each, and several processes may share the work, each taking every n-th.
Pictures that come with the data set go straight into packed files. Axes: B images, N cells, W feature width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.data import Progress, batched, in_threads
from trarctl.data.features.base import Extractor, ExtractorOptions, make_extractor, other_weights, read_extractor
from trarctl.data.features.grid import REPLACE, FeatureFileError, Floats, Problem, read_cells, read_shape, store_cells
from trarctl.data.features.images import ImageSet, fingerprint, refuse_problems
from trarctl.data.features.reading import READING_VERSION, read_images
from trarctl.data.features.resnet import TORCHVISION_WEIGHTS
from trarctl.data.manifest import BACKBONE, key_of
from trarctl.errors import DataError
from trarctl.files import write_json
from trarctl.groups import read_group
from trarctl.processors import usable_processors

if TYPE_CHECKING:
    from PIL.Image import Image

    from trarctl.data.prepared import PreparedData

EXTRACTED = "extracted"  # folder, in prepared data, of the features that were made for it
# Few enough that a batch of small images stays in the processor's cache.
_BATCH_IMAGES = 32
_PAUSE_SECONDS, _LONGEST_SILENCE_SECONDS = 1.0, 3600.0


def share_of_environment() -> tuple[int, int]:
    """Give rank and number of the processes that a launcher started together; (0, 1) without one."""
    group = read_group(os.environ)
    return (0, 1) if group is None else (group.rank, group.size)


def fill_from_pictures(images: ImageSet, extractor: Extractor, first: int, out: Floats) -> list[Problem]:
    """Write features into ``out`` [B, N, W], from row ``first`` of a set on; return what is wrong with pictures."""
    problems: list[Problem] = []
    for start in range(0, len(out), _BATCH_IMAGES):
        ids = images.ids[first + start : first + min(start + _BATCH_IMAGES, len(out))].tolist()
        good, features, bad = _described(images, ids, extractor)
        problems += bad
        # Where an image is bad, these rows are never written.
        for image_id, cells, target in zip(good, features, out[start:], strict=False):
            try:
                store_cells(cells, target)
            except FeatureFileError as error:
                why = f"makes {extractor.name} give features unfit for a file, of which one {error}"
                problems.append(Problem(images.file(image_id), why, error.hint))
    return problems


def extract_files(
    sets: Sequence[ImageSet], name: str, options: ExtractorOptions, out: Path, progress: Progress
) -> tuple[Path, Extractor]:
    """Make feature files of images that have none yet, this process's share; the first waits for the others.

    The first of ``sets`` holds the training images, which an extractor may have to be fitted to. A DataError names the
    images that are unusable; the features of the others are kept. Gives the folder of feature files and the extractor.
    """
    rank, num_processes = share_of_environment()
    extractor = make_extractor(name, options)
    extractor.fetch(progress)
    sets = [images for images in sets if images.folder is not None]
    fitted_to = fingerprint(sets[0]) if extractor.is_fitted else None
    folder = _extracted_folder(out, extractor, fitted_to, READING_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    if extractor.is_fitted:
        if rank == 0 and not (folder / BACKBONE).exists():
            extractor.fit(training_images(sets[0], extractor, progress))
            write_json(folder / BACKBONE, extractor.describe())
        for _ in _waiting(folder, lambda paths: [path for path in paths if not path.exists()], [folder / BACKBONE]):
            progress("waiting for the first process", 0, None)
        extractor = read_extractor(folder / BACKBONE, options)
    own = {images.name: images.ids[rank::num_processes].tolist() for images in sets}
    left = {images.name: _left(folder, images, own[images.name]) for images in sets}
    if any(left.values()):
        extractor.load()
    problems: list[Problem] = []
    for images in sets:
        (folder / images.name).mkdir(exist_ok=True)
        done = len(own[images.name]) - len(left[images.name])
        # While one batch is in a device's network, another is decoded.
        write = partial(_write_files, images, extractor, folder)
        for count, bad in in_threads(write, batched(left[images.name], _BATCH_IMAGES), len(options.devices) + 1):
            problems += bad
            done += count
            progress(f"extracting features of {images.name}", done, len(own[images.name]))
    refuse_problems("image", problems)
    for images in sets if num_processes > 1 and rank == 0 else []:
        for number in _waiting(folder, partial(_left, folder, images), images.ids.tolist()):
            progress("waiting for the other processes", len(images.ids) - number, len(images.ids))
    return folder, extractor


def _waiting(folder: Path, still_left: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> Iterator[int]:
    """Give the number of items that other processes have left; a DataError says that it stays the same for long."""
    before, since = -1, time.monotonic()
    while items := still_left(items):
        if len(items) != before:
            before, since = len(items), time.monotonic()
        yield len(items)
        if time.monotonic() - since > _LONGEST_SILENCE_SECONDS:
            what = f"other processes wrote nothing to {folder} for {_LONGEST_SILENCE_SECONDS / 60:.0f} minutes"
            raise DataError(what, "see that all of them run with the same options; what is done is kept")
        time.sleep(_PAUSE_SECONDS)


def check_pictures(sets: Sequence[ImageSet], progress: Progress) -> None:
    """Decode every picture; a DataError names those that are unusable."""
    problems = list[Problem]()

    def look(ids: Sequence[Any]) -> list[Problem]:
        return _problems(read_images(map(images.file, ids), lambda image: image.resize((1, 1)))[1])

    for images in sets:
        pieces, num_images = batched(images.ids.tolist() if images.folder else [], _BATCH_IMAGES), len(images.ids)
        for number, bad in enumerate(in_threads(look, pieces, usable_processors()), start=1):
            problems += bad
            progress(f"checking images of {images.name}", min(number * _BATCH_IMAGES, num_images), num_images)
    refuse_problems("image", problems)


def training_images(images: ImageSet, extractor: Extractor, progress: Progress) -> Iterator[list[Image]]:
    """Give batches of images to fit an extractor to; a DataError names those that are unusable, after the last."""
    problems, done = list[Problem](), 0
    for ids in batched(images.ids.tolist(), _BATCH_IMAGES):
        loaded, bad = read_images((images.file(image_id) for image_id in ids), extractor.shrink)
        problems += _problems(bad)
        if loaded:
            yield list(loaded.values())
        done += len(ids)
        progress("fitting the image descriptor", done, len(images.ids))
    refuse_problems("image", problems)


def extractor_of_version_0_1(data: PreparedData, options: ExtractorOptions, progress: Progress) -> Extractor | None:
    """Make the extractor that made the features of prepared data that does not name one; None if there is none.

    Version 0.1 had one extractor for images that a user names, and left only the folder of features to tell.
    """
    folders = (data.path / EXTRACTED).glob(f"resnet101-{options.grid_size}-*")
    ours = {one for one in folders if _holds_features(one, data)}
    if not ours:
        return None
    extractor = make_extractor("resnet101", options)
    extractor.fetch(progress)
    named = set[Path]()
    for said in (TORCHVISION_WEIGHTS, ""):
        extractor.restore({"grid_size": options.grid_size, "weights": said})
        named |= {_extracted_folder(data.path, extractor, None, one) for one in (None, READING_VERSION)}
    if not ours & named:
        raise other_weights(data.path, extractor.name, options.weights)
    return extractor


def _holds_features(folder: Path, data: PreparedData) -> bool:
    """Whether the features of the first image that the data has are those in the folder."""
    files, image_id = data.spec.image_set(data.features.image_set(0)), data.features.image_id(0)
    made = np.zeros((data.features.num_cells, data.features.width), dtype=np.float32)
    try:
        read_cells(_feature_file(folder / files.name, files.features.name(image_id)), made)
        stored = data.features.read(np.array([0]))[0]
    except DataError:
        return False
    # They may have been packed as float16 since they were made.
    return bool(np.allclose(made, stored.astype(np.float32), rtol=1e-2, atol=1e-2))


def _extracted_folder(out: Path, extractor: Extractor, fitted_to: str | None, reading: int | None) -> Path:
    """Name the folder of features, which changes with all that they depend on; ``reading`` is None for version 0.1."""
    also = {"fitted_to": fitted_to, "reading": reading}
    identity = extractor.identity() | {name: value for name, value in also.items() if value is not None}
    return out / EXTRACTED / f"{extractor.name}-{extractor.grid_size}-{key_of(identity)[:8]}"


def _feature_file(folder: Path, name: str) -> Path:
    """Name a feature file as published, but for the ending."""
    return folder / f"{name.removesuffix('.npz').removesuffix('.npy')}.npy"


def _left(folder: Path, images: ImageSet, ids: Sequence[Any]) -> list[Any]:
    """List the images without features that are whole and bear the time of the image's last change."""

    def is_done(image_id: Any) -> bool:
        path = _feature_file(folder / images.name, images.files.features.name(image_id))
        try:
            read_shape(path)
            return path.stat().st_mtime_ns == images.file(image_id).stat().st_mtime_ns
        except (FeatureFileError, OSError):
            return False

    return [image_id for image_id in ids if not is_done(image_id)]


def _problems(pictures: Mapping[Path, DataError]) -> list[Problem]:
    found = pictures.items()
    return [Problem(path, error.what.removeprefix(f"{path} "), error.hint or REPLACE) for path, error in found]


def _described(images: ImageSet, ids: Sequence[Any], extractor: Extractor) -> tuple[list[Any], Floats, list[Problem]]:
    """Decode images and describe the good ones: their ids, features [B, N, W], and what is wrong with the others."""
    found, problems = read_images((images.file(image_id) for image_id in ids), extractor.shrink)
    shape = (len(found), extractor.grid_size**2, extractor.width)
    features = extractor.extract(list(found.values())) if found else np.empty(shape, dtype=np.float32)
    if features.shape != shape:
        what = f"the extractor {extractor.name} gave features of shape {list(features.shape)}, expected {list(shape)}"
        raise DataError(what, "correct its width, or what its extract returns")
    return [image_id for image_id in ids if images.file(image_id) in found], features, _problems(problems)


def _write_files(images: ImageSet, extractor: Extractor, folder: Path, ids: Sequence[Any]) -> tuple[int, list[Problem]]:
    """Write the feature files of a batch of images; give its size, and what is wrong with images."""
    # Taken before the image is read: an image that changes meanwhile is then described again.
    modified = {one: path.stat().st_mtime_ns for one in ids if (path := images.file(one)).exists()}
    good, features, bad = _described(images, ids, extractor)
    for image_id, cells in zip(good, features, strict=True):
        with np.errstate(over="ignore"):
            stored: Floats = cells.astype(extractor.stored_type)
        # Values fit float16 but for rare outliers, which then keep their own type.
        stored = stored if np.isfinite(stored).all() else cells
        path = _feature_file(folder / images.name, images.files.features.name(image_id))
        path.parent.mkdir(parents=True, exist_ok=True)  # of nested names
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.save(file, stored, allow_pickle=False)
        os.utime(temporary, ns=(modified.get(image_id, 0),) * 2)
        temporary.replace(path)
    return len(ids), bad
