"""Question files read out of archives, and archives unpacked that are damaged or mean harm."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, write_clevr
from trarctl.data import archives
from trarctl.data.archives import find_packed, open_raw, raw_sha256, raw_status, unpack
from trarctl.data.prepare import PrepareRequest, check, prepare
from trarctl.errors import DataError

Write = Callable[[Path, Mapping[str, bytes]], Path]
PACKED = {
    "v2_Questions_Train_mscoco.zip": "v2_OpenEnded_mscoco_train2014_questions.json",
    "v2_Questions_Val_mscoco.zip": "v2_OpenEnded_mscoco_val2014_questions.json",
    "v2_Annotations_Train_mscoco.zip": "v2_mscoco_train2014_annotations.json",
    "v2_Annotations_Val_mscoco.zip": "v2_mscoco_val2014_annotations.json",
}


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    """The golden raw files, those of train and val packed as they are published."""
    raw = Path(shutil.copytree(GOLDEN / "mini_vqa/raw", tmp_path / "raw"))
    for name, member in PACKED.items():
        write_zip(raw / name, {member: (raw / member).read_bytes(), f"__MACOSX/._{member}": b"junk"})
        (raw / member).unlink()
    return raw


def request_of(raw: Path, out: Path, dataset: str = "vqa") -> PrepareRequest:
    return PrepareRequest(dataset, raw=raw, out=out, vectors="none", without_features=True)


def arrays_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def test_published_archives_prepare_as_their_files_do(tmp_path: Path, vqa: Path) -> None:
    plain = prepare(request_of(GOLDEN / "mini_vqa/raw", tmp_path / "plain")).manifest
    packed = prepare(request_of(vqa, tmp_path / "packed"))
    assert arrays_of(tmp_path / "packed") == arrays_of(tmp_path / "plain")
    assert {name: (one.size, one.sha256, one.records) for name, one in packed.manifest.text.sources.items()} == {
        name: (one.size, one.sha256, one.records) for name, one in plain.text.sources.items()
    }
    assert packed.checks[0].file == PACKED["v2_Questions_Train_mscoco.zip"]
    assert (packed.checks[0].found, packed.checks[0].verdict) == (140, "other count")
    assert sorted(path.name for path in vqa.iterdir() if path.suffix == ".zip") == sorted(PACKED)


def test_whether_packed_files_are_prepared(tmp_path: Path, vqa: Path) -> None:
    request = request_of(vqa, tmp_path / "out")
    prepare(request)
    assert prepare(request).was_current
    archive = vqa / "v2_Annotations_Val_mscoco.zip"
    os.utime(archive)
    assert prepare(request).was_current
    member = PACKED[archive.name]
    with zipfile.ZipFile(archive) as packed:
        content = packed.read(member)
    # Unpacked, the content is the same; the archive beside it no longer counts.
    (vqa / member).write_bytes(content)
    archive.write_bytes(b"damaged")
    assert prepare(request).was_current
    (vqa / member).unlink()
    changed = json.loads(content)
    changed["annotations"][0]["answers"][0]["answer"] = "another"
    write_zip(archive, {member: json.dumps(changed).encode()})
    assert not prepare(request).was_current
    assert prepare(request).was_current


def test_questions_are_read_out_of_a_tar_archive(tmp_path: Path, vqa: Path) -> None:
    (other := tmp_path / "other").mkdir()
    members = {f"./{path.name}": path.read_bytes() for path in vqa.glob("*.json")}
    for name, member in PACKED.items():
        with zipfile.ZipFile(vqa / name) as archive:
            members[f"./{member}"] = archive.read(member)
    write_tar(other / "all.tar.gz", members)
    prepare(request_of(vqa, tmp_path / "one"))
    prepare(request_of(other, tmp_path / "two"))
    assert arrays_of(tmp_path / "one") == arrays_of(tmp_path / "two")
    # The same content in a zip archive is the same file, another one is not.
    name = PACKED["v2_Questions_Val_mscoco.zip"]
    write_zip(other / "b.zip", {name: members[f"./{name}"]})
    assert find_packed(other, [name]) == {name: f"all.tar.gz/{name}"}
    write_zip(other / "b.zip", {name: members[f"./{name}"].swapcase()})
    with pytest.raises(DataError, match="are different files of one name"):
        find_packed(other, [name])


def test_a_tar_archive_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 1000)
    path = write_tar(tmp_path / "a.tar.gz", {"q.json": b"[]", "zeros": bytes(10_000_000)})
    assert find_packed(tmp_path, ["q.json"]) == {}
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        raw_sha256(path / "zeros")
    path.write_bytes(
        gzip.compress(gzip.decompress(write_tar(path, {"q.json": b"[]"}).read_bytes()) + bytes(10_000_000))
    )
    assert find_packed(tmp_path, ["q.json"]) == {}


def test_folders_in_an_archive_do_not_matter(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    request = request_of(raw, tmp_path / "out", "clevr")
    before = prepare(request)
    files = {f"CLEVR_v1.0/{path.relative_to(raw)}": path.read_bytes() for path in (raw / "questions").iterdir()}
    shutil.rmtree(raw / "questions")
    write_zip(raw / "CLEVR_v1.0_no_images.zip", files)
    assert prepare(request).was_current
    again = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out2", vectors="none", without_features=True))
    assert arrays_of(again.out) == arrays_of(before.out)
    # A second archive with the same files is no matter; with others it is.
    write_zip(raw / "CLEVR_v1.0.zip", files)
    assert prepare(request).was_current
    write_zip(raw / "CLEVR_v1.0.zip", {name: content + b" " for name, content in files.items()})
    with pytest.raises(
        DataError, match=r"CLEVR_v1.0.zip/CLEVR_v1.0/questions/CLEVR_.* are different files of one name"
    ):
        prepare(request)


def test_gzip_and_encodings_in_an_archive(tmp_path: Path, vqa: Path) -> None:
    plain = prepare(request_of(GOLDEN / "mini_vqa/raw", tmp_path / "plain"))
    for number, (archive, member) in enumerate(PACKED.items()):
        content = (GOLDEN / "mini_vqa/raw" / member).read_bytes()
        if number == 0:
            (vqa / archive).unlink()
            (vqa / f"{member}.gz").write_bytes(gzip.compress(content))
        elif number == 1:
            write_zip(vqa / archive, {f"deep/{member}": gzip.compress(content.decode().encode("utf-16-le"))})
        else:
            write_zip(vqa / archive, {member: b"\xef\xbb\xbf" + content})
    prepare(request_of(vqa, tmp_path / "out"))
    assert arrays_of(tmp_path / "out") == arrays_of(plain.out)


def test_faults_name_archive_and_member(tmp_path: Path, vqa: Path) -> None:
    archive = vqa / "v2_Questions_Val_mscoco.zip"
    member = PACKED[archive.name]
    write_zip(archive, {member: b'{"questions": [{"question_id": -1}]}'})
    found = check(request_of(vqa, tmp_path / "out"))
    assert [fault.what.partition(": record 0")[0] for fault in found.faults] == [f"{archive}/{member}"]
    assert [row.file for row in found.rows if row.verdict == "damaged"] == [member]
    content = bytearray(archive.read_bytes())
    content[40 + len(member)] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"v2_Questions_Val_mscoco.zip/.* cannot be unpacked: .+") as raised:
        prepare(request_of(vqa, tmp_path / "out"))
    assert raised.value.hint == "download it again"
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"no file {member} in .*; {archive} cannot be read, and may be cut off"):
        prepare(request_of(vqa, tmp_path / "out"))


def test_a_member_is_read_whole_in_little_memory(tmp_path: Path) -> None:
    content = b"".join(b"%d," % number for number in range(300_000))
    path = write_zip(tmp_path / "a.zip", {"deep/a.json": content}) / "deep/a.json"
    assert raw_status(path) == (len(content), (tmp_path / "a.zip").stat().st_mtime_ns)
    assert raw_sha256(path) == hashlib.sha256(content).hexdigest()
    with open_raw(path) as file:
        assert file.read() == content
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


def test_what_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_BYTES", 1000)
    zeros = bytes(1_000_000)  # a thousandth, packed
    path = write_zip(tmp_path / "a.zip", {"a.json": zeros})
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(zeros))
    tar = write_tar(tmp_path / "c.tar.gz", {"a.json": zeros})
    for packed in (path / "a.json", tmp_path / "b.json.gz"):
        with pytest.raises(DataError, match="unpacks to more than 200 times its size"), open_raw(packed):
            pass
    for archive in (path, tar):
        with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
            unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.json": b"1234"})
    usage = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"out has 3 bytes free, and it takes 4 to unpack a.zip"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_unpacking(tmp_path: Path, write: Write) -> None:
    rng = np.random.default_rng(0)
    pictures = {f"train/{number}.jpg": rng.bytes(100 + number) for number in range(5)}
    junk = {"__MACOSX/train/._0.jpg": b"x", "train/._0.jpg": b"y"}
    members = {f"top/images/{name}": content for name, content in (pictures | junk).items()} | {"top/q.json": b"{}"}
    archive, out = write(tmp_path / "a.bin", members), tmp_path / "out"
    done: list[tuple[str, int, int | None]] = []
    num_bytes = sum(map(len, pictures.values()))
    unpacked = unpack(archive, out, prefix="top/images/", progress=lambda *told: done.append(told))
    assert unpacked == (5, num_bytes)
    assert done[-1] == ("unpacking a.bin", num_bytes, num_bytes)
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")} == pictures
    # What is there is left as it is; what is missing comes back; what is another's is not overwritten.
    before = (out / "train/1.jpg").stat()
    (out / "train/2.jpg").unlink()
    (out / "train/.2.jpg.part").write_bytes(b"left by a crash")
    unpack(archive, out, prefix="top/images/")
    assert (out / "train/1.jpg").stat() == before
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")} == pictures
    (out / "train/3.jpg").write_bytes(bytes(103))
    with pytest.raises(DataError, match=r"3.jpg is there, with another content than in"):
        unpack(archive, out, prefix="top/images/")
    assert (out / "train/3.jpg").read_bytes() == bytes(103)
    with pytest.raises(DataError, match="holds no files in other/"):
        unpack(archive, out, prefix="other/")


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "..", "a/.."])
def test_no_path_leaves_the_folder(tmp_path: Path, write: Write, name: str) -> None:
    archive = write(tmp_path / "a.bin", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(DataError, match="is not to be trusted: .* would leave the folder"):
        unpack(archive, tmp_path / "in/out")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.bin"]


def test_a_prefix_cannot_hide_an_absolute_path(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"images//evil": b"evil"})
    with pytest.raises(DataError, match="would leave the folder"):
        unpack(archive, tmp_path / "out", prefix="images/")


def test_names_that_begin_with_the_folder_itself(tmp_path: Path) -> None:
    unpack(write_tar(tmp_path / "a.tar.gz", {"./a.json": b"1", "./b/./c.json": b"2"}), tmp_path)
    assert ((tmp_path / "a.json").read_bytes(), (tmp_path / "b/c.json").read_bytes()) == (b"1", b"2")


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            member = tarfile.TarInfo("good")
            archive.addfile(member, io.BytesIO())
            member = tarfile.TarInfo("link")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(DataError, match="'link' is a link or a device"):
            unpack(tmp_path / "a.tar", tmp_path / "out")
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_link_is_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")  # the folder itself may be on another disk
    archive = write_zip(tmp_path / "a.zip", {"deep/more/a.txt": b"a"})
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "real/deep/more/a.txt").read_bytes() == b"a"
    shutil.rmtree(tmp_path / "real/deep")
    (tmp_path / "real/deep").symlink_to(elsewhere)
    with pytest.raises(DataError, match="leads through a link, which is not followed"):
        unpack(archive, tmp_path / "out")
    assert list(elsewhere.iterdir()) == []


def test_members_that_come_twice_or_are_encrypted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", b"2")
    with pytest.raises(DataError, match="'a' comes twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    content = bytearray(write_zip(tmp_path / "b.zip", {"b": b"1"}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(DataError, match="'b' is encrypted"):
        unpack(tmp_path / "b.zip", tmp_path / "out")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_damaged_archives(tmp_path: Path, write: Write) -> None:
    whole = write(tmp_path / "a.bin", {f"{number}": np.random.default_rng(number).bytes(999) for number in range(3)})
    content = whole.read_bytes()
    for cut in range(0, len(content) - 1, 97):
        whole.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cannot be unpacked|holds no files"):
            unpack(whole, tmp_path / f"out{cut}")
    for position in range(100, 1000, 97):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        whole.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be unpacked"):
            unpack(whole, tmp_path / f"bad{position}")
    assert list(tmp_path.rglob(".*")) == []


def test_files_of_one_name(tmp_path: Path) -> None:
    members = {"top/a/q.json": b"1", "top/b/q.json": b"2", "c/q.json": b"3", "top/only.json": b"4", "xonly.json": b"5"}
    write_zip(tmp_path / "a.zip", members)
    assert find_packed(tmp_path, ["a/q.json", "b/q.json", "else/only.json", "d.json"]) == {
        "a/q.json": "a.zip/top/a/q.json",
        "b/q.json": "a.zip/top/b/q.json",
        "else/only.json": "a.zip/top/only.json",
    }
    assert find_packed(tmp_path, []) == {}


def test_any_byte_of_a_zip_archive_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)  # waits for the disk
    content = write_zip(tmp_path / "a.zip", {"x/a.json": b"[1, 2, 3]" * 9}).read_bytes()
    for position in range(len(content)):
        for value in (0xFF, content[position] ^ 0x80):
            (tmp_path / "a.zip").write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            with contextlib.suppress(DataError), open_raw(tmp_path / "a.zip/x/a.json") as file:
                assert file.read() == b"[1, 2, 3]" * 9
            with contextlib.suppress(DataError):
                unpack(tmp_path / "a.zip", tmp_path / "out")
    assert {path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == {b"[1, 2, 3]" * 9}


def test_a_name_without_a_whole_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    assert find_packed(tmp_path, ["a.json"]) == {}
    with pytest.raises(DataError, match="cannot be unpacked"):
        raw_status(tmp_path / "a.zip/a.json")
