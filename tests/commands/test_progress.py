from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_runs import SmallRun, make_run
from trarctl import cli
from trarctl.commands.progress import EpochTable, ProgressPrinter, show_progress
from trarctl.data import Progress
from trarctl.engine.callbacks import (
    EpochDone,
    Event,
    Note,
    Progressed,
    RunFinished,
    RunStarted,
    StepDone,
    Validated,
)

STARTED = RunStarted("demo", Path("runs/demo"), "cpu", 1, 1000, 640, 10, 3, 0, 0, 1, (0, 1, 2), 8, is_hard=True)
TYPES = {"color": 90.0, "shape": 80.5, "yes/no": 70.25}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("watching"))


def step(number: int, *, epoch: int = 1, routes: bool = True) -> StepDone:
    shares = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]
    return StepDone(epoch, number, 10, number, 1e-4, 0.5, 1234.5, 0.25, shares if routes else None, 2_500_000_000)


def ended(epoch: int) -> EpochDone:
    return EpochDone(epoch, 10 * epoch, 10, 0.5 / epoch, 1e-4, 0.5, 61.0, 1234.5)


def validated(epoch: int, overall: float, *, is_best: bool) -> Validated:
    return Validated(epoch, 10 * epoch, overall, TYPES, is_best, 4.0)


def live(clock: Clock) -> ProgressPrinter:
    """A printer as on a terminal; what it prints for good is lost."""
    return ProgressPrinter(Console(file=io.StringIO()), is_live=True, clock=clock)


def drawn(view: ProgressPrinter, width: int) -> list[str]:
    return [line.plain for line in view.lines(width)]


def in_a_log(clock: Clock) -> tuple[ProgressPrinter, io.StringIO]:
    stream = io.StringIO()
    return ProgressPrinter(Console(file=stream, width=10_000), clock=clock), stream


def reporting(clock: Clock) -> tuple[Progress, io.StringIO]:
    view, stream = in_a_log(clock)
    return lambda task, done, total: view(Progressed(task, done, total)), stream


def printed(events: list[Event]) -> str:
    view, stream = in_a_log(Clock())
    for event in events:
        view(event)
    return stream.getvalue()


def test_live_lines_hold_all_figures() -> None:
    clock = Clock()
    view = live(clock)
    view(STARTED)
    view(step(1))
    clock.now += 8
    view(step(5))
    assert drawn(view, 140) == [
        "epoch 1/3  ━━━━━━━━━━━━────────────  5/10  10 s left, 50 s for the run",
        "loss 0.2500  rate 0.0001  temperature 0.5  1,234 samples/s  memory 2.5 GB",
        "% of whole/3x3/5x5 by layer   1: 50/30/20  2: 10/20/70",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
def test_live_lines_fit_any_terminal(width: int) -> None:
    clock = Clock()
    view = live(clock)
    view(STARTED)
    view(step(1))
    clock.now += 8000
    view(step(2))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    console.print(view)
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("epoch 1/3")
    if width >= 60:
        assert "2/10" in lines[0]
        assert " left, " in lines[0]


def test_lines_broken_by_a_narrower_terminal_are_drawn_over() -> None:
    view = live(Clock())
    view(STARTED)
    view(step(1))
    for width, rises in ((100, 0), (50, 2), (50, 0), (100, 0)):
        stream = io.StringIO()
        Console(file=stream, width=width, force_terminal=True).print(view)
        assert stream.getvalue().count("\x1b[1A\x1b[2K") == rises


def test_soft_routing_and_other_tasks_show_what_they_have() -> None:
    clock = Clock()
    view = live(clock)
    view(replace(STARTED, is_hard=False))
    assert drawn(view, 80) == []
    view(step(1, routes=False))
    clock.now += 1
    view(step(2, routes=False))
    assert "temperature" not in " ".join(drawn(view, 80))
    assert "by layer" not in " ".join(drawn(view, 80))
    view(ended(1))
    view(Progressed("validating", 0, 100))
    clock.now += 2
    view(Progressed("validating", 50, 100))
    assert drawn(view, 80) == ["validating  ━━━━━━━━━━━━────────────  50/100  25/s, 2 s left"]
    view(validated(1, 50.0, is_best=True))
    assert drawn(view, 80) == []


def test_a_row_an_epoch_with_the_change_since_the_last() -> None:
    table = EpochTable(12)
    first = table.rows(ended(1), validated(1, 80.0, is_best=True))
    second = table.rows(ended(2), validated(2, 79.5, is_best=False))
    assert first == [
        "epoch     loss  val, %  change   color   shape  yes/no          time",
        " 1/12   0.5000   80.00           90.00   80.50   70.25    1 min 05 s  best",
    ]
    assert second == [" 2/12   0.2500   79.50   -0.50   90.00   80.50   70.25    1 min 05 s"]
    assert table.rows(ended(3), None)[0].split() == ["epoch", "loss", "time"]


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (80, "epoch loss val, % change color shape yes/no time"),
        (60, "epoch loss val, % change time"),
        (40, "epoch loss val, % change"),
        (30, "epoch val, % change"),
    ],
)
def test_rows_leave_out_what_does_not_fit(width: int, names: str) -> None:
    rows = EpochTable(3, lambda: width).rows(ended(1), validated(1, 80.0, is_best=True))
    assert rows[0].split() == names.split()
    assert max(map(len, rows)) <= width
    assert rows[1].endswith("best")


def test_what_stays_of_a_run() -> None:
    events: list[Event] = [STARTED, step(9), ended(1), Progressed("validating", 1, 2), validated(1, 80.0, is_best=True)]
    events += [Note("[red]mind this[/red]"), step(1, epoch=2), ended(2), ended(3)]
    events += [RunFinished("demo", Path("runs/demo"), 200.0, 1, 80.0)]
    assert printed(events).splitlines() == [
        "run demo in runs/demo, on cpu, 1 thread",
        "1,000 parameters, 640 samples, 10 steps per epoch, 3 epochs",
        "epoch     loss  val, %  change   color   shape  yes/no          time",
        "  1/3   0.5000   80.00           90.00   80.50   70.25    1 min 05 s  best",
        "note:  [red]mind this[/red]",
        "epoch     loss          time",
        "  2/3   0.2500    1 min 01 s",
        "  3/3   0.1667    1 min 01 s",
        "finished run demo in 3 min 20 s; best epoch 1: 80.00 %",
    ]


def test_processes_and_threads_are_counted() -> None:
    two = replace(STARTED, num_processes=2, num_threads=3)
    assert printed([two]).startswith("run demo in runs/demo, on cpu, 2 processes, 3 threads each\n")


@pytest.mark.parametrize(
    ("ways", "text"),
    [
        ({}, ""),
        ({"is_recorded": True}, "steps are replayed as CUDA graphs\n"),
        ({"is_compiled": True}, "steps are compiled\n"),
        ({"is_recorded": True, "is_compiled": True}, "steps are compiled, replayed as CUDA graphs\n"),
        ({"precision": "bf16", "is_recorded": True}, "steps are computed in bf16, replayed as CUDA graphs\n"),
    ],
)
def test_it_says_how_steps_are_computed(ways: dict[str, Any], text: str) -> None:
    assert printed([replace(STARTED, **ways)]).endswith(f"10 steps per epoch, 3 epochs\n{text}")


def test_a_log_gets_a_line_now_and_then_and_fewer_in_a_long_run() -> None:
    clock = Clock()
    steps, stream = in_a_log(clock)
    steps(STARTED)
    for number in range(1, 7):
        steps(step(number))
        clock.now += 1
    assert stream.getvalue().splitlines()[2:] == [
        "epoch 1/3: 3 of 10 steps (30 %), loss 0.2500, rate 0.0001, temperature 0.5, 1,234 samples/s, 7 s left"
    ]
    seconds = []
    for _ in range(40_000):
        clock.now += 1
        before = stream.tell()
        steps(step(5))
        if stream.tell() > before:
            seconds.append(clock.now)
    pauses = [later - earlier for earlier, later in pairwise(seconds)]
    assert pauses[0] == pytest.approx(10)
    assert max(pauses) == pytest.approx(300, abs=2)
    assert len(seconds) < 300


def test_short_work_says_nothing_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as report:
        for done in range(1001):
            report("reading", done, 1000)
    assert capsys.readouterr().err == ""


def test_long_work_says_a_line_now_and_then() -> None:
    clock = Clock()
    report, stream = reporting(clock)
    for second in range(41):
        clock.now = 100.0 + second
        report("reading [x]", second * 100, 4000)
    assert stream.getvalue().splitlines() == [
        "reading [x]: 200 of 4,000 (5 %), 100/s, 38 s left",
        "reading [x]: 1,200 of 4,000 (30 %), 100/s, 28 s left",
        "reading [x]: 2,200 of 4,000 (55 %), 100/s, 18 s left",
        "reading [x]: 3,200 of 4,000 (80 %), 100/s, 8 s left",
        "reading [x]: 4,000 of 4,000 (100 %), 100/s, took 40 s",
    ]


def test_work_of_unknown_length() -> None:
    clock = Clock()
    report, stream = reporting(clock)
    report("reading", 0, None)
    clock.now += 4
    report("reading", 10, None)
    assert stream.getvalue() == "reading: 10, 2.5/s\n"


def test_the_same_task_may_come_again() -> None:
    clock = Clock()
    report, stream = reporting(clock)
    for _ in range(2):
        report("scoring", 0, 10)
        clock.now += 5
        report("scoring", 10, 10)
        clock.now += 100
    report("scoring", 0, 10)
    lines = stream.getvalue().splitlines()
    assert lines == ["scoring: 10 of 10 (100 %), 2.0/s, took 5 s"] * 2


def test_quiet_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with show_progress(is_quiet=True) as report:
        report("reading", 1, 2)
    assert stream.getvalue() == ""


def test_tasks_on_a_terminal_stand_in_columns() -> None:
    clock = Clock()
    view = live(clock)
    view(Progressed("reading train.json [x]", 0, 200_000))
    view(Progressed("counting", 0, None))
    clock.now += 4
    view(Progressed("reading train.json [x]", 200_000, 200_000))
    view(Progressed("counting", 5, None))
    clock.now += 4
    assert drawn(view, 100) == [
        "reading train.json [x]  ━━━━━━━━━━━━━━━━━━━━━━━━  200k/200k  50,000/s, took 4 s",
        "counting                                          5          0.6/s",
    ]
    assert drawn(view, 50) == [
        "reading train.json…  200k/200k  50,000/s, took 4 s",
        "counting             5          0.6/s",
    ]
    view(Progressed("reading train.json [x]", 0, 200_000))
    assert drawn(view, 80)[0].split() == ["reading", "train.json", "[x]", "─" * 24, "0/200k"]


def test_the_lines_of_work_stay_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress() as report:
        for done in range(11):
            report("reading [x]", done, 10)
    last = stream.getvalue().rsplit("reading [x]", 1)[1]
    assert "10/10" in last
    assert "\x1b[2K" not in last


def test_quiet_commands_show_results_alone(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*run.folder_option, "--quiet"]
    assert cli.run(["resume", run.name, "--epochs", "3", *options]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"next: trarctl eval --ckpt {run.runs / run.name}\n"
    assert "epoch" not in captured.err
    for command in (["eval"], ["submit", "--out", str(tmp_path / "a.json")]):
        assert cli.run([*command, "--split", "val", "--ckpt", run.name, *options]) == 0
        captured = capsys.readouterr()
        assert captured.out
        assert all(line.startswith("note:  ") for line in captured.err.splitlines())


@pytest.mark.parametrize("no_color", ["", "1"])
def test_on_a_terminal_the_run_is_drawn_and_leaves_its_rows(run: SmallRun, no_color: str) -> None:
    leader, follower = pty.openpty()
    arguments = ["resume", run.name, "--epochs", f"{6 + len(no_color)}", *run.folder_option]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "NO_COLOR": no_color}
    if not no_color:
        del environment["NO_COLOR"]
    program = subprocess.Popen(
        [sys.executable, "-m", "trarctl", *arguments], stdout=subprocess.DEVNULL, stderr=follower, env=environment
    )
    os.close(follower)
    received = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            received += os.read(leader, 65536)
        except OSError:
            break
    os.close(leader)
    assert program.wait(60) == 0
    text = received.decode()
    # A run this small may be over before its bar is drawn: only what must not be there is certain.
    assert "\x1b[2K" in text
    assert not (no_color and re.search(r"\x1b\[(\d+;)*3\d", text))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert re.search(r"epoch +loss +val, % +change", plain)
    assert f"finished run {run.name} in " in plain
