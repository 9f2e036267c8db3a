"""``trarctl extract``: pictures, or published maps, to the grid features that ``prepare --features`` reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from trarctl.commands.console import duration, note, say, warn
from trarctl.commands.options import DATA_PANEL, EXTRACTOR_NAMES, OUTPUT_PANEL, GpusOption, extracting_devices, option

EPILOG = """Examples:
  trarctl extract data/vqa/images --extractor resnet101 --grid 8 --out data/vqa/feats --gpus 0,1
  trarctl extract published-maps --extractor maps --grid 16 --out data/vqa/feats16
  torchrun --nproc-per-node 2 -m trarctl extract pictures --extractor patches --out feats"""
FEATURES_PANEL = "Image features"


def extract(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Folder of pictures, such as train2014 and val2014 within it; or of published maps (.pth).",
            show_default=False,
        ),
    ],
    extractor: Annotated[
        str,
        option(
            "--extractor",
            FEATURES_PANEL,
            f"What makes the features: {EXTRACTOR_NAMES}, or one that a plugin adds; patches is fitted"
            " to the pictures; maps pads and pools maps that others have published.",
            metavar="NAME",
        ),
    ],
    out: Annotated[
        Path,
        option("--out", OUTPUT_PANEL, "Folder of features; the same command continues what is in it.", metavar="DIR"),
    ],
    grid: Annotated[
        int,
        option(
            "--grid",
            FEATURES_PANEL,
            "Cells along one side of the grid, S * S in all.",
            metavar="S",
            min=1,
            shows_default=True,
        ),
    ] = 8,
    weights: Annotated[
        Path | None,
        option("--weights", FEATURES_PANEL, "Weights of its network; by default they are downloaded.", metavar="FILE"),
    ] = None,
    gpus: GpusOption = None,
    precision: Annotated[
        Literal["fp32", "bf16"],
        option(
            "--precision",
            FEATURES_PANEL,
            "bf16 is quicker on a GPU; it is used where it moves no value by more than 1e-2 of its scale.",
            shows_default=True,
        ),
    ] = "fp32",
    skip_damaged: Annotated[
        bool,
        option("--skip-damaged", DATA_PANEL, "Leave out pictures that are unusable, with a warning and a count."),
    ] = False,
    pack: Annotated[
        bool,
        option(
            "--pack",
            OUTPUT_PANEL,
            "Put all files into one at the end, DIR/features.zip, which prepare --features DIR reads as it does them.",
        ),
    ] = False,
) -> None:
    """Make a file of grid features of every picture in a folder.

    The processes of torchrun share the pictures; so do those that are told RANK and WORLD_SIZE on several machines.
    """
    from trarctl.commands.progress import show_progress
    from trarctl.data.features.base import ExtractorOptions
    from trarctl.data.features.extract import extract_folder, share_of_environment

    rank, num_processes = share_of_environment()
    is_first, is_shared = rank == 0, num_processes > 1
    options = ExtractorOptions(grid, weights, extracting_devices(gpus))
    with show_progress(is_quiet=not is_first) as progress:
        report = extract_folder(
            images, extractor, options, out, progress, precision=precision, skips_damaged=skip_damaged, packs=pack
        )
    if not is_first:
        return
    note(*report.notes)
    if report.skipped is not None:
        warn(f"{report.skipped.what}; left out")
    what, place = report.description, report.place
    share = f", {report.num_own:,} of them in the share of this process" if is_shared else ""
    there = f", {report.num_there:,} of which were there" if report.num_there else ""
    say(f"features of {report.num_pictures:,} pictures in {place}{share}{there}; it took {duration(report.seconds)}")
    say(f"  {grid} x {grid} cells of {report.width:,} numbers, by {what['name']}, {what['extraction']['precision']}")
    say(f"next: trarctl prepare DATASET --features {shlex.quote(str(out))} --grid {grid}")
