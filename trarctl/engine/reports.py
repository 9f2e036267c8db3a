"""Word between a launcher and the processes that it has started, as files in a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from trarctl import errors
from trarctl.errors import Stopped, TrarError

_STOP = "stop"


def write_report(folder: Path, error: TrarError) -> None:
    """Keep what ended this process."""
    report = {
        "kind": type(error).__name__,
        "what": error.what,
        "hint": error.hint,
        "signal": error.signal_number if isinstance(error, Stopped) else 0,
    }
    temporary = folder / f"{os.getpid()}.tmp"
    temporary.write_bytes(orjson.dumps(report))
    temporary.rename(folder / f"{os.getpid()}.json")


def read_report(folder: Path) -> TrarError | None:
    """What the first process to report was ended by, as it was."""
    reports = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return None
    report = orjson.loads(reports[0].read_bytes())
    if report["kind"] == Stopped.__name__:
        return Stopped(report["what"], report["signal"], report["hint"])
    kind: type[TrarError] = getattr(errors, report["kind"], TrarError)
    return kind(report["what"], report["hint"])


def ask_to_stop(folder: Path, signal_number: int) -> None:
    """Tell processes that start from now on not to begin."""
    (folder / _STOP).write_text(str(int(signal_number)))


def asked_to_stop(folder: Path) -> int:
    """The signal that asked to stop before this process had begun; 0 if none did."""
    stop = folder / _STOP
    return int(stop.read_text()) if stop.is_file() else 0
