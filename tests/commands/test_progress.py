from __future__ import annotations

import io
import sys

import pytest

from trarctl.commands.progress import PlainProgress, compact, duration, progress


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (2.5, "2.5"),
        (7, "7"),
        (4000, "4,000"),
        (99_999, "99,999"),
        (443_757, "444k"),
        (1_888_770, "1.9M"),
        (107e9, "107.0G"),
    ],
)
def test_compact(number: float, text: str) -> None:
    assert compact(number) == text


def test_short_work_says_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as report:
        for done in range(1001):
            report("reading", done, 1000)
    assert capsys.readouterr().err == ""


def test_long_work_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainProgress(clock)
    for second in range(41):
        clock.now = 100.0 + second
        report("reading [x]", second * 100, 4000)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "reading [x]: 200 of 4,000 (5 %), 100/s, 38 s left",
        "reading [x]: 1,200 of 4,000 (30 %), 100/s, 28 s left",
        "reading [x]: 2,200 of 4,000 (55 %), 100/s, 18 s left",
        "reading [x]: 3,200 of 4,000 (80 %), 100/s, 8 s left",
        "reading [x]: 4,000 of 4,000 (100 %), 100/s, took 40 s",
    ]
    assert captured.out == ""


def test_work_of_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainProgress(clock)
    report("reading", 0, None)
    clock.now += 4
    report("reading", 10, None)
    assert capsys.readouterr().err == "reading: 10, 2.5/s\n"


def test_the_same_task_may_come_again(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = PlainProgress(clock)
    for _ in range(2):
        report("scoring", 0, 10)
        clock.now += 5
        report("scoring", 10, 10)
        clock.now += 100
    report("scoring", 0, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["scoring: 10 of 10 (100 %), 2.0/s, took 5 s"] * 2


def test_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(is_quiet=True) as report:
        report("reading", 1, 2)
    assert stream.getvalue() == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress() as report:
        for done in range(11):
            report("reading [x]", done, 10)
        report("reading [x]", 0, 10)
        report("counting", 5, None)
    text = stream.getvalue()
    assert "reading [x]" in text
    assert "10/10" in text
    assert "0/10" in text
    assert "counting" in text
