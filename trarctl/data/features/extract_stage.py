"""Between the halves of ``prepare``: features out of images, where there are none yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trarctl.data import Progress
from trarctl.data.datasets.base import Layout
from trarctl.data.features.extract import Share, extract, wait_for_others
from trarctl.data.features.image_table import Ids, ImageTable, build_table, refuse_missing, scan_folder
from trarctl.data.features.patches import Backbone
from trarctl.data.features.resnet101 import NAME, ResNetBackbone, weights_digest
from trarctl.data.manifest import key_of
from trarctl.errors import DataError, SettingsError

EXTRACTED = "extracted"
_BATCH_IMAGES = 32


@dataclass(frozen=True)
class BackboneOptions:
    """How features are made out of images.

    Args:
        images: folder with one folder of images per image set.
        name: the backbone.
        grid_size: cells S along one side.
        weights: file of its weights; None: torchvision's own download.
        devices: where it runs, one copy each.
    """

    images: Path
    name: str
    grid_size: int
    weights: Path | None
    devices: tuple[str, ...]

    def make(self) -> Backbone:
        """Load the backbone."""
        return ResNetBackbone(self.grid_size, self.weights, self.devices)


def check_backbone(name: str) -> None:
    """See that a backbone exists.

    Raises:
        SettingsError: it does not.
    """
    if name != NAME:
        raise SettingsError(f"unknown backbone {name!r}", f"--backbone {NAME}")


def extracted_folder(out: Path, options: BackboneOptions) -> Path:
    """Give the folder of the features; it changes with the backbone, its weights and the grid."""
    key = key_of({"weights": weights_digest(options.weights)})[:8]
    return out / EXTRACTED / f"{options.name}-{options.grid_size}-{key}"


def make_features(
    layout: Layout, named: Mapping[str, Ids], out: Path, options: BackboneOptions, share: Share, progress: Progress
) -> Path:
    """Make the features of this process's part of the images; the first process then waits for the others.

    Args:
        layout: the data set.
        named: of each split, the image that each question names, [Q].
        out: the prepared folder.
        options: what makes them.
        share: the part of this process.
        progress: told the images done.

    Returns:
        The folder of features.

    Raises:
        DataError: naming images that are missing or unusable.
    """
    table = _table(layout, named, options)
    folder = extracted_folder(out, options)
    extract(
        table.sets,
        options.make,
        folder,
        share=share,
        batch_images=_BATCH_IMAGES,
        # While one batch is in a device's network, another is decoded.
        num_threads=len(options.devices) + 1,
        progress=progress,
    )
    if share.num_processes > 1 and share.rank == 0:
        wait_for_others(table.sets, folder, progress)
    return folder


def _table(layout: Layout, named: Mapping[str, Ids], options: BackboneOptions) -> ImageTable:
    if not options.images.is_dir():
        raise DataError(f"no folder of images {options.images}", "pass the folder that holds them: --images DIR")
    folders = {files.name: scan_folder(options.images / files.name, [files.images]) for files in layout.image_sets}
    table = build_table(layout, named, folders)
    refuse_missing(table, options.images, layout.dataset, "images")
    return table
