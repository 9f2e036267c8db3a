"""A server of files on this machine that does what servers and networks do: cut, redirect, lie, change, refuse."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A file, and what happens to requests for it."""

    content: bytes
    etag: str | None = '"first"'
    last_modified: str | None = None
    takes_ranges: bool = True
    honors_conditions: bool = True
    cuts: list[int] = field(default_factory=list)  # the next answers end after so many bytes of the body
    statuses: list[int] = field(default_factory=list)  # the next answers are these
    headers: dict[str, str] = field(default_factory=dict)  # further, or others
    redirect: str | None = None
    claimed: int | None = None  # what Content-Length says
    has_length: bool = True
    pauses: list[float] = field(default_factory=list)  # seconds of silence in the middle of the next answers
    range_shift: int = 0  # what it gives begins so many bytes behind what was asked for
    ranges: list[str | None] = field(default_factory=list)  # what requests asked for
    conditions: list[str | None] = field(default_factory=list)
    agents: list[str | None] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        served = self.server.files.get(self.path)
        if served is None:
            self._answer(404, {}, b"not here")
            return
        served.ranges.append(self.headers.get("Range"))
        served.conditions.append(self.headers.get("If-Range"))
        served.agents.append(self.headers.get("User-Agent"))
        if served.statuses and (status := served.statuses.pop(0)):
            self._answer(status, served.headers, b"trouble")
        elif served.redirect is not None:
            self._answer(302, {"Location": served.redirect}, b"")
        else:
            self._serve(served)

    def _serve(self, served: Served) -> None:
        headers = {"ETag": served.etag, "Last-Modified": served.last_modified}
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        is_same = condition is None or condition in headers.values() or not served.honors_conditions
        size, status, start = len(served.content), 200, 0
        if wanted and served.takes_ranges and is_same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + served.range_shift
            if start >= size:
                self._answer(416, {"Content-Range": f"bytes */{size}"}, b"")
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{size - 1}/{size}"
        body = served.content[start:]
        cut = served.cuts.pop(0) if served.cuts else None
        length = len(body) if served.claimed is None else served.claimed
        headers["Content-Length"] = str(length) if served.has_length else None
        is_cut = cut is not None or length > len(body) or not served.has_length
        pause = served.pauses.pop(0) if served.pauses else 0.0
        self._answer(status, headers | served.headers, body[:cut][:length], is_cut=is_cut, pause=pause)

    def _answer(
        self,
        status: int,
        headers: dict[str, str | None] | dict[str, str],
        body: bytes,
        *,
        is_cut: bool = False,
        pause: float = 0,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        half = len(body) // 2 if pause else len(body)
        self.wfile.write(body[:half])
        self.wfile.flush()
        time.sleep(pause)
        try:
            self.wfile.write(body[half:])
        except OSError:  # the client has given up meanwhile
            is_cut = True
        self.close_connection = is_cut


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    files: dict[str, Served]


@contextmanager
def serving(files: dict[str, Served]) -> Iterator[str]:
    """Serve files by their paths while the block runs; gives the server's address."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.files = files
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
