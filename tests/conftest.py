"""What many tests need: the golden data sets, prepared once, and a quiet way to run a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trarctl import cli

# The tests are of the CPU, and say the same on every machine; a GPU is checked by ``make gpu-check``.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
GOLDEN = Path(__file__).parent / "golden"
GRIDS = {"vqa": 4, "clevr": 5}


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is no width, whatever the runner of the tests has."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def golden_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared folders of both golden sets, by data set."""
    folder = tmp_path_factory.mktemp("golden")
    for dataset, grid in GRIDS.items():
        source = GOLDEN / f"mini_{dataset}"
        arguments = ["prepare", dataset, "--raw", source / "raw", "--features", source / "feats"]
        arguments += ["--vectors", "none", "--grid", grid, "--out", folder / dataset]
        assert cli.run([str(argument) for argument in arguments]) == 0
    return {dataset: folder / dataset for dataset in GRIDS}


@pytest.fixture
def trarctl(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
