"""``trarctl extract``: what it says, and that ``prepare`` reads what it writes, in the names of each data set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.features.tours import from_a_network_to_an_answer, from_pictures_to_a_report
from tests.data.preparing import write_clevr
from trarctl.data.prepared import open_prepared

Run = Callable[..., tuple[int, str, str]]
PATCHES = ("--extractor", "patches", "--grid", "2")


def draw(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (color, 50, 200)).save(path)


def test_prepare_reads_what_extract_writes_for_clevr(tmp_path: Path, trarctl: Run) -> None:
    raw = write_clevr(tmp_path)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        for number in range(3):
            draw(tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png", 60 * number)
    code, stdout, stderr = trarctl("extract", tmp_path / "images", *PATCHES, "--out", tmp_path / "feats")
    assert code == 0, stderr
    assert f"features of 9 pictures in {tmp_path / 'feats'}; it took" in stdout
    assert "2 x 2 cells of 56 numbers, by patches, fp32" in stdout
    assert f"next: trarctl prepare DATASET --features {tmp_path / 'feats'} --grid 2" in stdout
    options = ("--grid", "2", "--vectors", "none", "--raw", raw, "--out", tmp_path / "p")
    code, _, stderr = trarctl("prepare", "clevr", "--features", tmp_path / "feats", *options)
    assert code == 0, stderr
    data = open_prepared(tmp_path / "p")
    stored = np.load(tmp_path / "feats/val/CLEVR_val_000001.png.npy")
    rows = [row for row in range(data.features.num_images) if data.features.image_set(row) == "val"]
    assert any(np.array_equal(data.features.read(np.array([row]))[0], stored) for row in rows)


def test_prepare_reads_what_extract_writes_for_a_table(tmp_path: Path, trarctl: Run) -> None:
    for number in range(6):
        draw(tmp_path / f"pictures/train/{number}.png", 40 * number)
    rows = [f"train/{number}.png,what is it?,{number % 2},{'val' if number == 5 else 'train'}" for number in range(6)]
    (tmp_path / "q.csv").write_text("\n".join(["image,question,answer,split", *rows]))
    code, _, stderr = trarctl("extract", tmp_path / "pictures", *PATCHES, "--out", tmp_path / "feats")
    assert code == 0, stderr
    options = ("--name", "mine", "--questions", tmp_path / "q.csv", "--vectors", "none", "--out", tmp_path / "p")
    code, _, stderr = trarctl("prepare", "table", "--features", tmp_path / "feats", "--grid", "2", *options)
    assert code == 0, stderr
    assert open_prepared(tmp_path / "p").features.num_images == 6


def test_from_pictures_to_a_report(tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from_pictures_to_a_report(tmp_path, trarctl, "patches")
    assert open_prepared(tmp_path / "prepared").features.width == 56


@pytest.mark.parametrize("name", ["r50", "resnet101"])
def test_from_a_network_to_an_answer(name: str, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two smallest; ``make test-extractors`` takes all."""
    monkeypatch.chdir(tmp_path)
    from_a_network_to_an_answer(tmp_path, trarctl, name, [(1000, 20), (20, 1000)])


def test_damaged_pictures(tmp_path: Path, trarctl: Run) -> None:
    draw(tmp_path / "pictures/a.png", 1)
    draw(tmp_path / "pictures/b.png", 2)
    (tmp_path / "pictures/c.jpg").write_bytes(b"<html>")
    (tmp_path / "pictures/n.txt").write_text("x")
    command = ("extract", tmp_path / "pictures", *PATCHES, "--out", tmp_path / "out")
    code, _, stderr = trarctl(*command)
    assert code == 4
    assert "error: 1 image file is unusable: " in stderr
    assert "c.jpg is a web page" in stderr
    code, stdout, stderr = trarctl(*command, "--skip-damaged")
    assert code == 0
    assert "warning: 1 image file is unusable: " in stderr
    assert "note:  1 file is left out, by the ending: n.txt" in stderr
    assert "features of 2 pictures" in stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing", *PATCHES, "--out", "out"), 4, "no folder of pictures missing"),
        ((".", "--extractor", "vgg", "--out", "out"), 3, "unknown extractor 'vgg'"),
        ((".", *PATCHES, "--out", "out", "--precision", "bf16"), 3, "patches computes in fp32 only, not in bf16"),
        ((".", "--out", "out"), 2, "--extractor"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    got, _, stderr = trarctl("extract", *arguments)
    assert (got, message in stderr) == (code, True), stderr
    assert not (tmp_path / "out").exists()


def test_two_processes_that_rank_and_world_size_tell(tmp_path: Path) -> None:
    for number in range(40):
        draw(tmp_path / f"pictures/{number}.png", 6 * number)
    command = [sys.executable, "-m", "trarctl", "extract", "pictures", *PATCHES, "--out", "out"]
    programs = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [program.communicate(timeout=300)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert "features of 40 pictures in out" in outputs[0]
    assert outputs[1] == ""
    assert len(list((tmp_path / "out").glob("*.npy"))) == 40
    assert not list((tmp_path / "out").glob(".un*"))
