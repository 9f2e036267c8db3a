"""Options of settings: type, limits and help are those of the field, and what was given reaches the settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer.main

from trarctl import cli
from trarctl.commands.options import Command, SettingOption, build_parameters, takes_settings
from trarctl.config.settings import FIELDS

Run = Callable[..., tuple[int, str, str]]


def commands() -> list[tuple[str, tuple[SettingOption, ...]]]:
    """The commands that have options of settings."""
    registered = [(str(one.name), getattr(one.callback, "setting_options", ())) for one in cli.app.registered_commands]
    return [(name, options) for name, options in registered if options]


def test_train_and_resume_have_options_of_settings() -> None:
    assert [name for name, _ in commands()] == ["train", "resume"]


@pytest.mark.parametrize(("name", "options"), commands())
def test_every_option_shows_the_meaning_of_its_setting(
    name: str, options: tuple[SettingOption, ...], trarctl: Run
) -> None:
    _, out, _ = trarctl(name, "--help")
    text = " ".join(out.split())
    for option in options:
        description = str(FIELDS[option.key].description)
        assert f"{description[0].upper()}{description[1:]}." in text
        assert f" {option.flag} " in text


def test_help_has_metavar_choices_and_limits(trarctl: Run) -> None:
    text = " ".join(trarctl("train", "--help")[1].split())
    assert "--data DIR " in text
    assert "--gpus 0,1|cpu " in text
    assert "--precision auto|fp32|tf32|bf16 " in text
    assert "--compile Compile the model" in text
    assert "--epochs N Passes over the training split. [1 or more]" in text
    assert "[0 to 100]" in text


def test_panels_have_one_order(trarctl: Run) -> None:
    out = trarctl("train", "--help")[1]
    panels = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels == ["Arguments", "Data", "Settings", "Training", "Several runs", "Devices", "Output", "General"]


def test_what_was_given_reaches_the_command() -> None:
    given: list[object] = []
    app = typer.Typer()

    @takes_settings(
        SettingOption("train.epochs", "--epochs", "Training"), SettingOption("run.compile", "--fast", "Output")
    )
    def command(context: typer.Context, name: str = "x") -> None:
        given.append((context.obj, name))

    app.command(cls=Command)(command)
    app(["--epochs", "3", "--name", "y"], standalone_mode=False)
    app(["--fast"], standalone_mode=False)
    assert given == [
        ({"train.epochs": (3, "--epochs"), "run.compile": (None, "--fast")}, "y"),
        ({"train.epochs": (None, "--epochs"), "run.compile": (True, "--fast")}, "x"),
    ]


def test_every_setting_can_be_an_option() -> None:
    options = [SettingOption(key, f"--{key.replace('.', '-').replace('_', '-')}", "Data") for key in FIELDS]
    assert [parameter.name for parameter in build_parameters(options)] == [option.name for option in options]


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [("x", 2, "Invalid value for '--epochs'"), ("0", 3, "--epochs 0: train.epochs must be greater than 0")],
)
def test_wrong_values(value: str, code: int, message: str, trarctl: Run) -> None:
    ended, _, err = trarctl("train", "vqa", "--epochs", value, "--dry-run")
    assert ended == code
    assert message in err


def test_completion_knows_the_options() -> None:
    environment = os.environ | {
        "_TRARCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "trarctl train --ba",
        "COMP_CWORD": "2",
    }
    result = subprocess.run(
        [sys.executable, "-m", "trarctl"], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["--batch-size"]


@pytest.fixture
def completed(trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], list[str]]:
    """What a shell is told in a folder, by this process."""

    def complete(words: str, folder: Path) -> list[str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("_TRARCTL_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1 + words.endswith(" ")))
        return trarctl()[1].split()

    return complete


def test_completion_knows_runs_splits_and_settings(tmp_path: Path, completed: Callable[[str, Path], list[str]]) -> None:
    for run in ("birds-1", "birds-2", "other"):
        (tmp_path / "runs" / run / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run / "settings.json").touch()
    for name in ("012", "012-step-000004", "010-ema"):
        (tmp_path / f"runs/birds-1/checkpoints/epoch-{name}.safetensors").touch()
    (tmp_path / "data/birds/prepared").mkdir(parents=True)
    (tmp_path / "data/birds/prepared/manifest.json").write_text('{"text": {"splits": {"train": {}, "test": {}}}}')
    (tmp_path / "data/damaged/prepared").mkdir(parents=True)
    (tmp_path / "data/damaged/prepared/manifest.json").write_text("{")
    assert completed("trarctl eval --ckpt bi", tmp_path) == ["birds-1", "birds-2"]
    assert completed("trarctl eval --ckpt birds-1@", tmp_path) == ["birds-1@12", "birds-1@ema"]
    assert completed("trarctl resume o", tmp_path) == ["other"]
    assert completed("trarctl train bi", tmp_path) == ["birds"]
    assert completed("trarctl help ex", tmp_path) == ["extract", "export"]
    assert completed("trarctl train --precision t", tmp_path) == ["tf32"]
    assert completed("trarctl train birds --split t", tmp_path) == ["train", "test"]
    assert completed("trarctl eval --data data/birds/prepared --split te", tmp_path) == ["test"]
    assert completed("trarctl train --set train.learn", tmp_path) == ["train.learning_rate="]
    assert completed("trarctl train --set model.routing=", tmp_path) == ["model.routing=soft", "model.routing=hard"]
    assert completed("trarctl settings model.num_h", tmp_path) == ["model.num_heads"]


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--learning-rate", "--lr"),
        ("--max-grad-norm", "--set train.gradient_clip"),
        ("--bs", "--batch-size"),
        ("--device", "--gpus"),
    ],
)
def test_a_setting_that_is_no_option_is_named(flag: str, meant: str, trarctl: Run) -> None:
    code, _, err = trarctl("train", flag, "3")
    assert code == 2
    assert f"No such option: {flag}. Did you mean {meant}?" in err


def test_the_help_of_the_program_does_without_the_settings() -> None:
    code = "import sys; from trarctl.cli import run; run(['--help']); print('pydantic' in sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "False\n"
