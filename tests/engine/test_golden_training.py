"""The original's training runs, step by step: loss, learning rate and the scores at the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.running import train
from trarctl.config.resolve import resolve
from trarctl.data.prepared import open_prepared
from trarctl.engine.callbacks import Event, StepDone
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.loading import load_model

RUNS = {"vqa_soft_avg": "avg", "vqa_soft_attention_accu2": "attention"}


@pytest.mark.parametrize("name", RUNS)
def test_training_as_the_original_does(name: str, golden_data: dict[str, Path], tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "training" / f"{name}.json").read_text())
    epochs = golden["steps"][-1]["epoch"] + 1
    settings = resolve(
        dataset="vqa",
        config=GOLDEN / "cases" / f"vqa_soft_{RUNS[name]}.yml",
        environ={},
        sets=[
            f"data.path={golden_data['vqa']}",
            f"run.folder={tmp_path}",
            "run.gpus=cpu",
            "run.log_every=1",
            "model.dropout=0",
            "train.shuffle=false",
            f"train.epochs={epochs}",
            f"train.batch_size={golden['batch_size']}",
            f"train.accumulation={golden['accumulation']}",
            f"train.learning_rate={golden['lr_base']}",
            f"train.warmup_epochs={golden['warmup_epoch']}",
            f"train.decay_epochs={','.join(map(str, golden['decay_epochs']))}",
            f"train.decay_factor={golden['decay_rate']}",
        ],
    ).settings
    steps: list[StepDone] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    run = train(settings, on_event=on_event, init=GOLDEN / "training" / f"{name}_initial.pkl")
    sums = [step.loss * golden["batch_size"] for step in steps if step.loss is not None]
    assert sums == pytest.approx([step["loss_sum"] for step in golden["steps"]], rel=1e-4)
    rates = [step["rate"] for step in golden["steps"]]
    assert [step.learning_rate for step in steps] == pytest.approx(rates, rel=1e-12)

    data, world = open_prepared(golden_data["vqa"]), World(0, 1, torch.device("cpu"))
    loaded = load_model(run.epoch_checkpoint(epochs), data, settings, origin={}, world=world)
    ours = Evaluator(loaded.model, settings, loaded.temperature, world).score(data, "val")
    with np.load(GOLDEN / "training" / f"{name}_final_val_scores.npz") as theirs:
        assert np.array_equal(ours.question_id, theirs["question_id"])
        assert np.abs(ours.scores - theirs["scores"]).max() < 1e-3
