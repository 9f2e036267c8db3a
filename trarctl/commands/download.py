"""``trarctl download``: the published files of a data set, fetched and verified, or listed to fetch elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trarctl.commands.console import add_row, compact_bytes, make_table, note, say, show_table
from trarctl.commands.options import DATA_PANEL, OUTPUT_PANEL, option
from trarctl.registry import DATASETS

if TYPE_CHECKING:
    from trarctl.data.datasets.base import DatasetSpec
    from trarctl.data.download import Download, Fetched, Planned

EPILOG = """Examples:
  trarctl download vqa
  trarctl download vqa --images --only 'val2014*'
  trarctl download clevr --list"""


def _check_name(name: str | None) -> str | None:
    from trarctl.data.datasets.base import downloads_by_name

    if name is not None and name not in (known := downloads_by_name()):
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, known))}.")
    return name


def download(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A data set such as vqa or clevr, or vg: questions of Visual Genome for vqa.",
            callback=_check_name,
            autocompletion=lambda: list(DATASETS.names()),
            show_default=False,
        ),
    ],
    raw: Annotated[
        Path | None,
        option("--raw", OUTPUT_PANEL, "Folder to fetch into; by default data/DATASET/raw.", metavar="DIR"),
    ] = None,
    images: Annotated[
        bool,
        option("--images", DATA_PANEL, "Fetch the pictures too, which is much, and unpack them into RAW/images."),
    ] = False,
    only: Annotated[
        list[str] | None,
        option("--only", DATA_PANEL, "Fetch only files of this name or pattern; may be repeated.", metavar="PATTERN"),
    ] = None,
    is_list: Annotated[
        bool,
        option("--list", DATA_PANEL, "Print addresses, sizes, hashes and where each file belongs; fetch nothing."),
    ] = False,
) -> None:
    """Fetch the published files of a data set, continue where an attempt ended, and verify them."""
    from trarctl.commands.progress import show_progress
    from trarctl.data.datasets.base import downloads_by_name
    from trarctl.data.download import choose, fetch, plan, refuse_full_disk
    from trarctl.errors import DataError

    spec, downloads = downloads_by_name()[name]
    if not downloads:
        raise DataError(f"trarctl has no addresses of the files of {name}", spec.download_hint)
    folder = raw or spec.default_raw_folder()
    chosen = choose(downloads, only=only or (), with_images=images or is_list)
    if not chosen:
        raise DataError(f"trarctl has addresses of the pictures of {name} alone: --images", spec.download_hint)
    if is_list:
        _list(name, chosen, folder)
        return
    planned = plan(chosen, folder)
    _show_plan(planned, folder)
    refuse_full_disk(planned, folder)
    try:
        with show_progress() as progress:
            fetched = fetch(chosen, folder, progress, note)
    except KeyboardInterrupt:
        note("stopped; the same command continues where it was")
        raise
    _show_end(spec, fetched, folder, has_images=any(one.has_images for one in chosen), is_default=raw is None)


def _size(download: Download) -> str:
    if download.num_bytes is not None:
        return compact_bytes(download.num_bytes)
    return "not known" if download.about_bytes is None else f"about {compact_bytes(download.about_bytes)}"


def _list(name: str, downloads: Sequence[Download], folder: Path) -> None:
    """Print what a person, or another program, needs to fetch the files."""
    for one in downloads:
        exactly = "" if one.num_bytes is None else f" ({one.num_bytes:,} bytes)"
        say(f"{folder / one.file_name}")
        say(f"  from    {one.url}")
        say(f"  size    {_size(one)}{exactly}")
        say(f"  SHA-256 {one.sha256 or 'not published'}")
        if one.md5 is not None:
            say(f"  MD5     {one.md5}")
        if one.unpack_to is not None:
            what = f"its folder {one.unpack_prefix} " if one.unpack_prefix else ""
            say(f"  then    unpack {what}to {folder / one.unpack_to}, which trarctl download does as well")
    say(f"put there, the files are verified by trarctl download {name}, which then needs no network")


def _show_plan(planned: Sequence[Planned], folder: Path) -> None:
    from trarctl.data.archives import free_bytes

    table = make_table("file", "size", "state", numbers=("size",))
    for one in planned:
        add_row(table, one.download.file_name, _size(one.download), one.state)
    show_table(table)
    wanted = [one for one in planned if one.state in ("missing", "begun")]
    if wanted:
        sizes = [compact_bytes(total)] if (total := sum(one.num_missing for one in wanted)) else []
        sizes += ["files of unknown size"] if any(one.download.size is None for one in wanted) else []
        say(f"fetching {' and '.join(sizes)} into {folder}, where {compact_bytes(free_bytes(folder))} are free")


def _show_end(
    spec: DatasetSpec, fetched: Sequence[Fetched], folder: Path, *, has_images: bool, is_default: bool
) -> None:
    """Say what is there, what could not be compared with a published hash, and what comes next."""
    num_new = sum(not one.was_there for one in fetched)
    say(f"{folder}: {num_new} fetched, {len(fetched) - num_new} there already")
    for one in fetched:
        if one.is_first_sight:
            say(f"  {one.path.name}: no hash is published; recorded for later: SHA-256 {one.sha256}")
    words = ["trarctl", "prepare", spec.name]
    words += [] if is_default else ["--raw", str(folder)]
    words += ["--images", str(folder / "images")] if has_images else []
    say(f"next: {shlex.join(words)}")
