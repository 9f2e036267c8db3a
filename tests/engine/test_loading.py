"""Settings, data and checkpoints: what fits together, what yields, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.running import tiny_settings, train
from trarctl.config.settings import Settings
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import distributed
from trarctl.engine.checkpoint import load_checkpoint, load_description, load_upstream, save_checkpoint
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Request, choose
from trarctl.engine.loading import Loaded, adopt_shape, check_data, check_words, fit_to_data, load_model, load_weights
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
    assert settings.model.grid_size == data.manifest.images.grid_size == 4
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
    assert raised.value.what == (
        "some.pkl does not fit the model: head.other is not part of the model, "
        "head.weight is [10, 5], expected [10, 24], head.bias is missing"
    )
    assert ", expected [" in raised.value.what


def test_a_checkpoint_of_the_original_gives_its_shape(data: PreparedData, tmp_path: Path) -> None:
    chosen = choose(Request(f"{ORIGINAL}.pkl", data.path, "val", Path(f"{ORIGINAL}.yml")))
    loaded = load_model(chosen.checkpoint, data, chosen.settings, origin=chosen.origin, world=ALONE)
    assert loaded.description is None
    assert loaded.model.settings.grid_size == 4
    small = tiny_settings(data.path, tmp_path, model__spans=",".join(map(str, loaded.model.settings.spans)))
    adopted, odd = adopt_shape(chosen.checkpoint, small, {}, data)
    assert ["does not name its words and answers" in text for text in odd] == [True]
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


# What a checkpoint was trained on, compared with the data


def saved_with(run: RunFolder, folder: Path, **changes: object) -> Path:
    """The run's checkpoint with another description."""
    tensors, description = load_checkpoint(run.epoch_checkpoint(1))
    path = folder / "epoch-001.safetensors"
    save_checkpoint(path, tensors, description.model_copy(update=changes))
    return path


def test_data_of_another_grid(run: RunFolder, tmp_path: Path) -> None:
    source = GOLDEN / "mini_vqa"
    finer = PrepareRequest(
        "vqa", out=tmp_path / "data", raw=source / "raw", features=source / "feats", grid=5, vectors="none", pack=None
    )
    prepare(finer)
    with pytest.raises(CheckpointError, match=r"trained on a grid of size 4, .*data has 5$") as raised:
        load_model(run.epoch_checkpoint(1), open_prepared(tmp_path / "data"), settings_of(run), origin={}, world=ALONE)
    (folder,) = re.findall(r"--data (\S+)$", str(raised.value.hint))
    assert (
        check_data(run.epoch_checkpoint(1), load_description(run.epoch_checkpoint(1)), open_prepared(Path(folder)))
        == []
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_width": 7}, r"trained on features of width 7, .* has \d+$"),
        ({"settings": {"model": {"grid_size": 8}}}, r"trained on a grid of size 8, .* has 4$"),
    ],
)
def test_data_of_another_shape(
    changes: dict[str, object], message: str, run: RunFolder, data: PreparedData, tmp_path: Path
) -> None:
    path = saved_with(run, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        check_data(path, load_description(path), data)


@pytest.mark.parametrize("grid", [1, 5, 8])
def test_a_grid_that_the_data_has_not(grid: int, run: RunFolder, data: PreparedData) -> None:
    """Whoever changed it: a user by ``--set``, or a file that has lost it."""
    settings = settings_of(run)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"grid_size": grid})})
    with pytest.raises(CheckpointError, match=rf"is scored with model\.grid_size = {grid}, .* has a grid of size 4"):
        load_model(run.epoch_checkpoint(1), data, settings, origin={}, world=ALONE)


def test_features_of_another_extractor(run: RunFolder, data: PreparedData, tmp_path: Path) -> None:
    other = open_prepared(data.path)
    images = data.manifest.images.model_copy(update={"backbone": "patches"})
    other.manifest = data.manifest.model_copy(update={"images": images})
    path = saved_with(run, tmp_path, backbone="resnet101")
    with pytest.raises(CheckpointError, match=r"features by the extractor resnet101, .* has patches$"):
        check_data(path, load_description(path), other)
    same = saved_with(run, tmp_path, backbone="patches")
    assert check_data(same, load_description(same), other) == []


def tripled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: tripled(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tripled(inner) for inner in value]
    return 3 * value if isinstance(value, float) else value


def test_features_that_are_far_from_those_of_the_training(run: RunFolder, data: PreparedData, tmp_path: Path) -> None:
    statistics = data.feature_statistics()
    assert statistics is not None
    near = saved_with(run, tmp_path, features=statistics)
    assert check_data(near, load_description(near), data) == []
    scaled = tripled(statistics)
    far = saved_with(run, tmp_path, features=scaled)
    (warning,) = check_data(far, load_description(far), data)
    assert "was trained on other features than those of" in warning
    loaded = load_model(far, data, settings_of(run), origin={}, world=ALONE)
    assert loaded.warnings == (warning,)


def test_layers_without_weights_are_named(run: RunFolder, data: PreparedData, tmp_path: Path) -> None:
    tensors, description = load_checkpoint(run.epoch_checkpoint(1))
    zero = tensors | {"model.head.weight": torch.zeros_like(tensors["model.head.weight"])}
    save_checkpoint(tmp_path / "zero.safetensors", zero, description)
    (warning,) = load_model(tmp_path / "zero.safetensors", data, settings_of(run), origin={}, world=ALONE).warnings
    assert warning.endswith("all weights are zero in 1 layers: head.weight")


# The original's checkpoints name neither words nor answers nor, perhaps, their epoch


def with_epoch(case: str, folder: Path, **changes: object) -> Request:
    content = torch.load(GOLDEN / "cases" / f"{case}.pkl", map_location="cpu", weights_only=True)
    torch.save({key: value for key, value in (content | changes).items() if value is not None}, folder / "some.pkl")
    return Request(str(folder / "some.pkl"), None, "val", GOLDEN / "cases" / f"{case}.yml")


def loaded_from(request: Request, data: PreparedData, *sets: str) -> Loaded:
    chosen = choose(replace(request, data=data.path, sets=sets))
    return load_model(chosen.checkpoint, data, chosen.settings, origin=chosen.origin, world=ALONE)


@pytest.mark.parametrize("epoch", [13, 13.0, np.float32(13), torch.tensor(13)])
def test_an_epoch_of_any_type_gives_the_same_temperature(epoch: object, data: PreparedData, tmp_path: Path) -> None:
    loaded = loaded_from(with_epoch("vqa_hard_attention", tmp_path, epoch=epoch), data)
    # The last of 13 epochs of policy 1 with 3 of warm-up: 1 - (12 - 3) / 10.
    assert (loaded.epoch, loaded.temperature) == (13, pytest.approx(0.1))


def test_an_epoch_after_the_last_of_the_settings(data: PreparedData, tmp_path: Path) -> None:
    warnings = loaded_from(with_epoch("vqa_hard_attention", tmp_path, epoch=20), data).warnings
    assert "is of epoch 20, the settings are for 13: its temperature is perhaps not 0.1" in warnings[1]
    assert len(loaded_from(with_epoch("vqa_soft_avg", tmp_path, epoch=20), data).warnings) == 1


@pytest.mark.parametrize("epoch", [None, 12.5, "13", True])
def test_hard_routing_needs_to_know_the_temperature(epoch: object, data: PreparedData, tmp_path: Path) -> None:
    request = with_epoch("vqa_hard_attention", tmp_path, epoch=epoch)
    with pytest.raises(CheckpointError, match="does not say after which epoch it was saved") as raised:
        loaded_from(request, data)
    sets = re.findall(r"--set (\S+)", str(raised.value.hint))
    loaded = loaded_from(request, data, *sets)
    assert loaded.temperature == 0.1
    soft = with_epoch("vqa_soft_avg", tmp_path, epoch=epoch)
    assert loaded_from(soft, data).epoch == 0


class _WithVectors(PreparedData):
    vectors: Any = None


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "that the answers of"), (0.4, r"that the words and answers \(4\d% of the words have embeddings like the")],
)
def test_word_vectors_tell_the_order_of_words(share: float, words: str, data: PreparedData, tmp_path: Path) -> None:
    request = with_epoch("vqa_soft_avg", tmp_path)
    (plain,) = loaded_from(request, data).warnings
    assert "does not name its words and answers: that the words and answers of" in plain
    assert f"trarctl eval --ckpt {tmp_path}/some.pkl --data {data.path} --split val" in plain
    embedding = load_upstream(tmp_path / "some.pkl")[0]["embedding.weight"].numpy()
    kept = round(share * len(embedding))
    noise = np.random.default_rng(0).normal(scale=0.05 * embedding.std(), size=embedding.shape)
    vectors = np.concatenate([embedding[:kept], np.roll(embedding[kept:], 1, axis=0)]) + noise
    other = _WithVectors(data.path, data.manifest)
    other.vectors = vectors.astype(np.float32)
    (warning,) = loaded_from(request, other).warnings
    assert re.search(words, warning)
