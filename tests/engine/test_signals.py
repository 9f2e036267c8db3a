"""Signals: noted during a step, heeded after it; a second Ctrl-C does not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.engine.programs import processes_of, wait_until
from trarctl.engine import signals as stopping
from trarctl.engine.signals import StopRequest, stop_requests
from trarctl.errors import Stopped


@pytest.mark.parametrize("number", stopping.STOPPING)
def test_a_signal_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == number
    assert signal.getsignal(number) == before


def test_a_signal_stops_at_once_what_has_not_begun() -> None:
    with stop_requests(lambda number: Stopped("stopped", number)) as stop:
        with pytest.raises(Stopped) as raised:
            os.kill(os.getpid(), signal.SIGHUP)
        # What is being ended is not ended again.
        os.kill(os.getpid(), signal.SIGTERM)
    assert (raised.value.exit_code, stop.signal_number) == (129, signal.SIGHUP)


def test_what_has_begun_is_asked() -> None:
    with stop_requests(lambda number: Stopped("stopped", number)) as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGQUIT)
    assert stop.signal_number == signal.SIGQUIT


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal_number == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_cannot_listen() -> None:
    found = []

    def listen() -> None:
        with stop_requests() as stop:
            found.append(stop.signal_number)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [0]


PARENT = """
import multiprocessing, os, sys, time
from trarctl.engine.signals import ended_with_parent

def child(is_stubborn):
    import signal
    if is_stubborn:
        signal.signal(signal.SIGTERM, lambda *_: None)
    from trarctl.engine import signals
    signals.ORPHAN_SECONDS = 1.0
    with ended_with_parent():
        print(os.getpid(), flush=True)
        time.sleep(100)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child, args=(len(sys.argv) > 1,)).start()
    time.sleep(100)
"""


@pytest.mark.parametrize("arguments", [[], ["stubborn"]])
def test_a_process_ends_with_the_one_that_started_it(arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        # The pipe closes with the last process that holds it.
        assert parent.stdout.read() == ""
    wait_until(lambda: child not in processes_of(parent.pid), 10)


def test_the_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    stop = StopRequest()
    stop.handle(signal.SIGINT, None)
    clock += stopping.SAME_PRESS_SECONDS / 2
    stop.handle(signal.SIGINT, None)
    clock += stopping.SAME_PRESS_SECONDS
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT, None)
