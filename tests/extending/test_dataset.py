"""A data set from outside the package, in one file, through every command."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from trarctl import cli
from trarctl.config import settings
from trarctl.data.datasets.base import register_dataset
from trarctl.data.prepared import open_prepared
from trarctl.registry import DATASETS

REPOSITORY = Path(__file__).parents[2]
PLUGIN = "tests.extending.toy_signs"
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}
NUM_SIGNS = 24

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    """Make the data set known to this process, for the tests of this file only."""
    register_dataset(importlib.import_module(PLUGIN).SIGNS)
    yield
    del DATASETS._items["toy-signs"], settings._RECIPES["toy-signs"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose names are their ids, and three files of questions whose ids are text."""
    folder = tmp_path_factory.mktemp("signs")
    (folder / "signs").mkdir()
    names = []
    for number in range(NUM_SIGNS):
        color = list(COLORS)[number % 3]
        names.append((f"{color} no. {number}.png", color))
        Image.new("RGB", (48, 40), COLORS[color]).save(folder / "signs" / names[-1][0])
    for split in ("train", "val", "test"):
        questions = []
        for number, (name, color) in enumerate(names):
            hints = {"says": color, "about": "color"}, {"says": "yes" if color == "red" else "no", "about": "yes/no"}
            for kind, (asks, answer) in enumerate(zip(("what color is it?", "is it red?"), hints, strict=True)):
                # "007" and "7" are different ids as text.
                one = {"id": f"{split}/{'0' * (number % 2)}{number}-{kind}", "sign": name, "asks": asks}
                questions.append(one if split == "test" else one | answer)
        (folder / f"{split}.json").write_text(json.dumps({"questions": questions}))
    return folder


@pytest.fixture(scope="module")
def there(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with prepared data and a run of one epoch that was resumed for a second."""
    folder = tmp_path_factory.mktemp("there")
    for arguments in (
        ["prepare", "toy-signs", "--raw", raw, "--vectors", "none", "--out", folder / "prepared"],
        ["train", "toy-signs", "--data", folder / "prepared", "--epochs", 1, "--name", "first", *_runs(folder), "-q"],
        ["resume", "first", "--epochs", 2, *_runs(folder), "-q"],
    ):
        assert cli.run([str(argument) for argument in arguments]) == 0
    return folder


def _runs(folder: Path) -> list[str]:
    return ["--set", f"run.folder={folder / 'runs'}"]


def test_prepared_ids_are_the_texts_of_the_raw_files(there: Path, raw: Path) -> None:
    data = open_prepared(there / "prepared")
    split = data.split("val")
    questions = json.loads((raw / "val.json").read_text())["questions"]
    assert split.question_id.tolist() == [one["id"] for one in questions]
    assert split.image_id.tolist() == [one["sign"] for one in questions]
    assert [data.features.image_id(int(row)) for row in split.image] == split.image_id.tolist()
    assert data.answers == ("red", "yes", "blue", "no", "green")
    assert (data.features.num_images, data.features.num_cells) == (NUM_SIGNS, 16)


def test_preparing_again_finds_it_current(there: Path, raw: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("prepare", "toy-signs", "--raw", raw, "--vectors", "none", "--out", there / "prepared")
    assert code == 0
    assert "toy-signs was up to date" in out


def test_check_lists_its_files(raw: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("prepare", "toy-signs", "--raw", raw, "--check")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if ".json" in line] == [
        [f"{split}.json", str(2 * NUM_SIGNS)] for split in ("train", "val", "test")
    ]


def test_two_epochs_are_one_and_a_resumed_one(there: Path, trarctl: Run) -> None:
    name = ["--name", "whole", *_runs(there), "-q"]
    # As the recipe's was fitted to the one epoch that the other run began with.
    schedule = ["--set", "train.decay_epochs=[]", "--set", "train.warmup_epochs=0"]
    assert trarctl("train", "--data", there / "prepared", "--epochs", 2, *schedule, *name)[0] == 0
    files = [max((there / "runs" / run).rglob("*.safetensors")) for run in ("first", "whole")]
    first, whole = map(load_file, files)
    assert first.keys() == whole.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(array, whole[key], err_msg=key)


def test_eval_groups_by_its_types_and_reads_its_answer_file(there: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("eval", "--ckpt", "first", "--json", "-", *_runs(there), "-q")
    assert code == 0
    document = json.loads(out)
    assert (document["dataset"], document["questions"], document["total"]) == ("toy-signs", 48, 48)
    assert set(document["per_question_type"]) == {"color", "yes/no"}

    split = open_prepared(there / "prepared").split("val")
    file = there / "answers.tsv"
    file.write_text("".join(f"{one}\tred\n" for one in reversed(split.question_id.tolist())))
    code, out, _ = trarctl("eval", "--answers", file, "--data", there / "prepared", "--json", "-")
    assert (code, json.loads(out)["correct"]) == (0, NUM_SIGNS // 3)


def test_submit_writes_its_answer_file(there: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(there)
    code, _, _ = trarctl("submit", "--ckpt", "first", "--save-scores", "scores.npz", *_runs(there), "-q")
    assert code == 0
    split = open_prepared(there / "prepared").split("test")
    rows = [line.split("\t") for line in (there / "first-test.tsv").read_text().splitlines()]
    assert [one for one, _ in rows] == split.question_id.tolist()
    with np.load("scores.npz") as scores:
        assert scores["question_id"].tolist() == split.question_id.tolist()
    code, out, _ = trarctl("submit", "--validate", "first-test.tsv", "--data", "prepared")
    assert (code, "48 answers to toy-signs test" in out) == (0, True)


def test_predict_asks_about_a_picture(there: Path, raw: Path, trarctl: Run) -> None:
    picture = raw / "signs" / "red no. 0.png"
    question = ["--image", picture, "--question", "is it red?"]
    code, out, err = trarctl("predict", "--ckpt", "first", *_runs(there), *question, "--json", "-")
    assert code == 0
    (one,) = json.loads(out)["predictions"]
    assert {answer["answer"] for answer in one["answers"]} <= {"red", "yes", "blue", "no", "green"}
    assert "trained on toy signs: one color each" in err


def test_report_shows_its_pictures(there: Path, raw: Path, trarctl: Run) -> None:
    pytest.importorskip("jinja2")
    options = ["--report", there / "report", "--images", raw]
    assert trarctl("eval", "--ckpt", "first", *_runs(there), *options, "-q")[0] == 0
    assert "data:image/" in (there / "report" / "index.html").read_text()


def _in_another_process(folder: Path, plugins: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRARCTL_PLUGINS": plugins}
    command = [sys.executable, "-m", "trarctl", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_plugin_named_by_the_environment(there: Path) -> None:
    arguments = ["eval", "--ckpt", "first", "--json", "-", "-q"]
    done = _in_another_process(there, PLUGIN, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"] == "toy-signs"
    refused = _in_another_process(there, "", "train", "--data", "prepared", "-q")
    assert refused.returncode == 4
    assert "holds toy-signs data, a data set that is not known here" in refused.stderr
    assert "TRARCTL_PLUGINS=MODULE" in refused.stderr
    refused = _in_another_process(there, "", *arguments)
    assert refused.returncode == 3
    *others, last = map(repr, DATASETS.built_in)
    assert f"data.dataset must be {', '.join(others)} or {last}, got 'toy-signs'" in refused.stderr
    assert "if a plugin adds it, name its module: TRARCTL_PLUGINS=MODULE" in refused.stderr


def test_an_unknown_name_lists_it(trarctl: Run) -> None:
    code, _, err = trarctl("prepare", "toy-sign")
    assert code == 2
    names = ", ".join(map(repr, (*DATASETS.built_in, "toy-signs")))
    assert f"'toy-sign' is not one of {names}" in err.replace("\n", " ")
