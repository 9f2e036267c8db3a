"""Signals: finish the step, save, and leave with the signal's own exit code, in all processes after the same step."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from trarctl.engine.distributed import World
from trarctl.engine.reports import ask_to_stop

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
    with _handling(request.handle):
        yield request


@contextmanager
def forwarded_signals(folder: Path) -> Iterator[StopRequest]:
    """Pass SIGINT, SIGTERM and SIGUSR1 on to the processes that this one has started, while the block runs.

    A second SIGINT kills them and stops at once.

    Args:
        folder: where those processes look before they begin, see ``trarctl.engine.reports``.
    """
    request = StopRequest()

    def handle(signal_number: int, frame: FrameType | None) -> None:
        ask_to_stop(folder, signal_number)
        try:
            request.handle(signal_number, frame)
        except KeyboardInterrupt:
            _signal_children(signal.SIGKILL)
            raise
        _signal_children(signal_number)

    with _handling(handle):
        yield request


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


@dataclass(frozen=True)
class Word:
    """What processes say to each other after a step.

    Attributes:
        loss: summed over the steps since it was last read; 0 where it was not read.
        signal_number: the signal that asks to stop, 0 if none does.
        is_save_due: whether to save; the leading process decides, since clocks differ.
    """

    loss: float
    signal_number: int
    is_save_due: bool


def confer(world: World, word: Word) -> Word:
    """Put together what all processes say, in one meeting: losses are added, any signal counts."""
    if world.size == 1:
        return word
    asked = [float(word.signal_number == number) for number in STOPPING]
    said = np.array([word.loss, float(world.is_main and word.is_save_due), *asked])
    loss, is_save_due, *asked = world.all_reduce(said).tolist()
    signals = [int(number) for number, count in zip(STOPPING, asked, strict=True) if count]
    return Word(loss, signals[0] if signals else 0, bool(is_save_due))
