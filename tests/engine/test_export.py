"""Exported folders: they answer as the run did, hold no more than they should, and are whole or not there."""

from __future__ import annotations

import json
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from tests.conftest import GOLDEN
from tests.engine.test_standing_alone import answers, older
from tests.small_runs import SmallRun, make_run
from trarctl.data.prepared import open_prepared
from trarctl.engine import export as exporting
from trarctl.engine.checkpoint import load_checkpoint, load_description
from trarctl.engine.evaluator import Request
from trarctl.engine.export import export
from trarctl.errors import CheckpointError, DataError
from trarctl.report.model_card import model_card

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("export"), "model.routing=hard")


@pytest.fixture(scope="module")
def shared(run: SmallRun) -> Path:
    """The run's second epoch as a folder."""
    ckpt = run.runs / run.name / "checkpoints" / "epoch-002.safetensors"
    return export(Request(str(ckpt), None, ""), run.runs.parent / "shared", model_card).folder


def test_a_folder_answers_as_the_run_did_without_its_data(
    run: SmallRun, shared: Path, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = run.runs / run.name / "checkpoints" / "epoch-002.safetensors"
    copy, picture = tmp_path / "copy", Path(shutil.copy(run.picture, tmp_path))
    before = answers("--ckpt", ckpt, "--data", run.prepared, trarctl=trarctl, picture=picture)
    shutil.copytree(shared, copy)
    monkeypatch.chdir(tmp_path)
    hidden = [(place, place.with_name(f"{place.name}-gone")) for place in (run.raw, run.prepared, run.runs)]
    for place, gone in hidden:
        place.rename(gone)
    try:
        for named in (copy, copy / "model.safetensors", "copy"):
            assert answers("--ckpt", named, trarctl=trarctl, picture=picture) == before
    finally:
        for place, gone in hidden:
            gone.rename(place)


def test_every_ckpt_reads_a_folder(run: SmallRun, shared: Path, tmp_path: Path, trarctl: Run) -> None:
    ckpt = run.runs / run.name / "checkpoints" / "epoch-002.safetensors"
    scores = []
    for number, named in enumerate((ckpt, shared)):
        saved = tmp_path / f"{number}.npz"
        given = ("--ckpt", named, "--data", run.prepared, "--gpus", "cpu", "--split", "val", "--save-scores", saved)
        assert trarctl("eval", *given)[0] == 0
        assert trarctl("submit", *given[:6], "--out", tmp_path / f"{number}.json")[0] == 0
        scores.append(np.load(saved))
    for name in ("scores", "routes", "answers"):
        np.testing.assert_array_equal(scores[0][name], scores[1][name])
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    sets = [part for one in (f"run.folder={tmp_path}", "data.num_workers=0") for part in ("--set", one)]
    started = (
        "easy-vqa",
        "--data",
        run.prepared,
        "--init",
        shared,
        "--epochs",
        1,
        "--batch-size",
        16,
        "--name",
        "later",
        *sets,
    )
    code, _, stderr = trarctl("train", *started, "--set", "model.routing=hard", "--set", "model.num_heads=2")
    assert code == 0, stderr
    code, _, stderr = trarctl("resume", shared)
    assert code == 5
    assert f"error: {shared} is an exported folder, which holds no state of a training to resume\n" in stderr
    assert f"hint:  trarctl train --init {shared} starts a run from its weights\n" in stderr


def test_what_is_in_a_folder(run: SmallRun, shared: Path) -> None:
    """The weights alone under their own names, files that others can read, and nothing of this machine."""
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    tensors, said = load_checkpoint(run.runs / run.name / "checkpoints" / "epoch-002.safetensors")
    with safe_open(shared / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert names == {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
        assert all(torch.equal(file.get_tensor(name), tensors[f"model.{name}"]) for name in names)
    new = shared / "new"
    new.touch()
    assert {stat.S_IMODE(path.stat().st_mode) for path in shared.iterdir()} == {stat.S_IMODE(new.stat().st_mode)}
    new.unlink()
    for name in ("README.md", "config.json"):
        assert str(run.runs.parent) not in (shared / name).read_text(encoding="utf-8")
    ours = load_description(shared / "model.safetensors")
    for name in ("vocabulary", "answers", "extractor", "max_words", "accuracy", "trained_on", "progress", "features"):
        assert getattr(ours, name) == getattr(said, name)


def test_the_model_card(run: SmallRun, shared: Path) -> None:
    text = (shared / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    said = load_description(shared / "model.safetensors")
    assert said.accuracy is not None
    assert (metadata["license"], metadata["library_name"]) == ("other", "trarctl")
    assert head.splitlines()[0] == "license: other  # fill in, such as cc-by-4.0"
    (result,) = metadata["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values.pop("accuracy") == said.accuracy["overall"]
    assert values == {f"accuracy, {name}": value for name, value in said.accuracy["per_type"].items()}
    rows = dict(re.findall(r"^\| ([a-z/*]+) \| (.*) \|$", body, re.MULTILINE))
    guess = said.accuracy["baselines"]
    for name, value in said.accuracy["per_type"].items():
        columns = [value, *(guess[one]["per_type"][name] for one in ("question alone", "commonest answer"))]
        assert rows[name] == " | ".join(f"{column:.2f}" for column in columns)
    for part in (
        "trained on: 96 questions of `train`",
        "## Recipe",
        "## Intended use",
        "## Limits",
        "trarctl predict --",
    ):
        assert part in body


def test_a_hostile_answer_stays_text(shared: Path) -> None:
    said = load_description(shared / "model.safetensors")
    hostile = ["<script>alert(1)</script>", "[a](http://b)", "| x |\n# y", "---\nlicense: mit"]
    text = model_card(said.model_copy(update={"answers": hostile}), ["README.md"])
    assert "<script>" not in text
    assert "[a](" not in text
    assert not re.search(r"^(# y|license: mit)", text, re.MULTILINE)


def test_a_folder_of_something_else_is_refused(run: SmallRun, tmp_path: Path, trarctl: Run) -> None:
    (tmp_path / "a.txt").touch()
    given = ("export", "--ckpt", run.runs / run.name, "--out")
    code, _, stderr = trarctl(*given, tmp_path)
    assert (code, f"error: {tmp_path} holds a.txt, and is no earlier export\n" in stderr) == (4, True)
    code, _, stderr = trarctl(*given, tmp_path / "a.txt")
    assert (code, f"error: {tmp_path / 'a.txt'} is no folder\n" in stderr) == (4, True)
    code, _, stderr = trarctl(*given, run.prepared)
    assert (code, "and is no earlier export\n" in stderr) == (4, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_earlier_export_is_replaced_and_an_edited_card_stays(
    run: SmallRun, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("export", "--ckpt", run.runs / run.name / "checkpoints" / "epoch-001.safetensors", "--out", "shared")
    assert trarctl(*given)[0] == 0
    first = {path.name: path.read_bytes() for path in Path("shared").iterdir()}
    for name in ("model.onnx", "notes.txt"):
        (tmp_path / "shared" / name).touch()
    code, stdout, _ = trarctl(*given)
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()] == [f"shared/{name}" for name in sorted(first)]
    # The same bytes again; a file of a format that was not asked for would be of another checkpoint.
    again = {path.name: path.read_bytes() for path in Path("shared").iterdir()}
    assert again == first | {"notes.txt": b""}
    card = tmp_path / "shared/README.md"
    card.write_text(card.read_text().replace("license: other  # fill in, such as cc-by-4.0", "license: mit"))
    code, _, stderr = trarctl(*given)
    assert (code, "README.md was edited and stays as it is" in stderr) == (0, True)
    assert "license: mit\n" in card.read_text()


@pytest.mark.parametrize("is_new", [True, False])
def test_an_interrupted_export_leaves_what_was_there(
    is_new: bool, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, request = tmp_path / "shared", Request(str(run.runs / run.name), None, "")
    if not is_new:
        export(request, out, model_card)
    before = {path.name: path.read_bytes() for path in out.iterdir()} if not is_new else None

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="cannot write to the folder .*shared: No space left on device"):
        export(request, out, fail)
    assert ({path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else None) == before
    # Killed between two files, an export is not whole, which every reader and the next export know.
    killed = type("Killed", (BaseException,), {})

    def torn(building: Path, folder: Path, names: Any) -> None:
        (folder / "config.json").unlink(missing_ok=True)
        (building / names[0]).replace(folder / names[0])
        shutil.copytree(building, tmp_path / "kept")
        raise killed

    monkeypatch.setattr(exporting, "_move", torn)
    with pytest.raises(killed):
        export(request, out, model_card)
    monkeypatch.undo()
    (tmp_path / "kept").rename(out / ".building")
    with pytest.raises(CheckpointError):
        exporting.choose(Request(str(out), None, ""), needs_data=False)
    export(request, out, model_card)
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}


def test_a_folder_whose_files_do_not_belong_together(run: SmallRun, shared: Path, tmp_path: Path, trarctl: Run) -> None:
    ask = ("--image", run.picture, "--question", "what?")
    for name, change, message in (
        ("config.json", lambda text: text.replace('"circle"', '"square"'), "its checksum does not match"),
        ("config.json", lambda text: text[:-9], "has a description that this version cannot read"),
        ("config.json", None, "config.json: No such file or directory"),
    ):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = Path(shutil.copytree(shared, tmp_path / "copy")) / name
        if change is None:
            copy.unlink()
        else:
            copy.write_text(change(copy.read_text()))
        code, _, stderr = trarctl("predict", "--ckpt", tmp_path / "copy/model.safetensors", *ask)
        assert (code, message in stderr) == (5, True), stderr
    # Laid out otherwise, it says the same.
    config = shutil.copytree(shared, tmp_path / "other") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), ensure_ascii=False))
    assert trarctl("predict", "--ckpt", tmp_path / "other", *ask)[0] == 0


def test_an_older_checkpoint_becomes_one_that_stands_alone(run: SmallRun, tmp_path: Path, trarctl: Run) -> None:
    path = older(run, tmp_path)
    expected = answers("--ckpt", path, "--data", run.prepared, trarctl=trarctl, picture=run.picture)
    code, _, stderr = trarctl("export", "--ckpt", path, "--data", run.prepared, "--out", tmp_path / "shared")
    assert code == 0, stderr
    run.prepared.rename(run.prepared.with_name("away"))
    try:
        assert answers("--ckpt", tmp_path / "shared", trarctl=trarctl, picture=run.picture) == expected
    finally:
        run.prepared.with_name("away").rename(run.prepared)


def test_a_checkpoint_of_the_original(golden_data: dict[str, Path], tmp_path: Path, trarctl: Run) -> None:
    file = GOLDEN / "cases" / "vqa_hard_attention_binarize"
    given = ("--ckpt", f"{file}.pkl", "--config", f"{file}.yml", "--data", golden_data["vqa"])
    code, _, stderr = trarctl("export", *given, "--out", tmp_path / "shared")
    assert code == 0, stderr
    assert "the words and answers of" in stderr  # whose order could not be checked
    saved = tmp_path / "scores.npz"
    scored = ("--data", golden_data["vqa"], "--split", "val", "--gpus", "cpu", "--save-scores", saved)
    assert trarctl("eval", "--ckpt", tmp_path / "shared", *scored)[0] == 0
    with np.load(saved) as ours, np.load(f"{file}.npz") as theirs:
        assert np.abs(ours["scores"] - theirs["scores"]).max() < 1e-4
        assert np.abs(ours["routes"] - theirs["alphas"]).max() < 1e-4
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "Nothing was measured when this checkpoint was saved" in card
    data = open_prepared(golden_data["vqa"])
    np.save(tmp_path / "one.npy", data.features.read(np.array([0]))[0])
    asked = ("--features", tmp_path / "one.npy", "--question", data.split("val").question_text(0), "--json", "-")
    code, stdout, _ = trarctl("predict", "--ckpt", tmp_path / "shared", *asked)
    assert (code, len(json.loads(stdout)["predictions"])) == (0, 1)
    code, _, stderr = trarctl("export", *given[:4], "--out", tmp_path / "none")
    assert (code, "no prepared data in" in stderr) == (4, True)
    assert not (tmp_path / "none").exists()


def test_what_torch_cannot_export_is_one_error_and_leaves_nothing(
    run: SmallRun, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("SymInt graph input is not implemented yet.")

    monkeypatch.setattr(torch.export, "export", refuse)
    ckpt = run.runs / run.name / "checkpoints" / "epoch-002.safetensors"
    code, _, err = trarctl("export", "--ckpt", ckpt, "--out", tmp_path / "out", "--pt2")
    assert code == CheckpointError.exit_code
    assert f"torch {torch.__version__} cannot export this model: SymInt graph input is not implemented yet." in err
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_packages(run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DataError, match="--onnx needs onnx, which is not installed") as raised:
        export(Request(str(run.runs / run.name), None, ""), tmp_path / "shared", model_card, onnx=True)
    assert raised.value.hint == 'pip install "trarctl[onnx]"'
    assert not (tmp_path / "shared").exists()


def test_torchs_own_format_gives_the_originals_scores(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all questions at once, a number that was never traced; the file is read without trarctl's model."""
    case = "vqa_hard_attention_binarize"
    export(of_the_original(case, golden_data), tmp_path / "shared", model_card, pt2=True)
    program = torch.export.load(tmp_path / "shared" / "model.pt2").module()
    check_scores(
        case, golden_data, lambda tokens, features: [one.detach().numpy() for one in program(tokens, features)]
    )

    # A file that computes something else is refused, and with it the whole folder.
    def wrong(path: Path, asked: Any) -> Any:
        path.touch()
        return lambda tokens, features: [one * 1.001 for one in asked(tokens, features)]

    monkeypatch.setattr(exporting, "_traced", lambda asked, _: asked)
    monkeypatch.setattr(exporting, "write_pt2", wrong)
    with pytest.raises(
        CheckpointError, match="the scores of model.pt2 differ from the model's by .* so it is not kept"
    ):
        export(of_the_original(case, golden_data), tmp_path / "other", model_card, pt2=True)
    assert not (tmp_path / "other").exists()


def of_the_original(case: str, golden_data: dict[str, Path]) -> Request:
    file, data = GOLDEN / "cases" / case, golden_data[case.partition("_")[0]]
    return Request(f"{file}.pkl", data, "", Path(f"{file}.yml"))


def check_scores(case: str, golden_data: dict[str, Path], run: Callable[..., Any]) -> None:
    """Compare what a file gives with the original's scores of every question of a golden case."""
    split = json.loads((GOLDEN / "cases" / f"{case}.json").read_text())["split"]
    data = open_prepared(golden_data[case.partition("_")[0]])
    part = data.split(split)
    tokens = torch.from_numpy(part.question_tokens[:].astype(np.int64))
    features = torch.from_numpy(data.features.read(part.image[:]).astype(np.float32))
    scores, routes = run(tokens, features)
    with np.load(GOLDEN / "cases" / f"{case}.npz") as theirs:
        assert np.abs(scores - theirs["scores"]).max() < 1e-4
        assert np.abs(routes - theirs["alphas"]).max() < 1e-4
