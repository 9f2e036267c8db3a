"""``trarctl prepare``: raw files and features to the folder that every other command reads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trarctl.commands.console import add_row, duration, make_table, note, say, show_error, show_table, warn
from trarctl.commands.options import (
    DATA_PANEL,
    EXTRACTOR_NAMES,
    OUTPUT_PANEL,
    GpusOption,
    dataset_argument,
    extracting_devices,
    option,
    refuse_ignored,
)

if TYPE_CHECKING:
    from trarctl.data.manifest import Manifest
    from trarctl.data.prepare import CheckRow, PrepareReport, PrepareRequest

EPILOG = """Examples:
  trarctl prepare easy-vqa
  trarctl prepare vqa --raw data/vqa/raw --features data/vqa/feats --vectors en_core_web_lg
  trarctl prepare clevr --images data/clevr/raw/images --extractor resnet101 --gpus 0,1"""
FEATURES_PANEL = "Image features"
WORDS_PANEL = "Words and answers"
TABLE_PANEL = "Your own table"


def prepare(
    dataset: Annotated[str, dataset_argument()],
    raw: Annotated[
        Path | None,
        option("--raw", DATA_PANEL, "Folder of questions and annotations; by default data/DATASET/raw.", metavar="DIR"),
    ] = None,
    features: Annotated[
        Path | None,
        option("--features", FEATURES_PANEL, "Folder of grid features; by default data/DATASET/feats.", metavar="DIR"),
    ] = None,
    without_features: Annotated[
        bool,
        option("--without-features", FEATURES_PANEL, "Prepare questions and answers only, even if there are features."),
    ] = False,
    images: Annotated[
        Path | None,
        option(
            "--images",
            FEATURES_PANEL,
            "Extract the features from images: DIR holds a folder per image set; torchrun's processes share the work.",
            metavar="DIR",
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        option(
            "--extractor",
            FEATURES_PANEL,
            f"What makes them: {EXTRACTOR_NAMES}, or one that a plugin adds; by default resnet101;"
            " patches for a table, easy-vqa, vqa-rad and slake.",
            metavar="NAME",
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", hidden=True)] = None,  # the name in version 0.1
    weights: Annotated[
        Path | None,
        option(
            "--weights", FEATURES_PANEL, "Its weights; by default the published ones are downloaded.", metavar="FILE"
        ),
    ] = None,
    gpus: GpusOption = None,
    grid: Annotated[
        int | None,
        option(
            "--grid",
            FEATURES_PANEL,
            "Cells along one side of the grid, S * S in all; by default 8 (clevr and clevr-cogent 14, easy-vqa 4).",
            metavar="S",
            min=1,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("--out", OUTPUT_PANEL, "Folder to write; by default data/DATASET/prepared.", metavar="DIR"),
    ] = None,
    pack: Annotated[
        Literal["float16", "float32", "as-found"] | None,
        option(
            "--pack",
            OUTPUT_PANEL,
            "Copy all features into one file of this number type, faster on slow disks; by default they stay in place.",
        ),
    ] = None,
    check: Annotated[
        bool,
        option(
            "--check",
            DATA_PANEL,
            "Check all that would be read, write nothing; exit code 4 if anything stops the preparation.",
        ),
    ] = False,
    rebuild: Annotated[bool, option("--rebuild", OUTPUT_PANEL, "Prepare again even if nothing has changed.")] = False,
    vectors: Annotated[
        str,
        option(
            "--vectors",
            WORDS_PANEL,
            "Word vectors: none, auto (what is installed), a spaCy package or folder, or a GloVe .txt or .zip file.",
            metavar="SOURCE",
            shows_default=True,
        ),
    ] = "auto",
    min_answer_count: Annotated[
        int | None,
        option(
            "--min-answer-count",
            WORDS_PANEL,
            "Only answers that were given more than N times can be predicted; by default 8 for vqa and vqa-cp, 9 for"
            " okvqa.",
            metavar="N",
            min=0,
        ),
    ] = None,
    name: Annotated[
        str | None, option("--name", TABLE_PANEL, "What other commands call your data.", metavar="NAME")
    ] = None,
    questions: Annotated[
        Path | None,
        option(
            "--questions",
            TABLE_PANEL,
            "One table (.csv, .tsv, .jsonl, .parquet) with the columns image, question and answer; parted 80/10/10 by"
            " picture, or by its column split.",
            metavar="FILE",
        ),
    ] = None,
    train: Annotated[
        Path | None, option("--train", TABLE_PANEL, "Or a table for each split: this one to train on.", metavar="FILE")
    ] = None,
    val: Annotated[Path | None, option("--val", TABLE_PANEL, "The table of the split val.", metavar="FILE")] = None,
    test: Annotated[
        Path | None,
        option("--test", TABLE_PANEL, "The table of the split test; it may lack answers.", metavar="FILE"),
    ] = None,
    column: Annotated[
        list[str] | None,
        option(
            "--column",
            TABLE_PANEL,
            "Where a column of your table has another name, such as type=answer_type; may be repeated.",
            metavar="COLUMN=NAME",
        ),
    ] = None,
    answers: Annotated[
        Literal["normalized", "raw"] | None,
        option(
            "--answers",
            TABLE_PANEL,
            "raw only ignores case and blanks around answers; by default they are normalized as VQA v2's are.",
        ),
    ] = None,
    skip_missing: Annotated[
        bool,
        option("--skip-missing", TABLE_PANEL, "Leave out questions about pictures that are missing, with a warning."),
    ] = False,
    max_words: Annotated[
        int | None,
        option(
            "--max-words",
            WORDS_PANEL,
            "Longer questions are cut; by default 14 for vqa, otherwise the longest question in the data.",
            metavar="T",
            min=1,
        ),
    ] = None,
) -> None:
    """Check the raw files and turn them into the data that all other commands read."""
    from trarctl.commands.progress import show_progress
    from trarctl.data import prepare as preparing
    from trarctl.data.features.extract import share_of_environment
    from trarctl.errors import DataError

    given = {"--rebuild": rebuild, "--pack": pack, "--gpus": gpus, "--backbone": backbone}
    if check:
        refuse_ignored("prepare --check", given, ["--rebuild"])
    if without_features:
        refuse_ignored("prepare --without-features", given, ["--pack"])
    if images is None and extractor is None and backbone is None:
        refuse_ignored("prepare without --images or --extractor", given, ["--gpus"])
    if extractor is not None:
        refuse_ignored("prepare --extractor", given, ["--backbone"])
    described = {
        "name": name,
        "questions": questions,
        "train": train,
        "val": val,
        "test": test,
        "column": column,
        "answers": answers,
        "skip_missing": skip_missing,
    }
    request = preparing.PrepareRequest(
        dataset=dataset,
        options={key: value for key, value in described.items() if value},
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
        devices=extracting_devices(gpus) if images or extractor or backbone else ("cpu",),
    )
    if check:
        with show_progress() as progress:
            found = preparing.check(request, progress)
        _show_checks(found.rows, found.warnings)
        if len(found.faults) == 1:
            raise found.faults[0]
        for fault in found.faults:
            show_error(fault.what, fault.hint)
        if found.faults:
            raise DataError(f"{len(found.faults)} faults stop the preparation", "mend them in the order shown")
        say("nothing stops the preparation")
    elif images is not None and share_of_environment()[0]:
        preparing.prepare_share(request)
    else:
        with show_progress() as progress:
            report = preparing.prepare(request, progress)
        _show(report, request)


def _show_checks(rows: Sequence[CheckRow], warnings: Sequence[str]) -> None:
    table = make_table("file", "found", "expected", "verdict", numbers=("found", "expected"))
    for row in rows:
        found, expected = (f"{count:,}" if count is not None else "-" for count in (row.found, row.expected))
        add_row(table, row.file, found, expected, f"{row.verdict}: {row.advice}" if row.advice else row.verdict)
    show_table(table)
    warn(*warnings)


def _show(report: PrepareReport, request: PrepareRequest) -> None:
    """Print what was checked, what is odd, what was prepared, and what to do next."""
    from trarctl.data.prepared import default_folder
    from trarctl.registry import DATASETS

    _show_checks(report.checks, report.warnings)
    note(*report.notes)
    manifest = report.manifest
    state = "was up to date" if report.was_current else f"prepared in {duration(report.seconds)}"
    say(f"{manifest.name} {state}: {report.out}")
    for name, split in manifest.text.splits.items():
        say(f"  {name}: {split.questions:,} questions about {split.images:,} images")
    for name, percent in manifest.text.ceilings.items():
        least = manifest.text.min_answer_count
        rule = f"those of more than {least} annotations, which reach" if least else "they reach"
        say(f"  answers: {rule} at most {percent:.2f} % on {name}")
    say(f"  word vectors: {_describe_vectors(manifest)}")
    say(f"  features: {_describe_features(manifest)}")
    if manifest.images.feature_width:
        where = "" if report.out == default_folder(manifest.name) else f" --data {shlex.quote(str(report.out))}"
        say(f"next: trarctl train {manifest.name}{where}")
    else:
        features = "DIR" if DATASETS[manifest.dataset].extractor is None else None
        say(f"next: {request.command(features=features, without_features=False)}")


def _describe_vectors(manifest: Manifest) -> str:
    vectors = manifest.text.vectors
    if vectors is None:
        return "none; the word embedding starts from random numbers"
    missing = f"; without one, for example: {', '.join(vectors.missing[:5])}" if vectors.missing else ""
    return f"{vectors.source}, {vectors.found:,} words found, width {vectors.width}{missing}"


def _describe_features(manifest: Manifest) -> str:
    images, size = manifest.images, manifest.images.grid_size
    if not images.feature_width:
        return "none yet; training needs them"
    by = f", by {images.backbone}" if images.backbone else ""
    is_elsewhere = any(part.folder and part.folder.startswith("..") for part in images.image_sets)
    if is_elsewhere:
        how = "read where they are"
    else:
        how = "in the prepared folder" if images.pack is None else f"packed as {images.pack}"
    return f"{size} x {size} cells of {images.feature_width} numbers{by}, {how}"
