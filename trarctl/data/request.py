"""What ``prepare`` is asked for, with every default filled in, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trarctl.data.checks import CheckRow
from trarctl.data.datasets.base import Layout, layout_of
from trarctl.data.features.base import ExtractorOptions
from trarctl.data.features.packing import ImageOptions, Pack
from trarctl.data.manifest import Manifest
from trarctl.data.progress import Progress
from trarctl.data.text_stage import TextOptions
from trarctl.errors import DataError, SettingsError
from trarctl.registry import EXTRACTORS


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, from where, to where.

    Args:
        dataset: name of a registered data set.
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
        images: VQA, CLEVR: folder with one folder of images per image set, to make features of.
        extractor: what makes them; default: patches for easy-VQA, else resnet101.
        weights: file of its weights; None: torchvision's own download.
        devices: where it runs, such as ``cpu`` or ``cuda:0``, one copy each.
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
    images: Path | None = None
    extractor: str | None = None
    weights: Path | None = None
    devices: tuple[str, ...] = ("cpu",)


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
class Work:
    """One preparation on its way: the request with every default filled in, and what was found so far."""

    layout: Layout
    raw: Path
    out: Path
    text_options: TextOptions
    image_options: ImageOptions
    rebuild: bool
    progress: Progress
    building: Path = field(default_factory=Path)
    old: Manifest | None = None


def default_out(dataset: str) -> Path:
    """Give the folder that a data set is prepared to if none is named."""
    return Path("data") / dataset / "prepared"


def plan_work(request: PrepareRequest, progress: Progress) -> Work:
    """Fill in the defaults of a request.

    Raises:
        DataError: there is no raw folder.
        SettingsError: a value is outside its limits, or options contradict each other.
    """
    layout = layout_of(request.dataset)
    has_own = layout.extractor is not None
    for flag, value, least in (
        ("--grid", request.grid, 1),
        ("--max-words", request.max_words, 1),
        ("--min-answer-count", request.min_answer_count, 0),
    ):
        if value is not None and value < least:
            raise SettingsError(f"{flag} must be {least} or more, got {value}", f"pass {flag} {least} or more")
    raw = request.raw or layout.default_raw_folder()
    if not raw.is_dir():
        raise DataError(f"no folder of raw files {raw}", f"{layout.download_hint}; or pass --raw DIR")
    grid = request.grid or layout.grid_size
    if has_own and (request.features is not None or grid != layout.grid_size or request.pack is not None):
        raise SettingsError(
            f"{layout.name} makes its own features on a grid of {layout.grid_size}",
            "leave out --features, --grid, --pack",
        )
    return Work(
        layout=layout,
        raw=raw,
        out=request.out or default_out(layout.dataset),
        text_options=TextOptions(request.max_words, request.min_answer_count, request.vectors),
        image_options=_image_options(request, layout, raw, grid),
        rebuild=request.rebuild,
        progress=progress,
    )


def _image_options(request: PrepareRequest, spec: Layout, raw: Path, grid: int) -> ImageOptions:
    """Say what features are read from or made of: files, pictures that the user named, or the data set's own."""
    has_own = spec.extractor is not None
    if request.images is not None and (has_own or request.features is not None):
        raise SettingsError(
            "--images makes features of images of vqa and clevr, and takes no --features", "leave one of them out"
        )
    pictures = raw if has_own else request.images
    extractor = request.extractor or spec.extractor or "resnet101"
    if pictures is not None and extractor not in EXTRACTORS:
        raise SettingsError(f"unknown extractor {extractor!r}", f"--extractor {' or '.join(EXTRACTORS.names())}")
    features, beside = request.features, raw.resolve().parent / "feats"
    if features is None and pictures is None and beside.is_dir():
        features = beside
    return ImageOptions(
        features=None if request.without_features else features,
        pack=request.pack,
        check_values=request.check_values,
        extractor_options=ExtractorOptions(grid, request.weights, request.devices),
        pictures=pictures,
        extractor=extractor,
        packs_pictures=has_own,
    )
