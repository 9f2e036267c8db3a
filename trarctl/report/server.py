"""A page to ask checkpoints, and an address for programs that gives JSON: for this machine, and nothing is kept.

Gradio draws the page, on FastAPI, which also answers programs. Uploads, questions and the number of those who wait are
bounded, as pictures are by the reader. One question is answered at a time, however many people ask.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.data.features.reading import read_image
from trarctl.data.prepared import open_prepared
from trarctl.data.text import tokenize
from trarctl.engine.loading import is_prepared
from trarctl.engine.predictor import Prediction, Predictor
from trarctl.errors import DataError, SettingsError, TrarError
from trarctl.report.answers import answers_document, answers_html, error_html, head_html
from trarctl.report.pictures import Thumbnail, thumbnail_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

MOST_CHARACTERS = 1000  # of a question
MOST_ANSWERS = 100
MOST_WAITING = 16  # questions; more are told to come back
MOST_CONNECTIONS = 256
MOST_EXAMPLES = 6
API_PATH = "/api/ask"
_FORM_BYTES = 64 * 1024  # of a request, besides the picture
_KEPT_SECONDS = 3600  # an uploaded picture, to ask about it again
_CLOSING_SECONDS = 2  # for what is being answered when the server stops
_HEADERS = {
    # The page needs nothing from outside, and browsers see to it.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class RefusedError(TrarError):
    """A request that is not answered; ``status`` says so in HTTP."""

    def __init__(self, status: int, what: str, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.status = status


@dataclass(frozen=True)
class Served:
    """A checkpoint that is asked."""

    predictor: Predictor
    checkpoint: Path


class Desk:
    """Take questions about pictures to checkpoints, by name, one at a time."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served
        self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)

    def ask(
        self, picture: Path, question: str, *, names: Sequence[str] = (), top: int = 5
    ) -> tuple[dict[str, Prediction], Thumbnail]:
        """Give what the checkpoints answer, all or those in ``names``, and the picture; a TrarError says why not."""
        question = _readable(question)
        if not self._places.acquire(blocking=False):
            raise RefusedError(503, "too many people are asking", "try again in a moment")
        try:
            with self._lock:
                image = _read(picture)
                asked = {
                    name: self.served[name].predictor.ask([image], [question], top=top)[0]
                    for name in names or self.served
                }
                return asked, thumbnail_of(image)
        finally:
            self._places.release()


def _readable(question: str) -> str:
    """Take control characters and line ends out of a question; a RefusedError says what is wrong with it."""
    if len(question) > MOST_CHARACTERS:
        what = f"the question has {len(question):,} characters, more than {MOST_CHARACTERS:,}"
        raise RefusedError(413, what, "ask in a sentence")
    question = " ".join("".join(one if one.isprintable() else " " for one in question).split())
    if not tokenize(question):
        raise RefusedError(400, "the question holds no word", "ask in words, such as: what shape is shown?")
    return question


def _read(picture: Path) -> Any:
    try:
        return read_image(picture)
    except DataError as error:
        if not picture.is_file():
            raise RefusedError(410, "the picture is no longer kept", "choose it again") from None
        # Where it lies for a moment says nothing to those who ask.
        raise DataError(error.what.replace(str(picture), "the picture"), error.hint) from None


def examples_of(prepared: Path | None, images: Path | None, folder: Path) -> list[list[str]]:
    """Copy a few pictures of a data set into ``folder``; give their files, and a question about each.

    ``images`` is the folder of its pictures; None for its own. Without prepared data or pictures there are none.
    """
    if prepared is None or not is_prepared(prepared):
        return []
    data = open_prepared(prepared)
    pictures = images or data.own_pictures()
    names = [name for name in ("val", "test", *data.split_names) if name in data.split_names]
    if pictures is None or not names:
        return []
    split, folder = data.split(names[0]), folder / "examples"
    folder.mkdir(exist_ok=True)
    found: dict[str, str] = {}  # by question, so that they differ
    for row in np.random.default_rng(0).permutation(len(split))[: 50 * MOST_EXAMPLES].tolist():
        path, question = data.picture(pictures, int(split.image[row])), split.question_text(row)
        if path is None or question in found or len(question) > MOST_CHARACTERS:
            continue
        copy = folder / f"{len(found)}{path.suffix}"
        with suppress(OSError):
            copy.write_bytes(path.read_bytes())
            found[question] = str(copy)
        if len(found) == MOST_EXAMPLES:
            break
    return [[path, question] for question, path in found.items()]


def require_gradio(folder: Path) -> Any:
    """Give gradio, which tells nobody anything, and keeps its files in ``folder``; DataError if it is not installed."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}  # some is read on import
    try:
        import gradio
    except ModuleNotFoundError:
        raise DataError("the page needs gradio, which is not installed", 'pip install "trarctl[serve]"') from None
    return gradio


def make_app(desk: Desk, folder: Path, *, examples: Sequence[Sequence[str]] = (), upload_bytes: int) -> FastAPI:
    """Make the page and the address for programs; what they need for a while is in ``folder``."""
    gradio = require_gradio(folder)
    from fastapi import FastAPI

    no_docs = {"docs_url": None, "redoc_url": None, "openapi_url": None}  # their pages come from elsewhere
    app = FastAPI(**no_docs)
    app.add_route(API_PATH, partial(_ask_by_form, desk=desk, folder=folder), methods=["GET", "POST"])
    if examples:
        gradio.set_static_paths([str(folder / "examples")])
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    theme = gradio.themes.Base(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono"])
    gradio.mount_gradio_app(
        app,
        _page(gradio, desk, examples, folder),
        path="/",
        app_kwargs=no_docs,
        footer_links=[],
        run_history=False,
        mcp_server=False,
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=upload_bytes,
        theme=theme,
        css_paths=[Path(__file__).with_name("templates") / "serve.css"],
    )
    app.add_middleware(_Guard, most_bytes=upload_bytes + _FORM_BYTES)
    return app


def _uploaded(picture: Any, folder: Path) -> Path:
    """Give the file that the page means, if it is one of those that were sent to it."""
    if not picture:
        raise RefusedError(400, "there is no picture yet", "choose one, or one of the examples")
    path = Path(str(picture.get("path") if isinstance(picture, dict) else ""))
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RefusedError(403, "this is no picture that was chosen here", "choose one")
    return path


def _page(gradio: Any, desk: Desk, examples: Sequence[Sequence[str]], folder: Path) -> Any:
    def ask(picture: Any, question: Any) -> str:
        """Answer as HTML; the arguments come from the browser as they are, and may be anything."""
        try:
            asked, shown = desk.ask(_uploaded(picture, folder), str(question or ""))
            return answers_html({name: (desk.served[name].predictor, one) for name, one in asked.items()}, shown)
        except TrarError as error:
            return error_html(error)

    with gradio.Blocks(
        title="Ask TRAR", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS), fill_width=True
    ) as page:
        gradio.HTML(head_html({name: one.predictor for name, one in desk.served.items()}), apply_default_css=False)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                picture = gradio.Image(
                    label="Picture", type="filepath", sources=["upload", "clipboard"], height=300, buttons=[]
                )
                question = gradio.Textbox(
                    label="Question", placeholder="what shape is shown?", max_length=MOST_CHARACTERS, lines=1
                )
                button = gradio.Button("Ask", variant="primary")
            with gradio.Column(scale=3, min_width=300):
                nothing = '<p class="trar-empty">Choose a picture, type a question, and press Ask.</p>'
                result = gradio.HTML(nothing, apply_default_css=False)
        if examples:
            shown = [list(one) for one in examples]
            gradio.Examples(shown, [picture, question], cache_examples=False, elem_id="trar-examples")
        gradio.on(
            [button.click, question.submit],
            ask,
            [picture, question],
            result,
            preprocess=False,  # Gradio would open any file, or fetch it, before the reader is asked
            concurrency_limit=1,
            api_visibility="private",
        )
    page.queue(max_size=MOST_WAITING)
    return page


async def _ask_by_form(request: Request, desk: Desk, folder: Path) -> Any:
    """Answer ``POST /api/ask`` with what ``trarctl predict --json`` gives, or with what is wrong and the fix."""
    from anyio.to_thread import run_sync
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    try:
        if request.method != "POST":
            raise RefusedError(405, f"{request.method} is not answered here", f"POST a form to {API_PATH}")
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise RefusedError(
                415, "expected a form with image and question", f"curl -F image=@FILE -F question=TEXT {request.url}"
            )
        try:
            async with request.form(max_files=1, max_fields=8, max_part_size=_FORM_BYTES) as form:
                return JSONResponse(await run_sync(_answer_form, form, desk, folder))
        except HTTPException as error:
            raise RefusedError(error.status_code, str(error.detail), "send one picture and one question") from None
    except TrarError as error:
        status = error.status if isinstance(error, RefusedError) else 400 if isinstance(error, DataError) else 500
        return JSONResponse({"what": error.what, "hint": error.hint}, status)


def _answer_form(form: Mapping[str, Any], desk: Desk, folder: Path) -> dict[str, object]:
    upload, question = form.get("image"), form.get("question")
    name, top = form.get("ckpt") or next(iter(desk.served)), str(form.get("top") or 5)
    if upload is None or isinstance(upload, str) or not isinstance(question, str):
        missing = "image" if upload is None or isinstance(upload, str) else "question"
        raise RefusedError(400, f"the form has no {missing}", "send the fields image, a file, and question")
    if name not in desk.served:
        raise RefusedError(404, f"no checkpoint {str(name)[:80]!r} is served", f"one of {', '.join(desk.served)}")
    if not (top.isascii() and top.isdecimal() and 1 <= int(top[:4]) <= MOST_ANSWERS):
        raise RefusedError(400, f"top is {top[:80]!r}, expected 1 to {MOST_ANSWERS}", "leave it out for 5")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(upload.file.read())
        file.flush()
        asked, _ = desk.ask(Path(file.name), question, names=[name], top=int(top))
    served = desk.served[name]
    return answers_document(list(asked.values()), [upload.filename], served.predictor, served.checkpoint)


class _Guard:
    """Bound what is sent, answer nobody who came by another site's name, and fetch nothing for anyone."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._most_bytes:
                raise HTTPException(413, self._too_much)
            return message

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        named = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        here = (scope.get("server") or ("",))[0]
        error = None
        if is_loopback(here) and not is_loopback(named.strip("[]")):
            # A site that has its name lead here would read what is answered.
            error = RefusedError(403, "this address is for this machine alone", "open the one that trarctl serve shows")
        elif any(part in scope["path"].lower() for part in ("http:", "https:", "/proxy=")):
            error = RefusedError(403, "nothing is fetched from elsewhere")
        elif int(headers.get("content-length") or 0) > self._most_bytes:
            error = RefusedError(413, self._too_much, "send a smaller picture")
        if error is None:
            await self._app(scope, bounded, marked)
        else:
            await JSONResponse({"what": error.what, "hint": error.hint}, error.status)(scope, receive, marked)

    @property
    def _too_much(self) -> str:
        return f"more than {self._most_bytes - _FORM_BYTES:,} bytes were sent"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port, 0 for any; SettingsError if that cannot be done."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"cannot listen on {host}, port {port}: {reason}", "--port 0 takes any that is free"
        ) from None
    return listening


def run_app(app: FastAPI, listening: socket.socket) -> None:
    """Serve until a signal ends it."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = uvicorn.Server(config)
    # Pages that are still open then are nobody's fault.
    logging.getLogger("uvicorn.error").addFilter(lambda _record: not server.should_exit)
    server.run(sockets=[listening])
