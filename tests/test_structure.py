"""What CONTRIBUTING promises of the code's structure, where a test can hold it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.running import sets
from trarctl.model.trar import TRAR
from trarctl.registry import DATASETS

PACKAGE = Path(__file__).parents[1] / "trarctl"
MOST_FRAMES = 7


def test_few_frames_lie_between_the_command_and_the_model(
    golden_data: dict[str, Path],
    trarctl: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stacks = []
    forward = TRAR.forward

    def recorded(model: TRAR, *arguments: Any, **options: Any) -> Any:
        frame, names = sys._getframe(1), []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if PACKAGE in path.parents:
                names.append(f"{path.relative_to(PACKAGE)}:{frame.f_code.co_name}")
            frame = frame.f_back
        stacks.append(names[: names.index("commands/train.py:train") + 1])
        return forward(model, *arguments, **options)

    monkeypatch.setattr(TRAR, "forward", recorded)
    settings = [part for text in sets(train__epochs=1, run__folder=tmp_path) for part in ("--set", text)]
    code, _, stderr = trarctl("train", "vqa", "--data", golden_data["vqa"], *settings)
    assert code == 0, stderr
    assert len(stacks[0]) <= MOST_FRAMES, stacks[0]


def test_nothing_but_its_own_file_compares_with_the_name_of_a_data_set() -> None:
    name = "|".join(map(re.escape, DATASETS.names()))
    compares = re.compile(rf"""(?:==|!=|dataset (?:not )?in)\s*\(?["'](?:{name})["']|["'](?:{name})["']\s*(?:==|!=)""")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "datasets"
        for line in path.read_text(encoding="utf-8").splitlines()
        if compares.search(line)
    ]
    assert found == []


def test_only_downloads_use_the_network() -> None:
    asks = re.compile(r"^\s*(?:import|from) (?:httpx|requests|http\.client|urllib\.request|huggingface_hub)\b", re.M)
    found = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if asks.search(path.read_text("utf-8"))]
    assert found == [Path("data/download.py")]


def test_only_the_kernels_ask_for_a_device() -> None:
    asks = re.compile(r"\.is_cuda|device\.type|torch\.cuda\b")
    modules = [path for path in (PACKAGE / "model").glob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert modules == []
