"""Pictures to features through an extractor: going on where an earlier attempt stopped, damaged pictures named.

Pictures that a user names become one ``.npy`` each, and several processes may share the work, each taking every n-th.
Pictures that come with the data set go straight into packed files. Axes: B images, N cells, W feature width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress
from trarctl.data.features.base import Extractor, ExtractorOptions, read_extractor, read_image
from trarctl.data.features.grid import FeatureFileError, Floats, read_cells, read_shape, store_cells
from trarctl.data.features.images import ImageSet, Problems, fingerprint
from trarctl.data.manifest import BACKBONE, key_of
from trarctl.errors import DataError
from trarctl.files import write_json
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image

    from trarctl.data.prepared import PreparedData

EXTRACTED = "extracted"

# Few enough that a batch of small images stays in the processor's cache.
_BATCH_IMAGES = 32
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Share:
    """Which part of the images this process does: every ``num_processes``-th, from ``rank`` on."""

    rank: int = 0
    num_processes: int = 1


def share_of_environment() -> Share:
    """Give the part that ``torchrun`` assigned to this process; all of it without torchrun."""
    try:
        share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        share = Share(-1, 0)
    if not 0 <= share.rank < share.num_processes:
        raise DataError(
            f"RANK={os.environ.get('RANK')} and WORLD_SIZE={os.environ.get('WORLD_SIZE')} do not fit together",
            "start all processes by torchrun, or unset both",
        )
    return share


@dataclass(frozen=True)
class ExtractedRows:
    """Rows of packed features out of pictures; safe to fill from several threads."""

    images: ImageSet
    extractor: Extractor

    def fill(self, first: int, out: Floats) -> list[str]:
        """Write the features of the images from row ``first`` on into ``out`` [B, N, W]; return what is wrong."""
        problems: list[str] = []
        ids = self.images.ids[first : first + len(out)].tolist()
        for start in range(0, len(ids), _BATCH_IMAGES):
            good, cells, bad = _described(self.images, ids[start : start + _BATCH_IMAGES], self.extractor)
            problems += bad
            # Where an image is bad, these rows are never written.
            for image_id, one, target in zip(good, cells, out[start:], strict=False):
                try:
                    store_cells(one, target)
                except FeatureFileError as error:
                    problems.append(f"what {self.extractor.name} makes of {self.images.file(image_id)} {error}")
        return problems


def extract_files(
    sets: Sequence[ImageSet], name: str, options: ExtractorOptions, out: Path, share: Share, progress: Progress
) -> tuple[Path, Extractor]:
    """Make feature files of all images that have none yet; the first process then waits for the others.

    Args:
        sets: the images, the training images first; sets without a folder are passed over.
        name: the extractor, which is fitted if it has to be.
        options: what it is made with.
        out: the prepared folder.
        share: the part of this process.
        progress: told the images done.

    Returns:
        The folder that has one folder of feature files an image set, and the extractor.

    Raises:
        DataError: naming the images that are unusable; the features of the others are kept.
    """
    extractor: Extractor = EXTRACTORS[name](options)
    sets = [images for images in sets if images.folder is not None]
    folder = _extracted_folder(out, extractor, fingerprint(sets[0]) if extractor.is_fitted else None)
    folder.mkdir(parents=True, exist_ok=True)
    if extractor.is_fitted:
        _fit_once(extractor, sets[0], folder / BACKBONE, share, progress)
        extractor = read_extractor(folder / BACKBONE, options)
    problems, is_loaded = Problems("image"), False
    for images in sets:
        (folder / images.name).mkdir(exist_ok=True)
        own = images.ids[share.rank :: share.num_processes].tolist()
        left = [image_id for image_id in own if not _is_done(folder, images, image_id)]
        if left and not is_loaded:
            extractor.load()
            is_loaded = True
        batches = [left[first : first + _BATCH_IMAGES] for first in range(0, len(left), _BATCH_IMAGES)]
        done = len(own) - len(left)
        # While one batch is in a device's network, another is decoded.
        for count, bad in _written(batches, images, extractor, folder, len(options.devices) + 1):
            problems.add(bad)
            done += count
            progress(f"extracting features of {images.name}", done, len(own))
    problems.refuse()
    for images in sets if share.num_processes > 1 and share.rank == 0 else []:
        left = images.ids.tolist()
        while left := [image_id for image_id in left if not _is_done(folder, images, image_id)]:
            progress("waiting for the other processes", len(images.ids) - len(left), len(images.ids))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return folder, extractor


def fit(extractor: Extractor, images: ImageSet, progress: Progress) -> None:
    """Fit an extractor to the training images.

    Raises:
        DataError: naming the images that are unusable.
    """

    def batches() -> Iterator[list[Image]]:
        problems = Problems("image")
        for first in range(0, len(images.ids), _BATCH_IMAGES):
            found = [read_image(images.file(one)) for one in images.ids[first : first + _BATCH_IMAGES].tolist()]
            problems.add([one for one in found if isinstance(one, str)])
            if good := [one for one in found if not isinstance(one, str)]:
                yield good
            progress("fitting the image descriptor", min(first + _BATCH_IMAGES, len(images.ids)), len(images.ids))
        problems.refuse()

    extractor.fit(batches())


def extractor_of(data: PreparedData, weights: Path | None = None) -> Extractor:
    """Load the extractor that made the features of prepared data, to describe other pictures alike.

    Args:
        data: the prepared data.
        weights: file of the extractor's weights, if ``prepare`` was given one.

    Raises:
        DataError: the features came from files made elsewhere, the extractor is not installed, or its weights are
            others.
    """
    options = ExtractorOptions(data.manifest.grid_size, weights)
    if data.manifest.images.backbone is not None:
        extractor = read_extractor(data.path / BACKBONE, options)
    else:
        extractor = _undescribed(data, options)
    extractor.load()
    return extractor


def _undescribed(data: PreparedData, options: ExtractorOptions) -> Extractor:
    """Give the ResNet-101 that version 0.1 made features with, which left only their folder to tell."""
    extractor: Extractor = EXTRACTORS["resnet101"](options)
    folders = (data.path / EXTRACTED).glob(f"{extractor.name}-{options.grid_size}-*")
    ours = [folder for folder in folders if _holds_features(folder, data)]
    if not ours:
        raise DataError(
            f"the features in {data.path} came from files made elsewhere, so a picture cannot be described alike",
            "predict needs data whose features trarctl made from the images: trarctl prepare --help",
        )
    if _extracted_folder(data.path, extractor, None) not in ours:
        raise DataError(
            f"the features in {data.path} were made by {extractor.name} with other weights than "
            f"{options.weights if options.weights is not None else 'those that torchvision downloads'}",
            "--weights FILE: the file that trarctl prepare was given",
        )
    return extractor


def _holds_features(folder: Path, data: PreparedData) -> bool:
    """Whether the features of the first image that the data has are those in the folder."""
    name, image_id = data.features.image_set(0), data.features.image_id(0)
    files = data.spec.image_set(name)
    made = np.zeros((data.features.num_cells, data.features.width), dtype=np.float32)
    try:
        read_cells(_feature_file(folder / name, files.features.name(image_id)), made)
        stored = data.features.read(np.array([0]))[0]
    except DataError:
        return False
    # They may have been packed as float16 since they were made.
    return bool(np.allclose(made, stored.astype(np.float32), rtol=1e-2, atol=1e-2))


def _extracted_folder(out: Path, extractor: Extractor, fitted_to: str | None) -> Path:
    """Name the folder of features, which changes with all that they depend on."""
    identity = extractor.identity() | ({} if fitted_to is None else {"fitted_to": fitted_to})
    return out / EXTRACTED / f"{extractor.name}-{extractor.grid_size}-{key_of(identity)[:8]}"


def _fit_once(extractor: Extractor, images: ImageSet, path: Path, share: Share, progress: Progress) -> None:
    """Fit in the first process and leave the outcome in a file, for the others and for the next attempt."""
    if share.rank == 0 and not path.exists():
        fit(extractor, images, progress)
        write_json(path, extractor.describe())
    while not path.exists():
        progress("waiting for the first process", 0, None)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _feature_file(folder: Path, name: str) -> Path:
    """Name a feature file as published, but for the ending."""
    return folder / f"{name.removesuffix('.npz').removesuffix('.npy')}.npy"


def _is_done(folder: Path, images: ImageSet, image_id: Any) -> bool:
    """Whether an image has features that are whole and bear the time of its last change."""
    path = _feature_file(folder / images.name, images.files.features.name(image_id))
    try:
        read_shape(path)
        return path.stat().st_mtime_ns == images.file(image_id).stat().st_mtime_ns
    except (FeatureFileError, OSError):
        return False


def _described(images: ImageSet, ids: Sequence[Any], extractor: Extractor) -> tuple[list[Any], Floats, list[str]]:
    """Decode images and describe the good ones: their ids, features [B, N, W], and what is wrong with the others."""
    found = [read_image(images.file(image_id)) for image_id in ids]
    good = [image_id for image_id, one in zip(ids, found, strict=True) if not isinstance(one, str)]
    bad = [one for one in found if isinstance(one, str)]
    shape = (len(good), extractor.grid_size**2, extractor.width)
    if not good:
        return good, np.empty(shape, dtype=np.float32), bad
    cells = extractor.extract([one for one in found if not isinstance(one, str)])
    if cells.shape != shape:
        raise DataError(
            f"the extractor {extractor.name} gave features of shape {list(cells.shape)}, expected {list(shape)}",
            "correct its grid_size, its width or what its extract returns",
        )
    return good, cells, bad


def _written(
    batches: Sequence[list[Any]], images: ImageSet, extractor: Extractor, folder: Path, num_threads: int
) -> Iterator[tuple[int, list[str]]]:
    """Write the feature files of batches of images; give how many images a batch had, and what is wrong with some."""

    def write(batch: list[Any]) -> tuple[int, list[str]]:
        # Taken before the image is read: an image that changes meanwhile is then described again.
        modified = {image_id: _modified_ns(images.file(image_id)) for image_id in batch}
        good, features, bad = _described(images, batch, extractor)
        for image_id, cells in zip(good, features, strict=True):
            path = _feature_file(folder / images.name, images.files.features.name(image_id))
            _write(path, cells, extractor, modified[image_id])
        return len(batch), bad

    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(write, batches)


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _write(path: Path, cells: npt.NDArray[np.floating], extractor: Extractor, modified_ns: int) -> None:
    with np.errstate(over="ignore"):
        stored = cells.astype(extractor.stored_type)
    # Values fit float16 but for rare outliers, which then keep their own type.
    if not np.isfinite(stored).all():
        stored = cells
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, stored, allow_pickle=False)
    os.utime(temporary, ns=(modified_ns, modified_ns))
    temporary.replace(path)
