from __future__ import annotations

import base64
import hashlib
import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.small_runs import HOSTILE, SmallRun, make_run
from trarctl import cli


class Page(HTMLParser):
    """The tags of a page and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("report"), "model.routing=hard")


def report(run: SmallRun, folder: Path, *options: str) -> str:
    arguments = ["eval", "--ckpt", run.name, *run.folder_option, "--gpus", "cpu", "--report", str(folder), *options]
    assert cli.run(arguments) == 0
    return (folder / "index.html").read_text(encoding="utf-8")


def test_one_file_that_needs_nothing_else(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(run, tmp_path / "a" / "report", "--images", str(run.raw))
    page = Page(text)
    assert f"report written to {tmp_path / 'a' / 'report' / 'index.html'}, 0." in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a" / "report").iterdir()] == ["index.html"]
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    assert page.handlers == []
    for heading in ("Accuracy by type", "Training", "Routes", "Calibration", "Commonest confusions", "Examples"):
        assert f"<h2>{heading}</h2>" in text
    for heading in ("loss per sample", "learning rate", "temperature", "layer 2"):
        assert f"<figcaption>{heading}</figcaption>" in text
    assert text.count('class="photo"') == text.count("<article")
    assert "no images" not in text


def test_hostile_questions_stay_text(run: SmallRun, tmp_path: Path) -> None:
    text = report(run, tmp_path)
    page = Page(text)
    assert html.escape(HOSTILE).replace("&quot;", "&#34;") in text
    assert "x" not in page.references
    assert "<img src=x" not in text


def test_the_page_allows_its_own_script_alone(run: SmallRun, tmp_path: Path) -> None:
    text = report(run, tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_accuracy_is_that_of_the_command(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report(run, tmp_path)
    overall = capsys.readouterr().out.splitlines()[-1].split()[1:]
    footer = text[text.index("<tfoot>") : text.index("</tfoot>")]
    assert re.findall(r">(\d+\.\d\d)</td>", footer) == overall


def test_pictures_that_are_not_at_hand_are_named(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no images: give their folder with --images DIR." in report(run, tmp_path)
    assert "note:  no images: give their folder with --images DIR\n" in capsys.readouterr().err
    text = report(run, tmp_path, "--images", str(tmp_path))
    assert f"no images of this split in {tmp_path}." in text
    assert 'class="photo"' not in text


@pytest.mark.parametrize(
    ("case", "columns"),
    [
        ("vqa_soft_avg", ["published: soft, avg", "published: hard, attention, binarize"]),
        ("clevr_hard_fc_binarize", ["published: hard, fc, binarize"]),
    ],
)
def test_a_checkpoint_of_the_original_beside_the_published_table(
    case: str, columns: list[str], golden_data: dict[str, Path], tmp_path: Path
) -> None:
    file = GOLDEN / "cases" / case
    data = golden_data[case.partition("_")[0]]
    arguments = ["eval", "--ckpt", f"{file}.pkl", "--config", f"{file}.yml", "--data", str(data), "--gpus", "cpu"]
    assert cli.run([*arguments, "--report", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for column in columns:
        assert f">{column}, %</th>" in text
    assert ">67.62</td>" in text or ">99.08</td>" in text
    assert "<h2>Training</h2>" not in text


def test_what_stands_in_the_way(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--ckpt", run.name, *run.folder_option, "--gpus", "cpu"]
    (tmp_path / "file").write_text("")
    assert cli.run([*arguments, "--report", str(tmp_path / "file")]) == 4
    assert f"error: cannot write the report to {tmp_path / 'file'}: File exists\n" in capsys.readouterr().err
    answers = ["--answers", "x.json", "--data", str(run.prepared), "--report", str(tmp_path)]
    assert cli.run(["eval", *answers]) == 3
    assert "error: eval --answers makes no use of --report\nhint:  leave out --report\n" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.run([*arguments, "--report", str(tmp_path)]) == 4
    assert 'error: reports need jinja2, which is not installed\nhint:  pip install "trarctl[report]"\n' in (
        capsys.readouterr().err
    )
