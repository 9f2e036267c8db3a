from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from trarctl import __version__, cli
from trarctl.errors import CheckpointError, DataError, DeviceError, DivergenceError, SettingsError, Stopped, TrarError
from trarctl.registry import DATASETS

HEAVY = ("torch", "spacy", "numpy", "yaml", "PIL")
PROGRAM = [sys.executable, "-m", "trarctl"]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises this."""

    def fail(*args: object, **options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    return cli.run([])


# Help, version, completion


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Commands:\n  download " in out
    for code, meaning in cli.EXIT_CODES:
        assert f"\n    {code:<8}{meaning}\n" in out
    assert "128 + n stopped by signal n" in out


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = (TrarError, SettingsError, DataError, CheckpointError, DeviceError, DivergenceError)
    assert [kind.exit_code for kind in kinds] == [1, 3, 4, 5, 6, 7]
    assert [code for code, _ in cli.EXIT_CODES] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_every_command_has_grouped_options_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.app.registered_commands:
        assert cli.run([str(command.name), "-h"]) == 0
        out = capsys.readouterr().out
        assert "Example" in out
        assert f"trarctl {command.name}" in out[out.index("Example") :]
        assert "\nOptions:" not in out
        assert "\nGeneral:\n  -h, --help" in out


@pytest.mark.parametrize("argument", ["--version", "-V", "version"])
def test_version(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([argument]) == 0
    assert capsys.readouterr().out == f"trarctl {__version__}\n"


def test_help_as_a_word_is_that_of_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["train"]):
        assert cli.run([*command, "--help"]) == 0
        expected = capsys.readouterr().out
        assert cli.run(["help", *command]) == 0
        assert capsys.readouterr().out == expected
    assert cli.run(["help", "trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"], ["download", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from trarctl.cli import run; code = run({arguments!r});"
        f" print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    assert python(code).stderr == "[] 0\n"


def test_completion_knows_the_commands_and_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys; from trarctl.cli import run;"
        f" atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr));"
        " run([])"
    )
    result = python(code, _TRARCTL_COMPLETE="complete_bash", COMP_WORDS="trarctl prep", COMP_CWORD="1")
    assert result.stdout.split() == ["prepare"]
    assert result.stderr == "[]\n"


def test_help_is_quick() -> None:
    def seconds(*arguments: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - began

    # The best of several: whatever else the machine does must not count.
    pairs = [(seconds("-m", "trarctl", "--help"), seconds("-c", "import typer, rich")) for _ in range(7)]
    assert min(ours for ours, _ in pairs) <= 2.5 * min(base for _, base in pairs)


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepar"], "No such command 'prepar'. Did you mean 'prepare'?"),
        (["prepare", "cler"], f"'cler' is not one of {', '.join(map(repr, DATASETS.built_in))}"),
        (["prepare", "vqa", "--grid", "0"], "Invalid value for '--grid'"),
        (["prepare", "vqa", "--gird", "8"], "No such option: --gird"),
        (["prepare"], "Missing argument 'DATASET'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrarError("it broke", "fix it"), 1),
        (SettingsError("it broke", "fix it"), 3),
        (DataError("it broke", "fix it"), 4),
        (CheckpointError("it broke", "fix it"), 5),
        (DeviceError("it broke", "fix it"), 6),
    ],
)
def test_an_error_is_a_message_a_hint_and_a_code(
    error: TrarError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing_with(error, monkeypatch) == code
    captured = capsys.readouterr()
    assert captured.err == "error: it broke\nhint:  fix it\n"
    assert captured.out == ""


def test_an_error_without_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_with(DataError("it broke"), monkeypatch) == 4
    assert capsys.readouterr().err == "error: it broke\n"


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_with(MemoryError("Unable to allocate 2.55 TiB"), monkeypatch) == 6
    assert capsys.readouterr().err == (
        "error: the computer has too little memory: Unable to allocate 2.55 TiB\n"
        "hint:  close other programs, or ask for less\n"
    )


def test_user_text_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    failing_with(DataError(f"[red]no[/red] :smile: file \x1b[31m {long}\nsecond", "see [/bold]"), monkeypatch)
    assert capsys.readouterr().err == (
        f"error: [red]no[/red] :smile: file \\x1b[31m {long}\n       second\nhint:  see [/bold]\n"
    )


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143), (10, 138)])
def test_a_stopped_run_ends_with_its_signal(
    signal_number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = Stopped("run x, at epoch 3", signal_number, "trarctl resume x")
    assert failing_with(stopped, monkeypatch) == code
    assert capsys.readouterr().err == "stopped: run x, at epoch 3\nhint:  trarctl resume x\n"


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "error: cannot write: No space left on device\nhint:  free some space there, or choose another folder\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
            "error: cannot write out/x: No space left on device\n"
            "hint:  free some space there, or choose another folder\n",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out/x"),
            "error: cannot use out/x: Permission denied\nhint:  fix its permissions, or choose another path\n",
        ),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "in/x"),
            "error: cannot use in/x: No such file or directory\nhint:  check the path\n",
        ),
    ],
)
def test_failures_of_the_file_system(
    error: OSError, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing_with(error, monkeypatch) == 4
    assert capsys.readouterr().err == message


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in (ValueError("a bug"), OSError("a bug without a file")):
        with pytest.raises(type(fault), match="a bug"):
            failing_with(fault, monkeypatch)


# Plugins


def with_plugin(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder that holds the plugin ``birds``."""
    (folder / "birds.py").write_text(text)
    environment = os.environ | {"TRARCTL_PLUGINS": "birds"}
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["prepare", "birds"], ["train", "birds"], ["runs"], ["eval"]])
def test_a_plugin_that_fails_is_one_message(arguments: list[str], tmp_path: Path) -> None:
    result = with_plugin(tmp_path, "1 / 0", *arguments)
    assert result.returncode == SettingsError.exit_code
    assert result.stderr == (
        "error: cannot import the plugin birds: ZeroDivisionError: division by zero\n"
        "hint:  correct the module, or leave it out of TRARCTL_PLUGINS\n"
    )
    assert result.stdout == ""


def test_a_plugins_data_set_can_be_named(tmp_path: Path) -> None:
    text = """
import dataclasses
from trarctl.data.datasets.base import register_dataset
from trarctl.data.datasets.clevr import CLEVR

register_dataset(dataclasses.replace(CLEVR, name="birds"))
"""
    result = with_plugin(tmp_path, text, "prepare", "birds")
    assert result.stderr.startswith("error: no folder of raw files data/birds/raw\n")
    result = with_plugin(tmp_path, text, "prepare", "fish")
    assert result.returncode == 2
    assert f"'fish' is not one of {', '.join(map(repr, (*DATASETS.built_in, 'birds')))}" in result.stderr


def test_help_loads_no_plugin(tmp_path: Path) -> None:
    for arguments in (["--help"], ["train", "--help"]):
        assert with_plugin(tmp_path, "1 / 0", *arguments).returncode == 0


# As a program


def test_the_module_is_the_program() -> None:
    result = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"trarctl {__version__}\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"set -o pipefail; '{sys.executable}' -m trarctl --help | true"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_error_of_a_real_command(tmp_path: Path) -> None:
    result = subprocess.run([*PROGRAM, "prepare", "clevr"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == DataError.exit_code
    assert result.stderr.startswith("error: no folder of raw files data/clevr/raw\nhint:  ")
    assert result.stdout == ""
