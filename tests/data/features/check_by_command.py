"""Every network through the commands, and 10,000 pictures killed and resumed: ``make test-extractors``, minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data.features.plain_networks import PLAIN
from tests.data.features.tours import from_a_network_to_an_answer

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", PLAIN)
def test_from_a_network_to_an_answer(name: str, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from_a_network_to_an_answer(tmp_path, trarctl, name, [(1000, 20), (20, 1000), (800, 600)])


def test_10_000_pictures_killed_shared_and_resumed_are_the_same_bytes(tmp_path: Path) -> None:
    """Two processes by RANK and WORLD_SIZE, killed three times, then torchrun, against one undisturbed process."""
    (tmp_path / "pictures").mkdir()
    for number in range(10_000):
        color = (number % 251, number % 241, number % 239)
        Image.new("RGB", (20 + number % 7, 16), color).save(tmp_path / f"pictures/{number}.png", compress_level=1)
    told = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    extract = ["-m", "trarctl", "extract", "pictures", "--extractor", "patches", "--grid", "4", "--out"]
    subprocess.run([sys.executable, *extract, "alone"], cwd=tmp_path, env=told, check=True)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}
    assert len(expected) == 10_001
    shared = tmp_path / "shared"

    def num_files() -> int:
        return sum(1 for _ in shared.iterdir()) if shared.exists() else 0

    for wanted in (1000, 3000, 6000):
        command = [sys.executable, *extract, "shared"]
        ranks = [told | {"RANK": rank, "WORLD_SIZE": "2"} for rank in ("0", "1")]
        programs = [subprocess.Popen(command, cwd=tmp_path, env=one) for one in ranks]
        while num_files() < wanted:
            assert [program.poll() for program in programs] == [None, None]
            time.sleep(0.02)
        for program in programs:
            program.kill()
            program.wait()
        assert wanted <= num_files() < 10_000
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *extract, "shared"]
    subprocess.run(command, cwd=tmp_path, env=told, check=True)
    made = {path.name: path.read_bytes() for path in shared.iterdir()}
    made.pop(".lock", None)  # says who was killed, and keeps nobody out
    assert made == expected
