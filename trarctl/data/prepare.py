"""Raw files to prepared data: one call that checks, reads, looks up every image and writes, or changes nothing.

Axes: Q questions in file order, A annotations in file order, T words, V vocabulary, E width of the word vectors.
"""

from __future__ import annotations

import gc
import math
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import ValidationError

import trarctl
from trarctl.data import Progress, no_progress
from trarctl.data.archives import archives_in, find_packed, is_whole_archive, raw_sha256, raw_status
from trarctl.data.datasets.base import DatasetSpec, ImageSetFiles, SplitFiles, compare_splits
from trarctl.data.download import Download, holders
from trarctl.data.features.base import ExtractorOptions, is_extractor
from trarctl.data.features.extract import extract_files
from trarctl.data.features.images import Folder, SetPlaces, images_there, picture_table
from trarctl.data.features.packing import (
    ImageOptions,
    ImagePlan,
    Pack,
    build_images,
    check_images,
    is_current,
    plan_images,
    record_of,
)
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
    VectorsPart,
    digest_of,
    key_of,
    read_manifest,
    write_manifest,
)
from trarctl.data.metrics import GroundTruth, ceiling
from trarctl.data.prepared import default_folder, open_prepared, write_split
from trarctl.data.records import Ids, RawData, RawSplit, cut_split, rows_of
from trarctl.data.text import Vocabulary, build_answers, longest_question, tokenize
from trarctl.data.word_vectors import WordVectors, load_vectors, vectors_fingerprint
from trarctl.errors import DataError, SettingsError, TrarError, listed
from trarctl.files import (
    file_sha256,
    list_files,
    refuse_foreign,
    refuse_readonly,
    remove,
    swap_in,
    write_array,
    write_json,
    writing,
)
from trarctl.registry import DATASETS, EXTRACTORS

LONGEST_SENSIBLE_QUESTION = 512
_NUM_EXAMPLES = 10
_LARGEST_GRID, _MOST_WORDS = 256, 10_000  # more could not be held in memory
_TEXT_DONE = "text.json"

Verdict = Literal["ok", "other count", "missing", "not there, not needed", "damaged"]
_MISSING: Verdict = "missing"
_NOT_NEEDED: Verdict = "not there, not needed"


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, from where, to where."""

    dataset: str  # name of a registered data set
    out: Path | None = None  # the prepared folder; None: data/DATASET/prepared
    raw: Path | None = None  # None: data/DATASET/raw, for easy-VQA the installed package's
    features: Path | None = None  # one folder of files an image set; None: "feats" beside raw, or only questions
    without_features: bool = False  # leave features out even if they are there
    grid: int | None = None  # cells S along one side; None: as the data set has it
    vectors: str = "auto"  # or "none", a spaCy package or folder, or a GloVe file
    min_answer_count: int | None = None  # an answer is learned if more annotations give it; None: as the set has it
    max_words: int | None = None  # words kept of a question; None: 14 for VQA, else the longest question in the data
    pack: Pack | None = None  # number type to pack features as; None: read them where they are
    rebuild: bool = False  # prepare again even if nothing changed
    images: Path | None = None  # VQA, CLEVR: one folder of pictures an image set, to make features of
    extractor: str | None = None  # what makes them; None: as the data set has it, else resnet101
    weights: Path | None = None  # of the extractor; None: those that are published
    devices: tuple[str, ...] = ("cpu",)  # where it runs, such as "cpu" or "cuda:0", one copy each
    options: Mapping[str, Any] = field(default_factory=dict)  # those that describe a data set such as a table's

    def command(self, **changes: Any) -> str:
        """Give the command line of this request, or of one with other values, as it can be pasted."""
        request = replace(self, **changes)
        default = PrepareRequest(self.dataset)
        words = ["trarctl", "prepare", self.dataset]
        common = {name: getattr(request, name) for name in _IN_COMMANDS.split()}
        given = {name: value for name, value in common.items() if value != getattr(default, name)}
        for name, value in {**request.options, **given}.items():
            flag = f"--{name.replace('_', '-')}"
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [flag] if one is True else [flag, str(one)]
        return shlex.join(words)


_IN_COMMANDS = "raw features without_features images extractor weights grid pack vectors min_answer_count max_words out"


@dataclass(frozen=True)
class CheckRow:
    """What one file or folder of the raw data holds, and should hold."""

    file: str  # relative to the raw folder, or a folder of features
    found: int | None  # records or files in it; None: there are none to count
    expected: int | None  # as published; None: no figure is published
    verdict: Verdict
    advice: str = ""  # what to do about it, if anything


@dataclass(frozen=True)
class CheckReport:
    """What there is, what is odd about it, and all that stops the preparation."""

    rows: tuple[CheckRow, ...]
    warnings: tuple[str, ...]
    faults: tuple[TrarError, ...]


@dataclass(frozen=True)
class PrepareReport:
    """What was prepared, what is odd about it, and whether nothing had to be done."""

    out: Path
    manifest: Manifest
    checks: tuple[CheckRow, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    was_current: bool
    seconds: float


@dataclass
class _Work:
    """One preparation on its way: the request with every default filled in, and what was found so far."""

    spec: DatasetSpec
    request: PrepareRequest
    raw: Path
    out: Path
    image_options: ImageOptions
    progress: Progress
    described: dict[str, Any]  # options that describe the data set, as JSON holds them
    packed: Mapping[str, str]  # raw files that are read out of archives: where they are in the raw folder
    building: Path = field(default_factory=Path)
    old: Manifest | None = None  # of what is prepared already
    notes: list[str] = field(default_factory=list)
    faults: list[TrarError] | None = None  # noted in it, where nothing is written; None: the first one is raised
    there: Mapping[str, Folder] = field(default_factory=dict)  # by image set, where questions about others are left out

    @property
    def min_answer_count(self) -> int:
        """An answer is learned if more annotations than this give it."""
        given = self.request.min_answer_count
        return 0 if self.spec.min_answer_count is None else self.spec.min_answer_count if given is None else given

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Note what is wrong and go on, or raise it."""
        try:
            yield
        except TrarError as fault:
            if self.faults is None:
                raise
            # Two splits that are cut from one file have its faults in common.
            if fault.what not in [one.what for one in self.faults]:
                self.faults.append(fault)

    def path_of(self, name: str) -> Path:
        """Give the path of a raw file, which may be ``ZIP/MEMBER``."""
        return self.raw / self.packed.get(name, name)

    def has(self, name: str) -> bool:
        """Whether a raw file is there, packed or not."""
        return name in self.packed or (self.raw / name).is_file()


def prepare(request: PrepareRequest, progress: Progress = no_progress) -> PrepareReport:
    """Prepare a data set, or find that it is prepared; a TrarError says what is wrong, and nothing has changed."""
    began = time.monotonic()
    work = _filled_in(request, progress)
    _present_splits(work)
    with writing(work.out) as work.building:
        refuse_foreign(work.out, [MANIFEST, FEATURES, *_possible_entries()])
        _refuse_loss(work)
        work.old = None if request.rebuild else _old_manifest(work.out)
        text, is_text_current = _text_part(work)
        base = work.out if is_text_current else work.building
        named = {split: _read_array(base / split / "image_id.npy", work) for split in text.splits}
        paths = {split: base / split / "image_set.npy" for split in text.splits}
        said = {split: _read_array(path, work) for split, path in paths.items() if path.is_file()}
        plan = plan_images(work.spec, named, said, work.image_options, work.out, progress)
        images = work.old.images if work.old is not None and is_current(work.old.images, plan, work.out) else None
        work.notes += plan.extractor.about() if plan.extractor is not None else ()
        was_current = is_text_current and images is not None
        if work.old is not None and was_current:
            shutil.rmtree(work.building)
            manifest = work.old
        else:
            manifest = _put_in_place(work, text, plan, images, is_text_current=is_text_current)
    folders = {images.files.name: images.folder for images in plan.table.sets}
    found = {name: source.records for name, source in manifest.text.sources.items()}
    return PrepareReport(
        out=work.out,
        manifest=manifest,
        checks=_check_rows(work, found, (), folders),
        warnings=manifest.text.warnings + manifest.images.warnings,
        notes=tuple(work.notes),
        was_current=was_current,
        seconds=time.monotonic() - began,
    )


def _read_array(path: Path, work: _Work) -> npt.NDArray[Any]:
    try:
        ids: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except Exception as error:  # what numpy raises over a damaged header is not documented
        raise DataError(f"{path} is damaged", f"{work.request.command()} --rebuild") from error
    return ids


def _asked_images(splits: Sequence[RawSplit]) -> tuple[dict[str, Ids], dict[str, SetPlaces]]:
    """Give the image of each question, [Q], by split, and where its records say it the image's set."""
    said = {split.name: split.image_set for split in splits if split.image_set is not None}
    return {split.name: split.image_id for split in splits}, said


def prepare_share(request: PrepareRequest, progress: Progress = no_progress) -> None:
    """Do another process's share of making features: for every process of ``torchrun`` but the first."""
    work = _filled_in(request, progress)
    options = work.image_options
    if options.pictures is None or options.packs_pictures:
        raise SettingsError("only making features can be shared by processes", "pass --images DIR, or leave torchrun")
    splits = _read_splits(work, _present_splits(work)).splits
    sets = picture_table(work.spec, *_asked_images(splits), options.pictures, options.command).sets
    extract_files(sets, options.extractor, options.extractor_options, work.out, progress)


def check(request: PrepareRequest, progress: Progress = no_progress) -> CheckReport:
    """Go through all that ``prepare`` does but write nothing, and note every fault, not only the first."""
    work = _filled_in(request, progress)
    work.faults = faults = list[TrarError]()
    with work.attempt():
        refuse_readonly(work.out)
        refuse_foreign(work.out, [MANIFEST, FEATURES, *_possible_entries()], claim=False)
        _refuse_loss(work)
    data = _read_splits(work, _present_splits(work))
    names = [name for split in work.spec.splits for name in split.files]
    damaged = [name for name in names if any(str(work.path_of(name)) in fault.what for fault in faults)]
    # With a split that is damaged, words and answers are others.
    if data.splits and not faults:
        _make_text(work, data)
    folders: dict[str, Folder | None] = {}
    with work.attempt():
        asked = _asked_images(data.splits)
        folders, warnings = check_images(work.spec, *asked, work.image_options, progress, work.attempt)
        data.warnings += warnings
    rows = _check_rows(work, data.num_records, damaged, folders)
    return CheckReport(rows, tuple(data.warnings), tuple(faults))


def _filled_in(request: PrepareRequest, progress: Progress) -> _Work:
    """Fill in the defaults of a request, and refuse what contradicts itself."""
    spec: DatasetSpec = DATASETS[request.dataset]
    described = _described(request) if spec.with_options is not None else {}
    if spec.with_options is not None:
        spec = spec.with_options(described)
    elif request.options:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in request.options)
        raise SettingsError(f"{spec.name} makes no use of {flags}", f"leave out {flags}")
    for flag, value, least, most in (
        ("--grid", request.grid, 1, _LARGEST_GRID),
        ("--max-words", request.max_words, 1, _MOST_WORDS),
        ("--min-answer-count", request.min_answer_count, 0, math.inf),
    ):
        if value is not None and not least <= value <= most:
            limits = f"{least} to {most:,}" if most < math.inf else f"{least} or more"
            raise SettingsError(f"{flag} must be {limits}, got {value:,}", f"pass {flag} {limits}")
    raw = request.raw or spec.default_raw_folder()
    grid, extractor = request.grid or spec.grid_size, request.extractor or spec.extractor or spec.default_extractor
    _refuse_contradictions(request, spec, extractor)
    # Beside features, the pictures of a table are for its splits and for pages.
    pictures = request.images if request.features is None else None
    if pictures is None and request.features is None and not request.without_features:
        pictures = spec.pictures if spec.extractor is None else raw
    features, beside = request.features, raw.resolve().parent / "feats"
    if features is None and pictures is None and beside.is_dir():
        features = beside
    options = ImageOptions(
        features=None if request.without_features else features,
        pack=request.pack,
        extractor_options=ExtractorOptions(grid, request.weights, request.devices),
        pictures=pictures,
        extractor=extractor,
        packs_pictures=spec.extractor is not None,
        command=request.command,
    )
    names = [name for split in spec.splits for name in (*split.files, *split.other_names)]
    packed = find_packed(raw, [name for name in names if not (raw / name).is_file()])
    out = request.out or default_folder(spec.name)
    work = _Work(spec.found_in(raw, packed), request, raw, out, options, progress, described, packed)
    if spec.leaves_out_missing:
        work.there = images_there(spec, options.features, options.pictures)
    return work


def _described(request: PrepareRequest) -> dict[str, Any]:
    """Give the options that describe a data set, pictures included, as JSON holds them."""
    has_features_alone = request.features is not None and request.images is None
    pictures = {"images": request.images and request.images.absolute(), "features": has_features_alone}
    given = {name: value for name, value in {**request.options, **pictures}.items() if value}
    values: dict[str, Any] = orjson.loads(orjson.dumps(given, default=str))
    return values


def _refuse_contradictions(request: PrepareRequest, spec: DatasetSpec, extractor: str) -> None:
    """Refuse options that exclude each other, or would have no effect."""
    flags = {name: f"--{name.replace('_', '-')}" for name in ("features", "images", "without_features")}
    given = [flag for name, flag in flags.items() if getattr(request, name)]
    has_own = spec.extractor is not None and request.features is None
    has_pictures = has_own or (request.features is None and (request.images or spec.pictures) is not None)
    if spec.with_options is not None and {"--features", "--images"} == {*given}:
        given = []
    unused = [f"--{name}" for name in ("extractor", "weights") if getattr(request, name) and not has_pictures]
    packs = f"{spec.name} packs what it makes of its images anyway"
    for is_wrong, what, hint in (
        (has_own and request.pack is not None, packs, "leave out --pack, or pass --features DIR"),
        (
            not is_extractor(extractor),
            f"unknown extractor {extractor!r}",
            f"--extractor {' or '.join(EXTRACTORS.names())}",
        ),
        (len(given) > 1, f"{' and '.join(given)} exclude each other", f"leave out {' or '.join(given)}"),
        (bool(unused), f"{' and '.join(unused)} without --images would have no effect", "add --images DIR"),
    ):
        if is_wrong:
            raise SettingsError(what, hint)


def _present_splits(work: _Work) -> list[SplitFiles]:
    """List the splits whose files are there; refuse if a needed file is missing, or some files of an optional one."""
    missing: dict[str, None] = {}
    present = []
    for split in work.spec.splits:
        absent = [name for name in split.files if not work.has(name)]
        if not absent:
            present.append(split)
        elif split.is_required or len(absent) < len(split.files):
            missing |= dict.fromkeys(absent)
    if not work.raw.is_dir():
        how = _how_to_get(work.spec, work.raw, list(missing))
        with work.attempt():
            raise DataError(f"no folder of raw files {work.raw}", f"{how}; or pass --raw DIR")
    elif missing:
        noun = "file" if len(missing) == 1 else "files"
        own = (split.download_hint for split in work.spec.splits if {*missing} <= {*split.files})
        with work.attempt():
            elsewhere, hint = _found_elsewhere(work, list(missing))
            what = f"no {noun} {listed(missing, len(missing))} in {work.raw}{elsewhere}"
            raise DataError(what, hint or next(own, None) or _how_to_get(work.spec, work.raw, list(missing)))
    return present


def _found_elsewhere(work: _Work, missing: Sequence[str]) -> tuple[str, str | None]:
    """Say where files lie that are missing in the raw folder, and the command for it; else what lies there instead."""
    if not os.access(work.raw, os.R_OK | os.X_OK):
        return ", which cannot be read", f"chmod u+rx {shlex.quote(str(work.raw))}"
    raw = work.raw.resolve()
    names = [name for split in work.spec.splits for name in split.files]
    deeper = [path.relative_to(raw) for pattern in ("*/", "*/*/") for path in sorted(raw.glob(pattern))[:100]]
    for folder in (raw.parent, *(raw / one for one in deeper)):
        if all((folder / name).is_file() for name in missing):
            shown = folder if folder == raw.parent else work.raw / folder.relative_to(raw)
            has_all = all((folder / name).is_file() or not (raw / name).is_file() for name in names)
            hint = work.request.command(raw=shown) if has_all else _moves({one: shown / one for one in missing}, work)
            return f", but in {shown}", hint
    if beside := find_packed(raw.parent, missing):
        archives = sorted({str(raw.parent / where.split("/")[0]) for where in beside.values()})
        return f", but packed in {listed(archives, len(archives))}", shlex.join(["mv", *archives, str(work.raw)])
    if damaged := [path for path in archives_in(raw) if not is_whole_archive(path)]:
        return f"; {listed(damaged, len(damaged))} cannot be read, and may be cut off", "download it again"
    taken = {raw / name for name in names}
    alone = {
        name: path
        for name in missing
        for one in deeper
        if (path := work.raw / one / Path(name).name).is_file() and raw / one / path.name not in taken
    }
    if alone:
        return f"; {listed(alone.values(), len(alone))} is there", _moves(alone, work)
    place = (work.raw / missing[0]).parent
    place = place if place.is_dir() else work.raw
    entries = sorted(path.name for path in place.iterdir())
    return f"; {place} holds {listed(entries, len(entries), most=5) or 'nothing'}", None


def _download_command(spec: DatasetSpec, raw: Path, names: Sequence[str]) -> str | None:
    """Give the command that fetches raw files, and how much that is; None where some of them have no address."""
    files = holders(spec.downloads, names)
    if not all(any(name in one.holds for one in files) for name in names):
        return None
    return _command_for(spec, raw, files) + _size(files)


def _command_for(spec: DatasetSpec, raw: Path, files: Sequence[Download]) -> str:
    words = ["trarctl", "download", files[0].part or spec.name]
    words += ["--raw", str(raw)] if raw != spec.default_raw_folder() else []
    return shlex.join(words)


def _pictures_command(spec: DatasetSpec, raw: Path, images: ImageSetFiles) -> str | None:
    """Give the command that fetches the pictures of an image set, and how much that is; None: there is no address."""
    pictures = [one for one in spec.downloads if one.has_images]
    places = {f"images/{name}" for name in (images.name, *images.instead)}
    own = [one for one in pictures if one.unpack_to in places] or pictures
    if not own:
        return None
    only = "" if own == pictures else " ".join(["", *(f"--only {one.file_name}" for one in own)])
    return f"{_command_for(spec, raw, own)}{only or ' --images'}{_size(own)}"


def _size(files: Sequence[Download]) -> str:
    """Say how much there is to fetch, as far as it is known."""
    size = sum(one.size or 0 for one in files)
    shown = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    more = ", and more whose size is not published" if size and any(one.size is None for one in files) else ""
    return f" ({shown}{more})" if size else " (its size is not published)"


def _how_to_get(spec: DatasetSpec, raw: Path, names: Sequence[str]) -> str:
    command = _download_command(spec, raw, names)
    return f"{command}; or {spec.download_hint}" if command else spec.download_hint


def _moves(found: Mapping[str, Path], work: _Work) -> str:
    """Give the commands that move files, as they can be pasted, to the names that they have in the raw folder."""
    folders = {str((work.raw / name).parent) for name in found if not (work.raw / name).parent.is_dir()}
    commands = [["mkdir", "-p", folder] for folder in sorted(folders)]
    commands += [["mv", str(path), str(work.raw / name)] for name, path in found.items()]
    return " && ".join(map(shlex.join, commands))


def _refuse_loss(work: _Work) -> None:
    """Refuse to replace another data set, or to leave out a folder's features only because none are named."""
    options = work.image_options
    try:
        old = read_manifest(work.out)
    except DataError:
        return
    if old.name != work.spec.name:
        what = f"{work.out} holds prepared {old.name} data, which {work.spec.name} would replace"
        raise DataError(what, "choose another folder: --out DIR; or remove that one")
    is_left_out = options.features is None and options.pictures is None and not work.request.without_features
    if old.images.feature_width and is_left_out:
        without = work.request.command(without_features=True)
        what = f"{work.out} has features, but no folder of features is given, nor is {work.raw.parent / 'feats'} there"
        hint = f"name their folder: --features DIR; or leave them out: {without}"
        raise DataError(what, f"{old.command} --out {work.out}" if old.command else hint)


def _check_rows(
    work: _Work, found: Mapping[str, int], damaged: Collection[str], folders: Mapping[str, Folder | None]
) -> tuple[CheckRow, ...]:
    """Compare what was found with what was published: records by file, features or images by image set."""

    def counted(name: str, count: int | None, expected: int | None, advice: str) -> CheckRow:
        is_expected = expected is None or count is None or count == expected
        return CheckRow(name, count, expected, "ok" if is_expected else "other count", "" if is_expected else advice)

    rows = list[CheckRow]()
    seen = set[str]()

    def how_to_get(command: str | None, hint: str | None = None) -> str:
        # What takes a sentence is said once.
        by_hand = hint or work.spec.download_hint
        return command or ("as above" if any(by_hand in row.advice for row in rows) else by_hand)

    for split in work.spec.splits:
        # Several splits may be parts of one file.
        parts = [one.num_questions for one in work.spec.splits if one.files == split.files]
        expected = sum(filter(None, parts)) or None
        is_begun = any(map(work.has, split.files))
        for name in [name for name in split.files if name not in seen]:
            seen.add(name)
            if name in damaged or work.has(name):
                row = counted(name, found.get(name), expected, "is it the whole published file?")
                rows.append(CheckRow(name, None, expected, "damaged") if name in damaged else row)
                continue
            command = None if split.download_hint else _download_command(work.spec, work.raw, [name])
            advice, verdict = how_to_get(command, split.download_hint), _MISSING
            if not (split.is_required or is_begun):
                also = ", and for the vocabulary of published checkpoints" if work.spec.published else ""
                advice, verdict = f"only for the split {split.name}{also}: {advice}", _NOT_NEEDED
            rows.append(CheckRow(name, None, expected, verdict, advice))
    for files in work.spec.image_sets:
        folder = folders.get(files.name)
        if folder is not None:
            row = counted(str(folder.path), len(folder.ids), files.num_images, "are all images there?")
            odd = f"{folder.num_odd:,} files with other names are left out" if folder.num_odd else ""
            rows.append(replace(row, advice="; ".join(filter(None, (row.advice, odd)))))
            continue
        is_needed = files.is_required and not any(folders.get(name) for name in files.instead)
        advice = "needed for training" if is_needed else ""
        if is_needed and not any(folders.values()):
            advice += f": {how_to_get(_pictures_command(work.spec, work.raw, files))}, or --features DIR"
        verdict = _MISSING if is_needed else _NOT_NEEDED
        rows.append(CheckRow(f"images of {files.name}", None, files.num_images, verdict, advice))
    return tuple(rows)


def _old_manifest(out: Path) -> Manifest | None:
    """Read the manifest of what is there, if all of it is there."""
    try:
        manifest = open_prepared(out).manifest
    except DataError:
        return None
    is_same = all(file_sha256(out / name) == checksum for name, checksum in manifest.checksums.items())
    return manifest if is_same else None


def _text_part(work: _Work) -> tuple[TextPart, bool]:
    """Give the text half, and whether it is the one in place; else an interrupted attempt left it, or it is new."""
    if work.old is not None and _is_current(work.old.text, work):
        return work.old.text, True
    try:
        done = work.building / _TEXT_DONE
        earlier = TextPart.model_validate(orjson.loads(done.read_bytes() if done.is_file() else b""))
    except (OSError, orjson.JSONDecodeError, ValidationError):
        earlier = None
    if earlier is not None and not work.request.rebuild and _is_current(earlier, work):
        return earlier, False
    shutil.rmtree(work.building)
    work.building.mkdir()
    text = build_text(work)
    write_json(work.building / _TEXT_DONE, text.model_dump(mode="json"))
    return text, False


def _is_current(text: TextPart, work: _Work) -> bool:
    """Whether a text half was made from the same files with the same options."""
    options = work.request
    names = [name for split in _present_splits(work) for name in split.files]
    # Where no answer is left out, version 0.1 noted another number.
    least = text.min_answer_count if work.spec.min_answer_count is None else work.min_answer_count
    wanted = (options.max_words, least, options.vectors, vectors_fingerprint(options.vectors))
    made = (text.requested_max_words, text.min_answer_count, text.requested_vectors, text.vectors_fingerprint)
    is_same = wanted == made and set(names) == set(text.sources) and text.options == work.described
    is_same = is_same and text.images_there == _key_of_images(work)
    is_same = is_same and set(text.splits) <= {split.name for split in work.spec.splits}
    return is_same and all(_is_unchanged(work.path_of(name), text.sources[name]) for name in names)


def _key_of_images(work: _Work) -> str:
    """Give what changes with the images that are there, where questions about others are left out."""
    return key_of({name: folder.ids.tolist() for name, folder in work.there.items()}) if work.there else ""


def _is_unchanged(path: Path, source: SourceFile) -> bool:
    size, modified_ns = raw_status(path)
    is_same_time = modified_ns == source.modified_ns
    return size == source.size and (is_same_time or raw_sha256(path) == source.sha256)


@dataclass
class _Text:
    """What the questions and answers of all splits have in common."""

    vocabulary: Vocabulary
    answers: list[str] = field(default_factory=list)
    answer_index: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    vectors: WordVectors | None = None
    max_words: int = 1


def _make_text(work: _Work, data: RawData) -> _Text:
    """Make words, answers and word vectors of what was read."""
    work.progress("building the vocabulary", 0, None)
    text = _Text(Vocabulary.build(split.texts for split in data.splits))
    with work.attempt():
        text.answers, text.answer_index = _answers(work, data)
    with work.attempt():
        text.vectors = load_vectors(work.request.vectors, text.vocabulary.words, work.progress)
        data.warnings += text.vectors.warnings if text.vectors else []
    with work.attempt():
        text.max_words = work.request.max_words or work.spec.max_words or _longest(work, data)
    data.warnings += [warning for split in data.splits for warning in _empty_questions(split)]
    if work.spec.has_one_answer:
        data.warnings += _variants(text.answers)
    return text


def build_text(work: _Work) -> TextPart:
    """Read the raw files and write the text half of a prepared folder into ``work.building``."""
    request, folder = work.request, work.building
    data, sources = _read_raw(work)
    text = _make_text(work, data)
    vocabulary, answers, max_words = text.vocabulary, text.answers, text.max_words
    write_json(folder / VOCABULARY, list(vocabulary.words))
    write_json(folder / ANSWERS, answers)
    strings = list(data.answers)
    parts = {}
    for number, split in enumerate(data.splits):
        work.progress("writing questions and answers", number, len(data.splits))
        parts[split.name] = write_split(folder / split.name, split, vocabulary, max_words, text.answer_index, strings)
    work.progress("writing questions and answers", len(data.splits), len(data.splits))
    return TextPart(
        max_words=max_words,
        requested_max_words=request.max_words,
        options=work.described,
        min_answer_count=work.min_answer_count,
        vocabulary_digest=vocabulary.digest,
        answers_digest=digest_of(answers),
        vectors=_write_vectors(work, text.vectors),
        requested_vectors=request.vectors,
        vectors_fingerprint=vectors_fingerprint(request.vectors),
        sources=sources,
        splits=parts,
        ceilings=_ceilings(work.spec, data, text),
        images_there=_key_of_images(work),
        warnings=tuple(data.warnings),
    )


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from looking for cycles among millions of parsed objects, which have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_raw(work: _Work) -> tuple[RawData, dict[str, SourceFile]]:
    """Read the files of every split that is there; a second thread takes their hashes meanwhile."""
    present = _present_splits(work)
    with ThreadPoolExecutor(1) as pool, _collection_paused():
        names = dict.fromkeys(name for split in present for name in split.files)
        hashes = {name: pool.submit(_source, work.path_of(name)) for name in names}
        data = _read_splits(work, present)
        found = {name: future.result() for name, future in hashes.items()}
    return data, {name: one.model_copy(update={"records": data.num_records[name]}) for name, one in found.items()}


def _read_splits(work: _Work, present: Sequence[SplitFiles]) -> RawData:
    data = RawData()
    for split in present:
        with work.attempt():
            read = work.spec.read_split(work.raw, _as_found(split, work.packed), data, work.progress)
            if not len(read.question_id):
                what = f"{work.path_of(split.questions)} holds no questions of {split.name}"
                if split.is_required:
                    raise DataError(what, work.spec.download_hint)
                data.warnings.append(what)
                continue
            data.splits.append(_without_missing(work, split, read, data.warnings))
    counts = data.num_records
    counts.update({name: counts.pop(where) for name, where in work.packed.items() if where in counts})
    with work.attempt():
        data.warnings += compare_splits(work.spec, data.splits)
    work.notes += data.notes
    absent = [split.name for split in work.spec.splits if split not in present and not split.is_required]
    if absent:
        what = f"without the questions of {' and '.join(absent)} the vocabulary lacks their words"
        fits = " and numbers the others differently: a published checkpoint will not fit" if work.spec.published else ""
        data.warnings.append(f"{what}{fits}")
    return data


def _without_missing(work: _Work, files: SplitFiles, split: RawSplit, warnings: list[str]) -> RawSplit:
    """Leave out the questions about images that are not there, unless these are all; a warning counts them."""
    folder = work.there.get(files.image_set)
    is_there = np.full(len(split.image_id), fill_value=True)
    if folder is not None:
        is_there = rows_of(split.image_id, folder.ids) >= 0
    if folder is None or is_there.all() or not is_there.any():
        return split
    images = np.unique(split.image_id[~is_there]).tolist()
    what = f"{(~is_there).sum():,} of the {len(is_there):,} questions of {split.name} are left out"
    where = f"{folder.path} lacks their images {listed(images, len(images), most=3)}"
    warnings.append(f"{what}: {where}")
    return cut_split(split, split.name, is_there)


def _as_found(split: SplitFiles, packed: Mapping[str, str]) -> SplitFiles:
    """Name the files of a split as they can be opened, which may be in an archive."""
    annotations = split.annotations and packed.get(split.annotations, split.annotations)
    return replace(split, questions=packed.get(split.questions, split.questions), annotations=annotations)


def _source(path: Path) -> SourceFile:
    # The status comes first: a file that changes while it is read then looks changed, not current.
    size, modified_ns = raw_status(path)
    return SourceFile(size=size, modified_ns=modified_ns, sha256=raw_sha256(path), records=0)


def _answers(work: _Work, data: RawData) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Choose the answer list, and give the index in it of every string of the table (-1: none), [strings]."""
    spec, min_count = work.spec, work.min_answer_count
    strings = list(data.answers)
    asked = [split.annotations for split in data.splits if split.name in spec.answer_splits]
    given = (strings[code] for one in asked if one is not None for code in one.chosen[one.chosen >= 0].tolist())
    answers = build_answers(given, normalize=spec.normalize_answer, min_count=min_count, most=spec.max_answers)
    if not answers:
        what = f"no answer occurs more than {min_count} times in the annotations"
        raise DataError(what, work.request.command(min_answer_count=0))
    index = {answer: position for position, answer in enumerate(answers)}
    return answers, np.array([index.get(answer, -1) for answer in map(spec.normalize_answer, strings)], np.int32)


def _ceilings(spec: DatasetSpec, data: RawData, text: _Text) -> dict[str, float]:
    """Measure what an answer list that leaves some out can reach at most on the splits that are not trained on."""
    if spec.min_answer_count is None and spec.has_one_answer:
        return {}
    found = {}
    trained = {"train", *(files.name for files in spec.splits if files.borrows_images)}
    for split in data.splits:
        if split.name not in trained and (one := split.annotations) is not None:
            types = one.answer_type, one.answer_types, one.question_type, one.question_types
            truth = GroundTruth(list(data.answers), one.answers, *types)
            with suppress(DataError):  # what cannot be scored has no limit either
                found[split.name] = ceiling(spec.metric, truth, text.answers, text.answer_index)
    return found


def _longest(work: _Work, data: RawData) -> int:
    longest = max(longest_question(split.texts) for split in data.splits)
    if longest > LONGEST_SENSIBLE_QUESTION:
        what = f"the longest question has {longest:,} words, so that a file is probably damaged"
        raise DataError(what, f"if it is right, say how many words to keep: {work.request.command(max_words=64)}")
    return max(longest, 1)


def _write_vectors(work: _Work, vectors: WordVectors | None) -> VectorsPart | None:
    if vectors is None:
        return None
    write_array(work.building / VECTORS, vectors.matrix)
    width, missing = vectors.matrix.shape[1], tuple(vectors.missing[:_NUM_EXAMPLES])
    return VectorsPart(source=vectors.source, digest=vectors.digest, width=width, found=vectors.found, missing=missing)


def _empty_questions(split: RawSplit) -> list[str]:
    """Give a warning of the questions that have no word."""
    lengths = np.diff(split.texts.offsets)
    empty = [row for row in np.flatnonzero(lengths < 8).tolist() if not tokenize(split.texts[row])]
    ids = listed(split.question_id[empty].tolist(), len(empty))
    return [f"questions without a word in {split.name}: {ids}"] if empty else []


def _variants(answers: Sequence[str]) -> list[str]:
    """Give a warning of answers that are another one but for capitals and blanks, which counts as wrong."""
    forms = [" ".join(answer.casefold().split()) for answer in answers]
    counts = Counter(forms)
    found = [repr(answer) for answer, form in zip(answers, forms, strict=True) if counts[form] > 1]
    what = "answers that differ in capitals or blanks alone, of which only one counts as right"
    return [f"{what}: {listed(found, len(found))}"] if found else []


def _put_in_place(
    work: _Work, text: TextPart, plan: ImagePlan, images: ImagesPart | None, *, is_text_current: bool
) -> Manifest:
    """Build the images unless they are current, put what is new in place and write the manifest."""
    new = [IMAGES] if is_text_current else [IMAGES, *_text_entries(text)]
    remove(work.building / IMAGES)
    plan.table.write(work.building)
    if images is None:
        # Features that only changed on the disk have the key of those that they replace.
        rebuild = work.request.rebuild or (work.old is not None and work.old.images.key == plan.key)
        images = build_images(plan, work.out, work.building, work.progress, rebuild=rebuild)
        new += [BACKBONE] if images.backbone else []
    packed = [f"{FEATURES}/{part.file}" for part in images.image_sets if part.file]
    records = [f"{FEATURES}/{record_of(Path(name)).name}" for name in packed]
    keep = {*_text_entries(text), IMAGES, *packed, *records, *([BACKBONE] if images.backbone else [])}
    features = work.out / FEATURES
    present = [f"{FEATURES}/{path.name}" for path in features.iterdir()] if features.is_dir() else []
    obsolete = [name for name in [*_possible_entries(), *present] if name not in keep]
    swap_in(work.out, work.building, new, obsolete, marker=MANIFEST)
    there = sorted(list_files(work.out).items())
    files = {name: size for name, size in there if name in keep or name.partition("/")[0] in keep}
    manifest = Manifest(
        version=FORMAT_VERSION,
        created_by=f"trarctl {trarctl.__version__}",
        dataset=work.request.dataset,
        command=_absolute(work.request).command(out=None),
        text=text,
        images=images,
        aliases=dict(work.spec.aliases),
        files=files,
        checksums={name: file_sha256(work.out / name) for name in files if name not in packed},
    )
    write_manifest(work.out, manifest)
    return manifest


def _absolute(request: PrepareRequest) -> PrepareRequest:
    """Make the paths of a request independent of the working folder."""
    paths = {name: getattr(request, name) for name in ("raw", "features", "images", "weights")}
    options = {name: one.absolute() if isinstance(one, Path) else one for name, one in request.options.items()}
    there = {name: path.absolute() for name, path in paths.items() if path is not None}
    return replace(request, options=options, **there)


def _text_entries(text: TextPart) -> list[str]:
    return [VOCABULARY, ANSWERS, *([VECTORS] if text.vectors else []), *text.splits]


def _possible_entries() -> list[str]:
    """List what a prepared folder of any data set can hold, besides packed features."""
    splits = dict.fromkeys(split.name for name in DATASETS.names() for split in DATASETS[name].splits)
    return [VOCABULARY, ANSWERS, VECTORS, BACKBONE, IMAGES, *splits]
