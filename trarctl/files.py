"""Files and folders that are either whole or not there, with one writer at a time, and what identifies their content.

An output folder is built in ``OUT/.building``. When that is whole, the old marker file goes, the new entries are moved
to their names, and a new marker is written: a folder with a marker is always whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.errors import DataError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes its own name when the block ends well, or is not there at all.

    It is on the disk by then, also after a power cut. What was there before stays until that moment.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", "make it readable: chmod u+r") from error


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Claim an output folder, creating it where it is missing; a writer that dies lets go of it.

    Yields:
        The folder inside it to build in; what an interrupted writer left there is still there.

    Raises:
        DataError: it cannot be written, or another process is writing it.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"another prepare is writing to {folder}", "wait until it has finished") from None
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        building = folder / _BUILDING
        building.mkdir(exist_ok=True)
        yield building
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        # A full disk is reported without a name, and only what is written can fill it.
        if name is None or name == folder or folder in name.parents:
            raise _unusable(folder, error) from error
        raise DataError(f"cannot read {name}: {error.strerror or error}", "make it readable: chmod u+rX") from error
    finally:
        lock.release()


_BUILDING, _LOCK, _OWNED = ".building", ".lock", ".trarctl"


def _unusable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the folder {folder}: {error.strerror or error}", "pass one that can be written: --out DIR"
    )


def refuse_readonly(folder: Path) -> None:
    """See that a folder can be written or made, without doing it; a DataError says why not."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        number = errno.EEXIST if nearest == folder.absolute() else errno.ENOTDIR
        raise _unusable(folder, OSError(number, os.strerror(number)))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _unusable(folder, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def refuse_foreign(folder: Path, names: Iterable[str], *, claim: bool = True) -> None:
    """See that no entry of these names would be replaced that this program did not write; ``claim`` marks the folder.

    Raises:
        DataError: one exists, and the folder is not one of ours.
    """
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


def list_files(folder: Path, *, except_for: str) -> dict[str, int]:
    """Give the size in bytes of every file under a folder by its relative path, hidden ones left out."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if not name.startswith(".") and relative != except_for:
                found[relative] = path.stat().st_size
    return found


def refuse_unwritable(path: Path, hint: str) -> None:
    """See, before long work, that ``write_output`` can write a file.

    Raises:
        DataError: it cannot; ``hint`` says what to give instead.
    """
    try:
        is_new = not path.exists()
        if is_new or path.is_file() or path.is_dir():  # opening a pipe would wait for its reader
            with tempfile.TemporaryFile(dir=path.parent), path.open("ab"):
                pass
            if is_new:
                path.unlink()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}", hint) from None


def write_output(path: Path, content: bytes, hint: str) -> None:
    """Write a result whole or not at all; a device or a pipe is written to, not replaced.

    Raises:
        DataError: it cannot be written; ``hint`` says what to give instead.
    """
    try:
        if path.is_file() or not path.exists():
            write_bytes(path.resolve(), content)
        else:
            path.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}", hint) from None
