"""A checkpoint holds all that asking it about a picture takes: the prepared folder may be gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from tests.data.preparing import write_clevr
from tests.small_runs import HOSTILE, SmallRun, make_run
from trarctl import api
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.prepared import open_prepared
from trarctl.engine.checkpoint import load_checkpoint, load_description, save_checkpoint
from trarctl.errors import DataError
from trarctl.registry import EXTRACTORS

Run = Callable[..., tuple[int, str, str]]
QUESTIONS = ["what color is the shape?", HOSTILE, "is there a circle?", "zebra zebra zebra what is this long question?"]


def answers(*arguments: object, trarctl: Run, picture: Path) -> Any:
    """What predict says to some questions, but for where its checkpoint is."""
    said = []
    for question in QUESTIONS:
        asked = ("--image", picture, "--question", question, "--top", 100, "--json", "-")
        code, stdout, stderr = trarctl("predict", *arguments, *asked)
        assert code == 0, stderr
        said.append({key: value for key, value in json.loads(stdout).items() if key != "checkpoint"})
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("alone"), "model.routing=hard")


def moved(run: SmallRun, folder: Path) -> tuple[Path, Path]:
    """A copy of the run alone, and of a picture, in another place."""
    shutil.copytree(run.runs / run.name, folder / "copy")
    return folder / "copy", Path(shutil.copy(run.picture, folder / "picture.png"))


def test_a_run_answers_the_same_in_another_place_without_its_data(
    run: SmallRun, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, picture = moved(run, tmp_path)
    with_data = ("--ckpt", run.runs / run.name, "--data", run.prepared)
    before = answers(*with_data, trarctl=trarctl, picture=picture)
    assert before[3]["predictions"][0]["unknown_words"] == ["zebra", "zebra", "zebra", "this", "long", "question"]
    hidden = [(place, place.with_name(f"{place.name}-gone")) for place in (run.raw, run.prepared, run.runs)]
    for place, gone in hidden:
        place.rename(gone)
    try:
        monkeypatch.chdir(tmp_path)
        assert answers("--ckpt", copy, trarctl=trarctl, picture=picture) == before
        last = copy / "checkpoints" / "epoch-002.safetensors"
        assert len(answers("--ckpt", last, trarctl=trarctl, picture=picture)) == len(QUESTIONS)
        predictor = api.open_predictor(copy)
        (asked,) = predictor.ask([Image.open(picture)], QUESTIONS[:1], top=100)
        assert [list(pair) for pair in asked.answers] == [
            list(one.values()) for one in before[0]["predictions"][0]["answers"]
        ]
        assert api.load_model(copy).model.sizes.feature_width == 56
        code, _, stderr = trarctl("eval", "--ckpt", copy)
        assert (code, f"no prepared data in {run.prepared}" in stderr) == (4, True)
    finally:
        for place, gone in hidden:
            gone.rename(place)


def test_what_a_checkpoint_says_of_its_data(run: SmallRun) -> None:
    """Counted by hand: four questions a picture, of 24 pictures and of 12."""
    data = open_prepared(run.prepared)
    said = load_description(run.runs / run.name / "checkpoints" / "epoch-002.safetensors")
    assert said.extractor == json.loads((run.prepared / "backbone.json").read_bytes())
    assert said.max_words == data.manifest.text.max_words
    assert said.trained_on is not None
    assert said.trained_on.model_dump() == {
        "name": "easy-vqa",
        "title": "easy-VQA: 64 x 64 pictures of one colored shape each",
        "split": "train",
        "questions": 96,
        "type_label": "question type",
    }
    assert said.accuracy is not None
    assert (said.accuracy["questions"], said.accuracy["evaluator"]) == (48, "official")
    commonest = said.accuracy["baselines"]["commonest answer"]
    truth = json.loads((run.raw / "test" / "questions.json").read_bytes())
    trained = [answer for _, answer, _ in json.loads((run.raw / "train" / "questions.json").read_bytes())]
    most = max(dict.fromkeys(trained), key=trained.count)
    right = [answer == most for _, answer, _ in truth]
    assert commonest["overall"] == round(100 * sum(right) / len(right), 2)
    assert set(commonest["per_type"]) == set(said.accuracy["per_type"])


def test_steps_within_an_epoch_say_nothing_of_accuracy(run: SmallRun, tmp_path: Path) -> None:
    """So that they are the same bytes whether a validation came before in the same process or not."""
    later = make_run(run.runs.parent, "run.save_every=2", "run.keep=0", name="steps", epochs=1)
    files = sorted((later.runs / "steps" / "checkpoints").glob("*step*"))
    assert [load_description(path).accuracy for path in files] == [None] * len(files)


def older(run: SmallRun, folder: Path) -> Path:
    """A checkpoint as versions wrote them before checkpoints stood alone."""
    tensors, said = load_checkpoint(run.runs / run.name / "checkpoints" / "epoch-002.safetensors")
    accuracy = {name: said.accuracy[name] for name in ("overall", "per_type", "evaluator")} if said.accuracy else None
    new = {"max_words": None, "extractor": None, "trained_on": None, "accuracy": accuracy}
    save_checkpoint(folder / "old.safetensors", tensors, said.model_copy(update=new))
    return folder / "old.safetensors"


def test_an_older_checkpoint_opens_with_its_data_and_says_what_to_do_without(
    run: SmallRun, tmp_path: Path, trarctl: Run
) -> None:
    path = older(run, tmp_path)
    newer = run.runs / run.name / "checkpoints" / "epoch-002.safetensors"
    expected = answers("--ckpt", newer, trarctl=trarctl, picture=run.picture)
    assert answers("--ckpt", path, trarctl=trarctl, picture=run.picture) == expected
    run.prepared.rename(run.prepared.with_name("away"))
    try:
        code, _, stderr = trarctl("predict", "--ckpt", path, "--image", run.picture, "--question", "what?")
    finally:
        run.prepared.with_name("away").rename(run.prepared)
    assert code == 4
    said = " ".join(stderr.split())
    assert f"error: no prepared data in {run.prepared}" in said
    assert f"hint: --data DIR names the folder that it is in now; trarctl prepare easy-vqa --out {run.prepared}" in said
    assert f"with the data, trarctl export --ckpt {path} --data DIR --out DIR makes one that does" in said


def test_data_that_is_named_is_compared(run: SmallRun, golden_data: dict[str, Path], trarctl: Run) -> None:
    asked = ("--ckpt", run.runs / run.name, "--image", run.picture, "--question", "what?")
    code, _, stderr = trarctl("predict", *asked, "--data", golden_data["vqa"])
    assert (code, "was trained with another vocabulary than" in stderr) == (5, True)
    with pytest.raises(DataError, match="no prepared data in nowhere"):
        api.open_predictor(run.runs / run.name, data="nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extractor": {"name": "of-a-plugin"}}, "unknown extractor 'of-a-plugin' in .*changed.safetensors"),
        ({"extractor": {"name": "patches", "grid_size": 4}}, "the description of the extractor in .* is damaged"),
    ],
)
def test_an_extractor_that_cannot_be_made(changes: Any, message: str, run: SmallRun, tmp_path: Path) -> None:
    tensors, said = load_checkpoint(run.runs / run.name / "checkpoints" / "epoch-002.safetensors")
    save_checkpoint(tmp_path / "changed.safetensors", tensors, said.model_copy(update=changes))
    predictor = api.open_predictor(tmp_path / "changed.safetensors")
    assert "attention is drawn as if the grid covered the picture" in str(predictor.why_no_geometry)
    with pytest.raises(DataError, match=message):
        predictor.ask([Image.open(run.picture)], QUESTIONS[:1])


class Weighed(Extractor):
    """Gives every cell the mean color, times a factor that stands for its weights."""

    name, width = "weighed-of-a-test", 3

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self._factor = float(options.weights.read_text()) if options.weights else 1.0

    def identity(self) -> dict[str, Any]:
        return {"weights": self._factor}

    def extract(self, images: Any) -> np.ndarray:
        colors = np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])
        return np.repeat(self._factor * colors[:, None], self.grid_size**2, axis=1)


@pytest.fixture
def clevr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trarctl: Run) -> Path:
    """Pictures, features by ``Weighed`` that do or do not say so, and a run on each: ``known`` and ``unknown``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXTRACTORS._items, Weighed.name, Weighed)
    write_clevr(tmp_path)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        (tmp_path / "feats" / split).mkdir(parents=True)
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(3):
            color = (10 * number + 90, 50, 7 * len(split))
            Image.new("RGB", (8, 6), color).save(tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png")
            np.save(tmp_path / f"feats/{split}/{number}.npy", np.full((4, 3), color, dtype=np.float16))
    tiny = ("num_layers=1", "hidden_size=16", "num_heads=2", "feed_forward_size=32", "flat_mlp_size=8")
    sets = [part for one in (*tiny, "flat_out_size=16", "spans=0,1") for part in ("--set", f"model.{one}")]
    sets += ["--set", "train.batch_size=2", "--set", "train.warmup_epochs=0", "--set", "data.num_workers=0"]
    for name in ("unknown", "known"):
        if name == "known":
            said = {"name": Weighed.name, "grid_size": 2, "weights": 1.0, "extraction": {"precision": "fp32"}}
            (tmp_path / "feats/backbone.json").write_bytes(orjson.dumps(said))
        prepare = ("--raw", "raw", "--features", "feats", "--grid", 2, "--vectors", "none", "--out", name)
        code, _, stderr = trarctl("prepare", "clevr", *prepare)
        assert code == 0, stderr
        code, _, stderr = trarctl("train", "clevr", "--data", name, "--name", name, "--epochs", 1, *sets)
        assert code == 0, stderr
    return tmp_path


def test_an_extractor_with_weights_of_its_own(clevr: Path) -> None:
    """A checkpoint says whose weights made its features; others are refused, with and without the data."""
    picture = Image.open(clevr / "images/val/CLEVR_val_000000.png")
    before = api.open_predictor("known", data="known").ask([picture], ["what is it?"], top=9)
    shutil.rmtree(clevr / "known")
    assert api.open_predictor("known").ask([picture], ["what is it?"], top=9) == before
    (clevr / "weights").write_text("2")
    with pytest.raises(DataError, match="the features that .* was trained on were made by .* with weights other than"):
        api.open_predictor("known", weights=clevr / "weights").ask([picture], ["what is it?"])


def test_a_stated_extractor_is_compared_where_the_data_still_is(clevr: Path) -> None:
    picture = Image.open(clevr / "images/val/CLEVR_val_000000.png")
    with pytest.raises(DataError, match="the features that .* was trained on came from files made elsewhere"):
        api.open_predictor("unknown").ask([picture], ["what is it?"])
    stated = {"extractor": Weighed.name, "images": clevr / "images"}
    predictor = api.open_predictor("unknown", **stated)
    before = predictor.ask([picture], ["what is it?"], top=9)
    assert "gives the stored features of" in predictor.notes[0]
    shutil.rmtree(clevr / "unknown")
    predictor = api.open_predictor("unknown", **stated)
    assert predictor.ask([picture], ["what is it?"], top=9) == before
    assert "could not be checked: none of them is at hand (--data DIR)" in predictor.notes[0]
    features = np.full((4, 3), 9.0)
    assert len(api.open_predictor("unknown").ask_features([features], ["what is it?"])) == 1
