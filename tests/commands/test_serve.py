from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.serving import SECONDS, serving
from tests.small_runs import SmallRun, make_run
from trarctl import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    pytest.importorskip("gradio")
    return make_run(tmp_path_factory.mktemp("serve"), epochs=1)


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.run(["serve", "--ckpt", "nothing"]) == 4
    assert capsys.readouterr().err == (
        'error: the page needs gradio, which is not installed\nhint:  pip install "trarctl[serve]"\n'
    )


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.run(["serve", "--ckpt", "nothing", "--port", str(port)]) == 3
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use\n"
        "hint:  --port 0 takes any that is free\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(run: SmallRun, tmp_path: Path, number: signal.Signals) -> None:
    import httpx

    temporary = tmp_path / "temporary"
    with serving(run, temporary, "--ckpt", f"{run.name}@1") as (address, process):
        files = {"files": ("a.png", run.picture.read_bytes())}
        (uploaded,) = httpx.post(f"{address}/gradio_api/upload", files=files, timeout=SECONDS).json()
        assert Path(uploaded).is_relative_to(temporary)
        assert Path(uploaded).is_file()
        # A page that is open holds a connection that never ends by itself.
        with httpx.stream("GET", f"{address}/gradio_api/heartbeat/abc", timeout=SECONDS) as beat:
            assert beat.status_code == 200
            process.send_signal(number)
            assert process.wait(SECONDS) == 128 + number
    assert list(temporary.iterdir()) == []
    said = (tmp_path / "stderr.txt").read_text()
    assert said.endswith(f"\nstopped: by {number.name}; nothing that was asked is kept\n")
    assert "Traceback" not in said
    assert "warning" not in said


def test_an_address_that_others_reach_is_warned_of(run: SmallRun, tmp_path: Path) -> None:
    import httpx

    with serving(run, tmp_path / "temporary", "--host", "0.0.0.0", "--max-upload", "1") as (address, _):  # noqa: S104
        port = address.rpartition(":")[2]
        here = f"http://127.0.0.1:{port}/api/ask"
        too_much = httpx.post(here, files={"image": ("a", b"a" * 1_100_000)}, timeout=SECONDS)
        assert (too_much.status_code, too_much.json()["what"]) == (413, "more than 1,000,000 bytes were sent")
    said = (tmp_path / "stderr.txt").read_text()
    assert "warning: whoever reaches 0.0.0.0 can ask: there is no password, and nothing is encrypted\n" in said
