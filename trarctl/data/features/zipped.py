"""Feature files in one archive: ``FOLDER/features.zip`` stands for the files that it holds, as if they lay in FOLDER.

``trarctl extract --pack`` writes it, beside ``backbone.json``. Members are stored as they are, so that one is read
without the others; ``unzip`` gives the files back, and ``numpy.load`` reads the archive. The comment of a member is the
time of its last change, in ns since 1970: archives themselves keep even seconds. A file that does lie in the folder
counts more than the member of its name.
"""

from __future__ import annotations

import os
import stat
import struct
import time
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from trarctl.data import Progress
from trarctl.data.manifest import BACKBONE
from trarctl.errors import DataError

ARCHIVE = "features.zip"

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member: magic number, and the lengths of what follows before the data
_FIRST_DAY, _LAST_DAY = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)  # that other archivers can write


class Member(NamedTuple):
    """What the directory of an archive says of a file; ``is_stored`` says that it is not compressed."""

    start: int
    num_bytes: int
    modified_ns: int
    is_stored: bool
    crc: int


class Archive:
    """An archive as it was when it was opened, also if another takes its name meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.members = {one.filename: _member(one) for one in archive.infolist() if not one.is_dir()}
            size = path.stat().st_size
            if any(one.start < 0 or one.start + one.num_bytes * one.is_stored > size for one in self.members.values()):
                raise zipfile.BadZipFile("its directory names places that it has not")
            self._descriptor = os.open(path, os.O_RDONLY)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error) as error:
            raise self._damaged(str(error).lower()) from error
        weakref.finalize(self, os.close, self._descriptor)

    def _damaged(self, why: str) -> DataError:
        hint = "copy it again from where it came; or remove it, and trarctl extract makes all features again"
        return DataError(f"{self._path} is damaged: {why}", hint)

    def read(self, member: Member, most_bytes: int | None = None) -> bytes:
        """Read a file of the archive, or as much of it as is asked for, which may be less if the archive is damaged.

        A whole file is compared with its checksum: DataError if it does not match.
        """
        head = os.pread(self._descriptor, _LOCAL_HEADER.size, member.start)
        if len(head) < _LOCAL_HEADER.size:
            return b""
        magic, *lengths = _LOCAL_HEADER.unpack(head)
        if magic != b"PK\3\4":
            return b""
        num_bytes = member.num_bytes if most_bytes is None else min(most_bytes, member.num_bytes)
        content = os.pread(self._descriptor, num_bytes, member.start + len(head) + sum(lengths))
        if most_bytes is None and zlib.crc32(content) != member.crc:
            raise self._damaged("a file in it does not match its checksum")
        return content


def archive_in(folder: Path) -> Archive | None:
    """Give the archive of a folder that ``trarctl extract`` wrote; DataError if it is damaged."""
    path = folder / ARCHIVE
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not (folder / BACKBONE).exists():
        return None
    return _archive(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _archive(path: Path, *_: int) -> Archive:
    return Archive(path)


def find(path: Path) -> tuple[Archive, Member] | None:
    """Look for a file in the archive of the folder that it would lie in, or of one above; DataError as above."""
    for folder in path.parents:
        if (archive := archive_in(folder)) is not None:
            member = archive.members.get(path.relative_to(folder).as_posix())
            if member is not None:
                return archive, member
    return None


def size_and_time(path: Path) -> tuple[int, int]:
    """Give the bytes of a file and the time of its last change, ns since 1970; OSError if no archive has it."""
    try:
        status = path.stat()
    except OSError:
        if (found := find(path)) is None:
            raise
        return found[1].num_bytes, found[1].modified_ns
    return status.st_size, status.st_mtime_ns


def names_below(folder: Path) -> list[str]:
    """List the files below a folder that lie in its archive, or in that of one above, by their relative paths."""
    found = dict[str, None]()
    for above in (folder, *folder.parents):
        if (archive := archive_in(above)) is not None:
            start = "" if above == folder else f"{folder.relative_to(above).as_posix()}/"
            found |= {name.removeprefix(start): None for name in archive.members if name.startswith(start)}
    return list(found)


def write(folder: Path, names: Iterable[str], scratch: Path, progress: Progress) -> None:
    """Put files of a folder, or of its archive, into a new archive, which then takes the name of the old one.

    The same files with the same times give the same bytes. ``scratch`` is a folder for what is unfinished.
    """
    names = sorted(names)
    scratch.mkdir(exist_ok=True)
    with (scratch / ARCHIVE).open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for number, name in enumerate(names, start=1):
                path = folder / name
                modified = size_and_time(path)[1]
                found = None if path.exists() else find(path)
                archive.writestr(_info(name, modified), path.read_bytes() if found is None else found[0].read(found[1]))
                progress("packing features", number, len(names))
        file.flush()
        os.fsync(file.fileno())
    (scratch / ARCHIVE).replace(folder / ARCHIVE)


def _info(name: str, modified_ns: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, min(max(time.gmtime(modified_ns // 10**9)[:6], _FIRST_DAY), _LAST_DAY))
    info.create_system, info.external_attr = 3, 0o644 << 16  # of Unix, whatever wrote it
    info.comment = str(modified_ns).encode()
    return info


def _member(info: zipfile.ZipInfo) -> Member:
    is_stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
    modified_ns = int(info.comment) if info.comment.isdigit() else 0
    return Member(info.header_offset, info.file_size, modified_ns, is_stored, info.CRC)
