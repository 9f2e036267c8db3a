"""Signals: finish the step, save, and leave with the signal's own exit code, in all processes after the same step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_PRESS_SECONDS = 0.5  # one key press can reach a process twice: from the terminal, and from its launcher
_STOP_FILE = "stop"


class StopRequest:
    """Whether somebody asked this process to stop; ``signal_number`` is 0 until then."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._asked_at = 0.0

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Take note; a second SIGINT raises KeyboardInterrupt."""
        again = self.signal_number and time.monotonic() - self._asked_at > SAME_PRESS_SECONDS
        if signal_number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not self.signal_number:
            self.signal_number = signal_number
            self._asked_at = time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for SIGINT, SIGTERM and SIGUSR1 while the block runs."""
    request = StopRequest()
    with _handling(request.handle):
        yield request


@contextmanager
def forwarded_signals(folder: Path) -> Iterator[StopRequest]:
    """Pass SIGINT, SIGTERM and SIGUSR1 on to the processes that this one has started, while the block runs.

    A second SIGINT kills them and stops at once. Processes that share ``folder`` and start later can ask
    ``asked_to_stop``.
    """
    request = StopRequest()

    def handle(signal_number: int, frame: FrameType | None) -> None:
        (folder / _STOP_FILE).write_text(str(int(signal_number)))
        try:
            request.handle(signal_number, frame)
        except KeyboardInterrupt:
            _signal_children(signal.SIGKILL)
            raise
        _signal_children(signal_number)

    with _handling(handle):
        yield request


def asked_to_stop(folder: Path) -> int:
    """The signal that the launcher got before this process had begun; 0 if none."""
    stop = folder / _STOP_FILE
    return int(stop.read_text()) if stop.is_file() else 0


def _signal_children(signal_number: int) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal_number)


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
