"""``trarctl extract``: what it says, and that ``prepare`` reads what it writes, in the names of each data set."""

from __future__ import annotations

import copy
import io
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.features.tours import from_a_network_to_an_answer, from_pictures_to_a_report
from tests.data.preparing import write_clevr
from trarctl.data.prepared import open_prepared

Run = Callable[..., tuple[int, str, str]]
PATCHES = ("--extractor", "patches", "--grid", "2")


def draw(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (color, 50, 200)).save(path)


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)


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


def stored(out: Path) -> dict[str, bytes]:
    """All that prepared data holds of features, and what it says of them but for places."""
    data = open_prepared(out)
    features = data.features.read(np.arange(data.features.num_images))
    part = data.manifest.images
    said = part.model_dump_json(exclude={"key", "image_sets"})
    packed = {path.name.partition(".")[0]: path.read_bytes() for path in (out / "features").glob("*.npy")}
    return {"all": features.tobytes(), "said": said.encode(), **packed, "by": (out / "backbone.json").read_bytes()}


@pytest.mark.parametrize("dataset", ["clevr", "table"])
def test_prepare_takes_a_packed_folder_as_the_files_in_it(
    dataset: str, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if dataset == "clevr":
        raw = write_clevr(tmp_path)
        shutil.rmtree("feats")
        options = ["clevr", "--raw", str(raw)]
        for split in ("train", "val", "test"):
            for number in range(3):
                noise(Path(f"images/{split}/CLEVR_{split}_{number:06d}.png"))
    else:
        rows = [f"deep/{number}.jpg,what is it?,{number % 2},{'val' if number > 7 else 'train'}" for number in range(9)]
        Path("q.csv").write_text("\n".join(["image,question,answer,split", *rows]))
        options = ["table", "--name", "mine", "--questions", "q.csv"]
        for number in range(9):
            noise(Path(f"images/deep/{number}.jpg"))
    for more in ((), ("--pack",)):
        code, stdout, stderr = trarctl("extract", "images", *PATCHES, "--out", "packed" if more else "files", *more)
        assert code == 0, stderr
    assert "features of 9 pictures in packed/features.zip; it took" in stdout
    assert sorted(path.name for path in Path("packed").iterdir()) == ["backbone.json", "features.zip"]
    for name, pack in (("in-place", ()), ("copied", ("--pack", "float16"))):
        found = []
        for features in ("files", "packed"):
            command = ("prepare", *options, "--features", features, "--grid", "2", "--vectors", "none", *pack)
            code, _, stderr = trarctl(*command, "--check")
            assert code == 0, stderr
            code, _, stderr = trarctl(*command, "--out", f"{name}-{features}")
            assert code == 0, stderr
            assert "features" not in stderr
            found.append(stored(Path(f"{name}-{features}")))
        assert found[0] == found[1]
        code, stdout, stderr = trarctl(*command, "--out", f"{name}-packed")
        assert "was up to date" in stdout
    if dataset == "clevr":
        Path("images/val/CLEVR_val_000001.png").unlink()
    else:
        Path("images/deep/1.jpg").unlink()
    shutil.rmtree("packed")
    assert trarctl("extract", "images", *PATCHES, "--out", "packed", "--pack")[0] == 0
    code, _, stderr = trarctl(*command, "--out", "missing")
    assert code == 4
    assert stderr.startswith("error: no features for image ")
    Path("packed/features.zip").write_bytes(b"PK")
    code, _, stderr = trarctl(*command, "--out", "missing")
    assert code == 4
    assert stderr.startswith("error: packed/features.zip is damaged: file is not a zip file\n")


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


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_a_wrong_bit() -> bytes:
    content = bytearray(saved({"stem.conv1.weight": torch.arange(500.0)}))
    content[content.index(torch.arange(500.0).numpy().tobytes()) + 80] ^= 1
    return bytes(content)


def bomb() -> bytes:
    """An archive of 4 GB of zeros in some kB, as ``torch.save`` lays it out: members share what they unpack."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(64))
        archive.writestr("x/data/0", bytes(1 << 20))
        one = archive.infolist()[1]
        for number in range(1, 4096):
            other = copy.copy(one)
            other.filename = f"x/data/{number}"
            archive.filelist.append(other)
    return buffer.getvalue()


@pytest.mark.parametrize("extractor", ["r50", "clip-rn50"])
@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (with_a_wrong_bit(), "the weights file w.pth is damaged (changed since it was written: ", "copy it again"),
        (bomb(), "the weights file w.pth is damaged (it would unpack to 4,294,967,360 bytes)", "copy it again"),
        (None, "w.pth is a pipe or a device, not a weights file", "--weights FILE"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "w.pth is a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Not found", "w.pth is a web page or XML, no weights file", "save the file itself"),
        (
            saved({"a": torch.nn.Linear(1, 1)}),
            "w.pth holds objects other than tensors: torch.nn.",
            "torch.save(model.s",
        ),
        (saved({"a": torch.zeros(1)}), "w.pth does not hold the weights of ", "--weights FILE"),
    ],
)
def test_files_that_are_no_weights(
    extractor: str,
    content: bytes | None,
    message: str,
    hint: str,
    tmp_path: Path,
    trarctl: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(Path("pictures/a.png"), 1)
    os.mkfifo("w.pth") if content is None else Path("w.pth").write_bytes(content)
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)  # which takes long
    command = ("extract", "pictures", "--extractor", extractor, "--out", "out", "--gpus", "cpu", "--weights", "w.pth")
    code, stdout, stderr = trarctl(*command)
    assert (code, stdout) == (4, "")
    assert stderr.startswith(f"error: {message}")
    assert hint in stderr.partition("\nhint:")[2]
    assert not Path("out").exists()


@pytest.mark.parametrize("command", ["extract", "prepare"])
def test_help_names_every_extractor(command: str, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # where no name is broken
    code, stdout, _ = trarctl(command, "--help")
    assert code == 0
    names = "patches, resnet101, r50, x101, x152, x152pp, clip-rn50, clip-rn101, clip-rn50x4, timm:MODEL, maps"
    assert f"{names}, or one that a plugin adds" in " ".join(stdout.split())


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
    assert "features of 40 pictures in out, 32 of them in the share of this process; it took" in outputs[0]
    assert outputs[1] == ""
    assert len(list((tmp_path / "out").glob("*.npy"))) == 40
    assert not list((tmp_path / "out").glob(".un*"))
