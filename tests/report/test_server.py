from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.small_runs import COLOURS, SmallRun, draw, make_run
from trarctl import cli
from trarctl.engine.evaluator import Request
from trarctl.engine.predictor import open_predictor
from trarctl.errors import DataError, SettingsError, TrarError
from trarctl.report import server
from trarctl.report.answers import answers_html, error_html, head_html
from trarctl.report.server import Desk, RefusedError, Served

HOSTILE = '<script>alert(1)</script> ${alert(2)} {{constructor}} "what" is\x00it\x1b[2J\u202e?'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("server"), "model.spans=0,1,2,3", epochs=1)


@pytest.fixture(scope="module")
def desk(run: SmallRun) -> Desk:
    served = {}
    for name in (run.name, f"{run.name}@1"):
        predictor, chosen = open_predictor(Request(name, None, "", None, (f"run.folder={run.runs}",), "cpu"))
        served[name] = Served(predictor, chosen.checkpoint)
    return Desk(served)


def refusal(desk: Desk, picture: Path, question: str) -> TrarError:
    with pytest.raises(TrarError) as caught:
        desk.ask(picture, question)
    return caught.value


def test_all_checkpoints_answer_or_those_that_are_named(desk: Desk, run: SmallRun) -> None:
    asked, picture = desk.ask(run.picture, "what color is the shape?")
    assert list(asked) == [run.name, f"{run.name}@1"]
    assert len({one.answers for one in asked.values()}) == 1  # the run has one epoch
    assert picture.size == (64, 64)
    asked, _ = desk.ask(run.picture, "what color is the shape?", names=[f"{run.name}@1"], top=2)
    assert [(name, len(one.answers)) for name, one in asked.items()] == [(f"{run.name}@1", 2)]


@pytest.mark.parametrize(
    ("question", "what"),
    [
        ("", "the question holds no word"),
        ("?! \x00\n", "the question holds no word"),
        ("a " * 50_000, "the question has 100,000 characters, more than 1,000"),
    ],
)
def test_questions_are_bounded(desk: Desk, run: SmallRun, question: str, what: str) -> None:
    assert refusal(desk, run.picture, question).what == what


def test_control_characters_are_left_out_of_a_question(desk: Desk, run: SmallRun) -> None:
    asked, _ = desk.ask(run.picture, "is\x00there a\x1b[2J\u202e\n circle?", names=[run.name])
    assert asked[run.name].question == "is there a [2J circle?"


def test_errors_do_not_say_where_a_picture_lies(desk: Desk, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    assert refusal(desk, wrong, "what?").what == "the picture is not an image, or is damaged"
    gone = refusal(desk, tmp_path / "gone.png", "what?")
    assert (gone.what, gone.hint) == ("the picture is no longer kept", "choose it again")


def test_who_comes_when_too_many_wait_is_sent_away(desk: Desk, run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "_places", threading.BoundedSemaphore(1))
    with desk._lock, ThreadPoolExecutor() as pool:
        first = pool.submit(desk.ask, run.picture, "what color is the shape?")
        while desk._places._value:  # type: ignore[attr-defined]
            pass
        error = refusal(desk, run.picture, "what color is the shape?")
        assert isinstance(error, RefusedError)
        assert (error.status, error.what) == (503, "too many people are asking")
        desk._lock.release()
        first.result()
        desk._lock.acquire()
    desk.ask(run.picture, "what color is the shape?")


def shares_in(page: str) -> list[float]:
    return [float(text) for text in re.findall(r'class="share">([\d.]+) %', page)]


def test_the_page_shows_answers_routes_and_attention(desk: Desk, run: SmallRun) -> None:
    asked, picture = desk.ask(run.picture, "what color is the shape?", names=[run.name], top=3)
    page = answers_html({run.name: (desk.served[run.name].predictor, asked[run.name])}, picture)
    assert shares_in(page) == pytest.approx([100 * share for _, share in asked[run.name].answers], abs=0.051)
    numbers = [float(text) for text in re.findall(r"<td>([\d.]+)</td>", page)]
    # On a grid of 4 x 4, spans of radius 0, the whole, and 3 hold the same cells.
    merged = [[layer[0] + layer[3], layer[1], layer[2]] for layer in asked[run.name].routes]
    assert numbers == pytest.approx([100 * one for layer in merged for one in layer], abs=0.051)
    assert re.findall(r"<figcaption>(.*)</figcaption>", page) == ["read for the answer", "layer 1", "layer 2"]
    assert page.count('class="over"') == 3


def test_answers_below_a_thousandth_are_left_out_but_never_all(desk: Desk, run: SmallRun) -> None:
    from dataclasses import replace

    asked, picture = desk.ask(run.picture, "what?", names=[run.name])
    for shares, shown in (([0.9985, 0.001, 0.0005], [99.9, 0.1]), ([0.0005, 0.0004], [0.1])):
        one = replace(asked[run.name], answers=tuple(zip("abc", shares, strict=False)))
        assert shares_in(answers_html({"x": (desk.served[run.name].predictor, one)}, picture)) == pytest.approx(
            shown, abs=0.051
        )


def test_hostile_text_stays_text(desk: Desk, run: SmallRun) -> None:
    asked, picture = desk.ask(run.picture, HOSTILE, names=[run.name])
    predictor = desk.served[run.name].predictor
    pages = [answers_html({HOSTILE: (predictor, asked[run.name])}, picture)]
    pages += [error_html(DataError(HOSTILE, HOSTILE)), head_html({HOSTILE: predictor})]
    for page in pages:
        assert "&lt;script&gt;" in page
        assert not re.search(r"<script|[{}$`]", page)


def test_examples_are_those_of_the_data(run: SmallRun, tmp_path: Path) -> None:
    found = server.examples_of(run.prepared, run.raw, tmp_path)
    known = {
        ((run.raw / "test" / "images" / f"{image}.png").read_bytes(), question)
        for question, _, image in json.loads((run.raw / "test" / "questions.json").read_text())
    }
    assert {(Path(path).read_bytes(), question) for path, question in found} <= known
    assert len(found) == len({question for _, question in found}) == 6
    assert server.examples_of(None, run.raw, tmp_path) == []
    assert server.examples_of(tmp_path, run.raw, tmp_path) == []


def test_a_port_that_is_taken_is_named() -> None:
    with server.open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            server.open_socket("127.0.0.1", port)
    with pytest.raises(SettingsError, match="cannot listen on no.such.host.invalid, port 1"):
        server.open_socket("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("LocalHost", True),
        ("127.evil", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert server.is_loopback(host) == expected


# From here on with gradio: make test-serve.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def client(desk: Desk, folder: Path) -> Iterator[Any]:
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    app = server.make_app(desk, folder, upload_bytes=200_000)
    # As uvicorn would: the server's own address is in the scope.
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def ask(client: Any, run: SmallRun) -> Callable[..., Any]:
    def post(question: str = "what color is the shape?", image: bytes | None = None, **fields: str) -> Any:
        files = {"image": ("a.png", run.picture.read_bytes() if image is None else image)}
        return client.post("/api/ask", data={"question": question, **fields}, files=files)

    return post


def test_json_is_that_of_predict(
    ask: Callable[..., Any], run: SmallRun, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--ckpt", run.name, *run.folder_option, "--image", str(run.picture)]
    assert cli.run([*words, "--question", "what color is the shape?", "--json", "-", "--top", "3"]) == 0
    expected = json.loads(capsys.readouterr().out)
    expected["predictions"][0]["image"] = "a.png"
    response = ask(top="3")
    assert response.status_code == 200
    assert response.json() == expected
    assert ask(ckpt=f"{run.name}@1", top="3").json()["checkpoint"] == expected["checkpoint"]
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def huge_png() -> bytes:
    """A picture that says it has 100,000 x 100,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("fields", "status", "what"),
    [
        ({"image": b"no picture"}, 400, "the picture is not an image, or is damaged"),
        ({"image": b""}, 400, "the picture is empty"),
        ({"image": huge_png()}, 400, "the picture has 100,000 x 100,000 pixels, more than 178,956,970 in all"),
        ({"image": b"x" * 300_000}, 413, "more than 200,000 bytes were sent"),
        ({"question": "?!"}, 400, "the question holds no word"),
        ({"question": "a" * 1001}, 413, "the question has 1,001 characters, more than 1,000"),
        ({"question": "a" * 100_000}, 400, "Part exceeded maximum size of 64KB."),
        ({"ckpt": "<b>"}, 404, "no checkpoint '<b>' is served"),
        ({"top": "0"}, 400, "top is '0', expected 1 to 100"),
        ({"top": "9" * 5000}, 400, "top is '9999"),
    ],
)
def test_what_is_wrong_is_json_too(ask: Callable[..., Any], fields: dict[str, Any], status: int, what: str) -> None:
    response = ask(**fields)
    assert response.json()["what"].startswith(what)
    assert response.json().keys() == {"what", "hint"}
    assert response.status_code == status


def test_forms_that_are_none(client: Any, run: SmallRun) -> None:
    assert client.get("/api/ask").status_code == 405
    assert client.post("/api/ask", json={"question": "what?"}).status_code == 415
    missing = client.post("/api/ask", files={"image": ("a.png", b"a")})
    assert (missing.status_code, missing.json()["what"]) == (400, "the form has no question")
    missing = client.post("/api/ask", data={"question": "a", "image": "b"}, files={"other": ("a", b"a")})
    assert (missing.status_code, missing.json()["what"]) == (400, "the form has no image")
    broken = client.post("/api/ask", content=b"--", headers={"content-type": "multipart/form-data"})
    assert (broken.status_code, broken.json().keys()) == (400, {"what", "hint"})

    kind = {"content-type": "multipart/form-data; boundary=a"}
    long = client.post("/api/ask", content=(b"x" * 65536 for _ in range(9)), headers=kind)
    assert long.status_code in (400, 413)


def test_people_at_once_get_their_own_answers(ask: Callable[..., Any], tmp_path: Path) -> None:
    def png(shape: str, color: str) -> bytes:
        draw(shape, color, 3).save(tmp_path / f"{shape}{color}.png")
        return (tmp_path / f"{shape}{color}.png").read_bytes()

    pictures = [png(shape, color) for shape in ("circle", "rectangle") for color in COLOURS]
    alone = [ask(image=picture).json() for picture in pictures]
    assert len({json.dumps(one) for one in alone}) == len(pictures)
    with ThreadPoolExecutor(len(pictures)) as pool:
        together = list(pool.map(lambda picture: ask(image=picture).json(), pictures))
    assert together == alone


def test_files_and_addresses_from_elsewhere_are_refused(client: Any, run: SmallRun) -> None:
    for path in (str(run.picture), "/etc/passwd", str(Path(cli.__file__))):
        assert client.get(f"/gradio_api/file={path}").status_code == 403
    for path in (
        "/gradio_api/file=http://example.com/",
        "/gradio_api/proxy=http://example.com/",
        "/gradio_api/file=HTTPS://a.b/",
    ):
        assert client.get(path).json()["what"] == "nothing is fetched from elsewhere"
    assert client.get("/", headers={"host": "evil.example:7860"}).status_code == 403
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200
    assert client.get("/", headers={"host": "[::1]:7860"}).status_code == 200
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_the_page_asks_browsers_for_nothing_from_elsewhere(client: Any) -> None:
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self' ")
    assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""", page.text)
    config = client.get("/config").json()
    assert (config["analytics_enabled"], config["footer_links"]) == (False, [])
    assert "fonts.googleapis" not in client.get("/theme.css").text


def test_the_page_takes_only_what_was_sent_to_it(desk: Desk, run: SmallRun, folder: Path) -> None:
    (folder / "a.png").write_bytes(run.picture.read_bytes())
    assert server._uploaded({"path": str(folder / "a.png")}, folder) == folder / "a.png"
    (folder / "link.png").symlink_to(run.picture)
    for picture in ({"path": str(run.picture)}, {"path": f"{folder}/../x"}, {"url": "http://a/b"}, ["a"], "a.png"):
        with pytest.raises(RefusedError, match="this is no picture that was chosen here"):
            server._uploaded(picture, folder)
    with pytest.raises(RefusedError, match="no picture that was chosen here"):
        server._uploaded({"path": str(folder / "link.png")}, folder)
    with pytest.raises(RefusedError, match="there is no picture yet"):
        server._uploaded(None, folder)


def test_pictures_are_turned_upright(ask: Callable[..., Any], tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    answer = ask(image=(tmp_path / "turned.jpg").read_bytes()).json()["predictions"][0]
    assert answer["image_size"] == [30, 60]


def test_listening_on_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        with server.open_socket("::1", 0) as listening:
            assert listening.family == socket.AF_INET6
    except SettingsError:
        pytest.skip("no IPv6")
