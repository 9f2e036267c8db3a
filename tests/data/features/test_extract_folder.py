"""A folder of pictures to feature files: the same bytes however it is stopped and shared, and nothing lost or mixed."""

from __future__ import annotations

import io
import os
import resource
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from trarctl.data.features import extract
from trarctl.data.features.base import Extractor, ExtractorOptions, read_extractor
from trarctl.data.features.extract import ExtractReport, extract_folder
from trarctl.errors import DataError, SettingsError
from trarctl.files import claimed
from trarctl.registry import EXTRACTORS

NUM_PICTURES = 70  # three groups of 32


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class OfTheBatch(Extractor):
    """Mean colors, and in the last place how many pictures are in the batch, as rounding may tell."""

    name, width = "of-the-batch", 4
    precisions = ("fp32", "bf16")
    calls, dies_after, moves, scale = 0, 10**9, 0.0, 1.0

    def extract(self, images: Sequence[Image.Image]) -> np.ndarray:
        OfTheBatch.calls += 1
        if OfTheBatch.calls > OfTheBatch.dies_after:
            raise Killed
        colors = np.stack([np.asarray(one, dtype=np.float32).mean(axis=(0, 1)) for one in images]) * self.scale
        cells = np.column_stack([colors, np.full(len(images), len(images), dtype=np.float32)])
        moved = 1 + self.moves if self.precision == "bf16" else 1
        return np.repeat(cells[:, None], self.grid_size**2, axis=1) * np.float32(moved)


@pytest.fixture(autouse=True)
def extractor(monkeypatch: pytest.MonkeyPatch) -> type[OfTheBatch]:
    monkeypatch.setitem(EXTRACTORS._items, "of-the-batch", OfTheBatch)
    for name, value in (("calls", 0), ("dies_after", 10**9), ("moves", 0.0), ("scale", 1.0)):
        monkeypatch.setattr(OfTheBatch, name, value)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return OfTheBatch


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of one color each, in two folders."""
    for number in range(NUM_PICTURES):
        folder = tmp_path / "pictures" / ("train2014" if number < 40 else "val2014/deep")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 100, 200)).save(folder / f"{number:03d}.png")
    return tmp_path / "pictures"


def made(pictures: Path, out: Path, name: str = "of-the-batch", grid: int = 2, **more: Any) -> ExtractReport:
    return extract_folder(pictures, name, ExtractorOptions(grid), out, **more)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def share(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def test_a_file_for_every_picture_and_what_made_them(pictures: Path, tmp_path: Path) -> None:
    (pictures / "list.txt").write_text("not a picture")
    (pictures / "train2014/.hidden.png").write_text("nor this")
    report = made(pictures, tmp_path / "out")
    assert (report.num_pictures, report.num_there, report.skipped) == (NUM_PICTURES, 0, None)
    assert report.notes == ("1 file is left out, by the ending: list.txt",)
    names = {path.relative_to(pictures).as_posix() + ".npy" for path in pictures.rglob("[0-9]*.png")}
    assert contents(tmp_path / "out").keys() == names | {"backbone.json"}
    features = np.load(tmp_path / "out/val2014/deep/050.png.npy")
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, [[50, 100, 200, 32]] * 4)
    assert orjson.loads((tmp_path / "out/backbone.json").read_bytes()) == {
        "name": "of-the-batch",
        "grid_size": 2,
        "extraction": {"reading": extract.READING_VERSION, "rule": "square", "precision": "fp32"},
    }
    assert read_extractor(tmp_path / "out/backbone.json", ExtractorOptions(9)).grid_size == 2


def test_killed_resumed_and_shared_gives_the_same_bytes(
    pictures: Path, tmp_path: Path, extractor: type[OfTheBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(pictures, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for dies_after in (1, 2):
        extractor.calls, extractor.dies_after = 0, dies_after
        with suppress(Killed):
            made(pictures, tmp_path / "killed")
    for path in sorted((tmp_path / "killed").rglob("*.npy"))[3:5]:
        path.write_bytes(path.read_bytes()[:-1])  # as after a power cut
    extractor.calls, extractor.dies_after = 0, 10**9
    report = made(pictures, tmp_path / "killed")
    assert 0 < report.num_there < NUM_PICTURES
    assert contents(tmp_path / "killed") == whole
    extractor.calls = 0
    assert made(pictures, tmp_path / "killed").num_there == NUM_PICTURES
    assert extractor.calls == 0

    monkeypatch.setattr(extract, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(extract, "_LONGEST_SILENCE_SECONDS", 0.1)
    share(monkeypatch, 0, 2)
    with pytest.raises(DataError, match="other processes wrote nothing"):
        made(pictures, tmp_path / "shared")
    assert extractor.calls == 2
    share(monkeypatch, 1, 2)
    made(pictures, tmp_path / "shared")
    assert extractor.calls == 3
    share(monkeypatch, 0, 2)
    made(pictures, tmp_path / "shared")
    assert contents(tmp_path / "shared") == whole


def test_damaged_pictures_are_named_at_the_end_or_skipped(pictures: Path, tmp_path: Path) -> None:
    good = (pictures / "train2014/005.png").read_bytes()
    made(pictures, tmp_path / "out")
    (pictures / "train2014/005.png").write_bytes(good[:40])
    (pictures / "val2014/deep/060.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 image files .*/005.png is not an image.*/060.png is empty"):
        made(pictures, tmp_path / "out")
    left = contents(tmp_path / "out")
    assert len(left) == NUM_PICTURES - 2 + 1  # that of what 005 was before is gone
    report = made(pictures, tmp_path / "out", skips_damaged=True)
    assert (report.num_pictures, report.num_there) == (NUM_PICTURES - 2, NUM_PICTURES - 2)
    assert "2 image files are unusable" in (report.skipped.what if report.skipped else "")
    assert contents(tmp_path / "out") == left
    for path in (pictures / "train2014/005.png", pictures / "val2014/deep/060.png"):
        path.write_bytes(good)
    assert made(pictures, tmp_path / "out").skipped is None
    assert len(contents(tmp_path / "out")) == NUM_PICTURES + 1


def test_the_first_process_names_what_others_found_damaged(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(extract, "_LONGEST_SILENCE_SECONDS", 0.1)
    (pictures / "val2014/deep/050.png").write_bytes(b"x")
    share(monkeypatch, 0, 2)
    with pytest.raises(DataError, match="other processes wrote nothing"):
        made(pictures, tmp_path / "out")
    share(monkeypatch, 1, 2)
    assert made(pictures, tmp_path / "out").skipped is not None  # it says so, and does not stop the first one
    share(monkeypatch, 0, 2)
    with pytest.raises(DataError, match="1 image file is unusable: .*050.png"):
        made(pictures, tmp_path / "out")


def test_a_picture_that_changes_meanwhile(
    pictures: Path, tmp_path: Path, extractor: type[OfTheBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = extractor.extract

    def changing(self: OfTheBatch, images: Sequence[Image.Image]) -> np.ndarray:
        if len(images) == 6:  # the last group
            Image.new("RGB", (6, 4), (1, 2, 3)).save(pictures / "val2014/deep/069.png")
        return before(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(extractor, "extract", changing)
        with pytest.raises(DataError, match=r"069\.png changed while it was read"):
            made(pictures, tmp_path / "out")
    assert made(pictures, tmp_path / "out").num_there == NUM_PICTURES - 1
    np.testing.assert_array_equal(np.load(tmp_path / "out/val2014/deep/069.png.npy")[0], [1, 2, 3, 6])


def test_a_full_disk_and_a_folder_that_cannot_be_written(pictures: Path, tmp_path: Path) -> None:
    for _ in range(2):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))  # less than a file of features
        try:
            with pytest.raises(DataError, match="cannot write features to .*out: File too large"):
                made(pictures, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").rglob("*.npy")) or not list((tmp_path / "out").rglob("0*.npy"))
    made(pictures, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == NUM_PICTURES + 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot write to the folder .*file"):
        made(pictures, tmp_path / "file")


def test_features_of_another_making_are_not_mixed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(pictures, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match="out holds features of another making: grid_size 2, not 3"):
        made(pictures, tmp_path / "out", grid=3)
    with pytest.raises(DataError, match="another making: name of-the-batch, not patches"):
        made(pictures, tmp_path / "out", "patches")
    monkeypatch.setattr(extract, "READING_VERSION", 99)
    with pytest.raises(DataError, match="another making: reading 2, not 99"):
        made(pictures, tmp_path / "out")
    (tmp_path / "others").mkdir()
    np.save(tmp_path / "others/1.npy", np.ones((4, 4)))
    with pytest.raises(DataError, match=r"others holds 1\.npy, but no backbone\.json"):
        made(pictures, tmp_path / "others")
    with pytest.raises(DataError, match="is the folder of the pictures"):
        made(pictures, pictures)
    with claimed(tmp_path / "out", "it"), pytest.raises(DataError, match="another process writes the folder .*out"):
        made(pictures, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_an_extractor_is_fitted_once_to_all_pictures(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train2014/000.png").write_bytes(b"x")
    with pytest.raises(DataError, match="1 image file is unusable"):
        made(pictures, tmp_path / "out", "patches")
    made(pictures, tmp_path / "out", "patches", skips_damaged=True)
    before = contents(tmp_path / "out")
    cells = np.concatenate([np.load(path) for path in (tmp_path / "out").rglob("*.npy")])
    np.testing.assert_allclose(cells.mean(axis=0), 0, atol=1e-5)
    Image.new("RGB", (6, 4)).save(pictures / "train2014/000.png")
    report = made(pictures, tmp_path / "out", "patches")
    assert report.num_there == NUM_PICTURES - 1
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_types_of_what_is_stored(pictures: Path, tmp_path: Path, extractor: type[OfTheBatch]) -> None:
    extractor.scale = 1000.0  # 200,000 is beyond float16
    made(pictures, tmp_path / "large")
    assert np.load(tmp_path / "large/train2014/001.png.npy").dtype == np.float32
    extractor.scale = np.nan
    with pytest.raises(
        DataError, match="70 image files are unusable: .*000.png makes of-the-batch give features unfit"
    ):
        made(pictures, tmp_path / "nan")


def test_bfloat16_only_where_it_moves_little(pictures: Path, tmp_path: Path, extractor: type[OfTheBatch]) -> None:
    extractor.moves = 0.009
    assert made(pictures, tmp_path / "a", precision="bf16").description["extraction"]["precision"] == "bf16"
    with pytest.raises(DataError, match="another making: precision bf16, not fp32"):
        made(pictures, tmp_path / "a")
    extractor.moves = 0.02
    report = made(pictures, tmp_path / "b", precision="bf16")
    assert report.description["extraction"]["precision"] == "fp32"
    assert report.notes == (
        "bf16 moves values by up to 0.02 of their scale on the first 8 pictures, more than 0.01: computed in fp32",
    )
    assert np.load(tmp_path / "b/train2014/001.png.npy")[0, 0] == 1
    assert "are computed in fp32" in made(pictures, tmp_path / "b", precision="bf16").notes[0]
    with pytest.raises(SettingsError, match="patches computes in fp32 only"):
        made(pictures, tmp_path / "c", "patches", precision="bf16")


def test_folders_without_pictures(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of pictures"):
        made(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    with pytest.raises(DataError, match=r"has an ending that of-the-batch reads .* holds a\.txt"):
        made(tmp_path / "texts", tmp_path / "out")
    (tmp_path / "long").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "long" / f"{'a' * 250}.png")
    with pytest.raises(DataError, match="the names of 1 files of features would be too long"):
        made(tmp_path / "long", tmp_path / "out")
    with pytest.raises(SettingsError, match="unknown extractor 'vgg'"):
        made(pictures, tmp_path / "out", "vgg")
    assert not (tmp_path / "out").exists()


def test_times_that_a_file_system_cuts_off(pictures: Path, tmp_path: Path, extractor: type[OfTheBatch]) -> None:
    made(pictures, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.npy"):
        modified = path.stat().st_mtime_ns
        os.utime(path, ns=(modified, modified - modified % 1_000_000_000))
    extractor.calls = 0
    assert made(pictures, tmp_path / "out").num_there == NUM_PICTURES
    shutil.rmtree(tmp_path / "out/val2014")
    assert made(pictures, tmp_path / "out").num_there == 40


def packed(pictures: Path, out: Path, **more: Any) -> ExtractReport:
    return made(pictures, out, packs=True, **more)


def members(out: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(out / "features.zip") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_packed_folder_holds_the_same_files_in_one(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "files")
    files = contents(tmp_path / "files")
    description = files.pop("backbone.json")
    for _ in range(2):
        report = packed(pictures, tmp_path / "packed")
        assert contents(tmp_path / "packed").keys() == {"backbone.json", "features.zip"}
        assert (tmp_path / "packed/backbone.json").read_bytes() == description
        assert not [path for path in (tmp_path / "packed").iterdir() if path.is_dir()]
        assert members(tmp_path / "packed") == files
    assert report.num_there == NUM_PICTURES
    assert list(members(tmp_path / "packed")) == sorted(files)
    with np.load(tmp_path / "packed/features.zip") as arrays:  # numpy reads it as well
        np.testing.assert_array_equal(arrays["val2014/deep/050.png"], [[50, 100, 200, 32]] * 4)
    # Files that are there are packed without a network.
    packed(pictures, tmp_path / "files")
    assert contents(tmp_path / "files") == contents(tmp_path / "packed")


def test_killed_resumed_and_shared_gives_the_same_archive(
    pictures: Path, tmp_path: Path, extractor: type[OfTheBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(pictures, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for _ in range(2):
        extractor.calls, extractor.dies_after = 0, 1
        with pytest.raises(Killed):
            packed(pictures, tmp_path / "killed")
    extractor.calls, extractor.dies_after = 0, 10**9

    def dying(_: str, done: int, __: int | None) -> None:
        if done == 50:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after a kill
        with pytest.raises(Killed):
            packed(pictures, tmp_path / "killed", progress=dying)
    assert "features.zip" not in contents(tmp_path / "killed")
    assert ".unfinished-0/features.zip" in contents(tmp_path / "killed")
    unlink, num_removed = Path.unlink, iter(range(10**6))

    def removing(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".npy" and next(num_removed) == 20:
            raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", removing)
        with pytest.raises(Killed):
            packed(pictures, tmp_path / "killed")
    left = contents(tmp_path / "killed")
    assert left["features.zip"] == whole["features.zip"]
    assert len(left) == NUM_PICTURES - 20 + 2
    calls = extractor.calls
    assert packed(pictures, tmp_path / "killed").num_there == NUM_PICTURES
    assert extractor.calls == calls
    assert contents(tmp_path / "killed") == whole

    monkeypatch.setattr(extract, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(extract, "_LONGEST_SILENCE_SECONDS", 0.1)
    for rank in (0, 1, 0):
        share(monkeypatch, rank, 2)
        with suppress(DataError):
            packed(pictures, tmp_path / "shared")
    assert contents(tmp_path / "shared") == whole
    share(monkeypatch, 1, 2)
    assert packed(pictures, tmp_path / "shared").num_there == 32  # the second of three groups
    assert contents(tmp_path / "shared") == whole


def test_a_packed_folder_is_continued(pictures: Path, tmp_path: Path, extractor: type[OfTheBatch]) -> None:
    """New, changed, damaged and removed pictures, without --pack; and pictures of another folder."""
    packed(pictures, tmp_path / "out")
    extractor.calls = 0
    Image.new("RGB", (6, 4), (9, 9, 9)).save(pictures / "train2014/001.png")
    (pictures / "train2014/002.png").write_bytes(b"x")
    Image.new("RGB", (6, 4), (7, 7, 7)).save(pictures / "val2014/deep/070.png")
    with pytest.raises(DataError, match="1 image file is unusable"):
        made(pictures, tmp_path / "out")
    assert extractor.calls == 2  # of three groups
    assert contents(tmp_path / "out").keys() == {"backbone.json", "features.zip"}
    now = members(tmp_path / "out")
    assert len(now) == NUM_PICTURES
    assert "train2014/002.png.npy" not in now
    for name, color in (("train2014/001.png", 9), ("val2014/deep/070.png", 7)):
        assert np.load(io.BytesIO(now[f"{name}.npy"]))[0, 0] == color
    shutil.rmtree(pictures / "val2014")
    made(pictures, tmp_path / "out", skips_damaged=True)
    assert members(tmp_path / "out") == now
    Image.new("RGB", (6, 4), (1, 1, 1)).save(tmp_path / "pictures/other.png")
    shutil.rmtree(pictures / "train2014")
    made(pictures, tmp_path / "out")
    assert members(tmp_path / "out").keys() == {*now, "other.png.npy"}


def test_an_archive_that_is_damaged_or_cannot_be_written(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "out")
    before, limits = contents(tmp_path / "out"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot write features to .*out: File too large"):
            packed(pictures, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path / "out") == before
    packed(pictures, tmp_path / "out")
    whole = (tmp_path / "out/features.zip").read_bytes()
    (tmp_path / "out/features.zip").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"out/features\.zip is damaged: file is not a zip file") as error:
        packed(pictures, tmp_path / "out")
    assert error.value.hint is not None
    assert "or remove it" in error.value.hint
    (tmp_path / "out/features.zip").unlink()
    packed(pictures, tmp_path / "out")
    assert (tmp_path / "out/features.zip").read_bytes() == whole


def test_a_pipe_in_place_of_the_description_is_not_waited_for(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/backbone.json")
    with pytest.raises(DataError, match=r"holds backbone\.json, but no backbone\.json that trarctl extract wrote"):
        made(pictures, tmp_path / "out")
