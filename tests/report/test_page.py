from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.test_outcomes import drawn_scores
from trarctl.config.resolve import resolve
from trarctl.data.datasets.base import DatasetSpec
from trarctl.data.metrics import measure
from trarctl.data.prepared import open_prepared
from trarctl.engine.evaluator import Chosen, Request
from trarctl.engine.run import RunFolder, replaced_settings
from trarctl.errors import DataError
from trarctl.report import page
from trarctl.report.gallery import Example
from trarctl.report.page import ReportRequest, prepare_folder, write_report


@pytest.fixture
def request_for(golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReportRequest:
    """Random scores of VQA questions by a model with three spans, in a run folder without metrics; no examples."""
    monkeypatch.setattr(page, "examples", lambda *_: ([], ["no images: <b>"]))
    data = open_prepared(golden_data["vqa"])
    split = data.split("val")
    scores = drawn_scores(golden_data["vqa"], is_exclusive=False)
    settings = resolve("vqa", environ={}, sets=["model.spans=0,1,2", "model.routing=hard"]).settings
    run = RunFolder(tmp_path / "run")
    run.create()
    with replaced_settings(run, settings, data.path):
        pass
    chosen = Chosen(
        Request(None, None, "val"), run.checkpoints / "<i>x.safetensors", "the file given", data.path, settings, {}, ()
    )
    return ReportRequest(scores, measure(scores.predictions(), data, split, "upstream"), data, split, chosen)


def cells(text: str) -> list[list[str]]:
    """The texts of the table of accuracies, row by row."""
    table = text[text.index('<section id="accuracy">') : text.index("</table>")]
    return [re.findall(r">([^<>]+)</t[hd]>", row) for row in table.split("<tr>")[1:]]


def test_accuracy_stands_beside_guesses_and_published_results(
    request_for: ReportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the small split were the whole published one.
    monkeypatch.setattr(DatasetSpec, "published_on", lambda spec, split, *_: spec.published.get(split, ()))
    path, notes = write_report(request_for, tmp_path)
    heading, *rows, overall = cells(path.read_text(encoding="utf-8"))
    assert heading[2:] == [
        "this model, %",
        "question alone, %",
        "commonest answer, %",
        "published: soft, avg, %",
        "published: hard, attention, binarize, %",
    ]
    measured = request_for.measured
    assert [row[0] for row in rows] == sorted(measured.per_type)
    assert [row[2] for row in rows] == [f"{measured.per_type[row[0]]:.2f}" for row in rows]
    assert overall[2] == f"{measured.overall:.2f}"
    assert overall[-1] == "67.62"
    assert sum(int(row[1]) for row in rows) == int(overall[1]) == len(request_for.split)
    assert notes == ["no images: <b>"]


def test_texts_are_escaped(request_for: ReportRequest, tmp_path: Path) -> None:
    text = write_report(request_for, tmp_path)[0].read_text(encoding="utf-8")
    assert "&lt;i&gt;x" in text
    assert "<i>x" not in text
    assert "no images: &lt;b&gt;" in text


def test_hostile_examples_are_escaped(
    request_for: ReportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes from files: questions, answers, types, ids of images, and why a picture is missing."""
    bad = "\"'><script>alert(1)</script>"
    shown = Example(bad, bad, 0.0, [(bad, 2), (bad, 1)], [(bad, 0.5)], [[0.5, 0.3, 0.2]], None, ["data:,"], bad, bad)
    monkeypatch.setattr(page, "examples", lambda *_: ([shown], [bad]))
    text = write_report(request_for, tmp_path)[0].read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "alert(1)</script>" not in text
    escaped = "&#34;&#39;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
    assert text.count(escaped) >= 8


def test_curves_are_there_where_metrics_are(request_for: ReportRequest, tmp_path: Path) -> None:
    text = write_report(request_for, tmp_path)[0].read_text(encoding="utf-8")
    assert "<h2>Training</h2>" not in text
    assert "<h3>Over training</h3>" not in text
    run = RunFolder(request_for.chosen.checkpoint.parent.parent)
    for step in (1, 2):
        values = {"loss": 1 / step, "learning_rate": 1e-4, "temperature": 0.5, "routes": [[0.2, 0.3, 0.5]] * 2}
        run.record({"event": "step", "epoch": 1, "step": step} | values)
    run.record({"event": "validation", "epoch": 1, "overall": 50.0, "per_type": {"other": 40.0}})
    text = write_report(request_for, tmp_path)[0].read_text(encoding="utf-8")
    figures = re.findall(r"<figcaption>(.*?)</figcaption><svg", text)
    assert figures == ["loss per sample", "accuracy on val, %", "learning rate", "temperature", "layer 1", "layer 2"]
    assert "<title>overall: 50</title>" in text


def test_routes_are_shares_of_the_spans(request_for: ReportRequest, tmp_path: Path) -> None:
    text = write_report(request_for, tmp_path)[0].read_text(encoding="utf-8")
    means = request_for.scores.routes.mean(axis=0)
    label = ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in zip(("whole", "3x3", "5x5"), means[1], strict=True)
    )
    assert '<th scope="row">all</th>' in text
    assert f'aria-label="{label}"' in text


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(
    request_for: ReportRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_report(request_for, tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match=r"cannot write the report to .*: No space left on device"):
        write_report(request_for, tmp_path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["index.html"]


def test_a_missing_jinja2_is_named_before_anything_is_done(tmp_path: Path) -> None:
    """In a process of its own, where neither jinja2 nor what comes with it can be imported."""
    code = f"""
import sys
sys.modules |= dict.fromkeys(("jinja2", "markupsafe"))
from pathlib import Path
from trarctl.errors import DataError
from trarctl.report.gallery import Example
from trarctl.report.page import prepare_folder
try:
    prepare_folder(Path({str(tmp_path / "new")!r}))
except DataError as error:
    print(error.what, error.hint, sep=" | ")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == 'reports need jinja2, which is not installed | pip install "trarctl[report]"\n', (
        result.stderr
    )
    assert not (tmp_path / "new").exists()


def test_the_folder_is_made_and_tried(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the report to"):
        prepare_folder(tmp_path / "file")
