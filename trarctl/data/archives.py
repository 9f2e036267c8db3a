"""Files in archives: found by name, read where they are, or unpacked, so that no archive can do harm.

A file in a zip or tar archive has the path ``ARCHIVE/MEMBER``, which works wherever the path of a raw file does.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from trarctl.data import Progress, no_progress
from trarctl.errors import DataError, TrarError, first_line, shortened
from trarctl.files import refusing, sync_folder

# JSON of questions shrinks to a fifteenth, deflate's limit is a thousandth: what exceeds this was made to fill a disk.
MOST_TIMES = 200
_ALWAYS_ALLOWED_BYTES = 1 << 26
_MOST_FILES = 5_000_000
# A tar archive has no list of its files, and is read to its end to find one: larger ones hold pictures.
_LARGEST_TAR_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 20
_AGAIN = "download it again"
_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar")
_GZIP_START = b"\x1f\x8b"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def split_path(path: Path) -> tuple[Path, str | None]:
    """Take ``ARCHIVE/MEMBER`` apart; the second is None for a file that is in no archive, or is not there."""
    for one in path.parents if not path.exists() else ():
        if one.is_file():
            return one, path.relative_to(one).as_posix()
    return path, None


def raw_status(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds of a file; in an archive, when that was changed."""
    outer, member = split_path(path)
    status = outer.stat()
    if member is None:
        return status.st_size, status.st_mtime_ns
    with _found(path) as entry:
        return entry.num_bytes, status.st_mtime_ns


def raw_sha256(path: Path) -> str:
    """SHA-256 of the content of a file or of ``ARCHIVE/MEMBER``, hexadecimal: the same in an archive and outside."""
    _, member = split_path(path)
    with refusing(f"cannot read {path}", "make it readable: chmod u+r"):
        if member is None:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        with _found(path) as entry, entry.open() as packed:
            for chunk in _chunks(packed, entry.packed_bytes, path):
                digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def open_raw(path: Path) -> Iterator[BinaryIO]:
    """Open a file or ``ARCHIVE/MEMBER`` so that it can be mapped into memory; what gzip has packed is unpacked as well.

    Raises:
        DataError: if what is packed is damaged, unpacks to far more than questions do, or there is no room for it.
        OSError: if the file cannot be read.
    """
    with ExitStack() as stack:
        outer, member = split_path(path)
        file: BinaryIO = stack.enter_context(outer.open("rb"))
        if member is not None:
            with _found(path) as entry, entry.open() as packed:
                file = stack.enter_context(_unpacked(packed, entry.packed_bytes, path))
        if file.read(len(_GZIP_START)) == _GZIP_START:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with _damage_of(path), gzip.open(file) as packed:
                file = stack.enter_context(_unpacked(packed, size, path))
        file.seek(0)
        yield file


def _unpacked(packed: IO[bytes] | gzip.GzipFile, packed_bytes: int, path: Path) -> BinaryIO:
    """Unpack into a file without a name, gone once it is closed; beside the archive, where room is likeliest."""
    beside = split_path(path)[0].parent
    folder = beside if os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
    with ExitStack() as stack:
        file: Any = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        try:
            for chunk in _chunks(packed, packed_bytes, path):
                file.write(chunk)
            file.seek(0)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            what = f"no room in {folder} to unpack {path}: {error.strerror}"
            raise DataError(what, "free some space there, or unpack it and pass its folder") from error
        stack.pop_all()
    return file


def _chunks(packed: IO[bytes] | gzip.GzipFile, packed_bytes: int, path: Path) -> Iterator[bytes]:
    """Read what is packed in pieces; a DataError ends what unpacks to far more than it should."""
    left = _most_unpacked(packed_bytes)
    while chunk := packed.read(_CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise _too_much(path)
        yield chunk


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Put into words what the decompressors raise; what the file system does is left as it is."""
    try:
        yield
    except TrarError:
        raise
    except Exception as error:  # what they raise over a damaged archive is not documented
        if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
            raise
        raise DataError(f"{path} cannot be unpacked: {first_line(error)}", _AGAIN) from error


def find_packed(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Find files that a folder lacks in its archives: to the name of each, ``ARCHIVE/MEMBER`` or ``NAME.gz``.

    The folder that a member is in matters only where several files are called the same. A DataError says that archives
    hold different files of one name.
    """
    wanted = list(dict.fromkeys(names))
    called = Counter(PurePosixPath(name).name for name in wanted)
    endings = {name if called[short := PurePosixPath(name).name] > 1 else short: name for name in wanted}
    found = {name: f"{name}.gz" for name in wanted if (folder / f"{name}.gz").is_file()}
    first = dict[str, _Entry]()
    for path in archives_in(folder) if len(found) < len(wanted) else ():
        for entry in _entries(path):
            member = PurePosixPath(entry.name)
            if member.name not in called or str(member) != entry.name:
                continue
            name = next((name for end, name in endings.items() if f"/{member}".endswith(f"/{end}")), None)
            if name is None:
                continue
            where = f"{path.name}/{member}"
            if name not in found:
                found[name], first[name] = where, entry
            elif name in first and _differ(first[name], folder / found[name], entry, folder / where):
                what = f"{folder / found[name]} and {folder / where} are different files of one name"
                raise DataError(what, "keep the archive that is the right one, and move the other one away")
    return found


def archives_in(folder: Path) -> list[Path]:
    """List the archives in a folder that files are read out of."""
    tars = (path for ending in _TAR_ENDINGS for path in folder.glob(f"*{ending}"))
    return sorted([*folder.glob("*.zip"), *(path for path in tars if path.stat().st_size <= _LARGEST_TAR_BYTES)])


def is_archive_name(name: str) -> bool:
    """Whether a file of this name should be an archive."""
    return name.endswith((".zip", *_TAR_ENDINGS))


def is_whole_archive(path: Path) -> bool:
    """Whether the list of an archive's files can be read: of zip, it is at the end; tar is read to its end."""
    return bool(_entries(path))


def _entries(path: Path) -> list[_Entry]:
    with suppress(OSError, TrarError), _damage_of(path), _opened(path) as archive:
        return list(_listed(archive))
    return []


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if path.suffix == ".zip" or zipfile.is_zipfile(path) else tarfile.open(path)


@contextmanager
def _found(path: Path) -> Iterator[_Entry]:
    """Find ``ARCHIVE/MEMBER`` in its archive; DataError if that is damaged, or does not have it."""
    outer, member = split_path(path)
    with _damage_of(path), _opened(outer) as archive:
        entry = next((entry for entry in _listed(archive) if entry.name == member), None)
        if entry is None or entry.fault:
            raise DataError(f"{path} cannot be unpacked: it {entry.fault if entry else 'is not there'}", _AGAIN)
        yield entry


@dataclass(frozen=True)
class _Entry:
    """A file in an archive."""

    name: str
    num_bytes: int
    packed_bytes: int
    crc: int | None  # of its content; None: the archive does not say
    fault: str | None  # why it must not be unpacked, as the end of a sentence
    open: Callable[[], IO[bytes]]


def _differ(one: _Entry, path: Path, other: _Entry, other_path: Path) -> bool:
    """Whether two files in archives have different content."""
    if one.num_bytes != other.num_bytes or None not in (one.crc, other.crc):
        return (one.num_bytes, one.crc) != (other.num_bytes, other.crc)
    return raw_sha256(path) != raw_sha256(other_path)


def unpack(archive: Path, folder: Path, *, prefix: str = "", progress: Progress = no_progress) -> tuple[int, int]:
    """Unpack a zip or tar archive; files that are there already with the same content are left as they are.

    Every name is checked before the first file is written: none may leave the folder, be a link or a device, or come
    twice. No link below the folder is followed. Each file is whole, or not there.

    Args:
        archive: what to unpack.
        folder: where to, made where it is missing; it may be a link itself.
        prefix: unpack only what begins with it, and without it.
        progress: told the bytes.

    Returns:
        The number of files, and of their bytes.

    Raises:
        DataError: if the archive is damaged or does what it must not, a file of other content is in the way, or there
            is no room.
    """
    with (
        _damage_of(archive),
        _opened(archive) as opened,
    ):
        entries = _trusted(archive, opened, prefix)
        total, done, base = sum(entry.num_bytes for entry in entries.values()), 0, folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        missing = sum(entry.num_bytes for target, entry in entries.items() if not (folder / target).exists())
        refuse_lack_of_room(folder, missing, f"unpack {archive.name}")
        for target, entry in entries.items():
            progress(f"unpacking {archive.name}", done, total)
            _unpack_entry(archive, entry, base / target)
            done += entry.num_bytes
        progress(f"unpacking {archive.name}", done, total)
    os.sync()  # one for all: a call for each of 80,000 pictures would take longer than unpacking them
    sync_folder(folder)
    return len(entries), total


def free_bytes(folder: Path) -> int:
    """Tell how much room there is on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())).free


def refuse_lack_of_room(folder: Path, num_bytes: int, purpose: str) -> None:
    """See that a disk has room for some bytes more; ``purpose`` is for the message: ``unpack a.zip``."""
    if num_bytes > (free := free_bytes(folder)):
        what = f"{folder} has {free:,} bytes free, and it takes {num_bytes:,} to {purpose}"
        raise DataError(what, "free some space there, or choose a folder on another disk: --raw DIR")


def _listed(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Entry]:
    """Give the files of an archive; those of a tar file are found while it is read."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            is_odd = stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG)
            fault = "is a link or a device" if is_odd else "is encrypted" if info.flag_bits & 1 else None
            if not info.is_dir():
                opening = partial(archive.open, info)
                yield _Entry(info.filename, info.file_size, info.compress_size, info.CRC, fault, opening)
        return
    packed_bytes = Path(str(archive.name)).stat().st_size  # what is packed is packed as a whole
    left = _most_unpacked(packed_bytes)
    for member in archive:
        left -= member.size
        if left < 0:
            raise _too_much(Path(str(archive.name)))
        fault = None if member.isreg() else "is a link or a device"
        if not member.isdir():
            opening = partial(_extracted, archive, member)
            yield _Entry(member.name.removeprefix("./"), member.size, packed_bytes, None, fault, opening)
    # The checksum of a packed tar file is at its end, behind what tar reads.
    while archive.fileobj is not None and (chunk := archive.fileobj.read(_CHUNK_BYTES)):
        left -= len(chunk)
        if left < 0:
            raise _too_much(Path(str(archive.name)))


def _most_unpacked(packed_bytes: int) -> int:
    return max(MOST_TIMES * packed_bytes, _ALWAYS_ALLOWED_BYTES)


def _too_much(path: Path) -> DataError:
    return DataError(f"{path} unpacks to more than {MOST_TIMES} times its size", _AGAIN)


def _extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(member) or io.BytesIO()


def _trusted(path: Path, archive: zipfile.ZipFile | tarfile.TarFile, prefix: str) -> dict[PurePosixPath, _Entry]:
    """List the files to unpack by where they go; DataError if one is not to be trusted, or there is none."""
    found = dict[PurePosixPath, _Entry]()
    left = _most_unpacked(path.stat().st_size)
    for entry in _listed(archive):
        left -= entry.num_bytes
        if left < 0 or len(found) >= _MOST_FILES:
            raise _too_much(path)
        if not entry.name.startswith(prefix):
            continue
        target = PurePosixPath(entry.name.removeprefix(prefix))
        odd = {"..", "\\", "\0"}.intersection([*target.parts, *str(target)])
        leaves = odd or target.is_absolute() or not target.name
        if not leaves and any(part.startswith(".") or part == "__MACOSX" for part in target.parts):
            continue  # hidden files of whoever packed it
        fault = "would leave the folder" if leaves else "comes twice" if target in found else entry.fault
        if fault:
            raise DataError(f"{path} is not to be trusted: {shortened(entry.name)!r} {fault}", "do not unpack it")
        found[target] = entry
    if not found:
        raise DataError(f"{path} holds no files" + (f" in {prefix}" if prefix else ""), _AGAIN)
    return found


def _unpack_entry(path: Path, entry: _Entry, target: Path) -> None:
    """Write one file, or see that it is there."""
    if target.is_symlink() or target.parent.resolve() != target.parent:
        raise DataError(f"{target} leads through a link, which is not followed", "put a folder in its place")
    target.parent.mkdir(parents=True, exist_ok=True)
    with entry.open() as packed:
        if target.exists():
            if target.stat().st_size != entry.num_bytes or not _is_same(packed, target):
                what = f"{target} is there, with another content than in {path}"
                raise DataError(what, "move it away; nothing is overwritten")
            return
        temporary = target.with_name(f".{target.name}.part")
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:
                shutil.copyfileobj(packed, file, _CHUNK_BYTES)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)


def _is_same(packed: IO[bytes], target: Path) -> bool:
    with target.open("rb") as file:
        return all(chunk == file.read(len(chunk)) for chunk in iter(lambda: packed.read(_CHUNK_BYTES), b""))
