"""Settings, data and checkpoints: what fits together, what yields, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.running import tiny_settings, train
from trarctl.config.settings import Settings
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import distributed
from trarctl.engine.checkpoint import load_checkpoint, load_description, save_checkpoint
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Request, choose
from trarctl.engine.loading import adopt_shape, check_words, fit_to_data, load_model, load_weights
from trarctl.engine.run import RunFolder
from trarctl.errors import CheckpointError, SettingsError
from trarctl.registry import SPAN_SHAPES

ALONE = World(0, 1, torch.device("cpu"))
ORIGINAL = GOLDEN / "cases" / "vqa_soft_avg"


@pytest.fixture(scope="module")
def data(golden_data: dict[str, Path]) -> PreparedData:
    return open_prepared(golden_data["vqa"])


@pytest.fixture(scope="module")
def run(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    settings = tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("run"), train__epochs=1)
    return train(settings)


def settings_of(run: RunFolder) -> Settings:
    return Settings.model_validate(load_description(run.epoch_checkpoint(1)).settings)


def test_what_nobody_chose_yields_to_the_data(data: PreparedData, tmp_path: Path) -> None:
    settings, notes = fit_to_data(tiny_settings(data.path, tmp_path), data, {})
    assert settings.model.grid_size == data.manifest.grid_size == 4
    assert any(note.startswith("model.grid_size = 4, as the prepared data has it") for note in notes)
    again, none = fit_to_data(settings, data, {})
    assert (again, none) == (settings, [])


def test_data_of_another_data_set(data: PreparedData, golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(golden_data["clevr"], tmp_path, "clevr")
    with pytest.raises(SettingsError, match="holds vqa data, the settings are for clevr"):
        fit_to_data(settings, data, {})


def upwards(down: int, right: int, size: int) -> bool:
    return right == 0 and -size <= down <= 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [(upwards, "span 'odd:1' is not symmetric"), (lambda *_: False, "span 'odd:1' shows nothing on a 4x4 grid")],
)
def test_a_shape_that_the_model_refuses(
    shape: Callable[[int, int, int], bool],
    message: str,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SPAN_SHAPES, "_items", dict(SPAN_SHAPES._items))
    SPAN_SHAPES.register("odd")(shape)
    settings = tiny_settings(data.path, tmp_path, model__spans="0,odd:1")
    with pytest.raises(SettingsError, match=message):
        train(settings)
    assert not (tmp_path / "runs").exists()


def test_opening_a_model_leaves_the_process_as_it_is(
    run: RunFolder, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(distributed, "_set_malloc", calls.append)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    settings = settings_of(run)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"num_threads": 3})})
    loaded = load_model(run.epoch_checkpoint(1), data, settings, origin={}, world=ALONE)
    assert calls == []
    assert (loaded.epoch, loaded.temperature, loaded.model.training) == (1, 10.0, False)


def test_weights_are_those_of_the_file(run: RunFolder, data: PreparedData) -> None:
    loaded = load_model(run.epoch_checkpoint(1), data, settings_of(run), origin={}, world=ALONE)
    tensors, _ = load_checkpoint(run.epoch_checkpoint(1))
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, tensors[f"model.{name}"])
    state = loaded.model.state_dict()
    state["head.other"] = state.pop("head.bias")
    state["head.weight"] = state["head.weight"][:, :5]
    with pytest.raises(CheckpointError) as raised:
        load_weights(loaded.model, state, Path("some.pkl"))
    assert "some.pkl does not fit the model: head.bias is missing; head.other is not part" in raised.value.what
    assert ", expected [" in raised.value.what


def test_a_checkpoint_of_the_original_gives_its_shape(data: PreparedData, tmp_path: Path) -> None:
    chosen = choose(Request(f"{ORIGINAL}.pkl", data.path, "val", Path(f"{ORIGINAL}.yml")))
    loaded = load_model(chosen.checkpoint, data, chosen.settings, origin=chosen.origin, world=ALONE)
    assert loaded.description is None
    assert loaded.model.settings.grid_size == 4
    small = tiny_settings(data.path, tmp_path, model__spans=",".join(map(str, loaded.model.settings.spans)))
    adopted = adopt_shape(chosen.checkpoint, small, {}, data)
    assert adopted.model.hidden_size == loaded.model.settings.hidden_size != small.model.hidden_size
    assert adopted.train == small.train
    fewer = tiny_settings(data.path, tmp_path, model__spans="0,1,2,3,4")
    with pytest.raises(CheckpointError, match="spans, the settings name 5"):
        adopt_shape(chosen.checkpoint, fewer, {}, data)


def test_a_checkpoint_of_other_data(run: RunFolder, golden_data: dict[str, Path], tmp_path: Path) -> None:
    clevr = open_prepared(golden_data["clevr"])
    settings = tiny_settings(clevr.path, tmp_path, "clevr", model__spans="0,1,2")
    with pytest.raises(CheckpointError, match="has [0-9]+ words, "):
        load_model(ORIGINAL.with_suffix(".pkl"), clevr, settings, origin={}, world=ALONE)
    tensors, description = load_checkpoint(run.epoch_checkpoint(1))
    check_words(Path("same"), description, open_prepared(golden_data["vqa"]))
    other = tmp_path / "epoch-001.safetensors"
    answers = [*description.answers[:-1], "nobody says this"]
    save_checkpoint(other, tensors, description.model_copy(update={"answers": answers}))
    with pytest.raises(CheckpointError, match="trained with another answer list than .*'nobody says this', in the"):
        check_words(other, load_description(other), open_prepared(golden_data["vqa"]))
