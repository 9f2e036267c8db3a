"""An archive of feature files: read in place, wherever it lies above them, and never trusted."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trarctl.data.features import zipped
from trarctl.data.features.grid import FeatureFileError, read_features, read_shape
from trarctl.errors import DataError

TIME = 1_700_000_000_123_456_789  # ns
NAMES = ("b.npy", "a/deep/c.npy", "a/ü x.npy", "a.npy")


def array(name: str) -> np.ndarray:
    return np.arange(12, dtype=np.float16).reshape(4, 3) + len(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A packed folder."""
    folder = tmp_path / "out"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array(name))
        os.utime(path, ns=(TIME, TIME))
    (folder / "backbone.json").write_text("{}")
    zipped.write(folder, NAMES, tmp_path / "scratch", lambda *_: None)
    return folder


def without_files(folder: Path) -> Path:
    for name in NAMES:
        (folder / name).unlink()
    shutil.rmtree(folder / "a")
    return folder


def test_files_are_read_as_if_they_lay_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: (folder / name).stat().st_size for name in NAMES}
    without_files(folder)
    for name in NAMES:
        np.testing.assert_array_equal(read_features(folder / name), array(name))
        assert read_shape(folder / name) == ((4, 3), np.float16)
        assert zipped.size_and_time(folder / name) == (sizes[name], TIME)
    assert sorted(zipped.names_below(folder)) == sorted(NAMES)
    assert sorted(zipped.names_below(folder / "a")) == ["deep/c.npy", "ü x.npy"]
    assert zipped.names_below(folder / "a/deep/c.npy") == zipped.names_below(folder / "d") == []
    monkeypatch.chdir(folder)
    np.testing.assert_array_equal(read_features(Path("a/deep/c.npy")), array("a/deep/c.npy"))
    with pytest.raises(FeatureFileError, match="^is missing$"):
        read_features(folder / "a/d.npy")
    with pytest.raises(FileNotFoundError):
        zipped.size_and_time(folder / "a/d.npy")
    np.save(folder / "b.npy", array("b.npy") + 1)  # a file counts more
    np.testing.assert_array_equal(read_features(folder / "b.npy"), array("b.npy") + 1)


def test_other_programs_read_it(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "features.zip") as arrays:
        assert sorted(arrays) == sorted(name.removesuffix(".npy") for name in NAMES)
        np.testing.assert_array_equal(arrays["a/deep/c"], array("a/deep/c.npy"))
    with zipfile.ZipFile(folder / "features.zip") as archive:
        assert archive.namelist() == sorted(NAMES)
        assert archive.getinfo("b.npy").date_time == (2023, 11, 14, 22, 13, 20)  # in UTC
        archive.extractall(tmp_path / "again")
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_an_archive_that_is_replaced_is_read_anew(folder: Path, tmp_path: Path) -> None:
    without_files(folder)
    before = zipped.find(folder / "b.npy")
    assert before is not None
    np.save(folder / "b.npy", array("other.npy"))
    zipped.write(folder, ["b.npy"], tmp_path / "scratch", lambda *_: None)
    (folder / "b.npy").unlink()
    np.testing.assert_array_equal(read_features(folder / "b.npy"), array("other.npy"))
    assert zipped.names_below(folder) == ["b.npy"]
    assert b"NUMPY" in before[0].read(before[1])  # whoever had it open reads what it was


def test_times_that_no_archive_keeps(tmp_path: Path) -> None:
    (tmp_path / "backbone.json").write_text("{}")
    for number, seconds in enumerate((0, 10**9 * 5)):  # 1970, and 2128
        np.save(tmp_path / "a.npy", array("a"))
        os.utime(tmp_path / "a.npy", ns=(seconds * 10**9, seconds * 10**9))
        zipped.write(tmp_path, ["a.npy"], tmp_path / f"scratch{number}", lambda *_: None)
        (tmp_path / "a.npy").unlink()
        assert zipped.size_and_time(tmp_path / "a.npy")[1] == seconds * 10**9


def test_an_archive_of_somebody_else_is_not_looked_at(folder: Path) -> None:
    without_files(folder)
    (folder / "backbone.json").unlink()
    assert zipped.names_below(folder) == []
    with pytest.raises(FeatureFileError, match="^is missing$"):
        read_features(folder / "b.npy")


def test_damaged_archives(folder: Path) -> None:
    without_files(folder)
    path = folder / "features.zip"
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.npy", bytes(300))
    with pytest.raises(FeatureFileError, match=r"^is compressed in features\.zip$") as error:
        read_features(folder / "b.npy")
    assert error.value.hint == "unzip features.zip, and remove it"
    for content in (b"", b"<html>", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"out/features\.zip is damaged: ") as raised:
            zipped.names_below(folder / "a")
        assert "trarctl extract makes all features again" in str(raised.value.hint)
        with pytest.raises(FeatureFileError, match="^cannot be read: .*is damaged"):
            read_features(folder / "b.npy")
    # A number that the archive's checksum does not know.
    changed = bytearray(whole)
    changed[whole.rindex(array("b.npy").tobytes()) + 3] ^= 64
    path.write_bytes(changed)
    with pytest.raises(FeatureFileError, match=r"features\.zip is damaged: a file in it does not match its checksum"):
        read_features(folder / "b.npy")
    # Members whose place or size in the directory is wrong.
    random = np.random.default_rng(3)
    for _ in range(200):
        content = bytearray(whole)
        for place in random.integers(whole.index(b"PK\1\2"), len(whole), 3):
            content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            found = read_features(folder / "b.npy")
        except FeatureFileError:
            continue
        np.testing.assert_array_equal(found, array("b.npy"))
