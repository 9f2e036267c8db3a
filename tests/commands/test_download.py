"""``trarctl download``: what it says before, meanwhile and afterwards; and what it leaves when it is interrupted."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.serving import Served, serving
from trarctl.data import download as downloading
from trarctl.data.datasets.vqa import VQA
from trarctl.registry import DATASETS

RAW = Path(__file__).parents[1] / "golden/mini_vqa/raw"
MEMBERS = {
    "/v2_Questions_Train_mscoco.zip": "v2_OpenEnded_mscoco_train2014_questions.json",
    "/v2_Questions_Val_mscoco.zip": "v2_OpenEnded_mscoco_val2014_questions.json",
    "/v2_Questions_Test_mscoco.zip": "v2_OpenEnded_mscoco_test2015_questions.json",
    "/v2_Annotations_Train_mscoco.zip": "v2_mscoco_train2014_annotations.json",
    "/v2_Annotations_Val_mscoco.zip": "v2_mscoco_val2014_annotations.json",
}
Run = Callable[..., tuple[int, str, str]]


def packed(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Served]]:
    """VQA's small golden files on a server of this machine, packed as the published ones."""
    monkeypatch.setattr(downloading, "_WAIT_SECONDS", (0.0,) * 2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = {path: Served(packed({member: (RAW / member).read_bytes()})) for path, member in MEMBERS.items()}
    files["/zips/val2014.zip"] = Served(packed({"val2014/COCO_val2014_000000000001.jpg": b"picture"}))
    with serving(files) as address:
        downloads = tuple(
            replace(one, url=address + path, sha256=files[path].sha256, num_bytes=len(files[path].content))
            for one in VQA.downloads
            for path in files
            if one.url.endswith(path)
        )
        monkeypatch.setitem(DATASETS._items, "vqa", replace(VQA, downloads=downloads))
        yield files


def test_questions_by_default_and_then_prepare(
    trarctl: Run, served: dict[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = trarctl("download", "vqa")
    assert code == 0, stderr
    assert re.search(r"^v2_Questions_Train_mscoco.zip +\S+ k?B +missing *$", stdout, re.MULTILINE)
    assert re.search(r"^fetching \S+ kB into data/vqa/raw, where \S+ [GT]B are free$", stdout, re.MULTILINE)
    assert "\ndata/vqa/raw: 5 fetched, 0 there already\n" in stdout
    assert stdout.endswith("next: trarctl prepare vqa\n")
    assert not served["/zips/val2014.zip"].ranges
    assert trarctl("prepare", "vqa", "--vectors", "none")[0] == 0
    code, stdout, _ = trarctl("download", "vqa")
    assert code == 0
    assert re.search(r"^v2_Annotations_Val_mscoco.zip .* there *$", stdout, re.MULTILINE)
    assert "fetching" not in stdout
    assert "\ndata/vqa/raw: 0 fetched, 5 there already\n" in stdout


def test_pictures_when_asked_for(trarctl: Run, served: dict[str, Served], tmp_path: Path) -> None:
    code, stdout, stderr = trarctl("download", "vqa", "--images", "--only", "val*", "--raw", tmp_path)
    assert code == 0, stderr
    assert stdout.endswith(f"next: trarctl prepare vqa --raw {tmp_path} --images {tmp_path}/images\n")
    assert (tmp_path / "images/val2014/COCO_val2014_000000000001.jpg").read_bytes() == b"picture"
    assert not (tmp_path / "val2014.zip").exists()
    code, stdout, _ = trarctl("download", "vqa", "--only", "val*", "--raw", tmp_path)
    assert re.search(r"^val2014.zip .* unpacked *$", stdout, re.MULTILINE)
    assert len(served["/zips/val2014.zip"].ranges) == 1
    assert not served["/v2_Questions_Val_mscoco.zip"].ranges


def test_hashes_of_first_sight_are_said(
    trarctl: Run, served: dict[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = [one for one in DATASETS["vqa"].downloads if "Questions_Test" in one.url]
    unknown = replace(one, sha256=None, num_bytes=None)
    monkeypatch.setitem(DATASETS._items, "vqa", replace(VQA, downloads=(unknown,)))
    code, stdout, _ = trarctl("download", "vqa", "--raw", tmp_path)
    assert code == 0
    assert re.search(r"^v2_Questions_Test_mscoco.zip +not known +missing *$", stdout, re.MULTILINE)
    assert f"fetching files of unknown size into {tmp_path}, where" in stdout
    sha256 = served["/v2_Questions_Test_mscoco.zip"].sha256
    what = f"  v2_Questions_Test_mscoco.zip: no hash is published; recorded for later: SHA-256 {sha256}\n"
    assert what in stdout


def test_trouble_is_noted_and_ends_in_one_error(trarctl: Run, served: dict[str, Served], tmp_path: Path) -> None:
    served["/v2_Questions_Val_mscoco.zip"].statuses = [503, 0]
    served["/v2_Annotations_Val_mscoco.zip"].statuses = [404]
    code, _, stderr = trarctl("download", "vqa", "--raw", tmp_path)
    assert code == 4
    assert "note:  v2_Questions_Val_mscoco.zip: the server answers 503 Service Unavailable; trying again" in stderr
    assert re.search(r"error: http://\S+/v2_Annotations_Val_mscoco.zip answers 404 Not Found\n", stderr)
    assert "hint:  the address may have changed; --list says what to fetch by other means" in stderr
    assert "Traceback" not in stderr
    assert trarctl("download", "vqa", "--raw", tmp_path)[0] == 0


def test_a_list_needs_no_network_and_no_library_for_it(
    trarctl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    code, stdout, stderr = trarctl("download", "vqa", "--list", "--raw", tmp_path / "raw")
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    start = lines.index(f"{tmp_path}/raw/v2_Questions_Train_mscoco.zip")
    assert lines[start + 1 : start + 4] == [
        "  from    https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Questions_Train_mscoco.zip",
        "  size    7.2 MB (7,239,401 bytes)",
        "  SHA-256 05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e",
    ]
    folder = f"{tmp_path}/raw/images/val2014"
    assert f"  then    unpack its folder val2014/ to {folder}, which trarctl download does as well" in lines
    assert not (tmp_path / "raw").exists()
    code, stdout, _ = trarctl("download", "clevr", "--list", "--only", "*no_images*")
    assert "  size    about 86.0 MB\n  SHA-256 not published\n" in stdout
    assert "CLEVR_v1.0.zip" not in stdout


def test_sets_without_addresses_say_how_to_get_them(trarctl: Run) -> None:
    code, _, stderr = trarctl("download", "easy-vqa")
    assert code == 4
    assert "error: trarctl has no addresses of the files of easy-vqa\nhint:  pip install" in stderr
    code, _, stderr = trarctl("download", "vqa-cp")
    assert code == 4
    assert "error: trarctl has addresses of the pictures of vqa-cp alone: --images\nhint:  put vqacp_v2_" in stderr


def test_usage(trarctl: Run) -> None:
    code, _, stderr = trarctl("download", "nothing")
    assert code == 2
    assert "'nothing' is not one of 'vqa', 'vg', 'clevr', 'easy-vqa'" in stderr
    code, _, stderr = trarctl("download", "clevr", "--only", "x", "--list")
    assert code == 3
    assert "error: no file is called x\nhint:  --only takes one of CLEVR_v1.0_no_images.zip, CLEVR_v1.0.zip" in stderr


def test_prepare_says_what_to_download(trarctl: Run, tmp_path: Path) -> None:
    raw = tmp_path / "my raw"
    code, _, stderr = trarctl("prepare", "vqa", "--raw", raw)
    assert code == 4
    assert f"hint:  trarctl download vqa --raw '{raw}' (43.0 MB); or put" in stderr
    raw.mkdir()
    code, stdout, _ = trarctl("prepare", "vqa", "--raw", raw, "--check", "--vectors", "none")
    assert code == 4
    assert f"missing: trarctl download vqa --raw '{raw}' (10.5 MB)" in stdout


PLUGIN = """
from dataclasses import replace
from trarctl.data.datasets.vqa import VQA
from trarctl.data.datasets.base import register_dataset
from trarctl.data.download import Download
register_dataset(replace(VQA, name="slow", downloads=(Download("{url}", sha256="{sha256}"),)))
"""


def test_ctrl_c_keeps_what_has_arrived(tmp_path: Path) -> None:
    content = os.urandom(200_000)
    slow = Served(content, pauses=[60.0])
    with serving({"/slow.bin": slow}) as address:
        sha256 = hashlib.sha256(content).hexdigest()
        (tmp_path / "slow_plugin.py").write_text(PLUGIN.format(url=f"{address}/slow.bin", sha256=sha256))
        environment = os.environ | {"TRARCTL_PLUGINS": "slow_plugin", "NO_PROXY": "127.0.0.1"}
        words = [sys.executable, "-m", "trarctl", "download", "slow", "--raw", "raw"]
        part = tmp_path / "raw/slow.bin.part"
        with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert stderr.endswith("note:  stopped; the same command continues where it was\n")
        kept = part.stat().st_size
        assert 0 < kept <= len(content) // 2
        assert part.read_bytes() == content[:kept]
        again = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "begun" in again.stdout
    assert slow.ranges == [None, f"bytes={kept}-"]
    assert (tmp_path / "raw/slow.bin").read_bytes() == content
