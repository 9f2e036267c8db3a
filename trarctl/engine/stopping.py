"""Signals: finish the step, save, and leave with the signal's own exit code."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_PRESS_SECONDS = 0.5  # one key press can reach a process twice: from the terminal, and from its launcher


class StopRequest:
    """Whether somebody asked this process to stop; ``signal_number`` is 0 until then."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._asked_at = 0.0

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Take note; a second SIGINT stops at once.

        Raises:
            KeyboardInterrupt: at the second SIGINT.
        """
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
    before = {number: signal.signal(number, request.handle) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
