"""The output folder: one writer, nothing foreign replaced, clear messages where it cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.preparing import prepare_golden
from trarctl.errors import DataError
from trarctl.files import refuse_foreign, write_bytes, writing


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path), pytest.raises(DataError) as caught:  # noqa: SIM117
        with writing(tmp_path):
            pass
    assert caught.value.what == f"another prepare is writing to {tmp_path}"
    assert caught.value.hint == "wait until it has finished"
    with writing(tmp_path):
        pass


def test_a_writer_in_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trarctl.files import writing\nwith writing(Path(sys.argv[1])): pass"
    )
    with writing(tmp_path):
        refused = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
    assert b"another prepare is writing to" in refused.stderr


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from trarctl.files import writing\n"
        "with writing(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert (tmp_path / ".lock").exists()
    with writing(tmp_path) as building:
        assert building.is_dir()


def test_a_lock_file_of_version_0_1_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text('{"pid":1,"host":"elsewhere","started":1}')
    with writing(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to the folder") as error, writing(tmp_path / "file" / "out"):
        pass
    assert error.value.hint == "pass one that can be written: --out DIR"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot write to the folder"), writing(tmp_path / "out"):
        pass


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "precious").write_text("mine")
    with pytest.raises(DataError, match="holds train, not written by this program"):
        prepare_golden("clevr", tmp_path)
    assert (tmp_path / "train" / "precious").read_text() == "mine"


def test_other_files_may_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refuse_foreign(tmp_path, ["train"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "file", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write to the folder .*: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/raw/file"), "cannot read /raw/file: Permission denied"),
    ],
)
def test_what_the_system_refuses_is_one_message(tmp_path: Path, error: OSError, message: str) -> None:
    with pytest.raises(DataError, match=message), writing(tmp_path):
        raise error
    with writing(tmp_path):
        pass
