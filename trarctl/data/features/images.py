"""The image table: which images the questions name, and where the features or the picture of each are.

Image ids are numbers or texts, and stay what they are. Axes: Q questions, I images of a set.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data import batched, in_threads
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, feature_namings
from trarctl.data.features import zipped
from trarctl.data.features.grid import FeatureFileError, Problem, convert_hint, read_features
from trarctl.data.manifest import BACKBONE, EXTRACTION, IMAGES
from trarctl.data.records import Ids, rows_of
from trarctl.errors import DataError, listed
from trarctl.files import read_regular, write_array

Command = Callable[..., str]
"""Gives the command that prepares the data, with other values of some options."""
SetPlaces = npt.NDArray[np.int8]
"""Place of an image set among the data set's, for each question, [Q]."""
_NO_SETS: Mapping[str, SetPlaces] = {}
_ARRAY_SUFFIXES = (".npy", ".npz")
_NO_IDS: Mapping[str, Ids] = {}


@dataclass(frozen=True)
class Folder:
    """A folder with one file per image: of the images ``ids``, ascending; ``num_odd`` files have other names."""

    path: Path
    naming: FileNaming
    ids: Ids
    num_odd: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """The images of one set that questions name, ascending, and where they are (None: no such folder)."""

    files: ImageSetFiles
    ids: Ids
    folder: Folder | None

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.files.name

    def file(self, image_id: Any) -> Path:
        """Give the file of an image; only of a set that has a folder."""
        assert self.folder is not None  # noqa: S101 - the callers pass over sets without a folder
        return self.folder.path / self.folder.naming.name(image_id)

    def file_of_row(self, row: int) -> Path:
        """Give the file of the image in a row of the set."""
        return self.file(self.ids[row].item())


@dataclass(frozen=True)
class ImageTable:
    """All images that questions name, set after set; ``rows`` has the row of each question's image, by split."""

    sets: tuple[ImageSet, ...]
    rows: dict[str, npt.NDArray[np.int32]]  # -1: the question is left out
    warnings: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write ids by image set and rows by split into ``folder/images``."""
        (folder / IMAGES).mkdir(exist_ok=True)
        ids = {f"{images.name}.ids": images.ids for images in self.sets}
        for name, array in (ids | {f"{split}.rows": rows for split, rows in self.rows.items()}).items():
            write_array(folder / IMAGES / f"{name}.npy", array)


def refuse_problems(kind: str, problems: Sequence[Problem]) -> None:
    """Raise a DataError that names unusable files of a kind, if there are any, once for each reason."""
    if problems:
        raise error_of(kind, problems)


def error_of(kind: str, problems: Sequence[Problem]) -> DataError:
    """Give the DataError that names unusable files of a kind."""
    noun = f"1 {kind} file is" if len(problems) == 1 else f"{len(problems):,} {kind} files are"
    paths: dict[str, list[Path]] = {}
    for problem in problems:
        paths.setdefault(problem.why, []).append(problem.path)
    said = [f"{own[0]} {why}" + _and_others(own[1:]) for why, own in paths.items()]
    hints = dict.fromkeys(problem.hint for problem in problems)
    return DataError(f"{noun} unusable: {listed(said, len(said))}", "; ".join(list(hints)[:3]))


def _and_others(paths: Sequence[Path]) -> str:
    return f" (and so with {listed([path.name for path in paths], len(paths), most=9)})" if paths else ""


def scan_folder(path: Path, namings: Sequence[FileNaming], asked: Sequence[str] | None = None) -> Folder | None:
    """List the files of a folder (None: there is none); of several ways to name them, the one that most follow.

    With ``asked``, only those of images that questions name.
    """
    is_nested = any(one.is_nested for one in namings)
    packed = [name for name in zipped.names_below(path) if is_nested or "/" not in name]
    try:
        names = nested_names(path) if is_nested else os.listdir(path)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        if not packed:
            return None
        names = []
    except OSError as error:
        what = f"cannot read the folder {path}: {error.strerror or error}"
        raise DataError(what, "make it readable: chmod u+rx") from error
    if packed:
        names = list(dict.fromkeys([*packed, *(name for name in names if name != zipped.ARCHIVE)]))
    found = {namings[0]: namings[0].ids(names, asked)}
    if len(found[namings[0]]) < len(names):
        found |= {naming: naming.ids(names, asked) for naming in namings[1:]}
    best = max(found, key=lambda naming: len(found[naming]))
    kept, warnings = found.pop(best), list[str]()
    for naming, ids in found.items():
        if ids and not _refuse_two_kinds(path, {best: kept, naming: ids}):
            those = f"named like {naming.name(min(ids))}, and {len(kept):,} like {best.name(min(kept))}"
            warnings.append(f"{len(ids):,} files in {path} are left out, since they are {those}")
    if best.replaces_suffix:
        _refuse_shared_files(path, best, kept)
    unique = np.unique(np.array(kept, dtype=None if kept else np.int64))
    return Folder(path, best, unique, len(names) - len(kept) if asked is None else 0, tuple(warnings))


def _refuse_shared_files(path: Path, naming: FileNaming, ids: Sequence[Any]) -> None:
    """Refuse a file that would be that of two images, whose names differ in their suffix alone."""
    own: dict[str, Any] = {}
    for image_id in ids:
        other = own.setdefault(name := naming.name(image_id), image_id)
        if other != image_id:
            what = f"{path / name} would hold the features of both {other} and {image_id}"
            raise DataError(what, f"name such files after the whole picture: {other}.npy and {image_id}.npy")


def nested_names(path: Path) -> list[str]:
    """List the files below a folder, relative to it; a folder that is linked twice is entered once."""
    top = path.stat()
    entered, found, waiting = {(top.st_dev, top.st_ino)}, list[str](), [""]
    while waiting:
        here = waiting.pop()
        with os.scandir(path / here) as entries:
            for entry in entries:
                name = f"{here}{entry.name}"
                if not entry.is_dir():
                    found.append(name)
                    continue
                status = entry.stat()
                if (status.st_dev, status.st_ino) not in entered:
                    entered.add((status.st_dev, status.st_ino))
                    waiting.append(f"{name}/")
    return found


def _refuse_two_kinds(path: Path, found: Mapping[FileNaming, Sequence[Any]]) -> bool:
    """Refuse two files of one image that differ; give whether there are images with two files."""
    one, other = found
    shared = sorted(set(found[one]) & set(found[other]))
    for image_id in shared[:1]:
        with suppress(FeatureFileError):  # is said when the file is read
            ours, theirs = (read_features(path / naming.name(image_id)) for naming in found)
            # One may be a copy of the other as float16.
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
                what = f"{path} holds two files each for {len(shared):,} images, and they differ"
                names = f"{one.name(image_id)} and {other.name(image_id)}"
                raise DataError(f"{what}: {names}", "move the files of one kind to another folder")
    return bool(shared)


def feature_folders(spec: DatasetSpec, root: Path, named: Mapping[str, Ids] = _NO_IDS) -> dict[str, Folder | None]:
    """Look for the features of every image set that a user has; ``named`` is as for ``build_table``."""
    if not root.is_dir():
        raise DataError(f"no folder of features {root}", "pass the folder that holds them: --features DIR")
    # What ``trarctl extract`` writes lies as the pictures do.
    of_set = spec.image_folder if _is_extracted(root) else spec.feature_folder
    found: dict[str, Folder | None] = {}
    for files in spec.image_sets:
        namings, asked = feature_namings(files), None
        if files.images.is_nested and not files.images.suffix:  # an id is the whole name of a picture
            namings += tuple(FileNaming("", None, one, is_nested=True, replaces_suffix=True) for one in _ARRAY_SUFFIXES)
            asked = sorted({one for ids in named.values() for one in ids.tolist()})
        found[files.name] = scan_folder(of_set(root, files.name), namings, asked)
    return found


def _is_extracted(root: Path) -> bool:
    """Whether ``trarctl extract`` made the features in a folder."""
    try:
        return EXTRACTION in orjson.loads(read_regular(root / BACKBONE))
    except (OSError, ValueError, TypeError):
        return False


def images_there(spec: DatasetSpec, features: Path | None, pictures: Path | None) -> dict[str, Folder]:
    """List the images of every set that has a folder of pictures, or of features."""
    found: dict[str, Folder | None] = {}
    if pictures is not None and pictures.is_dir():
        found = {one.name: scan_folder(spec.image_folder(pictures, one.name), [one.images]) for one in spec.image_sets}
    elif features is not None and features.is_dir():
        found = feature_folders(spec, features)
    return {name: folder for name, folder in found.items() if folder is not None}


def picture_table(
    spec: DatasetSpec, named: Mapping[str, Ids], said: Mapping[str, SetPlaces], root: Path, command: Command
) -> ImageTable:
    """Look up the picture of every image that a question names; a DataError names those that are missing.

    ``named`` and ``said`` are as for ``build_table``.
    """
    if not root.is_dir():
        raise DataError(f"no folder of images {root}", "pass the folder that holds them: --images DIR")
    sets = spec.image_sets
    folders = {one.name: scan_folder(spec.image_folder(root, one.name), [one.images]) for one in sets}
    table = build_table(spec, named, folders, said)
    return replace(table, warnings=refuse_missing(table, root, spec, command, "images"))


def build_table(
    spec: DatasetSpec,
    named: Mapping[str, Ids],
    folders: Mapping[str, Folder | None],
    said: Mapping[str, SetPlaces] = _NO_SETS,
) -> ImageTable:
    """Give every image that a question names its row.

    An image belongs to the set that the records of its split say, or else to its split's own. Where ids are shared
    between the sets (COCO), one that is not there but in another set belongs to that: Visual Genome's questions are
    about images of train and val. Those about images that no set has are left out.

    Args:
        spec: the data set.
        named: the image of each question, [Q], by split.
        folders: the images that are there, by set; may be empty.
        said: the place of each question's image set among the data set's, [Q], by split; only where records say it.
    """
    warnings = list[str]()
    names = [files.name for files in spec.image_sets]
    own = {split.name: names.index(split.image_set) for split in spec.splits}
    homes = {split: np.full(len(ids), own[split], dtype=np.int64) for split, ids in named.items()}
    if spec.shares_image_ids:
        borrowing = {split.name for split in spec.splits if split.borrows_images}
        asked = [_asked_ids(spec, files.name, named) for files in spec.image_sets]
        for split, ids in named.items():
            if split in said:
                homes[split] = said[split].astype(np.int64)
                continue
            is_lost = np.ones(len(ids), dtype=bool)
            order = sorted(range(len(names)), key=lambda index: index != own[split])
            there = [(index, folder.ids) for index in order if (folder := folders.get(names[index])) is not None]
            others = [index for index in order if folders.get(names[index]) is None or split in borrowing]
            for index, known in [*there, *((index, asked[index]) for index in others)]:
                is_here = is_lost & (rows_of(ids, known) >= 0)
                homes[split][is_here] = index
                is_lost &= ~is_here
            if split in borrowing and folders and is_lost.any() and not is_lost.all():
                homes[split][is_lost] = -1
                images = np.unique(ids[is_lost]).tolist()
                what = f"{is_lost.sum():,} of the {len(ids):,} questions of {split} are left out"
                warnings.append(f"{what}: no image set has their images {listed(images, len(images), most=3)}")
    sets = []
    rows = {split: np.full(len(ids), -1, dtype=np.int32) for split, ids in named.items()}
    start = 0
    for index, files in enumerate(spec.image_sets):
        members = np.unique(np.concatenate([ids[homes[split] == index] for split, ids in named.items()]))
        for split, ids in named.items():
            is_here = homes[split] == index
            rows[split][is_here] = start + np.searchsorted(members, ids[is_here])
        sets.append(ImageSet(files, members, folders.get(files.name)))
        start += len(members)
    return ImageTable(tuple(sets), rows, tuple(warnings))


def _asked_ids(spec: DatasetSpec, image_set: str, named: Mapping[str, Ids]) -> Ids:
    """List the images of a set that its own splits ask about."""
    splits = [split for split in spec.splits if split.image_set == image_set and not split.borrows_images]
    asking = [named[split.name] for split in splits if split.name in named]
    return np.unique(np.concatenate(asking)) if asking else np.empty(0, np.int64)


def refuse_missing(
    table: ImageTable, root: Path, spec: DatasetSpec, command: Command, what: str = "features"
) -> tuple[str, ...]:
    """Raise a DataError that names images that are missing, and what is there instead; or give warnings."""
    warnings, missing = [*table.warnings], list[str]()
    rows, start, instead = list[int](), 0, list[tuple[str, str]]()
    for images in table.sets:
        others = (one.folder for one in table.sets if one.name in images.files.instead and one.folder is not None)
        if (folder := images.folder or next(others, None)) is not None:
            is_absent = rows_of(images.ids, folder.ids) < 0
            absent = images.ids[is_absent]
            rows += (start + np.flatnonzero(is_absent)).tolist()
            missing += [f"{image_id} ({folder.path})" for image_id in absent[: 10 - len(missing)].tolist()]
            warnings += images.folder.warnings if images.folder else ()
            instead += _instead(images, folder, absent.tolist(), what)
        elif images.files.is_required and len(images.ids):
            problem = f"no folder {root / images.name} with the {what} of {len(images.ids):,} images"
            raise _no_folder(images, root, spec, command, what, problem)
        elif len(images.ids):
            warnings.append(f"no {what} of {images.name}: {root / images.name} is missing")
        start += len(images.ids)
    if rows:
        asked = {split: int(np.isin(asking, rows).sum()) for split, asking in table.rows.items()}
        who = ", ".join(f"{number:,} questions of {split}" for split, number in asked.items() if number)
        problem = f"no {what} for {'image' if len(rows) == 1 else 'images'} {listed(missing, len(rows))}: {who}"
        said, hint = instead[0] if instead else ("", "")
        hint = hint or _to_add(spec, command, what, "these images")
        # Visual Genome has pictures that COCO has not.
        optional = [one for one in spec.splits if not one.is_required and asked.get(one.name)]
        if len(optional) == sum(map(bool, asked.values())):
            hint += "".join(f"; without {' and '.join(one.files)}, {one.name} is left out" for one in optional)
        raise DataError(f"{problem}{said}", hint)
    return tuple(warnings)


def _no_folder(images: ImageSet, root: Path, spec: DatasetSpec, command: Command, what: str, problem: str) -> DataError:
    """Say what is there instead of the folder of an image set, and the command that helps, if there is one."""
    folder = root / images.name
    if folder.is_symlink():
        return DataError(f"{problem}: it is a link to {folder.readlink()}, which is not there", "correct the link")
    for other in (root.absolute().parent, *sorted(root.glob("*/"))):
        if (other / images.name).is_dir():
            return DataError(f"{problem}, but {other / images.name}", command(**{what: other}))
    namings = feature_namings(images.files) if what == "features" else [images.files.images]
    entries = sorted(root.iterdir())
    for other in (root, *filter(Path.is_dir, entries)):
        # Names without a prefix are the same in every set.
        for naming in [naming for naming in namings if naming.prefix]:
            if num := len(naming.ids(path.name for path in other.iterdir())):
                pattern = f"{naming.prefix}*{naming.suffix}"
                moves = f"find {shlex.quote(str(other))} -maxdepth 1 -name '{pattern}' -exec mv -t"
                hint = f"mkdir {shlex.quote(str(folder))} && {moves} {shlex.quote(str(folder))} {{}} +"
                return DataError(f"{problem}, but {num:,} such files in {other}", hint)
    holds = f"{root} holds {listed([path.name for path in entries], len(entries), most=5) or 'nothing'}"
    hint = _to_add(spec, command, what, images.name)
    return DataError(f"{problem}; {holds}", convert_hint([path.name for path in entries]) or hint)


def _to_add(spec: DatasetSpec, command: Command, what: str, name: str) -> str:
    if what == "images":
        has_pictures = any(one.has_images for one in spec.downloads)
        fetched = f", or fetch all: trarctl download {spec.name} --images" if has_pictures else ""
        return spec.download_hint if spec.extractor is not None else f"add {name} to the folder of --images{fetched}"
    return f"add those of {name}; or leave features out: {command(features=None, pack=None, without_features=True)}"


def _instead(images: ImageSet, folder: Folder, absent: Sequence[Any], what: str) -> list[tuple[str, str]]:
    """Say what lies in a folder that lacks images, and the command that helps, if there is one."""
    # Where names are nested, folders hold other files as well, and no place is a wrong one.
    if not absent or folder.naming.is_nested or not folder.path.is_dir():
        return []
    namings = feature_namings(images.files) if what == "features" else [images.files.images]
    entries = sorted(folder.path.iterdir())
    for deeper in [path for path in entries[:1000] if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]:
        if num := max(len(naming.ids(path.name for path in deeper.iterdir())) for naming in namings):
            hint = f"find {shlex.quote(str(deeper))} -type f -exec mv -t {shlex.quote(str(folder.path))} {{}} +"
            return [(f"; {num:,} such files lie in {deeper}", hint)]
    taken = folder.naming
    odd = [path.name for path in entries if not taken.ids([path.name])]
    expected = (taken if len(folder.ids) else namings[0]).name(absent[0])
    others = "1 file has another name" if len(odd) == 1 else f"{len(odd):,} files have other names"
    return [(f"; {others} than {expected}, such as {odd[0]}", convert_hint(odd))] if odd else []


def fingerprint(images: ImageSet) -> str:
    """Identify the files of an image set by their ids, sizes and times of change."""
    if images.folder is None:
        return ""

    def look(ids: Sequence[Any]) -> list[tuple[int, int]]:
        return [zipped.size_and_time(images.file(one)) for one in ids]

    digest = hashlib.sha256(images.ids.tobytes())
    try:
        for found in in_threads(look, batched(images.ids.tolist(), 1024), num_threads=4):
            digest.update(np.array(found, dtype=np.int64).tobytes())
    except OSError as error:
        what = f"cannot read {error.filename}: {error.strerror or error}"
        raise DataError(what, "replace it with a file that can be read") from error
    return digest.hexdigest()
