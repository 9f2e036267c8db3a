"""What nobody asked for yields to the data and to start weights; what somebody asked for must fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from trarctl.config.resolve import resolve
from trarctl.config.settings import Settings
from trarctl.engine.jobs import plan_start
from trarctl.errors import CheckpointError, SettingsError

PKL = GOLDEN / "cases" / "vqa_soft_avg.pkl"
Run = Callable[..., tuple[int, str, str]]
SETS = ["model.spans=0,1,2", "train.batch_size=20", "run.gpus=cpu"]


def plan(
    data: Path, folder: Path, *sets: str, init: Path | None = None, config: Path | None = None
) -> tuple[Settings, list[str]]:
    sets = (f"data.path={data}", f"run.folder={folder / 'runs'}", *SETS, *sets)
    resolved = resolve("vqa", config, environ={}, sets=sets)
    job, notes = plan_start(resolved.settings, resolved.origins, init=None if init is None else str(init))
    return job.settings, notes


@pytest.fixture
def with_vectors(tmp_path: Path, trarctl: Run) -> Path:
    """Data prepared with word vectors of width 100."""
    vectors = tmp_path / "glove.100d.txt"
    vectors.write_text("".join(f"{word}{f' {number}' * 100}\n" for number, word in enumerate(("what", "is", "red"), 1)))
    mini = GOLDEN / "mini_vqa"
    sources = ["--raw", mini / "raw", "--features", mini / "feats", "--vectors", vectors]
    code, _, err = trarctl("prepare", "vqa", *sources, "--grid", 4, "--out", tmp_path / "prepared")
    assert code == 0, err
    return tmp_path / "prepared"


def test_defaults_and_recipes_yield_to_the_data(with_vectors: Path, tmp_path: Path) -> None:
    settings, notes = plan(with_vectors, tmp_path)
    assert (settings.model.grid_size, settings.model.word_embedding_size) == (4, 100)
    assert notes == [
        "model.grid_size = 4, as the prepared data has it (recipe vqa: 8)",
        "model.word_embedding_size = 100, as the prepared data has it (default: 300)",
    ]


def test_a_users_choice_does_not_yield(with_vectors: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model.word_embedding_size = 300 \(--set\) does not fit"):
        plan(with_vectors, tmp_path, "model.word_embedding_size=300")


def test_a_file_named_like_a_recipe_is_a_users_choice(with_vectors: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe-x.toml"
    file.write_text("[model]\nword_embedding_size = 200\n")
    with pytest.raises(SettingsError, match=r"model.word_embedding_size = 200 \(recipe-x.toml\) does not fit"):
        plan(with_vectors, tmp_path, config=file)


def test_defaults_yield_to_start_weights(golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings, _ = plan(golden_data["vqa"], tmp_path, init=PKL)
    assert (settings.model.hidden_size, settings.model.num_layers, settings.model.word_embedding_size) == (32, 2, 20)


@pytest.mark.parametrize("choice", ["model.hidden_size=64", "model.num_layers=6"])
def test_a_choice_does_not_yield_to_start_weights(golden_data: dict[str, Path], tmp_path: Path, choice: str) -> None:
    with pytest.raises(CheckpointError, match=r"the settings say \d+ \(--set\)"):
        plan(golden_data["vqa"], tmp_path, choice, init=PKL)


def test_data_with_narrow_vectors_trains(with_vectors: Path, tmp_path: Path, trarctl: Run) -> None:
    small = ("num_layers=1", "hidden_size=16", "num_heads=2", "feed_forward_size=32", "flat_mlp_size=16")
    sets = [part for text in (*(f"model.{one}" for one in small), f"run.folder={tmp_path}") for part in ("--set", text)]
    code, _, err = trarctl(
        *("train", "--data", with_vectors, "--epochs", 1, "--batch-size", 20, "--gpus", "cpu", "--name", "narrow"),
        *sets,
    )
    assert code == 0, err
    assert "note:  model.word_embedding_size = 100, as the prepared data has it (default: 300)" in err


def test_an_original_checkpoint_needs_no_config_for_its_sizes(golden_data: dict[str, Path], trarctl: Run) -> None:
    arguments = ["--data", golden_data["vqa"], "--gpus", "cpu", "--set", "model.spans=0,1,2"]
    code, out, err = trarctl("eval", "--ckpt", PKL, *arguments)
    assert code == 0, err
    assert "overall" in out
