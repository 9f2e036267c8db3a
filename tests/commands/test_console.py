from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trarctl.commands.console import (
    add_row,
    compact,
    compact_bytes,
    duration,
    make_table,
    note,
    open_console,
    printable,
    say,
    show_settings,
    show_table,
    warn,
    write_json,
)
from trarctl.config.resolve import resolve
from trarctl.config.settings import FIELDS
from trarctl.errors import DataError


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest puts its own stream in place after those."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("a result [with] brackets")
    note("a note")
    warn("a warning")
    captured = capsys.readouterr()
    assert captured.out == "a result [with] brackets\n"
    assert captured.err == "note:  a note\nwarning: a warning\n"


def test_nothing_is_wrapped_or_colored_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table("name", "score", numbers=["score"])
    add_row(table, "x" * 200, 1.5, style="red")
    add_row(table, "[red]y[/red]", 10)
    show_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in (lines[0], *lines[2:])] == [
        ["name", "score"],
        ["x" * 200, "1.5"],
        ["[red]y[/red]", "10"],
    ]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_has_colors_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    open_console().print("x", style="red")
    assert "\x1b[31m" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal.truncate(0)
    open_console().print("x", style="red")
    assert "\x1b[31m" not in terminal.getvalue()


def test_control_characters_are_shown_not_sent() -> None:
    assert printable("a\x1b[2Jb\r\x07\nnext\u202e") == "a\\x1b[2Jb\\r\\x07\nnext\\u202e"
    assert printable("Où?") == "Où?"


def test_settings_in_a_pipe_are_a_file_for_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resolved = resolve("clevr", environ={}, sets=["run.name=x", "train.gradient_clip=2"])
    show_settings(resolved)
    out = capsys.readouterr().out
    assert "model.spans = [0, 1, 3]  # recipe clevr\n" in out
    assert 'run.name = "x"  # --set\n' in out
    assert set(tomllib.loads(out)) == {"data", "model", "train", "run"}
    (tmp_path / "x.toml").write_text(out)
    assert resolve(config=tmp_path / "x.toml", environ={}).settings == resolved.settings


def test_settings_on_a_terminal_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    show_settings(resolve("clevr", environ={}))
    out = terminal.getvalue()
    assert "setting" in out
    assert all(key in out for key in FIELDS)
    assert "recipe clevr" in out


def test_json_to_stdout_and_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = {"overall": 1.25, "name": "é"}
    write_json(document, "-")
    assert json.loads(capsys.readouterr().out) == document
    write_json(document, str(tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == document
    with pytest.raises(DataError, match=r"cannot write .*/no/x\.json: No such file or directory"):
        write_json(document, str(tmp_path / "no" / "x.json"))


GROUP = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2") | {
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, True),
        ({**GROUP, "RANK": "0"}, True),
        ({**GROUP, "RANK": "1"}, False),
    ],
)
def test_one_process_of_a_group_speaks(
    environment: dict[str, str], speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    note("known")
    warn("odd")
    say("result")
    captured = capsys.readouterr()
    assert (captured.err.count("\n"), captured.out) == ((2, "result\n") if speaks else (0, ""))


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
        (107e9, "107G"),
    ],
)
def test_compact(number: float, text: str) -> None:
    assert compact(number) == text


def test_sizes_for_people() -> None:
    sizes = [0, 999, 1000, 7_640_000, 763_000_000, 1_200_000_000, 2.5e12]
    texts = ["0 B", "999 B", "1.0 kB", "7.6 MB", "763 MB", "1.2 GB", "2.5 TB"]
    assert [compact_bytes(size) for size in sizes] == texts


SHOWING = """
import sys, warnings
from trarctl.commands.console import show_table, make_table, say, shield_streams, warn
from trarctl.errors import TrarError, told_warnings
shield_streams()
with told_warnings(warn):
    for _ in range(3):
        warnings.warn("odd", UserWarning)
for number in range(20000):
    say(f"line {number}")
warn("still here")
if sys.argv[1:]:
    try:
        show_table(make_table("a"))
    except TrarError as error:
        print(error.what, file=sys.stderr)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">/dev/null", 0, "warning: odd\nwarning: 2 more times: odd\nwarning: still here\n"),
        ("x >/dev/full", 4, "still here\ncannot write the result to stdout: No space left on device\n"),
        (">/dev/full", 0, "still here\n"),
        ("x | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, "still here\n"),
        (">&-", 0, "still here\n"),
        ("2>&- >/dev/null", 0, ""),
        (">/dev/full 2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_nothing_ends_with_what_shows_it(redirected: str, code: int, said: str, tmp_path: Path) -> None:
    script = tmp_path / "showing.py"
    script.write_text(SHOWING)
    command = f"{sys.executable} {script} {redirected}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.endswith(said)
    assert "Traceback" not in ended.stderr
