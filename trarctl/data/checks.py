"""The table that ``prepare`` begins with: which files are there, and whether they hold what they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trarctl.data.datasets.base import Layout
from trarctl.data.features.images import Folder

Verdict = Literal["ok", "other count", "missing", "not there, not needed", "damaged"]


@dataclass(frozen=True)
class CheckRow:
    """One line of the table.

    Args:
        file: file or folder, relative to the raw or the feature folder.
        found: records or files in it, None where there are none to count.
        expected: as published, None where no figure is published.
        verdict: what to make of it.
        advice: what to do about it; empty if nothing.
    """

    file: str
    found: int | None
    expected: int | None
    verdict: Verdict
    advice: str = ""


def file_rows(layout: Layout, raw: Path, found: Mapping[str, int], damaged: Mapping[str, str]) -> list[CheckRow]:
    """Check the raw files.

    Args:
        layout: the data set.
        raw: folder of the raw files.
        found: records of the files that were read.
        damaged: what is wrong with those that could not be.
    """
    rows = []
    for split in layout.splits:
        is_begun = any((raw / name).exists() for name in split.files)
        for name in split.files:
            if name in damaged:
                rows.append(CheckRow(name, None, split.num_questions, "damaged", damaged[name]))
            elif (raw / name).exists():
                rows.append(_counted(name, found.get(name), split.num_questions, "is it the whole published file?"))
            elif split.is_required or is_begun:
                rows.append(CheckRow(name, None, split.num_questions, "missing", layout.download_hint))
            else:
                advice = f"needed for the split {split.name}, and for the vocabulary of published checkpoints"
                rows.append(CheckRow(name, None, split.num_questions, "not there, not needed", advice))
    return rows


def folder_rows(layout: Layout, folders: Mapping[str, Folder | None]) -> list[CheckRow]:
    """Check the folders of features or images."""
    rows = []
    for files in layout.image_sets:
        folder = folders.get(files.name)
        if folder is not None:
            row = _counted(str(folder.path), len(folder.ids), files.num_images, "are all images there?")
            odd = f"{folder.num_odd:,} files with other names are left out" if folder.num_odd else ""
            rows.append(replace(row, advice="; ".join(filter(None, (row.advice, odd)))))
        elif files.is_required:
            rows.append(CheckRow(files.name, None, files.num_images, "missing", "needed for training"))
        else:
            rows.append(CheckRow(files.name, None, files.num_images, "not there, not needed"))
    return rows


def _counted(name: str, found: int | None, expected: int | None, advice: str) -> CheckRow:
    is_expected = expected is None or found is None or found == expected
    return CheckRow(name, found, expected, "ok" if is_expected else "other count", "" if is_expected else advice)
