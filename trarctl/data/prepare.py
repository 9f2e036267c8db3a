"""Raw files to prepared data: one call that checks, reads, looks up every image and writes, or changes nothing."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import orjson
from pydantic import ValidationError

import trarctl
from trarctl.data.checks import CheckRow, file_rows, folder_rows
from trarctl.data.features.extract import extract_files
from trarctl.data.features.images import Ids, feature_folders, picture_table
from trarctl.data.features.packing import ImagePlan, build_images, plan_images
from trarctl.data.folder import list_files, refuse_foreign, remove, swap_in, writing
from trarctl.data.manifest import (
    ANSWERS,
    BACKBONE,
    FEATURES,
    FORMAT_VERSION,
    IMAGES,
    MANIFEST,
    VECTORS,
    VOCABULARY,
    ImagesPart,
    Manifest,
    SourceFile,
    TextPart,
    read_manifest,
)
from trarctl.data.progress import Progress, no_progress
from trarctl.data.raw_splits import RawData
from trarctl.data.request import PrepareReport, PrepareRequest, Work, default_out, plan_work
from trarctl.data.text_stage import build_text, present_splits, vectors_fingerprint
from trarctl.errors import DataError, SettingsError
from trarctl.files import file_sha256, write_json
from trarctl.registry import DATASETS

__all__ = ["PrepareReport", "PrepareRequest", "check", "default_out", "prepare", "prepare_share"]

_TEXT_DONE = "text.json"


def prepare(request: PrepareRequest, progress: Progress = no_progress) -> PrepareReport:
    """Prepare a data set, or find that it is prepared.

    Args:
        request: what to prepare.
        progress: told what is being done.

    Returns:
        What was prepared, and what is odd about it.

    Raises:
        DataError: raw files or features are missing or damaged, or the output folder cannot be written.
        SettingsError: a value is outside its limits.
    """
    began = time.monotonic()
    work = plan_work(request, progress)
    present_splits(work.layout, work.raw)
    with writing(work.out) as work.building:
        refuse_foreign(work.out, [MANIFEST, FEATURES, *_possible_entries()])
        work.old = None if work.rebuild else _old_manifest(work.out)
        text, is_text_current = _text(work)
        named = _named(work, text, is_text_current)
        plan = plan_images(work.layout, named, work.image_options, work.out, progress)
        has_current_images = work.old is not None and work.old.images.key == plan.key
        if work.old is not None and is_text_current and has_current_images:
            shutil.rmtree(work.building)
            return _report(work, work.old, plan, began, was_current=True)
        manifest = _finish(work, text, plan, is_text_current=is_text_current, has_current_images=has_current_images)
    return _report(work, manifest, plan, began, was_current=False)


def prepare_share(request: PrepareRequest, progress: Progress = no_progress) -> None:
    """Do another process's share of making features: for every process of ``torchrun`` but the first.

    Raises:
        DataError: raw files or images are missing or damaged.
        SettingsError: a value is outside its limits, or there are no images to share.
    """
    work = plan_work(request, progress)
    options = work.image_options
    if options.pictures is None or options.packs_pictures:
        raise SettingsError("only making features can be shared by processes", "pass --images DIR, or leave torchrun")
    data = RawData()
    named = {
        split.name: work.layout.read_split(work.raw, split, data, progress).image_id
        for split in present_splits(work.layout, work.raw)
    }
    sets = picture_table(work.layout, named, options.pictures).sets
    extract_files(sets, options.extractor, options.extractor_options, work.out, progress)


def check(request: PrepareRequest, progress: Progress = no_progress) -> tuple[CheckRow, ...]:
    """Read everything that ``prepare`` would and write nothing.

    Returns:
        File by file, what was found, what was expected and what to do about it.

    Raises:
        DataError: there is no raw folder.
        SettingsError: a value is outside its limits.
    """
    work = plan_work(request, progress)
    data = RawData()
    damaged: dict[str, str] = {}
    for split in work.layout.splits:
        if not all((work.raw / name).is_file() for name in split.files):
            continue
        try:
            work.layout.read_split(work.raw, split, data, progress)
        except DataError as error:
            guilty = next((name for name in split.files if str(work.raw / name) in error.what), split.questions)
            damaged[guilty] = error.what
    rows = file_rows(work.layout, work.raw, data.num_records, damaged)
    features = work.image_options.features
    return tuple(rows + (folder_rows(work.layout, feature_folders(work.layout, features)) if features else []))


def _old_manifest(out: Path) -> Manifest | None:
    """Read the manifest of what is there, if all of it is there."""
    try:
        manifest = read_manifest(out)
    except DataError:
        return None
    sizes = list_files(out)
    return manifest if all(sizes.get(name) == size for name, size in manifest.files.items()) else None


def _text(work: Work) -> tuple[TextPart, bool]:
    """Give the text half: the one in place, the one that an interrupted attempt left behind, or a new one.

    Returns:
        What the manifest says about it, and whether it is the one in place.
    """
    if work.old is not None and work.old.dataset == work.layout.dataset and _is_current(work.old.text, work):
        return work.old.text, True
    left_behind = None if work.rebuild else _left_behind(work.building)
    if left_behind is not None and _is_current(left_behind, work):
        return left_behind, False
    shutil.rmtree(work.building)
    work.building.mkdir()
    text = build_text(work.layout, work.raw, work.text_options, work.building, work.progress)
    write_json(work.building / _TEXT_DONE, text.model_dump(mode="json"))
    return text, False


def _left_behind(building: Path) -> TextPart | None:
    try:
        return TextPart.model_validate(orjson.loads((building / _TEXT_DONE).read_bytes()))
    except (OSError, orjson.JSONDecodeError, ValidationError):
        return None


def _is_current(text: TextPart, work: Work) -> bool:
    options = work.text_options
    has_same_options = (
        text.requested_max_words == options.max_words
        and text.min_answer_count == options.min_answer_count
        and text.requested_vectors == options.vectors
        and text.vectors_fingerprint == vectors_fingerprint(options.vectors)
    )
    names = [name for split in present_splits(work.layout, work.raw) for name in split.files]
    return (
        has_same_options
        and set(names) == set(text.sources)
        and all(_is_unchanged(work.raw / name, text.sources[name]) for name in names)
    )


def _is_unchanged(path: Path, source: SourceFile) -> bool:
    status = path.stat()
    if status.st_size != source.size:
        return False
    return status.st_mtime_ns == source.modified_ns or file_sha256(path) == source.sha256


def _named(work: Work, text: TextPart, is_text_current: bool) -> dict[str, Ids]:
    base = work.out if is_text_current else work.building
    return {split: np.load(base / split / "image_id.npy", allow_pickle=False) for split in text.splits}


def _finish(
    work: Work, text: TextPart, plan: ImagePlan, *, is_text_current: bool, has_current_images: bool
) -> Manifest:
    """Build what is missing, put it in place and write the manifest."""
    new = [IMAGES] if is_text_current else [IMAGES, *_text_entries(text)]
    remove(work.building / IMAGES)
    plan.table.write(work.building)
    if has_current_images and work.old is not None:
        images = work.old.images
    else:
        images = build_images(plan, work.out, work.building, work.progress)
        new += [BACKBONE] if images.backbone else []
    keep = {*_text_entries(text), *_image_entries(images)}
    obsolete = _obsolete(work, keep)
    swap_in(work.out, work.building, new, obsolete)
    sizes = list_files(work.out)
    manifest = Manifest(
        version=FORMAT_VERSION,
        created_by=f"trarctl {trarctl.__version__}",
        dataset=work.layout.dataset,
        text=text,
        images=images,
        aliases=dict(work.layout.aliases),
        files={name: size for name, size in sorted(sizes.items()) if _is_part(name, keep)},
    )
    write_json(work.out / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _text_entries(text: TextPart) -> list[str]:
    return [VOCABULARY, ANSWERS, *([VECTORS] if text.vectors else []), *text.splits]


def _image_entries(images: ImagesPart) -> list[str]:
    packed = [f"{FEATURES}/{part.file}" for part in images.image_sets if part.file]
    return [IMAGES, *packed, *([BACKBONE] if images.backbone else [])]


def _is_part(name: str, entries: set[str]) -> bool:
    return name in entries or name.partition("/")[0] in entries


def _possible_entries() -> list[str]:
    splits = dict.fromkeys(split.name for name in DATASETS.names() for split in DATASETS[name].splits)
    return [VOCABULARY, ANSWERS, VECTORS, BACKBONE, IMAGES, *splits]


def _obsolete(work: Work, keep: set[str]) -> list[str]:
    """List what an earlier preparation left that nothing refers to any more."""
    features = work.out / FEATURES
    packed = [f"{FEATURES}/{path.name}" for path in features.iterdir()] if features.is_dir() else []
    return [name for name in [*_possible_entries(), *packed] if name not in keep]


def _report(work: Work, manifest: Manifest, plan: ImagePlan, began: float, *, was_current: bool) -> PrepareReport:
    found = {name: source.records for name, source in manifest.text.sources.items()}
    checks = file_rows(work.layout, work.raw, found, {})
    folders = {images.files.name: images.folder for images in plan.table.sets}
    checks += folder_rows(work.layout, folders) if any(folders.values()) else []
    return PrepareReport(
        out=work.out,
        manifest=manifest,
        checks=tuple(checks),
        warnings=manifest.text.warnings + manifest.images.warnings,
        was_current=was_current,
        seconds=time.monotonic() - began,
    )
