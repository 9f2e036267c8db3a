"""Signals: noted during a step, heeded after it; a second Ctrl-C does not wait."""

from __future__ import annotations

import os
import signal
import time

import pytest

from trarctl.engine import signals as stopping
from trarctl.engine.signals import StopRequest, stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == number
    assert signal.getsignal(number) == before


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
