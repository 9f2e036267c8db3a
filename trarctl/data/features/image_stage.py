"""Second half of ``prepare``: the image table, and features checked, packed or extracted.

Axes: Q questions, I images of a set, N cells, W feature width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trarctl.data import Progress
from trarctl.data.datasets.base import Layout
from trarctl.data.features.image_table import (
    Folder,
    Ids,
    ImageSet,
    ImageTable,
    build_table,
    feature_folders,
    fingerprint,
    refuse_missing,
    scan_folder,
)
from trarctl.data.features.packing import FileFacts, FileRows, Floats, Problems, RowSource, check_files, pack
from trarctl.data.features.patches import Backbone, PatchBackbone, PatchSettings, load_images
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
from trarctl.files import write_array, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

Pack = Literal["float16", "float32", "as-found"]
# Few enough that a batch of small images stays in the processor's cache.
_BATCH_IMAGES = 32


@dataclass(frozen=True)
class ImageOptions:
    """What decides the image half of prepared data.

    Args:
        grid_size: cells S along one side.
        features: folder of feature files, one folder per image set in it; None: there are none.
        pack: number type of packed features; None leaves the files where they are.
        check_values: whether every number of every file is read.
        images: folder of images to describe; None: there are none.
        patches: shape of the descriptor of ``images``.
    """

    grid_size: int
    features: Path | None
    pack: Pack | None
    check_values: bool
    images: Path | None = None
    patches: PatchSettings = field(default_factory=PatchSettings)


@dataclass(frozen=True)
class ImagePlan:
    """The image table, and a key that changes when anything does that the features depend on."""

    table: ImageTable
    fingerprints: dict[str, str]
    key: str
    warnings: tuple[str, ...]


def plan_images(layout: Layout, named: Mapping[str, Ids], options: ImageOptions, progress: Progress) -> ImagePlan:
    """Look up every image that a question names.

    Args:
        layout: the data set.
        named: of each split, the image that each question names, [Q].
        options: where the features or images are.
        progress: told what is being done.

    Raises:
        DataError: naming images that are missing.
    """
    progress("looking up images", 0, None)
    folders: dict[str, Folder | None] = {}
    warnings: tuple[str, ...] = ()
    if options.features is not None:
        folders = feature_folders(layout, options.features)
        table = build_table(layout, named, folders)
        warnings = refuse_missing(table, options.features, layout.dataset)
    elif options.images is not None:
        for files in layout.image_sets:
            folders[files.name] = scan_folder(layout.image_folder(options.images, files.name), [files.images])
        table = build_table(layout, named, folders)
        warnings = refuse_missing(table, options.images, layout.dataset, "images")
    else:
        table = build_table(layout, named, folders)
    fingerprints = {images.files.name: fingerprint(images) for images in table.sets}
    key = key_of(
        {
            "grid_size": options.grid_size,
            "pack": options.pack,
            "check_values": options.check_values,
            "fingerprints": fingerprints,
            "folders": {name: str(folder.path.resolve()) for name, folder in folders.items() if folder},
            "patches": None if options.images is None else vars(options.patches),
        }
    )
    return ImagePlan(table, fingerprints, key, warnings)


def write_table(plan: ImagePlan, folder: Path) -> None:
    """Write ids by image set and rows by split into ``folder/images``."""
    place = folder / IMAGES
    place.mkdir(exist_ok=True)
    for images in plan.table.sets:
        write_array(place / f"{images.files.name}.ids.npy", images.ids)
    for split, rows in plan.table.rows.items():
        write_array(place / f"{split}.rows.npy", rows)


def build_images(plan: ImagePlan, options: ImageOptions, out: Path, building: Path, progress: Progress) -> ImagesPart:
    """Check, pack or extract the features of all images.

    Args:
        plan: the image table.
        options: what the user can choose.
        out: the prepared folder; packed features are written to their place at once, under names that change with
            their content.
        building: where a backbone's description is written.
        progress: told the images done.

    Raises:
        DataError: naming feature files or images that are unusable.
    """
    num_cells = options.grid_size**2
    if options.images is not None:
        return _described(plan, options, out, building, progress)
    if options.features is None:
        facts = FileFacts(0, "float32", ())
        parts = tuple(
            ImageSetPart(name=images.files.name, num_images=len(images.ids), kind="none") for images in plan.table.sets
        )
        return _part(plan, options, facts, parts)
    # Packing reads and checks every number anyway, so shapes are enough before it.
    check_values = options.check_values and options.pack is None
    facts = check_files(plan.table.sets, num_cells, check_values=check_values, progress=progress)
    if options.pack is None:
        return _part(plan, options, facts, tuple(_in_place(images, facts, out) for images in plan.table.sets))
    stored_type: StoredType = facts.stored_type if options.pack == "as-found" else options.pack
    parts = tuple(
        _packed(images, FileRows(images), plan, (num_cells, facts.width), stored_type, out, progress)
        for images in plan.table.sets
    )
    return _part(plan, options, facts, parts)


def _part(
    plan: ImagePlan,
    options: ImageOptions,
    facts: FileFacts,
    parts: tuple[ImageSetPart, ...],
    backbone: str | None = None,
) -> ImagesPart:
    return ImagesPart(
        key=plan.key,
        grid_size=options.grid_size,
        feature_width=facts.width,
        pack=options.pack,
        backbone=backbone,
        image_sets=parts,
        warnings=plan.warnings + facts.warnings,
    )


def _in_place(images: ImageSet, facts: FileFacts, out: Path) -> ImageSetPart:
    name, count = images.files.name, len(images.ids)
    if images.folder is None:
        return ImageSetPart(name=name, num_images=count, kind="none")
    naming = images.folder.naming
    return ImageSetPart(
        name=name,
        num_images=count,
        kind="files",
        folder=os.path.relpath(images.folder.path.resolve(), out.resolve()),
        naming=NamingPart(prefix=naming.prefix, num_digits=naming.num_digits, suffix=naming.suffix),
        stored_type=facts.stored_type,
    )


def _packed(
    images: ImageSet,
    source: RowSource,
    plan: ImagePlan,
    cell_shape: tuple[int, int],
    stored_type: StoredType,
    out: Path,
    progress: Progress,
    extra_key: object = None,
) -> ImageSetPart:
    name, count = images.files.name, len(images.ids)
    if images.folder is None or not count:
        return ImageSetPart(name=name, num_images=count, kind="none")
    content = [plan.fingerprints[name], str(images.folder.path.resolve()), list(cell_shape), stored_type, extra_key]
    file = f"{name}.{key_of({'content': content})[:16]}.npy"
    (out / FEATURES).mkdir(exist_ok=True)
    pack(source, out / FEATURES / file, (count, *cell_shape), stored_type, progress=progress)
    return ImageSetPart(name=name, num_images=count, kind="packed", file=file, stored_type=stored_type)


@dataclass(frozen=True)
class ImageRows:
    """Rows that a backbone makes out of images."""

    images: ImageSet
    backbone: Backbone

    def fill(self, first: int, out: Floats) -> list[str]:
        """Decode and describe images."""
        problems: list[str] = []
        ids = self.images.ids[first : first + len(out)]
        for start in range(0, len(ids), _BATCH_IMAGES):
            images, bad = _load(self.images, ids[start : start + _BATCH_IMAGES].tolist())
            problems += bad
            out[start : start + len(images)] = self.backbone.extract(images)
        return problems


def _load(images: ImageSet, ids: Sequence[int]) -> tuple[list[Image], list[str]]:
    assert images.folder is not None  # noqa: S101 - only sets with a folder are described
    return load_images([images.folder.file(image_id) for image_id in ids])


def _described(plan: ImagePlan, options: ImageOptions, out: Path, building: Path, progress: Progress) -> ImagesPart:
    """Fit the descriptor to the training images and describe all images with it."""
    backbone = PatchBackbone.fit(options.patches, _batches(plan.table.sets[0], progress))
    write_json(building / BACKBONE, backbone.describe())
    shape = (options.grid_size**2, backbone.width)
    parts = tuple(
        _packed(images, ImageRows(images, backbone), plan, shape, "float32", out, progress, backbone.describe())
        for images in plan.table.sets
    )
    return _part(plan, options, FileFacts(backbone.width, "float32", ()), parts, backbone.name)


def _batches(images: ImageSet, progress: Progress) -> Iterator[Sequence[Image]]:
    problems = Problems("image")
    for first in range(0, len(images.ids), _BATCH_IMAGES):
        loaded, bad = _load(images, images.ids[first : first + _BATCH_IMAGES].tolist())
        problems.add(bad)
        yield loaded
        progress("fitting the image descriptor", min(first + _BATCH_IMAGES, len(images.ids)), len(images.ids))
    problems.refuse()
