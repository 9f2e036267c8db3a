"""``trarctl prepare``: raw files and features to the folder that every other command reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trarctl.commands.console import add_row, make_table, say, show_table, warn
from trarctl.commands.options import DATA_PANEL, OUTPUT_PANEL, GpusOption, dataset_argument
from trarctl.commands.progress import duration, progress

if TYPE_CHECKING:
    from trarctl.data.manifest import Manifest
    from trarctl.data.prepare import CheckRow, PrepareReport, PrepareRequest

EPILOG = """Examples:
  trarctl prepare easy-vqa
  trarctl prepare vqa --raw data/vqa/raw --features data/vqa/feats --vectors en_core_web_lg
  trarctl prepare clevr --images data/clevr/raw/images --extractor resnet101 --gpus 0,1"""
FEATURES_PANEL = "Image features"
WORDS_PANEL = "Words and answers"


def prepare(
    dataset: Annotated[str, dataset_argument(" or one that a plugin adds")],
    raw: Annotated[
        Path | None,
        typer.Option(
            "--raw",
            metavar="DIR",
            help="Folder of the downloaded questions and annotations; by default data/DATASET/raw.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features",
            metavar="DIR",
            help="Folder of the grid features, one file an image; by default data/DATASET/feats.",
            rich_help_panel=FEATURES_PANEL,
            show_default=False,
        ),
    ] = None,
    without_features: Annotated[
        bool,
        typer.Option(
            "--without-features",
            help="Prepare questions and answers only, even if features are there.",
            rich_help_panel=FEATURES_PANEL,
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Make the features from images: a folder with one folder an image set; several processes of torchrun"
            " share the work.",
            rich_help_panel=FEATURES_PANEL,
            show_default=False,
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            "--extractor",
            metavar="NAME",
            help="What makes them: resnet101 (needs torchvision), patches, or one that a plugin adds; by default"
            " resnet101, for easy-vqa patches.",
            rich_help_panel=FEATURES_PANEL,
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", hidden=True)] = None,  # the name in version 0.1
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Its weights; by default torchvision downloads them.",
            rich_help_panel=FEATURES_PANEL,
            show_default=False,
        ),
    ] = None,
    gpus: GpusOption = None,
    grid: Annotated[
        int | None,
        typer.Option(
            "--grid",
            metavar="S",
            min=1,
            help="Cells along one side of the grid, S * S in all; by default 8 for vqa, 14 for clevr, 4 for easy-vqa.",
            rich_help_panel=FEATURES_PANEL,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder to write; by default data/DATASET/prepared.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    pack: Annotated[
        Literal["float16", "float32", "as-found"] | None,
        typer.Option(
            "--pack",
            help="Copy all features into one file of this number type, which trains faster from slow disks; by"
            " default they are read where they are.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only read and check; write nothing. Exit code 4 if a needed file is missing or damaged.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Prepare again even if nothing changed.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    vectors: Annotated[
        str,
        typer.Option(
            "--vectors",
            metavar="SOURCE",
            help="Word vectors: none, auto (what is installed), a spaCy package, a folder saved by spaCy, or a GloVe"
            " .txt or .zip file.",
            rich_help_panel=WORDS_PANEL,
        ),
    ] = "auto",
    min_answer_count: Annotated[
        int,
        typer.Option(
            "--min-answer-count",
            metavar="N",
            min=0,
            help="Only answers given more often than N times can be predicted; vqa only.",
            rich_help_panel=WORDS_PANEL,
        ),
    ] = 8,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max-words",
            metavar="T",
            min=1,
            help="Longer questions are cut; by default 14 for vqa, otherwise the longest question in the data.",
            rich_help_panel=WORDS_PANEL,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check the raw files and turn them into the data that all other commands read."""
    from trarctl.data.prepare import PrepareRequest
    from trarctl.data.prepare import prepare as prepare_data

    request = PrepareRequest(
        dataset=dataset,
        out=out,
        raw=raw,
        features=features,
        without_features=without_features,
        grid=grid,
        vectors=vectors,
        min_answer_count=min_answer_count,
        max_words=max_words,
        pack=pack,
        rebuild=rebuild,
        images=images,
        extractor=extractor or backbone,
        weights=weights,
        devices=_devices(gpus) if images is not None else ("cpu",),
    )
    if check:
        _check(request)
        return
    if images is not None and int(os.environ.get("RANK", "0")):
        _share(request)
        return
    with progress() as report_progress:
        report = prepare_data(request, report_progress)
    _show(report)


def _devices(gpus: str | None) -> tuple[str, ...]:
    """The devices that features are made on, one copy of the extractor each."""
    from trarctl.engine.distributed import plan_placement

    placement = plan_placement(gpus, os.environ)
    return placement.devices if placement.rank is None else (placement.devices[placement.local_rank],)


def _check(request: PrepareRequest) -> None:
    """Print what is there and what should be.

    Raises:
        DataError: something that is needed is missing or damaged.
    """
    from trarctl.data.prepare import check as check_data
    from trarctl.errors import DataError

    with progress() as report_progress:
        rows = check_data(request, report_progress)
    _show_checks(rows)
    bad = [row.file for row in rows if row.verdict in ("missing", "damaged")]
    if bad:
        raise DataError(f"{len(bad)} of {len(rows)} entries stop the preparation: {', '.join(bad)}", "mend them first")
    say("nothing stops the preparation")


def _share(request: PrepareRequest) -> None:
    from trarctl.data.prepare import prepare_share

    with progress(is_quiet=True) as report_progress:
        prepare_share(request, report_progress)


def _show_checks(rows: Sequence[CheckRow]) -> None:
    table = make_table("file", "found", "expected", "verdict", numbers=("found", "expected"))
    for row in rows:
        found, expected = (f"{count:,}" if count is not None else "-" for count in (row.found, row.expected))
        advice = f": {row.advice}" if row.advice else ""
        add_row(table, row.file, found, expected, f"{row.verdict}{advice}")
    show_table(table)


def _show(report: PrepareReport) -> None:
    """Print what was checked, what is odd, what was prepared, and what to do next."""
    from trarctl.data.prepare import default_out

    _show_checks(report.checks)
    for warning in report.warnings:
        warn(warning)
    manifest = report.manifest
    state = "was up to date" if report.was_current else f"prepared in {duration(report.seconds)}"
    say(f"{manifest.dataset} {state}: {report.out}")
    for name, split in manifest.splits.items():
        say(f"  {name}: {split.questions:,} questions about {split.images:,} images")
    say(f"  word vectors: {_describe_vectors(manifest)}")
    say(f"  features: {_describe_features(manifest)}")
    if manifest.feature_width:
        where = "" if report.out == default_out(manifest.dataset) else f" --data {report.out}"
        say(f"next: trarctl train {manifest.dataset}{where}")
    else:
        say(f"next: trarctl prepare {manifest.dataset} --features DIR")


def _describe_vectors(manifest: Manifest) -> str:
    vectors = manifest.vectors
    if vectors is None:
        return "none; the word embedding starts from random numbers"
    missing = f"; without one, for example: {', '.join(vectors.missing[:5])}" if vectors.missing else ""
    return f"{vectors.source}, {vectors.found:,} words found, width {vectors.width}{missing}"


def _describe_features(manifest: Manifest) -> str:
    if not manifest.feature_width:
        return "none yet; nothing can be trained without"
    maker = f", by {manifest.images.backbone}" if manifest.images.backbone else ""
    place = "read where they are" if manifest.images.pack is None else f"packed as {manifest.images.pack}"
    if manifest.images.backbone:
        place = "in the prepared folder"
    size = manifest.grid_size
    return f"{size} x {size} cells of {manifest.feature_width} numbers{maker}, {place}"
