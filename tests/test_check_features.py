"""``make check-features`` on made-up files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.check_features import compare, main
from trarctl.data.features import zipped


def features(seed: int, rows: int = 64, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).clip(0).astype(np.float16)


def write(folder: Path, **arrays: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def test_two_names_of_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "ours", **{"COCO_val2014_000000000042.jpg": features(1), "a.png": features(2)})
    write(tmp_path / "published", **{"42": features(1), "a": features(2)})
    assert main([str(tmp_path / "ours"), str(tmp_path / "published"), "--files"]) == 0
    assert "2 same: largest difference 0 " in capsys.readouterr().out
    # The same, packed by trarctl extract.
    (tmp_path / "ours/backbone.json").write_text("{}")
    names = ["COCO_val2014_000000000042.jpg.npy", "a.png.npy"]
    zipped.write(tmp_path / "ours", names, tmp_path / "scratch", lambda *_: None)
    for name in names:
        (tmp_path / "ours" / name).unlink()
    assert main([str(tmp_path / "ours"), str(tmp_path / "published"), "--files"]) == 0
    assert "2 same: largest difference 0 " in capsys.readouterr().out


def test_what_is_missing_and_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "ours", **{"1": features(1), "2": features(2), "3": features(3), "4": features(4), "5": features(5)}
    )
    write(tmp_path / "published", **{"1": features(1)[::-1], "2": features(2)[:9], "3": features(3), "6": features(6)})
    (tmp_path / "published/4.npy").write_bytes(b"x")
    assert main([str(tmp_path / "ours"), str(tmp_path / "published")]) == 1
    said = capsys.readouterr().out
    for text in (
        f"1 files have none of their name, or more than one, in {tmp_path / 'published'}: 5.npy",
        f"1 files have none of their name, or more than one, in {tmp_path / 'ours'}: 6.npy",
        "1 same",
        "1 different",
        "1 other shape: [64, 32], published [9, 32]",
        "1 unusable: ",
        "verdict: not the same features",
    ):
        assert text in said


def test_names_that_end_in_one_number_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "ours", **{"cat1.jpg": features(1), "dog1.jpg": features(2), "COCO_val_0007.jpg": features(3)})
    write(tmp_path / "published", **{"cat1": features(1), "dog1": features(2), "7": features(3)})
    assert main([str(tmp_path / "ours"), str(tmp_path / "published")]) == 0
    assert "3 same" in capsys.readouterr().out
    write(tmp_path / "ours", **{"old_7.jpg": features(4)})
    assert main([str(tmp_path / "ours"), str(tmp_path / "published")]) == 1
    said = capsys.readouterr().out
    assert "2 files have none of their name, or more than one, in" in said
    assert ": COCO_val_0007.jpg.npy, old_7.jpg.npy\n" in said
    assert "2 same" in said


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("words", "folders"),
    [
        (["theirs"], '"feats" "theirs"'),
        (["mine", "theirs"], '"mine" "theirs"'),
        (["DIR=theirs"], '"feats" "theirs"'),
        (["OURS=a b", "PUBLISHED=theirs"], '"a b" "theirs"'),
    ],
)
def test_folders_that_make_is_given(words: list[str], folders: str, tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    makefile = Path(__file__).parents[1] / "Makefile"
    command = ["make", "-n", "-o", ".venv/.installed", "-f", str(makefile), "check-features", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, f"-m benchmarks.check_features {folders}\n" in ran.stdout) == (0, True), ran


def test_verdicts() -> None:
    whole = features(1).astype(np.float64)
    assert compare(whole * 1.001, whole).verdict == "same"
    moved = whole.copy()
    moved[0, 0] += 1
    one = compare(moved, whole)
    assert (one.verdict, round(one.largest * whole.std(), 6)) == ("close", 1)
    assert round(one.mean * whole.std() * whole.size, 6) == 1
    assert compare(whole + 0.1, whole).verdict == "different"
    assert compare(whole * np.nan, whole).verdict == "NaN or infinite"


def test_a_published_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = torch.rand(1, 2048, 19, 25, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(cells, (3, 4, 6, 7))
    pooled = torch.nn.functional.max_pool2d(padded, 4)[0].flatten(1).T.numpy()
    write(tmp_path / "ours", **{"7.jpg": pooled.astype(np.float16)})
    (tmp_path / "published").mkdir()
    torch.save(cells, tmp_path / "published/7.pth")
    assert main([str(tmp_path / "ours"), str(tmp_path / "published")]) == 0
    assert "1 same: largest difference 0 " in capsys.readouterr().out
    assert main([str(tmp_path / "published"), str(tmp_path / "nothing")]) == 1
    assert "no file is in both folders" in capsys.readouterr().out
