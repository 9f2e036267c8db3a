"""Images to feature files through a backbone: one ``.npy`` per image, going on where an earlier attempt stopped.

Several processes may share the work, each taking every n-th image; a file is there only when it is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress
from trarctl.data.features.files import FeatureFileError, read_shape
from trarctl.data.features.image_table import ImageSet
from trarctl.data.features.packing import Problems
from trarctl.data.features.patches import Backbone, load_images
from trarctl.errors import DataError

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


def feature_file(folder: Path, images: ImageSet, image_id: int) -> Path:
    """Give the place of an image's features under ``folder``, named as published but for the ending."""
    return folder / images.files.name / Path(images.files.features.name(image_id)).with_suffix(".npy")


def extract(
    sets: Sequence[ImageSet],
    make_backbone: Callable[[], Backbone],
    folder: Path,
    *,
    share: Share,
    batch_images: int,
    num_threads: int,
    progress: Progress,
) -> None:
    """Make the features of all images that have none yet.

    Args:
        sets: the images; sets without a folder are passed over.
        make_backbone: called only if there is anything to do.
        folder: where to write, in one folder per image set; its name must change with the backbone.
        share: the part of this process.
        batch_images: images that the backbone gets at once.
        num_threads: batches that are decoded and run at the same time.
        progress: told the images done.

    Raises:
        DataError: naming the images that are unusable; the features of the others are kept.
    """
    backbone: Backbone | None = None
    problems = Problems("image")
    for images in sets:
        if images.folder is None:
            continue
        (folder / images.files.name).mkdir(parents=True, exist_ok=True)
        own = images.ids[share.rank :: share.num_processes].tolist()
        left = [image_id for image_id in own if not _is_done(folder, images, image_id)]
        if not left:
            continue
        backbone = backbone or make_backbone()
        done = len(own) - len(left)
        batches = [left[first : first + batch_images] for first in range(0, len(left), batch_images)]
        for batch, bad in _run(batches, images, backbone, folder, num_threads):
            problems.add(bad)
            done += len(batch)
            progress(f"extracting features of {images.files.name}", done, len(own))
    problems.refuse()


def wait_for_others(sets: Sequence[ImageSet], folder: Path, progress: Progress) -> None:
    """Wait until every process has made its features."""
    for images in sets:
        left = images.ids.tolist() if images.folder is not None else []
        while left := [image_id for image_id in left if not _is_done(folder, images, image_id)]:
            progress("waiting for the other processes", len(images.ids) - len(left), len(images.ids))
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_done(folder: Path, images: ImageSet, image_id: int) -> bool:
    """Tell whether an image has features that are whole and bear the time of its last change."""
    assert images.folder is not None  # noqa: S101 - the callers pass over sets without a folder
    path = feature_file(folder, images, image_id)
    try:
        read_shape(path)
        return path.stat().st_mtime_ns == images.folder.file(image_id).stat().st_mtime_ns
    except (FeatureFileError, OSError):
        return False


def _run(
    batches: Sequence[list[int]], images: ImageSet, backbone: Backbone, folder: Path, num_threads: int
) -> Iterator[tuple[list[int], list[str]]]:
    def run(batch: list[int]) -> tuple[list[int], list[str]]:
        assert images.folder is not None  # noqa: S101 - the caller passes over sets without a folder
        sources = [images.folder.file(image_id) for image_id in batch]
        modified = [_modified_ns(source) for source in sources]
        loaded, bad = load_images(sources)
        features = backbone.extract(loaded)
        # An unusable image came as a single pixel, and gets no file.
        for image_id, source, changed_ns, cells in zip(batch, sources, modified, features, strict=True):
            if not any(problem.startswith(f"{source} ") for problem in bad):
                _write(feature_file(folder, images, image_id), cells, changed_ns)
        return batch, bad

    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(run, batches)


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _write(path: Path, cells: npt.NDArray[np.float32], modified_ns: int) -> None:
    with np.errstate(over="ignore"):
        half = cells.astype(np.float16)
    # A backbone's values fit float16 but for rare outliers, which then keep their own type.
    stored = half if np.isfinite(half).all() else cells
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, stored, allow_pickle=False)
    os.utime(temporary, ns=(modified_ns, modified_ns))
    temporary.replace(path)
