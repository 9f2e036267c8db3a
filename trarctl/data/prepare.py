"""Raw files to prepared data: one call that checks, reads, looks up every image and writes, or changes nothing."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from pydantic import ValidationError

import trarctl
from trarctl.data.checks import CheckRow, file_rows, folder_rows
from trarctl.data.easy_vqa import package_data
from trarctl.data.folder import list_files, refuse_foreign, remove, swap_in, write_json, writing
from trarctl.data.image_stage import ImageOptions, ImagePlan, Pack, build_images, plan_images, write_table
from trarctl.data.images import Ids
from trarctl.data.layouts import LAYOUTS, Layout, layout_of
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
from trarctl.data.text_stage import (
    TextOptions,
    build_text,
    file_sha256,
    present_splits,
    vectors_fingerprint,
)
from trarctl.errors import DataError, SettingsError

_TEXT_DONE = "text.json"


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, from where, to where.

    Args:
        dataset: ``vqa``, ``clevr`` or ``easy-vqa``.
        out: the prepared folder; default: data/DATASET/prepared.
        raw: folder of the raw files; default: data/DATASET/raw, for easy-VQA the installed package's.
        features: folder with one folder of feature files per image set; default: ``feats`` beside ``raw``, if it is
            there. Without features only questions are prepared.
        without_features: leave features out even if they are there.
        grid: cells S along one side; default: 8 for VQA, 14 for CLEVR, 4 for easy-VQA.
        vectors: ``none``, ``auto``, a spaCy package or folder, or a GloVe file.
        min_answer_count: VQA: an answer is learned if it is that of more annotations than this.
        max_words: words kept of a question; default: 14 for VQA, else the longest question in the data.
        pack: number type to pack features as; None reads them where they are.
        check_values: whether to read every number of every feature file; else only shapes and sizes.
        rebuild: prepare again even if nothing changed.
    """

    dataset: str
    out: Path | None = None
    raw: Path | None = None
    features: Path | None = None
    without_features: bool = False
    grid: int | None = None
    vectors: str = "auto"
    min_answer_count: int = 8
    max_words: int | None = None
    pack: Pack | None = None
    check_values: bool = True
    rebuild: bool = False


@dataclass(frozen=True)
class PrepareReport:
    """What was prepared.

    Args:
        out: the prepared folder.
        manifest: what it holds.
        checks: file by file, what was found and what was expected.
        warnings: what is odd, one sentence each.
        was_current: whether nothing had to be done.
        seconds: how long it took.
    """

    out: Path
    manifest: Manifest
    checks: tuple[CheckRow, ...]
    warnings: tuple[str, ...]
    was_current: bool
    seconds: float


@dataclass
class _Work:
    """One preparation on its way."""

    layout: Layout
    raw: Path
    out: Path
    text_options: TextOptions
    image_options: ImageOptions
    rebuild: bool
    progress: Progress
    building: Path = field(default_factory=Path)
    old: Manifest | None = None


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
    work = _plan(request, progress)
    present_splits(work.layout, work.raw)
    with writing(work.out) as work.building:
        refuse_foreign(work.out, [MANIFEST, FEATURES, *_possible_entries()])
        work.old = None if work.rebuild else _old_manifest(work.out)
        text, is_text_current = _text(work)
        plan = plan_images(work.layout, _named(work, text, is_text_current), work.image_options, progress)
        has_current_images = work.old is not None and work.old.images.key == plan.key
        if work.old is not None and is_text_current and has_current_images:
            shutil.rmtree(work.building)
            return _report(work, work.old, plan, began, was_current=True)
        manifest = _finish(work, text, plan, is_text_current=is_text_current, has_current_images=has_current_images)
    return _report(work, manifest, plan, began, was_current=False)


def default_out(dataset: str) -> Path:
    """Give the folder that a data set is prepared to if none is named."""
    return Path("data") / dataset / "prepared"


def _plan(request: PrepareRequest, progress: Progress) -> _Work:
    layout = layout_of(request.dataset)
    is_easy = layout.dataset == "easy-vqa"
    for flag, value, least in (
        ("--grid", request.grid, 1),
        ("--max-words", request.max_words, 1),
        ("--min-answer-count", request.min_answer_count, 0),
    ):
        if value is not None and value < least:
            raise SettingsError(f"{flag} must be {least} or more, got {value}", f"pass {flag} {least} or more")
    raw = request.raw or (package_data() if is_easy else Path("data") / layout.dataset / "raw")
    if not raw.is_dir():
        raise DataError(f"no folder of raw files {raw}", f"{layout.download_hint}; or pass --raw DIR")
    grid = request.grid or layout.grid_size
    if is_easy and (request.features is not None or grid != layout.grid_size or request.pack is not None):
        raise SettingsError(
            f"easy-vqa makes its own features on a grid of {layout.grid_size}", "leave out --features, --grid, --pack"
        )
    return _Work(
        layout=layout,
        raw=raw,
        out=request.out or default_out(layout.dataset),
        text_options=TextOptions(request.max_words, request.min_answer_count, request.vectors),
        image_options=ImageOptions(
            grid_size=grid,
            features=None if is_easy else _features(request, raw),
            pack=request.pack,
            check_values=request.check_values,
            images=raw if is_easy else None,
        ),
        rebuild=request.rebuild,
        progress=progress,
    )


def _features(request: PrepareRequest, raw: Path) -> Path | None:
    if request.without_features:
        return None
    if request.features is not None:
        return request.features
    beside = raw.resolve().parent / "feats"
    return beside if beside.is_dir() else None


def _old_manifest(out: Path) -> Manifest | None:
    """Read the manifest of what is there, if all of it is there."""
    try:
        manifest = read_manifest(out)
    except DataError:
        return None
    sizes = list_files(out)
    return manifest if all(sizes.get(name) == size for name, size in manifest.files.items()) else None


def _text(work: _Work) -> tuple[TextPart, bool]:
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


def _is_current(text: TextPart, work: _Work) -> bool:
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


def _named(work: _Work, text: TextPart, is_text_current: bool) -> dict[str, Ids]:
    base = work.out if is_text_current else work.building
    return {split: np.load(base / split / "image_id.npy", allow_pickle=False) for split in text.splits}


def _finish(
    work: _Work, text: TextPart, plan: ImagePlan, *, is_text_current: bool, has_current_images: bool
) -> Manifest:
    """Build what is missing, put it in place and write the manifest."""
    new = [IMAGES] if is_text_current else [IMAGES, *_text_entries(text)]
    remove(work.building / IMAGES)
    write_table(plan, work.building)
    if has_current_images and work.old is not None:
        images = work.old.images
    else:
        images = build_images(plan, work.image_options, work.out, work.building, work.progress)
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
        aliases=work.layout.aliases,
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
    splits = dict.fromkeys(split.name for layout in LAYOUTS.values() for split in layout.splits)
    return [VOCABULARY, ANSWERS, VECTORS, BACKBONE, IMAGES, *splits]


def _obsolete(work: _Work, keep: set[str]) -> list[str]:
    """List what an earlier preparation left that nothing refers to any more."""
    features = work.out / FEATURES
    packed = [f"{FEATURES}/{path.name}" for path in features.iterdir()] if features.is_dir() else []
    return [name for name in [*_possible_entries(), *packed] if name not in keep]


def _report(work: _Work, manifest: Manifest, plan: ImagePlan, began: float, *, was_current: bool) -> PrepareReport:
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
