"""The image table: which images the questions name, and where the features of each are.

Axes: Q questions, I images of a set.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data.datasets.base import FileNaming, ImageSetFiles, Layout, feature_namings, numbers_in_names
from trarctl.data.records import rows_of
from trarctl.errors import DataError, listed

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Folder:
    """A folder with one file per image.

    Args:
        path: the folder.
        naming: how its files are named.
        ids: the images it holds, ascending, [I].
        num_odd: files whose names are not understood.
    """

    path: Path
    naming: FileNaming
    ids: Ids
    num_odd: int

    def file(self, image_id: int) -> Path:
        """Give the file of an image."""
        return self.path / self.naming.name(image_id)


@dataclass(frozen=True)
class ImageSet:
    """The images of one set that questions name, ascending, and where they are (None: no such folder)."""

    files: ImageSetFiles
    ids: Ids
    folder: Folder | None


@dataclass(frozen=True)
class ImageTable:
    """All images that questions name: set after set, each ascending by id.

    Args:
        sets: the image sets in row order.
        rows: of each split, the row of each question's image, [Q] int32.
    """

    sets: tuple[ImageSet, ...]
    rows: dict[str, npt.NDArray[np.int32]]


def scan_folder(path: Path, namings: Sequence[FileNaming]) -> Folder | None:
    """List the files of a folder; of several ways to name them, the one that most files follow.

    Returns:
        None if there is no such folder.

    Raises:
        DataError: it cannot be read.
    """
    try:
        names = os.listdir(path)  # noqa: PTH208 - a hundred thousand Path objects would only be taken apart again
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the folder {path}: {error.strerror or error}", "let it be read: chmod u+rx"
        ) from error
    best, numbers = namings[0], numbers_in_names(names, namings[0])
    for naming in namings[1:]:
        if len(numbers) > len(names) // 2:
            break
        others = numbers_in_names(names, naming)
        if len(others) > len(numbers):
            best, numbers = naming, others
    return Folder(path, best, np.unique(np.array(numbers, dtype=np.int64)), len(names) - len(numbers))


def feature_folders(layout: Layout, root: Path) -> dict[str, Folder | None]:
    """Look for the features of every image set.

    Raises:
        DataError: ``root`` is no folder, or a folder cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"no folder of features {root}", "pass the folder that holds them: --features DIR")
    return {files.name: scan_folder(root / files.name, feature_namings(files)) for files in layout.image_sets}


def build_table(
    layout: Layout,
    named: Mapping[str, Ids],
    folders: Mapping[str, Folder | None],
) -> ImageTable:
    """Give every image that a question names its row.

    An image belongs to its split's own set. Where ids are shared between the sets (COCO), one that is not there but in
    another set belongs to that: Visual Genome's questions are about images of train and val.

    Args:
        layout: the data set.
        named: of each split, the image that each question names, [Q].
        folders: where the images of each set are; empty if nowhere.
    """
    own_set = {split.name: split.image_set for split in layout.splits}
    homes = {split: np.full(len(ids), -1, dtype=np.int64) for split, ids in named.items()}
    names = [files.name for files in layout.image_sets]
    known = _known_ids(layout, named, folders) if layout.shares_image_ids else {}
    for split, ids in named.items():
        own = names.index(own_set[split])
        for place in [own, *(place for place in range(len(names)) if place != own)] if known else []:
            is_here = (homes[split] < 0) & (rows_of(ids, known[names[place]]) >= 0)
            homes[split][is_here] = place
        homes[split][homes[split] < 0] = own
    sets = []
    for place, files in enumerate(layout.image_sets):
        members = [ids[homes[split] == place] for split, ids in named.items()]
        sets.append(ImageSet(files, np.unique(np.concatenate(members)), folders.get(files.name)))
    starts = np.cumsum([0] + [len(images.ids) for images in sets])
    rows = {}
    for split, ids in named.items():
        rows[split] = np.empty(len(ids), dtype=np.int32)
        for place, images in enumerate(sets):
            is_here = homes[split] == place
            rows[split][is_here] = starts[place] + np.searchsorted(images.ids, ids[is_here])
    return ImageTable(tuple(sets), rows)


def _known_ids(layout: Layout, named: Mapping[str, Ids], folders: Mapping[str, Folder | None]) -> dict[str, Ids]:
    """List the ids of every set: those in its folder, else those that the splits named after it use."""
    known = {}
    for files in layout.image_sets:
        folder = folders.get(files.name)
        asking = [
            named[split.name]
            for split in layout.splits
            if split.image_set == files.name and split.name in named and not split.borrows_images
        ]
        known[files.name] = folder.ids if folder else np.unique(np.concatenate([*asking, np.empty(0, np.int64)]))
    return known


def refuse_missing(table: ImageTable, root: Path, dataset: str, what: str = "features") -> tuple[str, ...]:
    """See that every image that a question names is there.

    Returns:
        Warnings about sets whose folder is missing though nothing needs it.

    Raises:
        DataError: naming the first ten that are missing.
    """
    warnings = []
    missing: list[str] = []
    count = 0
    for images in table.sets:
        if images.folder is None:
            if images.files.is_required and len(images.ids):
                raise DataError(
                    f"no folder {root / images.files.name} with the {what} of {len(images.ids):,} images",
                    f"trarctl prepare {dataset} --{what} DIR, a folder that holds {images.files.name}",
                )
            if len(images.ids):
                warnings.append(f"no {what} of {images.files.name}: {root / images.files.name} is missing")
            continue
        absent = images.ids[rows_of(images.ids, images.folder.ids) < 0]
        count += len(absent)
        missing += [f"{image_id} ({images.folder.path})" for image_id in absent[: 10 - len(missing)].tolist()]
    if count:
        noun = "image" if count == 1 else "images"
        raise DataError(
            f"no {what} for {noun} {listed(missing, count)}",
            f"trarctl prepare {dataset} --{what} DIR, with a complete copy",
        )
    return tuple(warnings)


def fingerprint(images: ImageSet) -> str:
    """Identify the files of an image set by their ids, sizes and times of change.

    Raises:
        DataError: a file cannot be looked at.
    """
    folder = images.folder
    if folder is None:
        return ""

    def look(ids: list[int]) -> list[tuple[int, int]]:
        return [(status.st_size, status.st_mtime_ns) for status in (folder.file(number).stat() for number in ids)]

    numbers = images.ids.tolist()
    pieces = [numbers[first : first + 1024] for first in range(0, len(numbers), 1024)]
    digest = hashlib.sha256(images.ids.tobytes())
    try:
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(look, pieces):
                digest.update(np.array(found, dtype=np.int64).tobytes())
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror or error}", "replace it by a file that can be read"
        ) from error
    return digest.hexdigest()
