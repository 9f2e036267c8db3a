"""The GPU check runs on a machine that has little more than torch, and means the settings that the original had."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import GOLDEN
from tests.engine.running import original_sets
from trarctl.config.resolve import resolve
from trarctl.config.settings import to_text

ALLOWED = ("torch", "numpy", "typer", "rich", "safetensors", "pydantic", "orjson")
PROGRAM = """
import sys
from pathlib import Path
import torch
from benchmarks.gpu_check import golden_data, gradients, layer_kernels, parity, read_cases
cases, device = read_cases(golden_data(Path(sys.argv[1])))[:2], torch.device("cpu")
rows = [*parity(device, cases), *gradients(device, cases), *layer_kernels(device, is_small=True)]
print(*{row.result for row in rows}, len(rows))
print(*{"yaml", "httpx", "spacy", "PIL", "triton", "pytest"} & sys.modules.keys())
"""


def link(name: str, folder: Path, linked: set[str]) -> None:
    """Let a folder have a package and those that it needs, but for Triton."""
    if name.lower() in linked | {"triton"}:
        return
    linked.add(name.lower())
    package = distribution(name)
    for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
        (folder / top).exists() or (folder / top).symlink_to(package.locate_file(top))
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            link(requirement.name, folder, linked)


def test_the_check_needs_few_packages(tmp_path: Path) -> None:
    packages, root, linked = tmp_path / "packages", Path(__file__).parents[1], set[str]()
    packages.mkdir()
    for name in ALLOWED:
        link(name, packages, linked)
    ended = subprocess.run(
        [sys.executable, "-S", "-W", "error::ImportWarning", "-c", PROGRAM, tmp_path / "golden"],
        env={"PYTHONPATH": f"{root}:{packages}", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["ok 12", ""]), ended.stderr


@pytest.mark.parametrize("name", [path.stem for path in sorted((GOLDEN / "cases").glob("*.json"))])
def test_a_case_has_the_same_model_without_yaml(name: str) -> None:
    file = GOLDEN / "cases" / name
    case = json.loads(file.with_suffix(".json").read_text())
    with_yaml = resolve(dataset=case["dataset"], config=file.with_suffix(".yml"), environ={}).settings
    without = resolve(dataset=case["dataset"], sets=original_sets(case), environ={}).settings
    assert without.model == with_yaml.model
    assert to_text(without.model.spans) == to_text(tuple(case["config"]["ORDERS"]))
