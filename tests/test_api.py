from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from PIL import Image

from tests.conftest import GOLDEN
from tests.small_runs import SmallRun, make_run
from trarctl import api
from trarctl.engine import distributed
from trarctl.errors import CheckpointError, DataError, SettingsError

EXAMPLE = Path(__file__).parents[1] / "examples" / "look_into_a_run.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("api"))


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; import trarctl.api; print([name for name in ('torch', 'numpy', 'spacy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_from_checkpoint_to_figures(run: SmallRun) -> None:
    data = api.open_data(run.prepared)
    loaded = api.load_model("tiny@2", runs=run.runs)
    scores = api.score("tiny@2", split="val", runs=run.runs)
    measured = api.accuracy(scores, data, "val")
    insight = api.look_inside(loaded, data, "val", [3, 0, 3])
    assert loaded.epoch == 2
    assert scores.scores.shape == (len(data.split("val")), len(data.answers))
    assert repr(insight) == "<Insight: questions 3, layers 2, spans 3, cells 16>"
    assert np.abs(insight.routes - scores.routes[[3, 0, 3]]).max() < 1e-5
    assert insight.probabilities.argmax(axis=1).tolist() == scores.scores[[3, 0, 3]].argmax(axis=1).tolist()
    by_type = api.routes_by_type(scores, data, "val")
    assert set(by_type) == set(measured.per_type)
    assert all(np.abs(shares.sum(axis=1) - 1).max() < 1e-5 for shares in by_type.values())


def test_scores_are_matched_by_question(run: SmallRun, tmp_path: Path) -> None:
    data = api.open_data(run.prepared)
    scores = api.score("tiny@2", split="val", runs=run.runs)
    turned = replace(
        scores, question_id=scores.question_id[::-1], scores=scores.scores[::-1], routes=scores.routes[::-1]
    )
    measured = api.accuracy(scores, data, "val")
    assert api.accuracy(turned, data, "val").right.tolist() == measured.right.tolist()
    expected, by_type = (api.routes_by_type(one, data, "val") for one in (scores, turned))
    assert all(np.array_equal(by_type[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match="answer other questions: .* more than once"):
        api.accuracy(replace(scores, question_id=np.repeat(scores.question_id[:1], len(scores.scores))), data, "val")
    with pytest.raises(SettingsError, match="there is no evaluator 'oficial'"):
        api.accuracy(scores, data, "val", evaluator="oficial")  # type: ignore[arg-type]
    turned.save(tmp_path / "scores.npz")
    assert np.array_equal(api.load_scores(tmp_path / "scores.npz", data, "val").scores, scores.scores)


def test_the_callers_process_stays_as_it_is(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[int, int]] = []
    monkeypatch.setattr(distributed, "_set_malloc", lambda options: told.append(dict(options)) or True)
    before = torch.get_num_threads()
    loaded = api.load_model("tiny", runs=run.runs)
    api.open_predictor("tiny", runs=run.runs)
    assert (torch.get_num_threads(), told) == (before, [])
    assert loaded.settings.run.num_threads == 1 != before + 1
    torch.set_num_threads(before + 1)
    try:
        api.score("tiny", runs=run.runs)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    # While it scores, freed memory is kept; afterwards the C library has its defaults again.
    assert told[-1] == {-4: 65_536, -1: 128 * 1024, -2: 128 * 1024}


def test_asking_agrees_with_the_stored_features(run: SmallRun) -> None:
    """The extractor describes a picture of the data as it did when the data was prepared."""
    data = api.open_data(run.prepared)
    split = data.split("val")
    row = next(row for row in range(len(split)) if split.question_text(row) == "what color is the shape?")
    picture = run.raw / "test" / "images" / f"{split.image_id[row]}.png"
    (asked,) = api.open_predictor("tiny", runs=run.runs).ask([Image.open(picture)], ["what color is the shape?"], top=1)
    insight = api.look_inside(api.load_model("tiny", runs=run.runs), data, "val", [row])
    assert asked.answers[0][1] == pytest.approx(float(insight.probabilities.max()), abs=1e-5)


def test_two_processes_score_as_one_does_and_leave_nothing(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, two = (api.score("tiny", split="val", gpus=gpus, runs=run.runs) for gpus in ("cpu", "cpu:2"))
    assert np.abs(one.scores - two.scores).max() < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_any_mode_are_read_by_the_same_rules(run: SmallRun, tmp_path: Path) -> None:
    """An opened file with a tag, 16-bit gray and a clear ground answer as the upright 8-bit picture does."""
    predictor = api.open_predictor("tiny", runs=run.runs)
    with Image.open(run.picture) as opened:
        gray = opened.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    gray.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    clear = gray.convert("LA")
    clear.putalpha(gray.point(lambda value: 0 if value == 236 else 255))
    white = Image.fromarray(np.where(np.asarray(gray) == 236, 255, np.asarray(gray)).astype(np.uint8))
    with Image.open(tmp_path / "turned.png") as turned:
        images = [gray, turned, Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), white, clear]
        one, *others = predictor.ask(images, ["what shape is it?"] * len(images), top=100)
    shares = np.array([[share for _, share in sorted(asked.answers)] for asked in (one, *others)])
    assert np.abs(shares[[1, 2]] - shares[0]).max() < 1e-6
    assert np.abs(shares[4] - shares[3]).max() < 1e-6
    assert np.abs(shares[4] - shares[0]).max() > 1e-5
    with pytest.raises(DataError, match="the picture holds floating-point values from 7 to 700"):
        predictor.ask([Image.fromarray(np.array([[7, 700]], dtype=np.float32))], ["what?"])


def test_numbers_that_are_none_are_no_answers(run: SmallRun) -> None:
    predictor = api.open_predictor("tiny", runs=run.runs)
    assert repr(predictor).startswith(f"<Predictor {run.runs}/tiny/checkpoints/epoch-")
    assert repr(predictor).endswith(f", {predictor.trained_on()}>")
    with torch.no_grad():
        next(predictor._loaded.model.parameters()).fill_(torch.nan)
    with pytest.raises(CheckpointError, match="the model gives numbers that are NaN or infinite"):
        predictor.ask([Image.new("RGB", (9, 9))], ["what shape is it?"])


def test_a_checkpoint_of_the_original(golden_data: dict[str, Path]) -> None:
    file = GOLDEN / "cases" / "vqa_soft_avg"
    with np.load(f"{file}.npz") as theirs:
        scores = api.score(f"{file}.pkl", config=f"{file}.yml", data=golden_data["vqa"], gpus="cpu")
        assert np.abs(scores.scores - theirs["scores"]).max() < 1e-4


def test_errors_are_those_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no runs in"):
        api.load_model(runs=tmp_path)


def test_the_example_runs(run: SmallRun) -> None:
    arguments = [sys.executable, str(EXAMPLE), run.name, "--runs", str(run.runs), "--picture", str(run.picture)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "share of each span, by type of question and layer:\n" in result.stdout
    assert f"{run.picture.name}: " in result.stdout.splitlines()[-1]


def test_ready_features_are_asked_about(golden_data: dict[str, Path], tmp_path: Path) -> None:
    """Features that no extractor here can make, as arrays and as files, of several pictures: the original's scores."""
    file = GOLDEN / "cases" / "vqa_soft_avg"
    data = api.open_data(golden_data["vqa"])
    split = data.split("val")
    rows = list(range(5))
    features = data.features.read(split.image[rows])
    np.save(tmp_path / "a.npy", features[4].reshape(4, 4, -1))
    predictor = api.open_predictor(f"{file}.pkl", config=f"{file}.yml", data=golden_data["vqa"])
    questions = [split.question_text(row) for row in rows]
    given = [
        features[0],
        features[1].astype(np.float64),
        features[2].reshape(4, 4, -1),
        features[3],
        tmp_path / "a.npy",
    ]
    asked = predictor.ask_features(given, questions, top=len(data.answers), sizes=[(640, 480)] * 5)
    with np.load(f"{file}.npz") as theirs:
        expected = 1 / (1 + np.exp(-theirs["scores"][rows].astype(np.float64)))
    for one, shares in zip(asked, expected, strict=True):
        assert dict(one.answers) == pytest.approx(dict(zip(data.answers, shares, strict=True)), abs=1e-4)
        assert (one.image_size, one.geometry) == ((640, 480), None)
    with pytest.raises(DataError, match=r"array 2 of features has the shape \[15, 24\], expected \[16, 24\]"):
        predictor.ask_features([features[0], features[0][1:]], questions[:2])
    with pytest.raises(DataError, match="2 pictures' features and 1 questions do not match"):
        predictor.ask_features(features[:2], questions[:1])
    with pytest.raises(DataError, match="came from files made elsewhere") as raised:
        predictor.ask([Image.new("RGB", (9, 9))], ["what?"])
    assert raised.value.hint is not None
    assert "--extractor NAME --weights FILE" in raised.value.hint
    stated = {"config": f"{file}.yml", "data": golden_data["vqa"], "extractor": "patches"}
    with pytest.raises(SettingsError, match="patches was fitted to training pictures"):
        api.open_predictor(f"{file}.pkl", **stated)


def cells_of(notebook: Path) -> list[str]:
    content = orjson.loads(notebook.read_bytes())
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def value_of(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of its last line, if that is an expression, is shown."""
    tree = ast.parse(cell)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    exec(compile(tree, "cell", "exec"), names)  # noqa: S102 - the project's own notebook
    return None if last is None else eval(compile(last, "cell", "eval"), names)  # noqa: S307 - as above


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [value_of(cell, names) for cell in cells_of(EXAMPLE.with_name("tour.ipynb"))]
    data, run, measured, asked, figure = [one for one in shown if one is not None]
    assert repr(data).startswith("<PreparedData shapes in data/shapes/prepared: questions train 1")
    assert repr(run).startswith("<RunFolder runs/first: checkpoints of epochs [")
    assert measured.overall > 50, "four colors by chance are 25 %"
    assert repr(measured).startswith(
        f"<Accuracy {measured.overall:.2f} % of {len(data.split('test'))} questions, official: "
    )
    assert repr(asked).startswith(f"<Prediction 'what color is it?': {asked.answers[0][0]} ")
    assert figure.axes
    out = capsys.readouterr().out
    assert "['what', 'color', 'is', 'it']" in out
    assert "epoch 12: " in out
    assert "first: finished, best " in out


def test_what_is_exported_is_there_and_documented() -> None:
    assert sorted(api.__all__) == api.__all__
    assert all((getattr(api, name).__doc__ or "").strip() for name in api.__all__)


def test_prepare_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match=r"prepare takes no colour; it takes .*images"):
        api.prepare("table", colour="red")
    with pytest.raises(SettingsError, match="unknown data set 'birds'"):
        api.prepare("birds")


def test_one_question_about_a_file_or_a_picture(run: SmallRun) -> None:
    asked = api.predict(run.picture, "what color is the shape?", "tiny", runs=run.runs, top=2)
    again = api.predict(Image.open(run.picture), "what color is the shape?", "tiny", runs=run.runs, top=2)
    assert asked.answers == again.answers
    assert len(asked.answers) == 2


def test_training_tells_its_events_and_refuses_a_wrong_setting(run: SmallRun, tmp_path: Path) -> None:
    events: list[str] = []
    made = api.train(
        data=run.prepared,
        runs=tmp_path,
        settings={
            "train.epochs": 1,
            "train.batch_size": 32,
            "model.hidden_size": 16,
            "model.num_heads": 2,
            "run.gpus": "cpu",
        },
        callback=lambda event: events.append(type(event).__name__),
    )
    assert made.path.parent == tmp_path
    assert [event for event in events if event in ("RunStarted", "Validated", "RunFinished")] == [
        "RunStarted",
        "Validated",
        "RunFinished",
    ]
    assert [one.epochs_done for one in api.list_runs(tmp_path)] == [1]
    with pytest.raises(SettingsError, match=r"settings train.epochs 0: train.epochs must be greater than 0"):
        api.train("easy-vqa", data=run.prepared, settings={"train.epochs": 0})
