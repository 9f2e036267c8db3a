"""Pictures to features through an extractor: going on where an earlier attempt stopped, damaged pictures named.

Pictures that a user names become one ``.npy`` each; pictures that come with the data set go straight into packed files.

Feature files are made in groups that the list of pictures fixes, since what a network gives depends in its last bits on
what else is in a batch. Processes share the groups, and a group that lacks anything is made whole: the bytes are the
same however the work was shared, stopped and resumed. A feature file bears the time of its picture's last change.

Axes: B images, N cells, W feature width.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from trarctl.data import Progress, batched, in_threads, no_progress
from trarctl.data.features import zipped
from trarctl.data.features.base import Extractor, ExtractorOptions, make_extractor, other_weights, read_extractor
from trarctl.data.features.grid import (
    REPLACE,
    FeatureFileError,
    Floats,
    Problem,
    read_cells,
    read_shape,
    refuse_not_finite,
    store_cells,
)
from trarctl.data.features.images import ImageSet, error_of, fingerprint, nested_names, refuse_problems
from trarctl.data.features.reading import READING_VERSION, read_images
from trarctl.data.features.resnet import TORCHVISION_WEIGHTS
from trarctl.data.manifest import BACKBONE, EXTRACTION, StoredType, key_of
from trarctl.errors import DataError, SettingsError, listed
from trarctl.files import claimed, read_regular, refuse_readonly, refusing, sync_folder, write_bytes, write_json
from trarctl.groups import read_group
from trarctl.processors import usable_processors

if TYPE_CHECKING:
    from PIL.Image import Image

    from trarctl.data.prepared import PreparedData

EXTRACTED = "extracted"  # folder, in prepared data, of the features that were made for it
# Few enough that a batch of small images stays in the processor's cache. Another number changes last bits.
_BATCH_IMAGES = 32
_PAUSE_SECONDS, _LONGEST_SILENCE_SECONDS = 1.0, 3600.0
_LONGEST_NAME = 255  # bytes, on the file systems in use
_NUM_LOOKING = 4  # threads that look whether files are there
# For bfloat16: pictures it is tried on, and how far a value may move, in parts of itself or of the deviation.
_NUM_TRIED, _MOST_MOVED = 8, 1e-2


class Item(NamedTuple):
    """A picture, and the file of its features."""

    picture: Path
    target: Path


@dataclass(frozen=True)
class ExtractReport:
    """What became of a folder of pictures."""

    place: Path  # the folder of feature files, or the file that they are packed in
    description: dict[str, Any]  # what made the features, as ``backbone.json`` has it
    num_pictures: int
    num_own: int  # of them in this process's share
    num_there: int  # of its share, had features before
    width: int
    skipped: DataError | None  # names pictures that were left out
    notes: tuple[str, ...]
    seconds: float


def share_of_environment() -> tuple[int, int]:
    """Give rank and number of the processes that a launcher started together; (0, 1) without one.

    RANK and WORLD_SIZE are enough, as on machines that share a folder: nobody meets.
    """
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    is_told = all(os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    is_alone = is_told and not any(os.environ.get(name, "").strip() for name in alone)
    group = read_group({**os.environ, **alone} if is_alone else os.environ)
    return (0, 1) if group is None else (group.rank, group.size)


def fill_from_pictures(images: ImageSet, extractor: Extractor, first: int, out: Floats) -> list[Problem]:
    """Write features into ``out`` [B, N, W], from row ``first`` of a set on; return what is wrong with pictures."""
    problems: list[Problem] = []
    for start in range(0, len(out), _BATCH_IMAGES):
        ids = images.ids[first + start : first + min(start + _BATCH_IMAGES, len(out))].tolist()
        loaded, bad = _read([images.file(image_id) for image_id in ids], extractor)
        problems += bad
        # Where an image is bad, these rows are never written.
        for path, cells, target in zip(loaded, _described(list(loaded.values()), extractor), out[start:], strict=False):
            try:
                store_cells(cells, target)
            except FeatureFileError as error:
                problems.append(_unfit(path, extractor, error))
    return problems


def extract_files(
    sets: Sequence[ImageSet], name: str, options: ExtractorOptions, out: Path, progress: Progress
) -> tuple[Path, Extractor]:
    """Make feature files of images that have none yet, this process's share; the first waits for the others.

    The first of ``sets`` holds the training images, which an extractor may have to be fitted to. A DataError, of the
    first process, names the images that are unusable; the features of the others are kept. Gives the folder of feature
    files and the extractor.
    """
    rank, _ = share_of_environment()
    extractor = make_extractor(name, options)
    extractor.fetch(progress)
    sets = [images for images in sets if images.folder is not None]
    fitted_to = fingerprint(sets[0]) if extractor.is_fitted else None
    folder = _extracted_folder(out, extractor, fitted_to, READING_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    if extractor.is_fitted:
        if rank == 0 and not (folder / BACKBONE).exists():
            extractor.fit(training_images(sets[0], extractor, progress))
            write_json(folder / BACKBONE, extractor.describe())
        _wait_for_first(folder, progress)
        extractor = read_extractor(folder / BACKBONE, options)
    items = {images.name: [_item(folder, images, one) for one in images.ids.tolist()] for images in sets}
    for images in sets:
        (folder / images.name).mkdir(exist_ok=True)
    *_, problems = _make_files(items, extractor, folder, options.devices, progress)
    if rank == 0:
        refuse_problems("image", problems)
    return folder, extractor


def extract_folder(
    pictures: Path,
    name: str,
    options: ExtractorOptions,
    out: Path,
    progress: Progress = no_progress,
    *,
    precision: str = "fp32",
    skips_damaged: bool = False,
    packs: bool = False,
) -> ExtractReport:
    """Make a feature file of every picture in a folder and the folders in it, and say in ``out`` what made them.

    The features of ``a/b.jpg`` are ``out/a/b.jpg.npy``, [N, W] in the extractor's type, or float32 where that cannot
    hold them; those of a map ``a/b.pth`` are ``out/a/b.npy``. What is whole and of the present picture is kept. An
    extractor that is fitted sees all pictures once. With ``packs`` all files end in one, ``out/features.zip``, as if
    they lay in ``out``; a folder that was packed once stays so. Until then it takes twice the room.

    ``out/backbone.json`` has what the extractor says of itself, and under ``extraction`` the version of the rules by
    which pictures are read, the rule of size, and the precision. Sizes of pictures are not in it: the geometry follows
    from the picture that somebody lays it over.

    Raises:
        SettingsError: for options that do not fit the extractor.
        DataError: for folders that cannot be used, features of another making in ``out``, another writer of it, and,
            when all else is done, pictures that are unusable, unless ``skips_damaged``.
    """
    began, (rank, _) = time.monotonic(), share_of_environment()
    extractor = make_extractor(name, options)
    if precision not in extractor.precisions:
        what = f"{extractor.name} computes in {' or '.join(extractor.precisions)} only, not in {precision}"
        raise SettingsError(what, "leave out --precision")
    items, notes = _listed_items(pictures, out, extractor)
    refuse_readonly(out)
    with ExitStack() as stack:
        hint = "free some space, or pass a folder that can be written: --out DIR; what is done is kept"
        stack.enter_context(refusing(f"cannot write features to {out}", hint))
        if rank == 0:
            _refuse_others(out)
        extractor.fetch(progress)
        if rank == 0:
            if not extractor.is_fitted and not _description(out):
                extractor.load()  # weights that cannot be used must not be written down
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(out, f"the folder {out}"))
        first_problems, more = _describe(out, extractor, items, precision, progress, skips_damaged=skips_damaged)
        notes += more
        notes += extractor.about()
        zipped.archive_in(out)  # a damaged one is told before anything is made
        num_own, num_there, problems = _make_files({"": items}, extractor, out, options.devices, progress)
        description = orjson.loads((out / BACKBONE).read_bytes())
        packs = packs or zipped.archive_in(out) is not None
        if rank == 0 and packs:
            _pack(out, items, progress)
    kind = "image" if extractor.takes_pictures else "map"
    problems = list({problem.path: problem for problem in [*first_problems, *problems]}.values())
    if rank == 0 and (not skips_damaged or len(problems) == len(items)):
        refuse_problems(kind, problems)
    skipped = error_of(kind, problems) if problems else None
    seconds = time.monotonic() - began
    return ExtractReport(
        out / zipped.ARCHIVE if packs else out,
        description,
        num_pictures=len(items) - len(problems),
        num_own=num_own,
        num_there=num_there,
        width=extractor.width,
        skipped=skipped,
        notes=tuple(notes),
        seconds=seconds,
    )


def _pack(out: Path, items: Sequence[Item], progress: Progress) -> None:
    """Put the feature files into the archive of ``out``, and out of it those of pictures that changed or are gone bad.

    What it holds of other folders of pictures stays.
    """
    archive, scratch = zipped.archive_in(out), _scratch(out, 0)
    old = set[str]() if archive is None else {*archive.members}
    wanted = {item.target.relative_to(out).as_posix(): item for item in items}
    flags = in_threads(lambda item: _num_done([item]), wanted.values(), _NUM_LOOKING)
    done = {name for name, is_done in zip(wanted, flags, strict=True) if is_done}
    files = [wanted[name].target for name in done if wanted[name].target.is_file()]
    kept = done | (old - wanted.keys())
    if files or kept != old:
        try:
            zipped.write(out, kept, scratch, progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        sync_folder(out)
    for path in files:
        path.unlink()
    folders = {above for path in files for above in path.relative_to(out).parents if above.name}
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        with suppress(OSError):  # it holds something else
            (out / folder).rmdir()


def _listed_items(pictures: Path, out: Path, extractor: Extractor) -> tuple[list[Item], list[str]]:
    """List the pictures of a folder by name, and say what else is there; hidden files are passed over."""
    if not pictures.is_dir():
        raise DataError(f"no folder of pictures {pictures}", "pass the folder that holds them: trarctl extract IMAGES")
    inside = os.path.relpath(os.path.realpath(out), os.path.realpath(pictures))
    if inside == ".":
        raise DataError(f"{out} is the folder of the pictures", "pass another folder for the features: --out DIR")
    with refusing(f"cannot read the folder {pictures}", "make it readable: chmod u+rx"):
        names = sorted(name for name in nested_names(pictures) if not name.startswith((f"{inside}/", ".")))
    names, endings = [name for name in names if "/." not in name], extractor.endings()
    chosen = [name for name in names if os.path.splitext(name)[1].lower() in endings]  # noqa: PTH122 - quicker
    others = sorted(set(names).difference(chosen))
    holds = listed(others, most=3)
    if not chosen:
        shown = ", ".join(sorted(endings)) if len(endings) < 5 else "those of pictures"
        what = (
            f"no file in {pictures} has an ending that {extractor.name} reads ({shown}); it holds {holds or 'nothing'}"
        )
        raise DataError(what, "pass the folder that holds the files: trarctl extract IMAGES")
    noun = "1 file is" if len(others) == 1 else f"{len(others):,} files are"
    notes = [f"{noun} left out, by the ending: {holds}"] if others else []
    targets = [extractor.feature_name(name) for name in chosen]
    if long := [name for name in targets if len(os.fsencode(name.rpartition("/")[2])) > _LONGEST_NAME]:
        raise DataError(
            f"the names of {len(long):,} files of features would be too long: {listed(long)}", "rename them"
        )
    return [Item(pictures / name, out / target) for name, target in zip(chosen, targets, strict=True)], notes


def _refuse_others(out: Path) -> None:
    """See that a folder is empty, or that ``extract`` made what is in it."""
    if out.is_dir() and not _description(out):
        entries = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if entries:
            what = f"{out} holds {listed(entries, most=3)}, but no {BACKBONE} that trarctl extract wrote"
            raise DataError(what, "pass an empty or a new folder: --out DIR")


def _description(out: Path) -> dict[str, Any]:
    """Read what made the features in a folder; empty if ``extract`` has not said it."""
    try:
        found = orjson.loads(read_regular(out / BACKBONE))
        return found if isinstance(found, dict) and isinstance(found.get(EXTRACTION), dict) else {}
    except (OSError, ValueError):
        return {}


def _describe(
    out: Path, extractor: Extractor, items: Sequence[Item], precision: str, progress: Progress, *, skips_damaged: bool
) -> tuple[list[Problem], list[str]]:
    """Have a description of the features in ``out``, and make the extractor what it says: the first process writes it.

    Gives pictures that it could not be fitted to, and notes. A DataError says that the features there are of another
    making.
    """
    geometry = extractor.geometry(640, 480)
    wanted = {"reading": READING_VERSION, "rule": "photo" if geometry.is_padded else "square"}
    problems, notes = list[Problem](), list[str]()
    if share_of_environment()[0] == 0 and not _description(out):
        if extractor.is_fitted:
            extractor.fit(_loaded([item.picture for item in items], extractor, progress, problems))
            if not skips_damaged:
                refuse_problems("image", problems)
        if precision != "fp32":
            notes += _try_precision(extractor, items, precision)
        write_json(out / BACKBONE, extractor.describe() | {EXTRACTION: {**wanted, "precision": extractor.precision}})
        return problems, notes
    _wait_for_first(out, progress)
    found = _description(out)
    also = found.pop(EXTRACTION, {})
    asked: dict[str, Any] = {"name": extractor.describe()["name"], "grid_size": extractor.grid_size}
    asked |= {**extractor.identity(), **wanted, "precision": precision}
    try:
        if found.get("name") == asked["name"]:
            extractor.restore(found)
    except Exception as error:  # an extractor may raise anything over a damaged description
        raise DataError(f"{out / BACKBONE} is damaged", "remove it with the features, or pass --out DIR") from error
    # Some extractors keep their identity in a part of its own. Precision that was given up once stays so.
    there = found | also
    there |= {key: value for part in found.values() if isinstance(part, dict) for key, value in part.items()}
    differing = [key for key, value in asked.items() if there.get(key) != value]
    if differing == ["precision"] and also.get("precision") == "fp32":
        differing = []
    differing += [key for key, value in extractor.describe().items() if not differing and found.get(key) != value]
    if differing:
        said = listed(f"{key} {there.get(key)}, not {asked.get(key)}" for key in differing)
        hint = "pass another folder, --out DIR, or the options that these were made with"
        raise DataError(f"{out} holds features of another making: {said}", hint)
    extractor.precision = also["precision"]
    if extractor.precision != precision:
        notes.append(f"the features in {out} are computed in {extractor.precision}, and so are those that are added")
    return [], notes


def _try_precision(extractor: Extractor, items: Sequence[Item], precision: str) -> list[str]:
    """Compute in ``precision`` from now on, if that leaves the features of the first pictures what they are."""
    loaded = chain.from_iterable(_loaded([item.picture for item in items], extractor, no_progress, []))
    some = [image for image, _ in zip(loaded, range(_NUM_TRIED), strict=False)]
    if not some:
        return []
    extractor.load()
    exact = extractor.extract(some)
    extractor.precision = precision
    scale = np.maximum(np.abs(exact), max(exact.std(), np.finfo(np.float32).tiny))
    moved = float((np.abs(extractor.extract(some) - exact) / scale).max())
    if moved <= _MOST_MOVED:
        return []
    extractor.precision = "fp32"
    tried = f"{precision} moves values by up to {moved:.1g} of their scale on the first {len(some)} pictures"
    return [f"{tried}, more than {_MOST_MOVED:g}: computed in fp32"]


def _wait_for_first(folder: Path, progress: Progress) -> None:
    for _ in _waiting(folder, lambda paths: [path for path in paths if not path.exists()], [folder / BACKBONE]):
        progress("waiting for the first process", 0, None)


def _waiting(folder: Path, still_left: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> Iterator[int]:
    """Give the number of items that other processes have left; a DataError says that it stays the same for long."""
    before, since = -1, time.monotonic()
    while True:
        began = time.monotonic()
        if not (items := still_left(items)):
            return
        if len(items) != before:
            before, since = len(items), time.monotonic()
        yield len(items)
        if time.monotonic() - since > _LONGEST_SILENCE_SECONDS:
            what = f"other processes wrote nothing to {folder} for {_LONGEST_SILENCE_SECONDS / 60:.0f} minutes"
            raise DataError(what, "see that all of them run with the same options; what is done is kept")
        # Looking must not take much of what a disk can do.
        time.sleep(max(_PAUSE_SECONDS, 10 * (time.monotonic() - began)))


def _make_files(
    items: Mapping[str, Sequence[Item]], extractor: Extractor, folder: Path, devices: Sequence[str], progress: Progress
) -> tuple[int, int, list[Problem]]:
    """Make this process's share of the feature files of each set; the first process waits for the others.

    Gives the number of files in the share, and of those that were there, and what is wrong with pictures: with its own,
    and in the first process with all.
    """
    rank, num_processes = share_of_environment()
    numbered = dict(enumerate(chain.from_iterable(items.values())))
    groups = [(name, group) for name, own in items.items() for group in batched(own, _BATCH_IMAGES)]
    own = groups[rank::num_processes]
    _report_of(folder, rank).unlink(missing_ok=True)
    scratch = _scratch(folder, rank)
    done = list(in_threads(lambda group: _num_done(group[1]), own, _NUM_LOOKING))
    left = [(name, group) for (name, group), num in zip(own, done, strict=True) if num < len(group)]
    if left:
        extractor.load()
        scratch.mkdir(exist_ok=True)
    problems: list[Problem] = []
    # While a batch is in a device's network, others are decoded; a processor that is the device has no time to spare.
    num_decoding = 1 if {*devices} == {"cpu"} else min(3 * len(devices), max(1, usable_processors() - 1))
    for name in items:
        task = f"extracting features of {name}" if name else "extracting features"
        total = sum(len(group) for of, group in own if of == name)
        finished = total - sum(len(group) for of, group in left if of == name)
        progress(task, finished, total)
        write = partial(_write_group, extractor, scratch)
        for count, bad in in_threads(write, [group for of, group in left if of == name], len(devices) + num_decoding):
            problems += bad
            finished += count
            progress(task, finished, total)
    shutil.rmtree(scratch, ignore_errors=True)
    if rank and problems:
        _report(folder, rank, numbered, problems)
    if rank == 0 and num_processes > 1:
        problems += _others_problems(folder, numbered, progress)
    return sum(len(group) for _, group in own), sum(done), problems


def _scratch(folder: Path, rank: int) -> Path:
    """Name the folder of unfinished files, and clear what an attempt that was killed left behind."""
    for one in folder.glob(".unfinished-*"):
        number = one.name.rpartition("-")[2]
        if number == str(rank) or (rank == 0 and number.isdecimal() and int(number) >= share_of_environment()[1]):
            shutil.rmtree(one, ignore_errors=True)
    return folder / f".unfinished-{rank}"


def _report_of(folder: Path, rank: int) -> Path:
    return folder / f".unusable-{rank}.json"


def _report(folder: Path, rank: int, numbered: Mapping[int, Item], problems: Sequence[Problem]) -> None:
    """Tell the first process which pictures are unusable, so that it does not wait for them."""
    numbers = {item.picture: number for number, item in numbered.items()}
    said = [(numbers[one.path], _modified(one.path), one.why, one.hint) for one in problems]
    write_bytes(_report_of(folder, rank), json.dumps(said).encode())


def _others_problems(folder: Path, numbered: Mapping[int, Item], progress: Progress) -> list[Problem]:
    """Wait until the others have made their files; give the pictures that they found unusable."""
    found: dict[int, Problem] = {}

    def still_left(numbers: Sequence[int]) -> list[int]:
        for path in folder.glob(".unusable-*.json"):
            for number, modified, why, hint in json.loads(path.read_bytes()):
                # It may be of an earlier attempt.
                if number in numbered and modified == _modified(numbered[number].picture):
                    found[number] = Problem(numbered[number].picture, why, hint)
        return [one for one in numbers if one not in found and not _num_done([numbered[one]])]

    for num_left in _waiting(folder, still_left, list(numbered)):
        progress("waiting for the other processes", len(numbered) - num_left, len(numbered))
    for path in folder.glob(".unusable-*.json"):
        path.unlink(missing_ok=True)
    return [problem for number, problem in found.items() if not _num_done([numbered[number]])]


def _modified(path: Path) -> int:
    """Give the time of a file's last change, ns since 1970; 0 if it cannot be looked at."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _num_done(group: Sequence[Item]) -> int:
    """Count feature files that are whole and bear the time of their picture's last change."""

    def is_done(item: Item) -> bool:
        try:
            read_shape(item.target)
            (_, ours), theirs = zipped.size_and_time(item.target), item.picture.stat().st_mtime_ns
        except (FeatureFileError, OSError):
            return False
        # File systems cut off what they do not keep of a time.
        return ours in {theirs - theirs % unit for unit in (1, 100, 1_000, 1_000_000_000)}

    return sum(map(is_done, group))


def _write_group(extractor: Extractor, scratch: Path, group: Sequence[Item]) -> tuple[int, list[Problem]]:
    """Write the feature files of a group that lacks some; give its size, and what is wrong with pictures."""
    # Taken before a picture is read: one that changes meanwhile is then described again.
    modified = {item: _modified(item.picture) for item in group}
    missing = [item for item in group if not _num_done([item])]
    found, problems = _read([item.picture for item in missing], extractor)
    for item in missing:
        if item.picture not in found:
            item.target.unlink(missing_ok=True)  # of what the picture was before
    if not found and len(missing) < len(group):
        return len(group), problems  # nothing is left but what is unusable
    more, bad = _read([item.picture for item in group if item not in missing], extractor)
    problems += bad
    good = [item for item in group if item.picture in found or item.picture in more]
    features = _described([(found | more)[item.picture] for item in good], extractor)
    for item, cells in zip(good, features, strict=True):
        try:
            refuse_not_finite(cells)
            _write(item, _stored(cells, extractor.stored_type), modified[item], scratch)
        except FeatureFileError as error:
            item.target.unlink(missing_ok=True)
            problems.append(_unfit(item.picture, extractor, error))
            continue
        if _modified(item.picture) != modified[item]:
            problems.append(Problem(item.picture, "changed while it was read", "run the same command again"))
    return len(group), problems


def _write(item: Item, cells: Floats, modified: int, scratch: Path) -> None:
    temporary = scratch / f"{threading.get_ident()}.npy"
    content = io.BytesIO()  # numpy hides why it cannot write to a file
    np.save(content, cells, allow_pickle=False)
    temporary.write_bytes(content.getbuffer())
    os.utime(temporary, ns=(modified, modified))
    item.target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(item.target)


def _stored(cells: Floats, stored_type: StoredType) -> Floats:
    """Give features as they are stored: in their own type where another does not hold them, or takes a cell to zero."""
    with np.errstate(over="ignore", under="ignore"):
        narrowed: Floats = cells.astype(stored_type)
    is_lost = cells.any(axis=1) & ~narrowed.any(axis=1)
    return cells if is_lost.any() or not np.isfinite(narrowed).all() else narrowed


def _unfit(path: Path, extractor: Extractor, error: FeatureFileError) -> Problem:
    why = f"makes {extractor.name} give features unfit for a file, of which one {error}"
    return Problem(path, why, error.hint)


def check_pictures(sets: Sequence[ImageSet], progress: Progress) -> None:
    """Decode every picture; a DataError names those that are unusable."""
    problems = list[Problem]()

    def look(ids: Sequence[Any]) -> list[Problem]:
        return _problems(read_images(map(images.file, ids), lambda image: image.resize((1, 1)))[1])

    for images in sets:
        pieces, num_images = batched(images.ids.tolist() if images.folder else [], _BATCH_IMAGES), len(images.ids)
        for number, bad in enumerate(in_threads(look, pieces, usable_processors()), start=1):
            problems += bad
            progress(f"checking images of {images.name}", min(number * _BATCH_IMAGES, num_images), num_images)
    refuse_problems("image", problems)


def training_images(images: ImageSet, extractor: Extractor, progress: Progress) -> Iterator[list[Image]]:
    """Give batches of images to fit an extractor to; a DataError names those that are unusable, after the last."""
    problems = list[Problem]()
    yield from _loaded([images.file(image_id) for image_id in images.ids.tolist()], extractor, progress, problems)
    refuse_problems("image", problems)


def _loaded(
    paths: Sequence[Path], extractor: Extractor, progress: Progress, problems: list[Problem]
) -> Iterator[list[Any]]:
    """Read pictures in batches; those that are unusable are added to ``problems``."""
    done = 0
    for some in batched(paths, _BATCH_IMAGES):
        loaded, bad = _read(some, extractor)
        problems += bad
        if loaded:
            yield list(loaded.values())
        done += len(some)
        progress("fitting the image descriptor", done, len(paths))


def extractor_of_version_0_1(data: PreparedData, options: ExtractorOptions, progress: Progress) -> Extractor | None:
    """Make the extractor that made the features of prepared data that does not name one; None if there is none.

    Version 0.1 had one extractor for images that a user names, and left only the folder of features to tell.
    """
    folders = (data.path / EXTRACTED).glob(f"resnet101-{options.grid_size}-*")
    ours = {one for one in folders if _holds_features(one, data)}
    if not ours:
        return None
    extractor = make_extractor("resnet101", options)
    extractor.fetch(progress)
    named = set[Path]()
    for said in (TORCHVISION_WEIGHTS, ""):
        extractor.restore({"grid_size": options.grid_size, "weights": said})
        named |= {_extracted_folder(data.path, extractor, None, one) for one in (None, READING_VERSION)}
    if not ours & named:
        raise other_weights(f"the features in {data.path}", extractor.name, options.weights)
    return extractor


def _holds_features(folder: Path, data: PreparedData) -> bool:
    """Whether the features of the first image that the data has are those in the folder."""
    files, image_id = data.spec.image_set(data.features.image_set(0)), data.features.image_id(0)
    made = np.zeros((data.features.num_cells, data.features.width), dtype=np.float32)
    try:
        read_cells(_feature_file(folder / files.name, files.features.name(image_id)), made)
        stored = data.features.read(np.array([0]))[0]
    except DataError:
        return False
    # They may have been packed as float16 since they were made.
    return bool(np.allclose(made, stored.astype(np.float32), rtol=1e-2, atol=1e-2))


def _extracted_folder(out: Path, extractor: Extractor, fitted_to: str | None, reading: int | None) -> Path:
    """Name the folder of features, which changes with all that they depend on; ``reading`` is None for version 0.1."""
    also = {"fitted_to": fitted_to, "reading": reading}
    identity = extractor.identity() | {name: value for name, value in also.items() if value is not None}
    return out / EXTRACTED / f"{extractor.name}-{extractor.grid_size}-{key_of(identity)[:8]}"


def _feature_file(folder: Path, name: str) -> Path:
    """Name a feature file as published, but for the ending."""
    return folder / f"{name.removesuffix('.npz').removesuffix('.npy')}.npy"


def _item(folder: Path, images: ImageSet, image_id: Any) -> Item:
    return Item(images.file(image_id), _feature_file(folder / images.name, images.files.features.name(image_id)))


def _problems(pictures: Mapping[Path, DataError]) -> list[Problem]:
    return [_problem(path, error) for path, error in pictures.items()]


def _problem(path: Path, error: DataError) -> Problem:
    before, names_it, rest = error.what.partition(f"{path} ")
    why = rest if names_it and (not before or before.startswith("the ")) else f"cannot be used: {error.what}"
    return Problem(path, why, error.hint or REPLACE)


def _read(paths: Sequence[Path], extractor: Extractor) -> tuple[dict[Path, Any], list[Problem]]:
    """Read files, each once, to what ``extract`` takes; also give what is wrong with the others."""
    found: dict[Path, Any] = {}
    problems: dict[Path, Problem] = {}
    for path in dict.fromkeys(paths):
        try:
            found[path] = extractor.read(path)
        except DataError as error:
            problems[path] = _problem(path, error)
    return found, list(problems.values())


def _described(images: Sequence[Any], extractor: Extractor) -> Floats:
    """Describe images that were read, [B, N, W]."""
    shape = (len(images), extractor.grid_size**2, extractor.width)
    features: Floats = extractor.extract(images) if images else np.empty(shape, dtype=np.float32)
    if features.shape != shape:
        what = f"the extractor {extractor.name} gave features of shape {list(features.shape)}, expected {list(shape)}"
        raise DataError(what, "correct its width, or what its extract returns")
    return features
