"""The output folder: one writer, nothing foreign replaced, clear messages where it cannot be written."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.preparing import prepare_golden
from trarctl.errors import CheckpointError, DataError
from trarctl.files import claimed, refuse_foreign, write_bytes, writing


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path), pytest.raises(DataError) as caught:  # noqa: SIM117
        with writing(tmp_path):
            pass
    holder = re.escape(f"process {os.getpid()} on {socket.gethostname()} since ")
    assert re.match(f"another process writes the folder {re.escape(str(tmp_path))}: {holder}20", caught.value.what)
    assert caught.value.hint == "wait until it has finished, or stop that process"
    with writing(tmp_path):
        pass


def test_a_writer_in_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trarctl.files import writing\nwith writing(Path(sys.argv[1])): pass"
    )
    with writing(tmp_path):
        refused = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
    assert b"another process writes the folder" in refused.stderr


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from trarctl.files import writing\n"
        "with writing(Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert (tmp_path / ".lock").exists()
    with writing(tmp_path) as building:
        assert building.is_dir()


@pytest.mark.parametrize(
    "left", [None, b"", b'{"pid": 1}', b'{"pid":1,"host":"elsewhere","started":1}', b"\xff" * 9000]
)
def test_a_claim_leaves_the_folder_as_it_was(left: bytes | None, tmp_path: Path) -> None:
    if left is not None:
        (tmp_path / ".lock").write_bytes(left[:4096])
    with claimed(tmp_path, "run a"), pytest.raises(CheckpointError, match=r"run a: process \d+ on"):  # noqa: SIM117
        with claimed(tmp_path, "run a", CheckpointError):
            pass
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == ({} if left is None else {".lock": left[:4096]})


def test_one_of_many_that_claim_at_once(tmp_path: Path) -> None:
    """Each adds one to a number in a file, which loses some where two hold the lock at once."""
    code = (
        "import sys; from pathlib import Path; from trarctl.files import claimed\n"
        "file = Path(sys.argv[1]) / 'count'\n"
        "for _ in range(50):\n"
        "    with claimed(file.parent, 'it', wait_seconds=60):\n"
        "        file.write_text(str(int(file.read_text()) + 1))"
    )
    (tmp_path / "count").write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "150"


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
