"""The output folder of ``prepare``: one writer at a time, nothing foreign touched, nothing half-written in sight.

Everything is first written into ``OUT/.building``. When it is whole, the old manifest goes, the new entries take their
places, and the new manifest is written: a folder with a manifest is always whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from trarctl.data.manifest import MANIFEST
from trarctl.errors import DataError
from trarctl.files import sync_folder

BUILDING = ".building"
_LOCK = ".lock"
_OWNED = ".trarctl"


def _unusable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the folder {folder}: {error.strerror or error}", "pass one that can be written: --out DIR"
    )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Claim an output folder, creating it where it is missing.

    Args:
        folder: the output folder.

    Yields:
        The folder inside it to build in; what an interrupted writer left there is still there.

    Raises:
        DataError: it cannot be written, or another process is writing it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    lock = folder / _LOCK
    _take(lock, folder)
    try:
        building = folder / BUILDING
        building.mkdir(exist_ok=True)
        yield building
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        # A full disk is reported without a name, and only what is written can fill it.
        if name is None or name == folder or folder in name.parents:
            raise _unusable(folder, error) from error
        raise DataError(f"cannot read {name}: {error.strerror or error}", "let it be read: chmod u+rX") from error
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


def _take(lock: Path, folder: Path) -> None:
    mine = orjson.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())})
    for _ in range(2):
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _refuse_living(lock, folder)
            with contextlib.suppress(FileNotFoundError):
                lock.unlink()
        except OSError as error:
            raise _unusable(folder, error) from error
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(mine)
            return
    raise DataError(f"another prepare is writing to {folder}", "wait until it has finished")


def _refuse_living(lock: Path, folder: Path) -> None:
    """Raise unless the process that made the lock is certainly gone."""
    try:
        holder = orjson.loads(lock.read_bytes())
        pid, host, started = int(holder["pid"]), str(holder["host"]), holder["started"]
    except FileNotFoundError:
        return
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{lock} is damaged, so another prepare may be writing to {folder}", f"if none is, delete {lock}"
        ) from None
    if host != socket.gethostname():
        raise DataError(
            f"another prepare (process {pid} on {host}) is writing to {folder}",
            f"wait until it has finished; if it is gone, delete {lock}",
        )
    is_alive = _is_running(pid) and _started(pid) == started
    if is_alive:
        raise DataError(f"another prepare (process {pid}) is writing to {folder}", "wait until it has finished")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: tells a process from a later one with the same number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    """See that nothing would be replaced that this program did not write.

    Args:
        folder: the output folder.
        names: what is going to be written into it.

    Raises:
        DataError: an entry of that name exists, and the folder is not one of ours.
    """
    if (folder / _OWNED).exists():
        return
    present = sorted(name for name in names if (folder / name).exists())
    if present:
        raise DataError(
            f"{folder} holds {', '.join(present[:5])}, not written by this program, which would be replaced",
            "pass an empty or a new folder: --out DIR",
        )
    (folder / _OWNED).write_text("Written by trarctl prepare, which may replace what is here.\n")


def swap_in(folder: Path, building: Path, names: Iterable[str], obsolete: Iterable[str]) -> None:
    """Move what was built to its place; the folder has no manifest afterwards.

    Args:
        folder: the output folder.
        building: where the new entries are.
        names: the new entries.
        obsolete: entries that nothing refers to any more.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
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
    """List every file of a prepared folder except its manifest, hidden and unfinished ones, with sizes in bytes."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if not name.startswith(".") and relative != MANIFEST:
                found[relative] = path.stat().st_size
    return found
