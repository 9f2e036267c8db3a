"""One's own pictures and questions, from a table to answers, as somebody new would do it."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]
COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty colored pictures, two questions about each."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(60):
        name, color = f"some {number}/picture.png", list(COLORS)[number % 3]
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True)
        image = Image.new("RGB", (16, 16), COLORS[color])
        image.putpixel((0, 0), (number, 0, 0))
        image.save(path)
        lines.append({"image": name, "question": "what color is it?", "answer": color, "type": "color"})
        lines.append({"image": name, "question": "is it red?", "answer": color == "red", "type": "yes/no"})
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


SMALL = ("--set", "model.hidden_size=16", "--set", "model.num_layers=1", "--set", "model.num_heads=2", "--set",
         "model.feed_forward_size=32", "--batch-size", 8, "--epochs", 8, "--gpus", "cpu")  # fmt: skip


def test_from_a_table_to_answers(table: Path, trarctl: Run) -> None:
    code, _, err = trarctl("train", "birds")
    assert code == 2
    assert "'birds' is not one of" in err
    prepare = ("prepare", "table", "--name", "birds", "--questions", "birds.jsonl", "--images", "photos", "--grid", 2)
    code, out, err = trarctl(*prepare, "--vectors", "none")
    assert (code, err) == (0, "")
    assert "next: trarctl train birds" in out
    code, out, _ = trarctl("train", "birds", *SMALL)
    assert code == 0
    run = next(path.name for path in (table / "runs").iterdir())
    assert run.startswith("birds-")
    code, out, _ = trarctl("eval", "--split", "val", "--json", "-")
    assert code == 0
    measured = json.loads(out)
    assert measured["dataset"] == "birds"
    assert set(measured["per_question_type"]) == {"color", "yes/no"}
    assert measured["overall"] > 60
    code, out, _ = trarctl("eval", "--split", "val")
    assert "questions of birds val" in out
    assert "commonest" in out
    code, out, _ = trarctl("runs")
    assert "birds" in out
    code, out, err = trarctl("submit", "--split", "val", "--out", "answers.jsonl")
    assert code == 0, err
    answered = [json.loads(line) for line in (table / "answers.jsonl").read_text().splitlines()]
    assert all(set(one) == {"id", "answer", "probability"} for one in answered)
    assert all(0.2 < one["probability"] <= 1 for one in answered)
    assert trarctl("submit", "--split", "val", "--out", "answers.csv")[0] == 0
    with (table / "answers.csv").open(newline="") as file:
        columns = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in one.items()} for one in answered] == columns
    for file_name in ("answers.jsonl", "answers.csv"):
        code, out, _ = trarctl(
            "eval", "--answers", file_name, "--split", "val", "--json", "-", "--data", "data/birds/prepared"
        )
        assert json.loads(out)["overall"] == measured["overall"]
    (table / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answered[1:]) + "{")
    code, _, err = trarctl("submit", "--validate", "answers.jsonl", "--split", "val", "--data", "data/birds/prepared")
    assert code == 4
    assert "is not valid JSON" in err
    image = table / "photos/some 0/picture.png"
    code, out, err = trarctl("predict", "--image", image, "--question", "what color is it?", "--json", "-")
    assert code == 0, err
    code, out, err = trarctl("eval", "--split", "val", "--report", "report")
    assert code == 0, err
    assert "data:image/" in (table / "report" / "index.html").read_text()
    code, out, _ = trarctl(*prepare, "--vectors", "none")
    assert "birds was up to date" in out


def test_data_of_ones_own_in_another_place(table: Path, trarctl: Run) -> None:
    prepare = ("prepare", "table", "--name", "birds", "--questions", "birds.jsonl", "--images", "photos", "--grid", 2)
    assert trarctl(*prepare, "--vectors", "none", "--out", "elsewhere")[0] == 0
    assert trarctl("train", "birds")[0] == 2
    assert trarctl("train", "crows", "--data", "elsewhere")[0] == 2
    code, out, err = trarctl("train", "birds", "--data", "elsewhere", *SMALL, "--dry-run")
    assert (code, 'data.name = "birds"' in out) == (0, True), err
    assert trarctl("show", "birds", "--data", "elsewhere")[0] == 0
    code, _, err = trarctl("show", "vqa", "--data", "elsewhere")
    assert code == 3
    assert "error: elsewhere holds birds data, not vqa\nhint:  leave out vqa, or --data\n" in err


def test_every_command_of_the_tour(table: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of ``docs/own-data.md``, with a model of a moment's training."""
    lines = [json.loads(line) for line in (table / "birds.jsonl").read_text().splitlines()]
    rows = [f"{line['image']},{line['question']},{line['answer']}" for line in lines]
    (table / "birds.csv").write_text("\n".join(["image,question,answer", *rows]) + "\n")
    Image.new("RGB", (30, 20)).save(table / "new.jpg")
    for key, value in {
        "MODEL_HIDDEN_SIZE": 16,
        "MODEL_NUM_HEADS": 2,
        "MODEL_NUM_LAYERS": 1,
        "TRAIN_BATCH_SIZE": 8,
    }.items():
        monkeypatch.setenv(f"TRARCTL_{key}", str(value))
    page = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line.replace("--gpus 0", "--gpus cpu --epochs 1"))[1:]
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [words[0] for words in commands[:4]] == ["prepare", "train", "eval", "predict"]
    for words in commands:
        code, _, err = trarctl(*words)
        assert code == 0, f"{words}: {err}"


def test_a_bad_table_is_one_message_and_leaves_nothing(table: Path, trarctl: Run) -> None:
    lines = (table / "birds.jsonl").read_text().splitlines(keepends=True)
    (table / "birds.jsonl").write_text("".join([*lines, lines[0].replace("some 0", "../some 0")]))
    prepare = ("prepare", "table", "--name", "birds", "--questions", "birds.jsonl", "--images", "photos", "--grid", 2)
    for options in ((), ("--check",)):
        code, out, err = trarctl(*prepare, "--vectors", "none", *options)
        assert code == 4
        assert "Traceback" not in out + err
        assert re.search(
            r"error: birds\.jsonl: 1 unusable row: line 121: '\.\./some 0/picture\.png' leads out of the folder of"
            r" pictures, \S+\nhint:  pictures are files in the folder of --images, or beside the table",
            err,
        )
        assert not list((table / "data").rglob("[!.]*.*"))
    assert trarctl("train", "birds")[0] == 2


def test_recipes_by_name_or_file(table: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("train", "easy-vqa", "--dry-run", "--recipe", "small")
    assert code == 0
    assert "hidden_size = 128  # recipe small" in out
    assert 'loss = "ce"  # recipe small' in out  # what the data set can be trained with
    code, out, _ = trarctl("train", "vqa", "--dry-run", "--recipe", "published")
    assert "hidden_size = 512" in out
    (table / "mine.toml").write_text("[model]\nhidden_size = 64\n")
    code, out, _ = trarctl("train", "vqa", "--dry-run", "--recipe", "mine.toml", "--set", "model.num_layers=3")
    assert "hidden_size = 64  # recipe mine.toml" in out
    assert "num_layers = 3  # --set" in out
    code, _, err = trarctl("train", "vqa", "--dry-run", "--recipe", "nowhere.toml")
    assert code == 3
    assert "cannot read the recipe nowhere.toml" in err
