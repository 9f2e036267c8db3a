"""The original's training runs, step by step: loss, learning rate and the scores at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.running import golden_run
from trarctl.data.prepared import open_prepared
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.loading import load_model
from trarctl.engine.run import read_settings


@pytest.mark.parametrize("name", ["vqa_soft_avg", "vqa_soft_attention_accu2"])
def test_training_as_the_original_does(name: str, golden_data: dict[str, Path], tmp_path: Path) -> None:
    run, steps, golden = golden_run(name, golden_data["vqa"], tmp_path, gpus="cpu")
    sums = [step.loss * golden["batch_size"] for step in steps if step.loss is not None]
    assert sums == pytest.approx([step["loss_sum"] for step in golden["steps"]], rel=1e-4)
    rates = [step["rate"] for step in golden["steps"]]
    assert [step.learning_rate for step in steps] == pytest.approx(rates, rel=1e-12)

    settings = read_settings(run)
    data, world = open_prepared(golden_data["vqa"]), World(0, 1, torch.device("cpu"))
    loaded = load_model(run.epoch_checkpoint(settings.train.epochs), data, settings, origin={}, world=world)
    ours = Evaluator(loaded.model, settings, loaded.temperature, world).score(data, "val")
    with np.load(GOLDEN / "training" / f"{name}_final_val_scores.npz") as theirs:
        assert np.array_equal(ours.question_id, theirs["question_id"])
        assert np.abs(ours.scores - theirs["scores"]).max() < 1e-3
