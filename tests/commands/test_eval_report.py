from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import GOLDEN
from tests.small_runs import HOSTILE, SmallRun, make_run
from trarctl import cli
from trarctl.data.datasets.base import DatasetSpec


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
    assert 'class="photo"' in report(run, tmp_path)  # where they lay when the data was prepared
    text = report(run, tmp_path, "--images", str(tmp_path))
    assert f"no images of this split in {tmp_path}." in text
    assert f"note:  no images of this split in {tmp_path}\n" in capsys.readouterr().err
    assert 'class="photo"' not in text


def test_missing_and_damaged_pictures_are_one_note(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.raw, tmp_path / "raw")
    images = tmp_path / "raw" / "test" / "images"
    (images / "0.png").unlink()
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:99])
    text = report(run, tmp_path / "report", "--images", str(tmp_path / "raw"))
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "have no image" in line)
    found = re.fullmatch(
        rf"note:  (\d+) of (\d+) examples have no image in {tmp_path / 'raw'}; 1 of 11 images are unusable: "
        rf"{images / '1.png'} is truncated or damaged: .*",
        said,
    )
    assert found is not None, said
    ids = re.findall(r"image (\d+), question", text)
    assert [int(number) for number in found.groups()] == [ids.count("0"), len(ids)]
    assert text.count('class="photo"') == len([one for one in ids if one not in "01"])
    assert html.escape(said.removeprefix("note:  ")).replace("&#x27;", "&#39;") in text


def test_pictures_of_the_report_are_upright(run: SmallRun, tmp_path: Path) -> None:
    """Stored on their sides, with a tag that says so: the page shows what the model saw."""
    shutil.copytree(run.raw, tmp_path / "raw")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (tmp_path / "raw" / "test" / "images").iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    straight = report(run, tmp_path / "a", "--images", str(run.raw))
    turned = report(run, tmp_path / "b", "--images", str(tmp_path / "raw"))
    photos = [re.findall(r'class="photo" src="([^"]+)"', text) for text in (straight, turned)]
    assert photos[0] == photos[1] != []


def test_hostile_names_of_files_stay_text(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "<script>alert('1')</script>"
    shutil.copytree(run.raw, folder)
    (folder / "test" / "images" / "3.png").write_bytes(b"")
    text = report(run, tmp_path / "report", "--images", str(folder))
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "&lt;script&gt;alert(&#39;1&#39;)&lt;" in text
    assert "3.png is empty" in capsys.readouterr().err


def test_a_foreign_page_is_not_replaced(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other files stay; an earlier report is replaced, and another program's page is not."""
    (tmp_path / "notes.txt").write_text("mine")
    first = report(run, tmp_path)
    assert len(report(run, tmp_path)) == len(first)
    (tmp_path / "index.html").write_text("<html>my site</html>")
    capsys.readouterr()
    assert cli.run(["eval", "--ckpt", run.name, *run.folder_option, "--gpus", "cpu", "--report", str(tmp_path)]) == 4
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'index.html'} was not written by this program, and would be replaced\n" in err
    assert "checkpoint" not in err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "notes.txt": "mine",
        "index.html": "<html>my site</html>",
    }


@pytest.mark.parametrize(
    ("case", "columns"),
    [
        ("vqa_soft_avg", ["published: soft, avg", "published: hard, attention, binarize"]),
        ("clevr_hard_fc_binarize", ["published: hard, fc, binarize"]),
    ],
)
def test_a_checkpoint_of_the_original_beside_the_published_table(
    case: str, columns: list[str], golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GOLDEN / "cases" / case
    data = golden_data[case.partition("_")[0]]
    arguments = ["eval", "--ckpt", f"{file}.pkl", "--config", f"{file}.yml", "--data", str(data), "--gpus", "cpu"]
    assert cli.run([*arguments, "--report", str(tmp_path)]) == 0
    assert ">published: " not in (tmp_path / "index.html").read_text(encoding="utf-8")  # 100 of all the questions
    # As if the small split were the whole published one.
    monkeypatch.setattr(DatasetSpec, "published_on", lambda spec, split, *_: spec.published.get(split, ()))
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
