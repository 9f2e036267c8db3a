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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trarctl.data import Progress
from trarctl.data.features.base import Extractor, ExtractorOptions, other_weights, read_extractor, read_image
from trarctl.data.features.grid import FeatureFileError, Floats, read_cells, read_shape, store_cells
from trarctl.data.features.images import ImageSet, Problems, batched, fingerprint
from trarctl.data.manifest import BACKBONE, key_of
from trarctl.errors import DataError
from trarctl.files import write_json
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image

    from trarctl.data.prepared import PreparedData

# Few enough that a batch of small images stays in the processor's cache.
_BATCH_IMAGES = 32
_SECONDS_BETWEEN_LOOKS = 1.0


class Share(NamedTuple):
    """Which part of the images this process does: every ``num_processes``-th, from ``rank`` on."""

    rank: int
    num_processes: int


def share_of_environment() -> Share:
    """Give the part that ``torchrun`` assigned to this process; all of it without torchrun."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise DataError(
            f"RANK={rank} and WORLD_SIZE={size} do not fit together", "start all processes by torchrun, or unset both"
        )
    return Share(int(rank), int(size))


@dataclass(frozen=True)
class ExtractedRows:
    """Rows of packed features out of pictures."""

    images: ImageSet
    extractor: Extractor

    def fill(self, first: int, out: Floats) -> list[str]:
        """Decode and describe pictures; see ``RowSource``."""
        problems: list[str] = []
        for start in range(0, len(out), _BATCH_IMAGES):
            ids = self.images.ids[first + start : first + min(start + _BATCH_IMAGES, len(out))].tolist()
            good, features, bad = _described(self.images, ids, self.extractor)
            problems += bad
            # Where an image is bad, these rows are never written.
            for image_id, cells, target in zip(good, features, out[start:], strict=False):
                try:
                    store_cells(cells, target)
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
        if share.rank == 0 and not (folder / BACKBONE).exists():
            fit(extractor, sets[0], progress)
            write_json(folder / BACKBONE, extractor.describe())
        while not (folder / BACKBONE).exists():
            progress("waiting for the first process", 0, None)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        extractor = read_extractor(folder / BACKBONE, options)
    problems, is_loaded = Problems("image"), False
    for images in sets:
        (folder / images.name).mkdir(exist_ok=True)
        own = images.ids[share.rank :: share.num_processes].tolist()
        left = _left(folder, images, own)
        if left and not is_loaded:
            extractor.load()
            is_loaded = True
        done = len(own) - len(left)
        # While one batch is in a device's network, another is decoded.
        with ThreadPoolExecutor(len(options.devices) + 1) as pool:
            write = _writer(images, extractor, folder)
            for count, bad in pool.map(write, batched(left, _BATCH_IMAGES)):
                problems.add(bad)
                done += count
                progress(f"extracting features of {images.name}", done, len(own))
    problems.refuse()
    for images in sets if share.num_processes > 1 and share.rank == 0 else []:
        left = images.ids.tolist()
        while left := _left(folder, images, left):
            progress("waiting for the other processes", len(images.ids) - len(left), len(images.ids))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return folder, extractor


def fit(extractor: Extractor, images: ImageSet, progress: Progress) -> None:
    """Fit an extractor to the training images.

    Raises:
        DataError: naming the images that are unusable.
    """

    def batches() -> Iterator[list[Image]]:
        problems, done = Problems("image"), 0
        for ids in batched(images.ids.tolist(), _BATCH_IMAGES):
            found = [read_image(images.file(image_id)) for image_id in ids]
            problems.add([one for one in found if isinstance(one, str)])
            if good := [one for one in found if not isinstance(one, str)]:
                yield good
            done += len(ids)
            progress("fitting the image descriptor", done, len(images.ids))
        problems.refuse()

    extractor.fit(batches())


def extractor_of(data: PreparedData, weights: Path | None = None) -> Extractor:
    """Load the extractor that made the features of prepared data, to describe other pictures alike.

    Args:
        data: the prepared data.
        weights: file of the extractor's weights, if ``prepare`` was given one.

    Raises:
        DataError: the features came from files made elsewhere, or the extractor is not installed or has other weights.
    """
    options = ExtractorOptions(data.manifest.grid_size, weights)
    if data.manifest.images.backbone is not None:
        extractor = read_extractor(data.path / BACKBONE, options)
    else:
        # Version 0.1 had one extractor for images that a user names, and left only the folder of features to tell.
        extractor = EXTRACTORS["resnet101"](options)
        named = _extracted_folder(data.path, extractor, None)
        ours = [one for one in named.parent.glob(f"{named.name[:-8]}*") if _holds_features(one, data)]
        if not ours:
            raise DataError(
                f"the features in {data.path} came from files made elsewhere, so a picture cannot be described alike",
                "predict needs data whose features trarctl made from the images: trarctl prepare --help",
            )
        if named not in ours:
            raise other_weights(data.path, extractor.name, weights)
    extractor.load()
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


def _extracted_folder(out: Path, extractor: Extractor, fitted_to: str | None) -> Path:
    """Name the folder of features, which changes with all that they depend on."""
    identity = extractor.identity() | ({} if fitted_to is None else {"fitted_to": fitted_to})
    return out / "extracted" / f"{extractor.name}-{extractor.grid_size}-{key_of(identity)[:8]}"


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


def _described(images: ImageSet, ids: Sequence[Any], extractor: Extractor) -> tuple[list[Any], Floats, list[str]]:
    """Decode images and describe the good ones: their ids, features [B, N, W], and what is wrong with the others."""
    found = {image_id: read_image(images.file(image_id)) for image_id in ids}
    good = {image_id: one for image_id, one in found.items() if not isinstance(one, str)}
    shape = (len(good), extractor.grid_size**2, extractor.width)
    features = extractor.extract(list(good.values())) if good else np.empty(shape, dtype=np.float32)
    if features.shape != shape:
        raise DataError(
            f"the extractor {extractor.name} gave features of shape {list(features.shape)}, expected {list(shape)}",
            "correct its width, or what its extract returns",
        )
    return list(good), features, [one for one in found.values() if isinstance(one, str)]


def _writer(images: ImageSet, extractor: Extractor, folder: Path) -> Any:
    """Give a function that writes the feature files of a batch, and tells its size and what is wrong with images."""

    def write(ids: Sequence[Any]) -> tuple[int, list[str]]:
        # Taken before the image is read: an image that changes meanwhile is then described again.
        modified = {one: path.stat().st_mtime_ns for one in ids if (path := images.file(one)).exists()}
        good, features, bad = _described(images, ids, extractor)
        for image_id, cells in zip(good, features, strict=True):
            with np.errstate(over="ignore"):
                stored: Floats = cells.astype(extractor.stored_type)
            # Values fit float16 but for rare outliers, which then keep their own type.
            stored = stored if np.isfinite(stored).all() else cells
            path = _feature_file(folder / images.name, images.files.features.name(image_id))
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            with temporary.open("wb") as file:
                np.save(file, stored, allow_pickle=False)
            os.utime(temporary, ns=(modified.get(image_id, 0),) * 2)
            temporary.replace(path)
        return len(ids), bad

    return write
