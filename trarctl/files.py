"""Files and folders that are either whole or not there, with one writer at a time, and what identifies their content.

An output folder is built in ``OUT/.building``. When that is whole, the old marker file goes, the new entries are moved
to their names, and a new marker is written: a folder with a marker is always whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shlex
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.errors import DataError, TrarError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes its own name when the block ends well, or is not there at all.

    It is on the disk by then, also after a power cut. What was there before stays until that moment. The file has the
    mode that the process gives to new files, also if a library wrote it. A folder of its name is an IsADirectoryError
    before the block begins.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_result(path: Path) -> Iterator[Path]:
    """As ``whole_file``, but a device or a pipe is written to, not replaced."""
    if path.is_file() or not path.exists():
        with whole_file(path.resolve()) as temporary:
            yield temporary
    else:
        yield path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there, also after a power cut."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, indented, as ``write_bytes``."""
    write_bytes(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def write_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array in numpy's format and have it on the disk."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the entries of a folder on the disk."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file; a pipe or a device, which could be waited for without end, is an OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "ab")


def read_regular(path: Path) -> bytes:
    """The content of a file; an OSError for whatever could be waited for without end."""
    with open_regular(path) as file:
        return file.read()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; DataError if it cannot be read."""
    with refusing(f"cannot read {path}", "make it readable: chmod u+r"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def refusing(what: str, hint: str, kind: type[TrarError] = DataError) -> Iterator[None]:
    """Put what the file system refuses in the block into words: ``what``, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}", hint) from error


_BUILDING, _LOCK, _OWNED = ".building", ".lock", ".trarctl"
_MOST_LOCK_BYTES = 4096
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that are mounted without
LOOK_SECONDS = 0.2  # for which ``is_claimed`` of another process cannot be mistaken for a writer


@contextlib.contextmanager
def claimed(
    folder: Path,
    what: str,
    error: type[TrarError] = DataError,
    *,
    wait_seconds: float = LOOK_SECONDS,
    lock: str = _LOCK,
) -> Iterator[bool]:
    """Be the only writer of an existing folder while the block runs.

    The lock is the system's: a writer that dies lets go of it, also one on another host or in a container. ``.lock``
    says for people who holds it; nothing is decided by its content, and a claim leaves it as it was.

    Args:
        folder: what to write in.
        what: it is, for the message: ``run tiny``.
        error: what another writer raises, which is named.
        wait_seconds: how long to wait for it.
        lock: name of the file, another one for a part of the folder.

    Yields:
        Whether it is locked; the file system may be mounted without locks.
    """
    path, deadline = folder / lock, time.monotonic() + wait_seconds
    while True:
        is_new = not path.exists()
        try:
            file = path.open("a+b", buffering=0)
        except PermissionError:
            if is_new:
                raise
            file = path.open("rb", buffering=0)  # of another user of the folder
        is_locked = _lock(file.fileno(), fcntl.LOCK_EX)
        file.seek(0)
        before = file.read(_MOST_LOCK_BYTES)
        # The holder before may have removed the file in between: then it has no name any more.
        if is_locked is not False and os.fstat(file.fileno()).st_nlink:
            break
        file.close()
        if time.monotonic() >= deadline:
            holder = before.decode(errors="replace") or "which one is not known"
            raise error(f"another process writes {what}: {holder}", "wait until it has finished, or stop that process")
        time.sleep(0.1)
    with file:
        try:
            _fill(file, _own_name())
            yield is_locked is not None
        finally:
            _fill(file, before)
            if is_new:
                path.unlink(missing_ok=True)


def is_claimed(folder: Path) -> bool:
    """Whether some process writes a folder now; where there are no locks, whether one has begun and not ended well."""
    try:
        with (folder / _LOCK).open("rb") as file:
            is_locked = _lock(file.fileno(), fcntl.LOCK_SH)
            return bool(file.read()) if is_locked is None else not is_locked
    except OSError:
        return False


def _lock(descriptor: int, kind: int) -> bool | None:
    """Take a lock without waiting: whether it is ours, None where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True


def _own_name() -> bytes:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000]
    since = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"
    return os.fsencode(f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})")


def _fill(file: io.FileIO, content: bytes) -> None:
    # It is for people only: a full disk must not end what it is about.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(content)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Claim an output folder, made where it is missing: the folder inside it to build in, with what was left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder, f"the folder {folder}"):
            building = folder / _BUILDING
            building.mkdir(exist_ok=True)
            yield building
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        # A full disk is reported without a name, and only what is written can fill it.
        if name is None or name == folder or folder in name.parents or name in folder.parents:
            raise _unusable(folder, error) from error
        raise DataError(f"cannot read {name}: {error.strerror or error}", "make it readable: chmod u+rX") from error


def _unusable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the folder {folder}: {error.strerror or error}", "pass one that can be written: --out DIR"
    )


def refuse_readonly(folder: Path) -> None:
    """See that a folder can be written or made, without doing it; a DataError says why not."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        number = errno.EEXIST if nearest == folder.absolute() else errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK):
        number = errno.EACCES
    else:
        return
    raise _unusable(folder, OSError(number, os.strerror(number)))


def refuse_foreign(folder: Path, names: Iterable[str], *, claim: bool = True) -> None:
    """See that no entry of these names would be replaced that is not ours; ``claim`` marks the folder."""
    if (folder / _OWNED).exists():
        return
    present = sorted(name for name in names if (folder / name).exists())
    if present:
        raise DataError(
            f"{folder} holds {', '.join(present[:5])}, not written by this program, which would be replaced",
            "pass an empty or a new folder: --out DIR",
        )
    if claim:
        (folder / _OWNED).write_text("Written by trarctl prepare, which may replace what is here.\n")


def swap_in(folder: Path, building: Path, names: Iterable[str], obsolete: Iterable[str], *, marker: str) -> None:
    """Move entries from where they were built into the folder, which has no marker file afterwards."""
    (folder / marker).unlink(missing_ok=True)
    sync_folder(folder)
    for name in obsolete:
        remove(folder / name)
    for name in names:
        remove(folder / name)
        (building / name).rename(folder / name)
    shutil.rmtree(building)
    sync_folder(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a link is removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def list_files(folder: Path) -> dict[str, int]:
    """Give the size in bytes of every file under a folder by its relative path, hidden ones left out."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in files if not name.startswith(".")):
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


# Files that no result may replace, and what stands beside them.
_KEPT = {
    **dict.fromkeys(("manifest.json", "vocabulary.json", "answers.json"), "manifest.json"),
    **dict.fromkeys(("settings.json", "metrics.jsonl", "log.txt"), "checkpoints"),
}


def _is_kept(path: Path) -> bool:
    beside = _KEPT.get(path.name)
    return path.suffix == ".safetensors" or (beside is not None and (path.parent / beside).exists())


def refuse_unwritable(path: Path, hint: str) -> None:
    """See, before long work, that ``write_output`` can write a file, and that it is none of a run or of prepared data.

    The DataError has ``hint``, which says what to give instead.
    """
    if path.is_file() and _is_kept(path.resolve()):
        raise DataError(f"{path} belongs to a run or to prepared data, and would be overwritten", hint)
    with refusing(f"cannot write {path}", hint):
        is_new = not path.exists()
        if is_new or path.is_file() or path.is_dir():  # opening a pipe would wait for its reader
            with tempfile.TemporaryFile(dir=path.parent), path.open("ab"):
                pass
            if is_new:
                path.unlink()


def write_output(path: Path, content: bytes, hint: str) -> None:
    """Write a result; the DataError if that fails has the hint, which says what to give instead."""
    with refusing(f"cannot write {path}", hint), whole_result(path) as target:
        target.write_bytes(content)
