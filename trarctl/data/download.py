"""Published files: where each comes from and belongs, and fetching them so that what is there in the end is right.

A file arrives under the name ``NAME.part``, which the next attempt continues, and takes its own name once its size and
hash are right. ``downloads.json`` in the raw folder says what arrived: where no hash is published, that of the first
time counts from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

import trarctl
from trarctl.data import Progress, no_progress
from trarctl.data.archives import is_archive_name, is_whole_archive, refuse_lack_of_room, unpack
from trarctl.errors import DataError, SettingsError, first_line
from trarctl.files import LOOK_SECONDS, claimed, list_files, refusing, sync_folder, write_json

if TYPE_CHECKING:
    import httpx

RECORDS = "downloads.json"
_CHUNK_BYTES = 1 << 20
_SILENCE_SECONDS = 30.0
# Before each attempt but the first, as long as none brings a byte.
_WAIT_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_WAIT = 60.0  # whatever the server asks for
_MOST_REDIRECTS = 10
# The most that a file may have of which no size is published: with pictures, and of questions alone.
_MOST_BYTES = {True: 1 << 36, False: 1 << 32}
_BUSY = (408, 425, 429)
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416


@dataclass(frozen=True)
class Download:
    """A published file."""

    url: str
    num_bytes: int | None = None  # to the byte, which is checked; None: what the server says
    about_bytes: int | None = None  # where only this much is known
    sha256: str | None = None  # None: what arrives first is recorded
    md5: str | None = None  # checked as well, where it is what is published
    holds: tuple[str, ...] = ()  # the raw files of splits that it is or has packed
    name: str = ""  # in the raw folder; empty: the end of the address
    has_images: bool = False  # it is large, and fetched only when asked for
    unpack_to: str | None = None  # folder in the raw folder; None: it is read as it is
    num_files: int | None = None  # to unpack, as published: a folder that has as many needs none; None: not known
    unpack_prefix: str = ""  # what the names of its files to unpack begin with, which is left out
    finish: Callable[[Path, Progress], str] | None = None  # makes the raw files of it, and says what it made
    part: str | None = None  # what ``trarctl download`` calls it, if it is not for the data set as a whole

    @property
    def file_name(self) -> str:
        """Its name in the raw folder."""
        return self.name or urlsplit(self.url).path.rpartition("/")[2]

    @property
    def size(self) -> int | None:
        """Bytes, as far as they are known."""
        return self.about_bytes if self.num_bytes is None else self.num_bytes

    @property
    def most_bytes(self) -> int:
        """From more bytes on it cannot be the file; where no size is known to the byte, twice what it may have."""
        about = _MOST_BYTES[self.has_images] if self.about_bytes is None else 2 * self.about_bytes
        return about if self.num_bytes is None else self.num_bytes


State = Literal["missing", "begun", "to be verified", "there", "unpacked"]


@dataclass(frozen=True)
class Planned:
    """A file that is wanted, and what is there of it."""

    download: Download
    path: Path
    state: State
    num_present: int = 0  # bytes of it that are there already

    @property
    def num_missing(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return max((self.download.size or 0) - self.num_present, 0) if self.state in ("missing", "begun") else 0


class _Record(BaseModel):
    """What arrived of a file, or is on its way."""

    model_config = ConfigDict(frozen=True)

    url: str
    etag: str | None = None
    last_modified: str | None = None
    is_whole: bool = False
    is_fetched: bool = False  # by this program, so that it may be removed once it is unpacked
    size: NonNegativeInt = 0
    modified_ns: int = 0
    sha256: str | None = None
    verified_by: Literal["published hash", "first sight"] | None = None
    when: str | None = None
    unpacked_files: NonNegativeInt = 0


@dataclass(frozen=True)
class Fetched:
    """A file that is there now."""

    path: Path
    sha256: str
    is_first_sight: bool  # no hash is published, so that this one was recorded
    was_there: bool


def choose(downloads: Sequence[Download], *, only: Sequence[str] = (), with_images: bool = False) -> list[Download]:
    """Choose among the files of a data set: those without pictures, all, or by patterns of their names.

    Raises:
        SettingsError: if a pattern fits no file.
    """
    unused = [pattern for pattern in only if not any(fnmatchcase(one.file_name, pattern) for one in downloads)]
    if unused:
        names = ", ".join(one.file_name for one in downloads)
        raise SettingsError(f"no file is called {' or '.join(unused)}", f"--only takes one of {names}, or a pattern")
    if only:
        return [one for one in downloads if any(fnmatchcase(one.file_name, pattern) for pattern in only)]
    return [one for one in downloads if with_images or not one.has_images]


def plan(downloads: Iterable[Download], raw: Path) -> list[Planned]:
    """See what is there of some files; nothing is hashed, and no server asked."""
    records = _read_records(raw)
    return [_planned(one, raw, records.get(one.file_name)) for one in downloads]


def _planned(download: Download, raw: Path, record: _Record | None) -> Planned:
    path = raw / download.file_name
    part = _part_of(path)
    _refuse_what_is_no_file(path)
    if part.is_symlink():
        raise DataError(f"{part} is a link, which is not followed", f"rm {shlex.quote(str(part))}")
    _refuse_what_is_no_file(part)
    if _is_unpacked(download, raw, record):
        return Planned(download, path, "unpacked")
    if path.exists():
        status = path.stat()
        is_known = record is not None and (record.size, record.modified_ns) == (status.st_size, status.st_mtime_ns)
        is_known = is_known and record is not None and download.sha256 in (None, record.sha256)
        return Planned(download, path, "there" if is_known else "to be verified", status.st_size)
    if part.exists():
        return Planned(download, path, "begun", part.stat().st_size)
    return Planned(download, path, "missing")


def _refuse_what_is_no_file(path: Path) -> None:
    """Refuse a folder, a pipe, or a link to nothing where a file is to be: it is not replaced, nor waited for."""
    if os.path.lexists(path) and not path.is_file():
        raise DataError(f"{path} is there, and is no file", f"mv {shlex.quote(str(path))} ELSEWHERE")


def _is_unpacked(download: Download, raw: Path, record: _Record | None) -> bool:
    """Whether all that a file has packed is there, by whomever it was unpacked."""
    if held := [name for name in download.holds if name != download.file_name]:
        return all((raw / name).is_file() for name in held)
    # What was in the archive counts more than what is said of it.
    expected = (record.unpacked_files if record is not None else 0) or download.num_files or 0
    return download.unpack_to is not None and 0 < expected <= len(list_files(raw / download.unpack_to))


def refuse_full_disk(planned: Sequence[Planned], raw: Path) -> None:
    """See, before anything is fetched, that the disk has room for all of it, as far as sizes are known.

    Archives that are unpacked are removed one after the other: the largest is there beside what they hold.
    """
    kept = sum(one.num_missing for one in planned if one.download.unpack_to is None)
    passing = [one for one in planned if one.download.unpack_to is not None and one.state != "unpacked"]
    sizes = [one.download.size or 0 for one in passing]
    needed = kept + sum(sizes) + max(sizes, default=0) - sum(one.num_present for one in passing)
    refuse_lack_of_room(raw, needed, "fetch and unpack these files")


def fetch(
    downloads: Iterable[Download],
    raw: Path,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = lambda _text: None,
    *,
    wait_seconds: float = LOOK_SECONDS,
) -> list[Fetched]:
    """Fetch files into the raw folder, made where it is missing; what is there already is verified, not fetched again.

    An interrupted file is continued by the next call. A file of somebody else's is never overwritten or removed.

    Args:
        downloads: what to fetch.
        raw: the folder.
        progress: told the bytes.
        tell: told what a user should know: attempts, what starts again, hashes that were recorded.
        wait_seconds: how long to wait for another process that fetches into the folder.

    Raises:
        DataError: if a file cannot be had, is not what was published, or there is no room.
    """
    with refusing(f"cannot write to the folder {raw}", "pass one that can be written: --raw DIR"):
        raw.mkdir(parents=True, exist_ok=True)
    with claimed(raw, f"the folder {raw}", wait_seconds=wait_seconds), contextlib.ExitStack() as stack:
        fetching = _Fetching(raw, _read_records(raw), progress, tell, stack)
        return [fetching.fetch(one) for one in downloads]


class _Attempt(Exception):
    """An attempt that failed in a way that the next may not."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _Fetching:
    """Fetches files into one folder, one after the other."""

    def __init__(
        self,
        raw: Path,
        records: dict[str, _Record],
        progress: Progress,
        tell: Callable[[str], None],
        stack: contextlib.ExitStack,
    ) -> None:
        self._raw = raw
        self._records = records
        self._progress = progress
        self._tell = tell
        self._stack = stack
        self._client: httpx.Client | None = None

    def fetch(self, download: Download) -> Fetched:
        """Have a file whole, verified, recorded, and unpacked where it is to be."""
        name = download.file_name
        planned = _planned(download, self._raw, self._records.get(name))
        if planned.state in ("missing", "begun"):
            self._transfer_verified(download, planned.path)
        elif planned.state == "to be verified":
            sha256 = self._verify(
                download, planned.path, str(planned.path), f"mv {shlex.quote(str(planned.path))} ELSEWHERE"
            )
            self._record_whole(download, planned.path, sha256, is_fetched=False)
        if download.unpack_to is not None and planned.state != "unpacked":
            self._unpack(download, planned.path, download.unpack_to)
        if download.finish is not None and planned.state != "unpacked":
            self._tell(download.finish(self._raw, self._progress))
        record = self._records.get(name)
        return Fetched(
            planned.path,
            "" if record is None or record.sha256 is None else record.sha256,
            record is not None and record.verified_by == "first sight",
            was_there=planned.state not in ("missing", "begun"),
        )

    def _unpack(self, download: Download, path: Path, folder: str) -> None:
        number, _ = unpack(path, self._raw / folder, prefix=download.unpack_prefix, progress=self._progress)
        self._record(download, unpacked_files=number)
        if self._records[download.file_name].is_fetched:
            path.unlink()

    def _transfer_verified(self, download: Download, path: Path) -> None:
        """Fetch a file until what arrived is right; what was pieced together and is wrong is fetched whole once."""
        part, hint = _part_of(path), "run it again; if it stays so, the published file has changed"
        is_pieced = self._transfer(download, part)
        try:
            sha256 = self._verify(download, part, download.url, hint)
        except DataError as error:
            part.unlink()
            if not is_pieced:
                raise
            self._tell(f"{error.what}; it was fetched in several pieces, and is fetched again as a whole")
            self._transfer(download, part)
            sha256 = self._verify(download, part, download.url, hint)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
        sync_folder(path.parent)
        self._record_whole(download, path, sha256, is_fetched=True)

    def _verify(self, download: Download, path: Path, source: str, hint: str) -> str:
        """Compare a file with what is known of it, and give its SHA-256; ``source`` is what messages call it."""
        size = path.stat().st_size
        if download.num_bytes not in (None, size):
            raise DataError(f"{source} has {size:,} bytes, expected {download.num_bytes:,}", hint)
        hashes = {"SHA-256": hashlib.sha256(), "MD5": hashlib.md5(usedforsecurity=False)}
        if download.md5 is None:
            del hashes["MD5"]
        done = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                for one in hashes.values():
                    one.update(chunk)
                done += len(chunk)
                self._progress(f"verifying {download.file_name}", done, size)
        record, found = self._records.get(download.file_name), {kind: one.hexdigest() for kind, one in hashes.items()}
        for kind, expected in (("SHA-256", download.sha256), ("MD5", download.md5)):
            if expected is not None and found[kind] != expected:
                raise DataError(f"{source} has the {kind} {found[kind]}, expected {expected}, as published", hint)
        if record is not None and record.verified_by == "first sight" and found["SHA-256"] != record.sha256:
            what = f"{source} has the SHA-256 {found['SHA-256']}, expected {record.sha256}, recorded on {record.when}"
            raise DataError(
                what, f"if the publisher has changed it, remove {download.file_name} from {self._raw / RECORDS}"
            )
        if download.sha256 is None and is_archive_name(download.file_name) and not is_whole_archive(path):
            raise DataError(f"{source} is no whole archive", hint)
        return found["SHA-256"]

    def _record_whole(self, download: Download, path: Path, sha256: str, *, is_fetched: bool) -> None:
        status = path.stat()
        is_published = download.sha256 is not None or download.md5 is not None
        self._record(
            download,
            is_whole=True,
            is_fetched=is_fetched,
            size=status.st_size,
            modified_ns=status.st_mtime_ns,
            sha256=sha256,
            verified_by="published hash" if is_published else "first sight",
            when=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
        )

    def _record(self, download: Download, **changes: object) -> None:
        record = self._records.get(download.file_name) or _Record(url=download.url)
        self._records[download.file_name] = record.model_copy(update={"url": download.url, **changes})
        content = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in self._records.items()}
        write_json(self._raw / RECORDS, content)

    def _transfer(self, download: Download, part: Path) -> bool:
        """Fetch what is missing of a file, in as many attempts as bring something and a few that bring nothing.

        Returns:
            Whether what is there now came in several pieces.
        """
        most = part.stat().st_size if part.exists() else 0
        num_failed, is_pieced = 0, most > 0
        while True:
            try:
                self._attempt(download, part)
            except _Attempt as failed:
                size = part.stat().st_size if part.exists() else 0
                num_failed = 1 if size > most else num_failed + 1
                most, is_pieced = max(most, size), is_pieced or size > 0
                if num_failed > len(_WAIT_SECONDS):
                    what = f"cannot fetch {download.url}: {failed}"
                    raise DataError(what, f"run it again later, what has arrived is kept; {_BY_HAND}") from failed
                seconds = max(_WAIT_SECONDS[num_failed - 1], min(failed.wait_seconds, _LONGEST_WAIT))
                self._tell(f"{download.file_name}: {failed}; trying again in {seconds:g} s")
                time.sleep(seconds)
            else:
                return is_pieced

    def _attempt(self, download: Download, part: Path) -> None:
        """Ask for what is missing, and append what arrives.

        Raises:
            _Attempt: if asking again may help.
            DataError: if it will not.
        """
        import httpx

        offset = self._kept_of(download, part)
        if offset and offset == download.num_bytes:
            return
        record = self._records.get(download.file_name)
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if record is not None and (condition := _condition(record)):
                headers["If-Range"] = condition
        try:
            with self._opened().stream("GET", download.url, headers=headers) as response:
                _refuse_answer(download, response)
                offset, total = self._place(download, part, response, offset)
                self._append(download, part, response, offset, total)
        except httpx.TooManyRedirects as error:
            raise DataError(f"{download.url} is redirected more than {_MOST_REDIRECTS} times", _BY_HAND) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DataError(f"cannot fetch {download.url}: {first_line(error)}", _BY_HAND) from error
        except httpx.HTTPError as error:
            raise _Attempt(first_line(error) if str(error) else f"{type(error).__name__}") from error

    def _opened(self) -> httpx.Client:
        """Open the connection at the first file that needs it."""
        if self._client is None:
            import httpx

            # Proxies and certificates are those of the environment.
            try:
                client = httpx.Client(
                    follow_redirects=True,
                    max_redirects=_MOST_REDIRECTS,
                    timeout=_SILENCE_SECONDS,
                    headers={"User-Agent": f"trarctl/{trarctl.__version__}"},
                )
            except (ValueError, ImportError, OSError) as error:
                raise DataError(
                    f"cannot use the proxy or the certificates of the environment: {error}", _BY_HAND
                ) from error
            self._client = self._stack.enter_context(client)
        return self._client

    def _kept_of(self, download: Download, part: Path) -> int:
        """How many bytes of an earlier attempt count; they go where nothing could tell whether the rest fits them."""
        if not part.exists():
            return 0
        size, record = part.stat().st_size, self._records.get(download.file_name)
        is_certain = download.sha256 is not None or download.md5 is not None
        is_same = record is not None and not record.is_whole and record.url == download.url
        is_certain = is_certain or (is_same and record is not None and _condition(record) is not None)
        if not is_certain or (download.num_bytes is not None and size > download.num_bytes):
            part.unlink()
            return 0
        return size

    def _place(self, download: Download, part: Path, response: httpx.Response, offset: int) -> tuple[int, int | None]:
        """Tell where in the file what arrives belongs, and how long the file is; note what identifies it."""
        old = self._records.get(download.file_name)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        start, total = _range_of(response)
        pairs = () if old is None or not offset else ((old.etag, etag), (old.last_modified, modified))
        has_changed = any(None not in pair and pair[0] != pair[1] for pair in pairs)
        if response.status_code == _NOT_SATISFIABLE and total == offset and not has_changed:
            return offset, offset
        if response.status_code == _NOT_SATISFIABLE or (
            response.status_code == _PARTIAL and (has_changed or start != offset)
        ):
            part.unlink(missing_ok=True)
            raise _Attempt("the file has changed, or the server gave another part of it")
        if total is not None and (total > download.most_bytes or download.num_bytes not in (None, total)):
            raise _other_size(download, total)
        if offset and response.status_code == _OK:
            self._tell(
                f"{download.file_name}: the server sends it from the start"
                + (", for it has changed" if has_changed else "")
            )
        if offset == 0 or response.status_code == _OK:
            self._record(download, etag=etag, last_modified=modified, is_whole=False, size=total or 0)
        return start, total

    def _append(self, download: Download, part: Path, response: httpx.Response, offset: int, total: int | None) -> None:
        if response.status_code == _NOT_SATISFIABLE:
            return
        if total is not None:
            refuse_lack_of_room(part.parent, total - offset, f"fetch {part.name.removesuffix('.part')}")
        done = offset
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                self._progress(f"fetching {download.file_name}", done, total)
                if done > download.most_bytes:
                    break
        if done > download.most_bytes:
            part.unlink()
            raise _other_size(download, done)
        if total is None and download.num_bytes is None and download.sha256 is None and download.md5 is None:
            what = "neither server nor publisher say how long it is: a cut would not be noticed"
            self._tell(f"{download.file_name}: {what}")
        if total is not None and done < total:
            raise _Attempt(f"the connection ended after {done:,} of {total:,} bytes")


def _other_size(download: Download, num_bytes: int) -> DataError:
    """Say that what a server sends has not the size of the file."""
    expected = f"at most {download.most_bytes:,}" if download.num_bytes is None else f"{download.num_bytes:,}"
    hint = f"the published file has changed, or something in between answers; {_BY_HAND}"
    return DataError(f"{download.url} has {num_bytes:,} bytes, expected {expected}", hint)


def _refuse_answer(download: Download, response: httpx.Response) -> None:
    """Refuse answers that are not the file."""
    status = response.status_code
    answer = f"{status} {response.reason_phrase}".strip()
    if status in _BUSY or status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise _Attempt(f"the server answers {answer}", float(wait) if wait.isascii() and wait.isdecimal() else 0.0)
    if status not in (_OK, _PARTIAL, _NOT_SATISFIABLE):
        raise DataError(f"{download.url} answers {answer}", f"the address may have changed; {_BY_HAND}")
    if status != _NOT_SATISFIABLE and response.headers.get("Content-Type", "").lower().startswith("text/html"):
        what = f"{download.url} answers with a web page in place of the file"
        raise DataError(what, f"a proxy may want a login; {_BY_HAND}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DataError(f"{download.url} is sent in another encoding than asked for", _BY_HAND)
    schemes = {one.url.scheme for one in (*response.history, response)}
    if download.sha256 is None and download.url.startswith("https:") and schemes != {"https"}:
        raise DataError(f"{download.url} leads to an address without encryption, and no hash is published", _BY_HAND)


def _range_of(response: httpx.Response) -> tuple[int, int | None]:
    """Tell where in the file what arrives begins, and how long the file is, None where nobody says."""
    if response.status_code == _OK:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isascii() and length.isdecimal() else None
    match = re.fullmatch(
        r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/(?:([0-9]{1,18})|\*)", response.headers.get("Content-Range", "")
    )
    return (int(match[1] or -1), int(match[2]) if match[2] else None) if match else (-1, None)


def _condition(record: _Record) -> str | None:
    """What makes a server continue only the same file; a weak ETag may stand for files that differ."""
    etags = [record.etag] if record.etag and not record.etag.startswith("W/") else []
    return next((one for one in (*etags, record.last_modified) if one and one.isascii()), None)


_BY_HAND = "--list says what to fetch by other means, and where it belongs"


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _read_records(raw: Path) -> dict[str, _Record]:
    path = raw / RECORDS
    try:
        content = orjson.loads(path.read_bytes())
        return {name: _Record.model_validate(one) for name, one in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise DataError(
            f"cannot read {path}: {first_line(error)}", "remove it: the files are verified again"
        ) from error


def holders(downloads: Iterable[Download], names: Iterable[str]) -> list[Download]:
    """List the files that have to be fetched for some raw files; for pictures only where there is no other way."""
    found = dict[str, Download]()
    for name in names:
        for one in sorted(downloads, key=lambda one: one.has_images):
            if name in one.holds:
                found.setdefault(name, one)
    return list(dict.fromkeys(found.values()))
