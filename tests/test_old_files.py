"""What earlier versions wrote still opens: prepared folders, runs, checkpoints and saved scores, one of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

OLD_FILES = Path(__file__).parent / "old_files"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=sorted(path.stem for path in OLD_FILES.glob("*.zip")))
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as that version left it: data sets, runs and what it measured; also the working directory."""
    shutil.unpack_archive(OLD_FILES / f"{request.param}.zip", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("ckpt", "data", "name"), [("easy", "easy-vqa", "easy"), ("stopped@1", "vqa", "stopped")])
def test_a_checkpoint_scores_as_it_did(old: Path, trarctl: Run, ckpt: str, data: str, name: str) -> None:
    arguments = ["--ckpt", ckpt, "--data", f"{data}/prepared", "--split", "val", "--gpus", "cpu"]
    code, _, stderr = trarctl("eval", *arguments, "--save-scores", "now.npz")
    assert code == 0, stderr
    then, now = np.load(old / "expected" / f"{name}.npz"), np.load(old / "now.npz")
    for array in ("question_id", "answers", "is_exclusive"):
        np.testing.assert_array_equal(now[array], then[array])
    np.testing.assert_allclose(now["scores"], then["scores"], atol=1e-5)
    np.testing.assert_allclose(now["routes"], then["routes"], atol=1e-5)


def test_a_stopped_run_resumes_within_its_epoch(old: Path, trarctl: Run) -> None:
    code, _, stderr = trarctl("resume", "stopped", "--data", "vqa/prepared", "--gpus", "cpu")
    assert code == 0, stderr
    then, now = _losses(old / "expected/stopped-finished.jsonl"), _losses(old / "runs/stopped/metrics.jsonl")
    assert list(now) == list(then)
    np.testing.assert_allclose(list(now.values()), list(then.values()), rtol=1e-4)


def test_saved_scores_make_a_submission(old: Path, trarctl: Run) -> None:
    code, _, stderr = trarctl(
        "submit", "--ckpt", "expected/stopped.npz", "--data", "vqa/prepared", "--split", "val", "--out", "out.json"
    )
    assert code == 0, stderr
    assert len(json.loads((old / "out.json").read_bytes())) == 100


def test_a_run_answers_about_a_picture(old: Path, trarctl: Run) -> None:
    Image.new("RGB", (64, 64), (220, 30, 30)).save(old / "red.png")
    question = ("--image", "red.png", "--question", "what color is the shape?")
    code, stdout, stderr = trarctl("predict", "--ckpt", "easy", "--data", "easy-vqa/prepared", *question)
    assert code == 0, stderr
    assert "what color is the shape?" in stdout


def _losses(path: Path) -> dict[tuple[str, int], Any]:
    """Loss or accuracy by event and step."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {(entry["event"], entry["step"]): entry.get("loss", entry.get("overall")) for entry in entries}
