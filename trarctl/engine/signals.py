"""Signals: finish the step, save, and leave with the signal's own exit code, in all processes after the same step.

Where nothing is being trained there is nothing to finish: ``Stopped`` is raised at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

# Those that end a process that does not listen, and that a user, a terminal or a scheduler sends.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT", "SIGUSR2", "SIGXCPU", "SIGALRM")
STOPPING = tuple(signal.Signals[name] for name in _NAMES)
SAME_PRESS_SECONDS = 0.5  # one key press can reach a process twice: from the terminal, and from its launcher
ORPHAN_SECONDS = 30.0  # for a process whose launcher has gone to finish its step and save
POLL_SECONDS = 0.5
_STOP_FILE = "stop"

Handler = Callable[[int, FrameType | None], None]


class StopRequest:
    """Whether somebody asked this process to stop; ``signal_number`` is 0 until then.

    Args:
        explain: makes the error that the first signal raises until ``defer`` is called; None to raise none.
    """

    def __init__(self, explain: Callable[[int], BaseException] | None = None) -> None:
        self.signal_number = 0
        self._explain = explain
        self._asked_at = 0.0

    def defer(self) -> StopRequest:
        """From now on only take note of a signal: who works looks at ``signal_number`` between two steps."""
        self._explain = None
        return self

    def handle(self, signal_number: int, _frame: FrameType | None) -> None:
        """Take note of the first signal; a second SIGINT raises KeyboardInterrupt."""
        again = self.signal_number and time.monotonic() - self._asked_at > SAME_PRESS_SECONDS
        if signal_number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not self.signal_number:
            self.signal_number = signal_number
            self._asked_at = time.monotonic()
            if self._explain is not None:
                raise self._explain(signal_number)


@contextmanager
def stop_requests(
    explain: Callable[[int], BaseException] | None = None, *, afterwards: Handler | None = None
) -> Iterator[StopRequest]:
    """Listen for the signals that end a process while the block runs; only the main thread can.

    ``afterwards`` handles those that come later; None: what did before.
    """
    request = StopRequest(explain)
    with _handling(request.handle, afterwards):
        yield request


def late_signals(folder: Path) -> Handler:
    """Make the handler of a process that has done its work, and waits for its launcher to take that.

    What the launcher forwards comes too late: it waits for this process, and would for ever if it died meanwhile.
    """

    def handle(signal_number: int, _frame: FrameType | None) -> None:
        if not asked_to_stop(folder):
            signal.signal(signal_number, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)

    return handle


@contextmanager
def forwarded_signals(folder: Path) -> Iterator[StopRequest]:
    """Pass signals on to the processes that this one has started, while the block runs.

    A second SIGINT kills them and stops at once. Processes that share ``folder`` and start later can ask
    ``asked_to_stop``. Until they listen, signals wait for them: they, and Python's helper processes, inherit that.
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

    with _handling(handle), _blocked_in_children():
        yield request


def asked_to_stop(folder: Path) -> int:
    """The signal that the launcher got before this process had begun; 0 if none."""
    stop = folder / _STOP_FILE
    return int((stop.read_text() if stop.is_file() else "") or 0)


@contextmanager
def ended_with_parent() -> Iterator[None]:
    """Stop this process as by SIGTERM if the one that started it goes, and end it soon after, whatever it does then."""
    started_by = multiprocessing.parent_process()
    parent = os.getppid() if started_by is None else started_by.pid
    is_done = threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        is_done.wait(ORPHAN_SECONDS)
        # Some part may wait for the lost launcher for ever. A moment more, for what is written last.
        time.sleep(POLL_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="ended-with-parent", daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


def _signal_children(signal_number: int) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal_number)


@contextmanager
def _blocked_in_children() -> Iterator[None]:
    """Block the signals in this thread, and so in processes that it starts; another thread takes them in meanwhile."""
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait, name="signals", daemon=True)
    thread.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    # Starting Python's helper unblocks some of them again, so it comes first.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        is_over.set()
        thread.join()


@contextmanager
def _handling(handle: Handler, afterwards: Handler | None = None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # ``nohup`` has SIGHUP ignored, and so it stays.
    numbers = [one for one in STOPPING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in numbers}
    # For good: where a launcher had them wait, this process listens now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, afterwards or handler)
