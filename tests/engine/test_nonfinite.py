"""A loss that is not finite: no update from it, and an end that says where."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.running import resume, tiny_settings, train
from trarctl.data.loader import load_batches, training_samples
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.engine.callbacks import Event, RunStarted, StepDone, no_callback
from trarctl.engine.checkpoint import TrainState, load_checkpoint, state_tensors
from trarctl.engine.distributed import World
from trarctl.engine.run import RunFolder
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import Trainer
from trarctl.errors import DivergenceError


def own_features(folder: Path) -> tuple[Path, Path]:
    """Prepared data that reads its features from files of its own, and the folder of those of train."""
    source = GOLDEN / "mini_vqa"
    features = Path(shutil.copytree(source / "feats", folder / "feats"))
    prepare(
        PrepareRequest(
            "vqa", out=folder / "data", raw=source / "raw", features=features, grid=4, vectors="none", pack=None
        )
    )
    return folder / "data", features / "train2014"


def spoil(features: Path) -> Path:
    """Put a number that is none into the features of one image."""
    path = sorted(features.glob("*.npy"))[5]
    array = np.load(path)
    array[0, 0] = np.nan
    np.save(path, array)
    return path


def test_it_stops_with_the_step_the_questions_and_a_checkpoint(tmp_path: Path) -> None:
    data, features = own_features(tmp_path)
    opened = open_prepared(data)
    samples = training_samples(opened, "train", "bce")
    last: list[int] = []
    spoiled: list[Path] = []

    def on_event(event: Event) -> None:
        if isinstance(event, RunStarted):  # features that were so before are refused before
            spoiled.append(spoil(features))
        if isinstance(event, StepDone):
            last.append(event.step)

    with pytest.raises(DivergenceError, match="the loss or its gradient is not finite at step") as raised:
        train(tiny_settings(data, tmp_path, train__shuffle="false"), on_event=on_event)
    match = re.search(
        r"at step (\d+) \(questions ([\d, ]+) and 12 more\) of run tiny; .* saved in (\S+),", raised.value.what
    )
    image = int(spoiled[0].stem.split("_")[-1].removesuffix(".jpg"))
    assert match
    assert raised.value.exit_code == 7
    step = int(match[1])
    rows = np.arange(20 * (step - 1), 20 * step)
    assert [int(number) for number in match[2].split(", ")] == samples.batch(rows).question_id[:8].tolist()
    split = opened.split("train")
    images = opened.features.image_id
    assert image in {images(row) for row in split.image[split.training_order[rows]]}
    assert image not in {images(row) for row in split.image[split.training_order[: 20 * (step - 1)]]}
    assert last == list(range(1, step))
    run = RunFolder(tmp_path / "runs" / "tiny")
    tensors, description = load_checkpoint(run.checkpoints / match[3])
    assert description.progress.step == step
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert tensors["adam.step"] == step - 1


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_broken_gradient_changes_nothing(clip: float | None, golden_data: dict[str, Path], tmp_path: Path) -> None:
    changes = {} if clip is None else {"train__gradient_clip": clip}
    settings = tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4, **changes)
    data, world = open_prepared(golden_data["vqa"]), World(0, 1, torch.device("cpu"))
    trainer = Trainer(
        settings,
        data,
        RunFolder(tmp_path),
        world,
        callback=no_callback,
        stop=StopRequest(),
        tensors={},
        state=TrainState(),
    )
    model, optimizer = trainer.model, trainer.optimizer
    plan = [np.arange(20), np.arange(20, 40)]
    good, bad = load_batches(training_samples(data, "train", "bce"), plan, num_workers=0)
    assert bad.features.is_floating_point()
    bad.features.fill_(torch.inf)
    assert trainer.train_step([good], learning_rate=1e-3).gradient_norm.isfinite()
    before = {name: tensor.clone() for name, tensor in state_tensors(model, optimizer).items()}
    assert not trainer.train_step([bad], learning_rate=1e-3).gradient_norm.isfinite()
    after = state_tensors(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["adam.step"] == 1
    assert trainer.train_step([good], learning_rate=1e-3).gradient_norm.isfinite()
    assert state_tensors(model, optimizer)["adam.step"] == 2


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_the_hint_leads_back_to_sound_weights(epochs_before: int, golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, train__epochs=2, train__warmup_epochs=0)
    if epochs_before:
        train(settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 1})}))
        with pytest.raises(DivergenceError) as raised:
            resume(RunFolder(tmp_path / "runs" / "tiny"), epochs=2, train__learning_rate=1e30)
        command = f"trarctl resume {tmp_path}/runs/tiny --epoch 1 --set train.learning_rate=0.0001 goes back to before"
        assert command in str(raised.value.hint)
        run = resume(RunFolder(tmp_path / "runs" / "tiny"), epoch=1, epochs=2, train__learning_rate=0.0001)
        assert run.saved_epochs() == [1, 2]
    else:
        ruinous = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1e30})})
        with pytest.raises(DivergenceError) as raised:
            train(ruinous)
        assert "trarctl train --name NAME --set train.learning_rate=0.0001 starts" in str(raised.value.hint)
