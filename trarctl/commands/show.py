"""``trarctl show``: what prepared data holds, to be seen before it is trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from trarctl.commands.console import add_row, make_table, note, say, show_table, warn, write_json
from trarctl.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    JsonOption,
    check_targets,
    dataset_argument,
    option,
    refuse_ignored,
    refuse_unknown,
)

if TYPE_CHECKING:
    from trarctl.report.contents import Contents, Sample

EPILOG = "Example: trarctl show easy-vqa --report shown"


def show(
    dataset: Annotated[str | None, dataset_argument(takes_own=True)] = None,
    data: Annotated[
        Path | None, option("--data", DATA_PANEL, "Prepared folder; by default data/DATASET/prepared.", metavar="DIR")
    ] = None,
    split: Annotated[str, option("--split", DATA_PANEL, "Split of the samples.", metavar="NAME")] = "train",
    samples: Annotated[
        int, option("--samples", DATA_PANEL, "How many random questions to show.", metavar="N", min=0, max=1000)
    ] = 10,
    seed: Annotated[int, option("--seed", DATA_PANEL, "Draws other samples.", metavar="N", min=0)] = 0,
    images: Annotated[
        Path | None,
        option(
            "--images", DATA_PANEL, "Folder of the pictures; by default where they were prepared from.", metavar="DIR"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        option("--report", OUTPUT_PANEL, "Write a page with the samples' pictures into this folder.", metavar="DIR"),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show what prepared data holds: counts, answers, words, and random samples."""
    from trarctl.data.prepared import default_folder, open_prepared
    from trarctl.errors import SettingsError
    from trarctl.report.contents import contents_of, page_of, samples_of
    from trarctl.report.page import prepare_folder, write_page

    if dataset is None and data is None:
        raise SettingsError("nothing says which data to show", "trarctl show DATASET, or --data DIR")
    given = {"--images": images, "--seed": seed}
    if report is None:
        refuse_ignored("show without --report", given, ["--images"])
    if samples == 0:
        refuse_ignored("show --samples 0", given, ["--images", "--seed"])
    refuse_unknown(dataset, data, takes_own=True)
    check_targets({"--json": None if json in (None, "-") else Path(str(json))}, [])
    opened = open_prepared(data or default_folder(str(dataset)))
    if dataset is not None and opened.name != dataset:
        raise SettingsError(f"{opened.path} holds {opened.name} data, not {dataset}", f"leave out {dataset}, or --data")
    part = opened.split(split)
    if report is not None:
        prepare_folder(report, "show.html")
    found = [contents_of(opened, opened.split(name)) for name in opened.split_names]
    drawn, why = samples_of(opened, part, samples, images, seed)
    if report is not None:
        path = write_page(report, "show.html", page_of(opened, found, drawn, why))
        note(*[why] if why else [])
        note(f"page written to {path}, {path.stat().st_size / 1e6:.1f} MB")
    if json is not None:
        held = [{key: value for key, value in asdict(one).items() if key != "picture"} for one in drawn]
        write_json({"name": opened.name, "splits": [asdict(one) for one in found], "samples": held}, json)
    if json == "-":
        return
    say(f"{opened.name}: {len(opened.vocabulary):,} words, {len(opened.answers):,} answers, {opened.path}")
    warn(*opened.manifest.text.warnings, *opened.manifest.images.warnings)
    _show_splits(found)
    _show_samples(drawn, split)


def _show_splits(found: list[Contents]) -> None:
    numbers = ("questions", "images", "words", "unknown, %", "reachable, %")
    table = make_table("split", *numbers, numbers=numbers)
    for one in found:
        reachable = "-" if one.reachable is None else f"{one.reachable:.2f}"
        figures = (
            f"{one.questions:,}",
            f"{one.images:,}",
            f"{one.mean_words:.1f}",
            f"{one.unknown_words:.1f}",
            reachable,
        )
        add_row(table, one.name, *figures)
    show_table(table)
    for one in found:
        for what, rows in (("answers", one.answers), ("first words", one.first_words)):
            if rows:
                say(f"{one.name}, commonest {what}: " + ", ".join(f"{name} {share:.1f} %" for name, share in rows))


def _show_samples(drawn: list[Sample], split: str) -> None:
    if drawn:
        table = make_table(f"question of {split}", "answer", "image", title="random samples")
        for one in drawn:
            add_row(table, one.question, ", ".join(one.answers) or "-", str(one.image_id))
        show_table(table)
