"""Downloads end with the right bytes or a clear error, whatever server and network do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.data.serving import Served, serving
from trarctl.data import download as downloading
from trarctl.data.datasets.base import downloads_by_name
from trarctl.data.download import Download, choose, fetch, holders, plan, refuse_full_disk
from trarctl.errors import DataError, SettingsError
from trarctl.files import claimed

CONTENT = np.random.default_rng(7).bytes(1000)
OTHER = np.random.default_rng(8).bytes(1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting, and no proxy of whoever runs the tests."""
    monkeypatch.setattr(downloading, "_WAIT_SECONDS", (0.0,) * 3)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def served() -> Served:
    return Served(CONTENT)


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    with serving({"/deep/a.bin": served}) as address:
        yield f"{address}/deep/a.bin"


class Told(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def packed_as_tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("q.json"))
    return content.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "downloads.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_file_arrives_once(tmp_path: Path, served: Served, url: str) -> None:
    wanted = Download(url, len(CONTENT), sha256=SHA256)
    steps: list[tuple[str, int, int | None]] = []
    (fetched,) = fetch([wanted], tmp_path / "new/raw", lambda *step: steps.append(step))
    assert files_of(tmp_path) == {"new/raw/a.bin": CONTENT}
    assert (fetched.sha256, fetched.is_first_sight, fetched.was_there) == (SHA256, False, False)
    assert ("fetching a.bin", 1000, 1000) in steps
    assert steps[-1] == ("verifying a.bin", 1000, 1000)
    (again,) = fetch([wanted], tmp_path / "new/raw")
    assert again.was_there
    assert served.ranges == [None]
    assert served.agents[0] is not None
    assert served.agents[0].startswith("trarctl/")
    assert plan([wanted], tmp_path / "new/raw")[0].state == "there"


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_cut_connections_are_continued(tmp_path: Path, served: Served, url: str, sha256: str | None) -> None:
    served.cuts = [100, 0, 300, 0, 0, 599]
    told = Told()
    fetch([Download(url, sha256=sha256)], tmp_path, tell=told)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    starts = [None, *(f"bytes={start}-" for start in (100, 100, 400, 400, 400, 999))]
    assert served.ranges == starts
    assert served.conditions == [None, *['"first"'] * 6]
    assert len(told) == 6
    assert all(text.endswith("trying again in 0 s") for text in told)


def test_an_interruption_keeps_what_has_arrived(tmp_path: Path, served: Served, url: str) -> None:
    def interrupt(task: str, done: int, total: int | None) -> None:
        if done >= 400:
            raise KeyboardInterrupt

    served.cuts = [400]
    wanted = Download(url)
    with pytest.raises(KeyboardInterrupt):
        fetch([wanted], tmp_path, interrupt)
    assert files_of(tmp_path) == {"a.bin.part": CONTENT[:400]}
    assert [(one.state, one.num_present) for one in plan([wanted], tmp_path)] == [("begun", 400)]
    fetch([wanted], tmp_path)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    assert served.ranges == [None, "bytes=400-"]


@pytest.mark.parametrize("honors_conditions", [True, False])
@pytest.mark.parametrize("is_dated", [True, False])
def test_a_file_that_changes_between_two_attempts(
    tmp_path: Path, served: Served, url: str, honors_conditions: bool, is_dated: bool
) -> None:
    served.cuts, served.honors_conditions = [400], honors_conditions
    if is_dated:
        served.etag, served.last_modified = 'W/"weak"', "Wed, 01 Jan 2025 00:00:00 GMT"

    def change(text: str) -> None:
        if served.content == CONTENT:
            served.content, served.etag = OTHER, 'W/"weak"' if is_dated else '"second"'
            served.last_modified = "Thu, 02 Jan 2025 00:00:00 GMT" if is_dated else None

    fetch([Download(url)], tmp_path, tell=change)
    assert files_of(tmp_path) == {"a.bin": OTHER}
    assert served.conditions[1] == ("Wed, 01 Jan 2025 00:00:00 GMT" if is_dated else '"first"')


def test_pieces_that_do_not_fit_are_fetched_again_as_a_whole(tmp_path: Path, served: Served, url: str) -> None:
    served.etag, served.content = None, CONTENT
    (tmp_path / "a.bin.part").write_bytes(OTHER[:400])
    told = Told()
    fetch([Download(url, 1000, sha256=SHA256)], tmp_path, tell=told)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    assert served.ranges == ["bytes=400-", None]
    assert "fetched again as a whole" in told[0]


def test_nothing_is_continued_that_nothing_could_verify(tmp_path: Path, served: Served, url: str) -> None:
    served.etag = None
    (tmp_path / "a.bin.part").write_bytes(OTHER[:400])
    fetch([Download(url)], tmp_path)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    assert served.ranges == [None]


@pytest.mark.parametrize(
    "trouble", [{"takes_ranges": False}, {"range_shift": 7}, {"headers": {"Content-Range": "bytes nonsense"}}]
)
def test_servers_that_give_another_range(tmp_path: Path, served: Served, url: str, trouble: dict[str, object]) -> None:
    served.cuts = [400]

    def worsen(text: str) -> None:
        vars(served).update(trouble)

    fetch([Download(url, sha256=SHA256)], tmp_path, tell=worsen)
    assert files_of(tmp_path) == {"a.bin": CONTENT}


def test_a_part_that_is_whole_or_too_long(tmp_path: Path, served: Served, url: str) -> None:
    part = tmp_path / "a.bin.part"
    part.write_bytes(CONTENT)
    fetch([Download(url, 1000, sha256=SHA256)], tmp_path)
    assert served.ranges == []
    (tmp_path / "a.bin").rename(part)
    fetch([Download(url, sha256=SHA256)], tmp_path)
    assert served.ranges == ["bytes=1000-"]
    (tmp_path / "a.bin").unlink()
    for too_long in (CONTENT + b"x", OTHER + b"xy"):
        part.write_bytes(too_long)
        fetch([Download(url, sha256=SHA256)], tmp_path)
        assert files_of(tmp_path) == {"a.bin": CONTENT}
        (tmp_path / "a.bin").unlink()


def test_redirects(tmp_path: Path) -> None:
    files = {"/a": Served(CONTENT, redirect="/b"), "/b": Served(b"", redirect="/c"), "/c": Served(CONTENT, cuts=[10])}
    with serving(files) as address:
        fetch([Download(f"{address}/a", sha256=SHA256)], tmp_path)
        assert files_of(tmp_path) == {"a": CONTENT}
        files["/b"].redirect = "/a"
        with pytest.raises(DataError, match="is redirected more than 10 times"):
            fetch([Download(f"{address}/a", name="b")], tmp_path)
        files["/b"].redirect = "file:///etc/passwd"
        with pytest.raises(DataError, match="cannot fetch .*/a: "):
            fetch([Download(f"{address}/a", name="b")], tmp_path)


@pytest.mark.parametrize("place", ["http://[", "http://a b/", "///", "http://", "mailto:x", "http://é.é:99999/", "//"])
def test_redirects_to_nowhere(tmp_path: Path, served: Served, url: str, place: str) -> None:
    served.redirect = place
    with pytest.raises(DataError, match=r"/a.bin(: | is redirected more than 10 times$| answers 404 Not Found$)"):
        fetch([Download(url)], tmp_path)


@pytest.mark.parametrize("etag", ["", '"', '"é"', "W/", "x" * 9000])
def test_odd_etags(tmp_path: Path, served: Served, url: str, etag: str) -> None:
    served.etag, served.cuts = etag, [400]
    fetch([Download(url)], tmp_path)
    assert files_of(tmp_path) == {"a.bin": CONTENT}


def test_no_redirect_leaves_encryption_unless_a_hash_is_known() -> None:
    first, second = (httpx.Request("GET", address) for address in ("https://a.example/f", "http://b.example/f"))
    answer = httpx.Response(200, request=second, history=[httpx.Response(302, request=first)])
    with pytest.raises(DataError, match="leads to an address without encryption, and no hash is published"):
        downloading._refuse_answer(Download(str(first.url)), answer)
    downloading._refuse_answer(Download(str(first.url), sha256=SHA256), answer)


def test_a_size_that_is_not_the_published_one(tmp_path: Path, served: Served, url: str) -> None:
    with pytest.raises(DataError, match=r"a.bin has 1,000 bytes, expected 999$"):
        fetch([Download(url, 999)], tmp_path)
    served.has_length = False  # what is too long is noticed while it arrives
    with pytest.raises(DataError, match=r"a.bin has 1,000 bytes, expected 999$"):
        fetch([Download(url, 999)], tmp_path)
    assert files_of(tmp_path) == {}


def test_a_length_that_is_not_said(tmp_path: Path, served: Served, url: str) -> None:
    served.has_length = False
    told = Told()
    fetch([Download(url)], tmp_path, tell=told)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    assert told == ["a.bin: neither server nor publisher say how long it is: a cut would not be noticed"]
    for known in ({"num_bytes": 1000}, {"sha256": SHA256}):
        told.clear()
        fetch([Download(url, name=f"{len(known)}{known}.bin", **known)], tmp_path, tell=told)
        assert told == []


def test_a_length_that_is_never_reached(tmp_path: Path, served: Served, url: str) -> None:
    served.claimed, served.takes_ranges = 1200, False
    with pytest.raises(DataError, match=r"cannot fetch .*a.bin: ") as raised:
        fetch([Download(url)], tmp_path)
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("run it again later")
    assert len(served.ranges) == 4
    assert files_of(tmp_path) == {"a.bin.part": CONTENT}


def test_a_length_that_is_too_short(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", CONTENT)
    cut = Served(packed.getvalue(), claimed=900)
    with serving({"/a.zip": cut}) as url, pytest.raises(DataError, match=r"a.zip is no whole archive"):
        fetch([Download(f"{url}/a.zip")], tmp_path)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"md5": hashlib.md5(CONTENT).hexdigest()}])  # noqa: S324
def test_wrong_bytes(tmp_path: Path, served: Served, url: str, known: dict[str, str]) -> None:
    served.content = OTHER
    kind = "SHA-256" if "sha256" in known else "MD5"
    with pytest.raises(DataError, match=rf"a.bin has the {kind} [0-9a-f]+, expected {next(iter(known.values()))}"):
        fetch([Download(url, 1000, **known)], tmp_path)
    assert files_of(tmp_path) == {}
    served.content = CONTENT
    assert fetch([Download(url, 1000, **known)], tmp_path)[0].sha256 == SHA256


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_refusals_are_final(tmp_path: Path, served: Served, url: str, status: int) -> None:
    served.statuses = [status]
    with pytest.raises(DataError, match=rf"a.bin answers {status} ") as raised:
        fetch([Download(url)], tmp_path)
    assert raised.value.hint is not None
    assert "--list says what to fetch by other means" in raised.value.hint
    assert len(served.ranges) == 1
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_trouble_that_may_pass(tmp_path: Path, served: Served, url: str, status: int) -> None:
    served.cuts, served.statuses = [400], [0, status, status, status, 0]
    told = Told()
    with pytest.raises(DataError, match=rf"cannot fetch .*: the server answers {status} "):
        fetch([Download(url)], tmp_path, tell=told)
    assert files_of(tmp_path) == {"a.bin.part": CONTENT[:400]}
    fetch([Download(url)], tmp_path, tell=told)
    assert files_of(tmp_path) == {"a.bin": CONTENT}


def test_the_server_says_how_long_to_wait(
    tmp_path: Path, served: Served, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = list[float]()
    monkeypatch.setattr("time.sleep", waits.append)
    for asked, waited in (("7", 7.0), ("86400", 60.0), ("Wed, 01 Jan 2025 00:00:00 GMT", 0.0), ("-1", 0.0)):
        served.statuses, served.headers = [503], {"Retry-After": asked}
        fetch([Download(url, name=f"a{waited}{len(asked)}")], tmp_path)
        assert [seconds for seconds in waits if seconds][-1:] == ([waited] if waited else [60.0])


def test_waits_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waits = list[float]()
    monkeypatch.setattr("time.sleep", waits.append)
    with serving({}) as address:
        pass
    with pytest.raises(DataError, match="cannot fetch .*refused"):
        fetch([Download(f"{address}/a.bin")], tmp_path)
    assert waits == [1, 2, 4, 8, 16]


def test_a_server_that_falls_silent(tmp_path: Path, served: Served, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "_SILENCE_SECONDS", 0.2)
    served.pauses = [0.6]
    fetch([Download(url)], tmp_path)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    assert served.ranges == [None, "bytes=500-"]


def test_web_pages_and_encodings_are_no_files(tmp_path: Path, served: Served, url: str) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:400])
    wanted = Download(url, sha256=SHA256)
    served.takes_ranges = False
    for headers, message in (
        ({"Content-Type": "text/html; charset=utf-8"}, "answers with a web page in place of the file"),
        ({"Content-Encoding": "gzip"}, "is sent in another encoding than asked for"),
    ):
        served.headers = headers
        with pytest.raises(DataError, match=message):
            fetch([wanted], tmp_path)
    assert files_of(tmp_path) == {"a.bin.part": CONTENT[:400]}


def test_the_hash_of_the_first_time_counts(tmp_path: Path, served: Served, url: str) -> None:
    wanted = Download(url)
    (fetched,) = fetch([wanted], tmp_path)
    assert (fetched.is_first_sight, fetched.sha256) == (True, SHA256)
    recorded = json.loads((tmp_path / "downloads.json").read_text())["a.bin"]
    assert (recorded["sha256"], recorded["verified_by"], recorded["url"]) == (SHA256, "first sight", url)
    (tmp_path / "a.bin").unlink()
    served.content, served.etag = OTHER, '"second"'
    with pytest.raises(DataError, match=rf"expected {SHA256}, recorded on 2\d\d\d-") as raised:
        fetch([wanted], tmp_path)
    assert raised.value.hint is not None
    assert f"remove a.bin from {tmp_path / 'downloads.json'}" in raised.value.hint
    assert files_of(tmp_path) == {}
    (tmp_path / "downloads.json").unlink()
    fetch([wanted], tmp_path)
    assert files_of(tmp_path) == {"a.bin": OTHER}


def test_files_that_were_put_there_need_no_network(tmp_path: Path) -> None:
    wanted = Download("http://127.0.0.1:9/a.bin", 1000, sha256=SHA256)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert plan([wanted], tmp_path)[0].state == "to be verified"
    (fetched,) = fetch([wanted], tmp_path)
    assert (fetched.was_there, fetched.sha256) == (True, SHA256)
    assert plan([wanted], tmp_path)[0].state == "there"
    # A file that changes afterwards is verified again; what is wrong is left as it is.
    for wrong, message in ((OTHER, "has the SHA-256"), (CONTENT[:-1], "has 999 bytes, expected 1,000")):
        (tmp_path / "a.bin").write_bytes(wrong)
        os.utime(tmp_path / "a.bin", (1, 1))
        with pytest.raises(DataError, match=message) as raised:
            fetch([wanted], tmp_path)
        assert raised.value.hint == f"mv {tmp_path / 'a.bin'} ELSEWHERE"
        assert files_of(tmp_path) == {"a.bin": wrong}


def test_files_that_were_unpacked_by_hand_are_there(tmp_path: Path) -> None:
    wanted = Download("http://127.0.0.1:9/a.zip", holds=("q.json", "a.json"))
    (tmp_path / "q.json").write_bytes(b"[]")
    assert plan([wanted], tmp_path)[0].state == "missing"
    (tmp_path / "a.json").write_bytes(b"[]")
    assert plan([wanted], tmp_path)[0].state == "unpacked"
    assert fetch([wanted], tmp_path)[0].was_there


def pictures(*, prefix: str = "top/") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(4):
            archive.writestr(f"{prefix}{number}.jpg", CONTENT[number:])
        archive.writestr(f"{prefix}.DS_Store", b"junk")
    return packed.getvalue()


def test_pictures_are_unpacked_and_their_archive_removed(tmp_path: Path) -> None:
    served = Served(pictures())
    whole = {f"images/{number}.jpg": CONTENT[number:] for number in range(4)}
    with serving({"/p.zip": served}) as address:
        wanted = Download(f"{address}/p.zip", sha256=served.sha256, unpack_to="images", unpack_prefix="top/")
        fetch([wanted], tmp_path)
        assert files_of(tmp_path) == whole
        assert plan([wanted], tmp_path)[0].state == "unpacked"
        assert fetch([wanted], tmp_path)[0].was_there
        assert len(served.ranges) == 1
        (tmp_path / "images/2.jpg").unlink()
        assert plan([wanted], tmp_path)[0].state == "missing"
        fetch([wanted], tmp_path)
        assert files_of(tmp_path) == whole
    # An archive that somebody put there is his.
    other = tmp_path / "other"
    other.mkdir()
    (other / "p.zip").write_bytes(served.content)
    fetch([wanted], other)
    assert files_of(other) == whole | {"p.zip": served.content}


def test_pictures_that_are_there_are_not_fetched(tmp_path: Path) -> None:
    wanted = Download("http://127.0.0.1:9/p.zip", unpack_to="images", num_files=3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    for number in range(3):
        assert plan([wanted], tmp_path)[0].state == "missing"
        (tmp_path / f"elsewhere/{number}.jpg").write_bytes(CONTENT)
    assert plan([wanted], tmp_path)[0].state == "unpacked"
    assert fetch([wanted], tmp_path)[0].was_there


def test_questions_are_unpacked_beside_their_archive(tmp_path: Path) -> None:
    with serving({"/q.zip": Served(pictures())}) as address:
        wanted = Download(f"{address}/q.zip", holds=("0.jpg", "3.jpg"), unpack_to=".", unpack_prefix="top/")
        fetch([wanted], tmp_path)
        assert plan([wanted], tmp_path)[0].state == "unpacked"
        (tmp_path / "0.jpg").unlink()
        assert plan([wanted], tmp_path)[0].state == "missing"
        fetch([wanted], tmp_path)
    assert files_of(tmp_path) == {f"{number}.jpg": CONTENT[number:] for number in range(4)}


def test_an_archive_that_means_harm_stays_packed(tmp_path: Path) -> None:
    served = Served(pictures(prefix="../"))
    with serving({"/p.zip": served}) as address:
        wanted = Download(f"{address}/p.zip", unpack_to="images")
        with pytest.raises(DataError, match="is not to be trusted: '../0.jpg' would leave the folder"):
            fetch([wanted], tmp_path / "raw")
    assert files_of(tmp_path) == {"raw/p.zip": served.content}


def test_room_is_looked_for_first(tmp_path: Path, served: Served, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="has 999 bytes free, and it takes 1,000 to fetch a.bin"):
        fetch([Download(url)], tmp_path)
    assert files_of(tmp_path) == {}
    (tmp_path / "b.part").write_bytes(bytes(50))
    kept, packed, begun = Download("x/a", 100), Download("x/c", 300, unpack_to="c"), Download("x/b", 100, unpack_to="b")
    for wanted, needed in (([kept], 100), ([kept, packed], 700), ([kept, packed, begun], 750), ([packed, begun], 650)):
        for free in (needed, needed - 1):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
            planned = plan(wanted, tmp_path)
            if free == needed:
                refuse_full_disk(planned, tmp_path)
            else:
                with pytest.raises(DataError, match=f"takes {needed} to fetch and unpack"):
                    refuse_full_disk(planned, tmp_path)


def test_the_proxy_of_the_environment(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://files.example/a.bin"
    with serving({address: served}) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        fetch([Download(address)], tmp_path)
    assert files_of(tmp_path) == {"a.bin": CONTENT}
    monkeypatch.setenv("http_proxy", "nonsense://127.0.0.1")
    with pytest.raises(DataError, match="cannot use the proxy or the certificates of the environment"):
        fetch([Download(address, name="b")], tmp_path)


def test_one_process_at_a_time(tmp_path: Path, url: str) -> None:
    with claimed(tmp_path, "it"), pytest.raises(DataError, match="another process writes the folder"):
        fetch([Download(url)], tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": {"url": 5}}', b"\xff"])
def test_a_damaged_record_is_refused(tmp_path: Path, url: str, content: bytes) -> None:
    (tmp_path / "downloads.json").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*downloads.json") as raised:
        fetch([Download(url)], tmp_path)
    assert raised.value.hint == "remove it: the files are verified again"


@pytest.mark.parametrize("seed", range(20))
def test_any_trouble_ends_in_one_version_or_an_error(tmp_path: Path, served: Served, url: str, seed: int) -> None:
    """A server that changes its file, and how it behaves, at random: no mixture of versions ever gets the name."""
    rng = random.Random(seed)  # noqa: S311
    versions = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(3)]

    def change(_text: str = "") -> None:
        version = rng.choice(versions) if rng.random() < 0.3 else served.content
        served.content, served.etag = version, f'"{hashlib.md5(version).hexdigest()}"'  # noqa: S324
        served.cuts = [rng.randrange(3000) for _ in range(rng.randrange(3))]
        served.statuses = rng.choices([0, 0, 0, 500, 503, 404], k=rng.randrange(3))
        served.takes_ranges, served.honors_conditions = rng.random() < 0.8, rng.random() < 0.5
        served.range_shift = rng.choice([0, 0, 0, 1])
        served.has_length = bool(served.cuts) or rng.random() < 0.9  # without it, a cut cannot be seen

    served.content = versions[0]
    sha256 = hashlib.sha256(versions[1]).hexdigest() if rng.random() < 0.5 else None
    for _ in range(8):
        change()
        with contextlib.suppress(DataError):
            fetch([Download(url, sha256=sha256)], tmp_path, tell=change)
            assert (tmp_path / "a.bin").read_bytes() in ([versions[1]] if sha256 else versions)
            return
        assert not (tmp_path / "a.bin").exists()


def test_choosing() -> None:
    questions, small = Download("http://x/q.zip"), Download("http://x/a%20b.zip?v=1", name="b.zip")
    large = Download("http://x/images.zip", has_images=True)
    every = [questions, small, large]
    assert choose(every) == [questions, small]
    assert choose(every, with_images=True) == every
    assert choose(every, only=["im*", "b.zip"]) == [small, large]
    with pytest.raises(SettingsError, match="no file is called c.zip") as raised:
        choose(every, only=["q.zip", "c.zip"])
    assert raised.value.hint == "--only takes one of q.zip, b.zip, images.zip, or a pattern"


def test_what_holds_a_raw_file() -> None:
    one, both = Download("x/1", holds=("a", "b")), Download("x/2", holds=("b", "c"), has_images=True)
    assert holders([both, one], ["a", "b"]) == [one]
    assert holders([both, one], ["c", "a"]) == [both, one]
    assert holders([one], ["d"]) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_is_no_archive_does_not_take_its_name(tmp_path: Path, name: str) -> None:
    with serving({f"/{name}": (served := Served(b'{"error": "try later"}'))}) as address:
        wanted = Download(f"{address}/{name}", holds=("q.json",))
        with pytest.raises(DataError, match=f"{name} is no whole archive"):
            fetch([wanted], tmp_path)
        assert files_of(tmp_path) == {}
        # Nothing was recorded that would be in the way of the right file.
        served.content = pictures() if name == "a.zip" else packed_as_tar()
        fetch([wanted], tmp_path)
    assert files_of(tmp_path) == {name: served.content}


@pytest.mark.parametrize(
    ("known", "most"), [({"num_bytes": 900}, 900), ({"about_bytes": 400}, 800), ({}, 600), ({"has_images": True}, 700)]
)
@pytest.mark.parametrize("is_said", [True, False])
def test_a_body_without_end(
    tmp_path: Path,
    served: Served,
    url: str,
    known: dict[str, Any],
    most: int,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downloading, "_MOST_BYTES", {False: 600, True: 700})
    served.has_length = is_said
    expected = f"{most}" if "num_bytes" in known else f"at most {most}"
    with pytest.raises(DataError, match=rf"a.bin has 1,000 bytes, expected {expected}$"):
        fetch([Download(url, **known)], tmp_path)
    assert files_of(tmp_path) == {}


def test_what_is_no_file_is_in_the_way(tmp_path: Path, served: Served, url: str) -> None:
    wanted, path, part = Download(url, sha256=SHA256), tmp_path / "a.bin", tmp_path / "a.bin.part"
    target = tmp_path / "target"
    target.write_bytes(CONTENT[:9])
    for one, make, message in (
        (path, lambda: path.mkdir(), "a.bin is there, and is no file"),
        (path, lambda: os.mkfifo(path), "a.bin is there, and is no file"),
        (path, lambda: path.symlink_to("nowhere"), "a.bin is there, and is no file"),
        (part, lambda: part.mkdir(), "a.bin.part is there, and is no file"),
        (part, lambda: part.symlink_to(target), "a.bin.part is a link, which is not followed"),
        (part, lambda: part.symlink_to("nowhere"), "a.bin.part is a link, which is not followed"),
    ):
        make()
        with pytest.raises(DataError, match=message):
            fetch([wanted], tmp_path)
        one.rmdir() if one.is_dir() else one.unlink()
    assert served.ranges == []
    # An archive that lies elsewhere may be linked.
    target.write_bytes(CONTENT)
    path.symlink_to(target)
    assert fetch([wanted], tmp_path)[0].was_there


def test_the_tables_of_the_data_sets() -> None:
    for name, (spec, downloads) in downloads_by_name().items():
        names = [one.file_name for one in downloads]
        assert len(names) == len({*names}), name
        raw_files = {file for split in spec.splits for file in split.files}
        for one in downloads:
            assert re.fullmatch(r"https?://[^/]+/[^?#]+", one.url), one
            assert re.fullmatch("[0-9a-f]{64}", one.sha256 or SHA256), one
            assert re.fullmatch("[0-9a-f]{32}", one.md5 or SHA256[:32]), one
            assert {*one.holds} <= raw_files, one
            assert one.num_bytes is None or one.about_bytes is None, one
            assert one.sha256 is not None or replace(one, part=None).url.startswith("https:"), one


# Of two independent lists, typed in here a second time.
FIGURES = """
v2_Questions_Train_mscoco.zip 7239401 05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e
v2_Questions_Val_mscoco.zip 3494929 e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a
v2_Questions_Test_mscoco.zip None 982e2e687a86514b78ea83af356d151976c5e3fb4168a29ca543610574082ad7
v2_Annotations_Train_mscoco.zip 21708861 fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853
v2_Annotations_Val_mscoco.zip 10518930 0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e
train2014.zip 13510573713 ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775
val2014.zip 6645013297 fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0
test2015.zip 13270587935 1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca
CLEVR_v1.0.zip 19021600724 5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1
image_data.json.zip 1780854 b87a94918cb2ff4d952cf1dfeca0b9cf6cd6fd204c2f8704645653be1163681a
question_answers.json.zip 24776315 None
CLEVR_CoGenT_v1.0.zip None 9e4a361ab939a4899e6d2ac14a5ee434
train.json 2964571 245d07f0584b9df52c5cc37d9eb55511
validate.json 639139 1445336a1413f3d741cfebbb6fdc9157
test.json 635829 b3603fc2ba45a9511714f8991b2711d9
"""


def test_the_published_figures() -> None:
    found = {one.file_name: one for _, downloads in downloads_by_name().values() for one in downloads}
    for name, size, known in map(str.split, FIGURES.split("\n")[1:-1]):
        assert (name, str(found[name].num_bytes)) == (name, size)
        assert str(found[name].md5 if len(known) == 32 else found[name].sha256) == known
