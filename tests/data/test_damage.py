"""Damaged input: one clear error, or a warning and a correct result; never anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.damage import differences, try_damage
from tests.data.preparing import GOLDEN, edit_json, prepare_golden
from trarctl.data.prepared import open_prepared


@pytest.mark.parametrize("seed", range(60))
def test_damaged_input(seed: int, tmp_path: Path) -> None:
    outcome = try_damage(seed, tmp_path / "set")
    assert not outcome.failure, f"{outcome.damage}: {outcome.failure} ({outcome.result})"


def test_a_silent_difference_would_be_seen(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "mini_vqa", tmp_path / "source")
    prepare_golden("vqa", tmp_path / "out", pack="float32")
    data = open_prepared(tmp_path / "out")
    assert differences("vqa", tmp_path / "source", data) == ""
    feature = sorted((tmp_path / "source/feats/val2014").iterdir())[0]
    np.save(feature, np.load(feature) + 1)
    assert "val: other features" in differences("vqa", tmp_path / "source", data)
    path = tmp_path / "source/raw/v2_mscoco_train2014_annotations.json"
    edit_json(path, lambda content: content["annotations"][7]["answers"][3].update(answer="another"))
    assert differences("vqa", tmp_path / "source", data) == "train: other answers"
