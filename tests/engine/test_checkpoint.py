"""Checkpoints: whole or not there, and nothing in them is ever executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import GOLDEN
from tests.engine.running import tiny_settings, train
from trarctl.config.settings import Settings
from trarctl.data.prepared import open_prepared
from trarctl.engine.checkpoint import (
    Description,
    TrainState,
    load_checkpoint,
    load_description,
    load_upstream,
    save_checkpoint,
)
from trarctl.engine.distributed import World
from trarctl.engine.loading import load_model
from trarctl.engine.run import RunFolder
from trarctl.errors import CheckpointError, DataError


@pytest.fixture
def description() -> Description:
    return Description(
        trarctl="0",
        torch="0",
        run="some",
        dataset="vqa",
        settings=Settings().model_dump(mode="json"),
        progress=TrainState(epoch=3, step=12),
        temperature=0.1,
        learning_rate=1e-4,
        vocabulary=["PAD", "UNK", "CLS", "was"],
        answers=["ja", "nö"],
        feature_width=4,
        data="somewhere",
    )


TENSORS = {
    "model.a": torch.arange(6.0).reshape(2, 3),
    "adam.average.a": torch.ones(2, 3),
    "model.step": torch.tensor(3),
}


def test_what_is_saved_is_loaded(description: Description, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "epoch-003.safetensors"
    save_checkpoint(path, TENSORS, description)
    tensors, loaded = load_checkpoint(path)
    assert loaded == description == load_description(path)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("size", [0, 7, 400, -1])
def test_a_truncated_file(size: int, description: Description, tmp_path: Path) -> None:
    path = tmp_path / "epoch-003.safetensors"
    save_checkpoint(path, TENSORS, description)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"epoch-003\.safetensors is damaged") as raised:
        load_checkpoint(path)
    assert raised.value.hint == "use an earlier one: --ckpt RUN@EPOCH, or trarctl resume RUN"


def test_every_flipped_bit_is_found(description: Description, tmp_path: Path) -> None:
    path = tmp_path / "epoch-003.safetensors"
    save_checkpoint(path, TENSORS, description)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_somebody_elses_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors was not written by trarctl"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_a_folder_that_cannot_be_written(description: Description, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the checkpoint") as raised:
        save_checkpoint(tmp_path / "file" / "epoch-003.safetensors", TENSORS, description)
    assert "earlier checkpoints are untouched" in str(raised.value.hint)


class _Code:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.file),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    for protocol in (2, 4):
        path = tmp_path / f"epoch{protocol}.pkl"
        path.write_bytes(pickle.dumps({"state_dict": {}, "epoch": _Code(trace)}, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"is a pickle that torch\.save did not write"):
            load_upstream(path)
    path = tmp_path / "epoch13.pkl"
    for is_zip in (True, False):
        torch.save({"state_dict": {}, "epoch": _Code(trace)}, path, _use_new_zipfile_serialization=is_zip)
        with pytest.raises(
            CheckpointError, match=r"epoch13\.pkl holds objects other than tensors: posix\.mkdir"
        ) as raised:
            load_upstream(path)
        assert raised.value.hint is not None
        assert "torch.save(model.state_dict(), FILE)" in raised.value.hint
    assert not trace.exists()


def test_a_pickle_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "epoch13.pkl"
    torch.save({"epoch": 13}, path)
    with pytest.raises(CheckpointError, match="holds no state_dict of tensors"):
        load_upstream(path)
    path.write_bytes(b"not a pickle at all")
    with pytest.raises(CheckpointError, match=r"epoch13\.pkl is a text file, no checkpoint"):
        load_upstream(path)


@pytest.fixture(scope="module")
def run(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("run"), train__epochs=1))


def test_a_checkpoint_of_another_vocabulary(run: RunFolder, golden_data: dict[str, Path], tmp_path: Path) -> None:
    path = run.epoch_checkpoint(1)
    tensors, description = load_checkpoint(path)
    words = [*description.vocabulary[:-1], "elsewhere"]
    other = tmp_path / "epoch-001.safetensors"
    save_checkpoint(other, tensors, description.model_copy(update={"vocabulary": words}))
    data = open_prepared(golden_data["vqa"])
    settings = Settings.model_validate(description.settings)
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="trained with another vocabulary than .* is 'elsewhere', in the data"):
        load_model(other, data, settings, origin={}, world=world)
    clevr = open_prepared(golden_data["clevr"])
    with pytest.raises(CheckpointError, match=r"trained with another vocabulary than .* \(79 entries, the data"):
        load_model(path, clevr, settings, origin={}, world=world)
    assert load_model(path, data, settings, origin={}, world=world).epoch == 1


def test_a_checkpoint_says_all_that_a_resume_needs(run: RunFolder, golden_data: dict[str, Path]) -> None:
    description = load_description(run.epoch_checkpoint(1))
    assert description.progress.step == 7
    assert description.progress.epoch == 1
    assert description.vocabulary == list(open_prepared(golden_data["vqa"]).vocabulary.words)
    assert description.settings["run"]["name"] == "tiny"
    assert description.temperature == 10.0
    assert description.data == str(golden_data["vqa"].resolve())


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_upstream_checkpoint_is_refused_or_whole(seed: int, tmp_path: Path) -> None:
    content = bytearray((GOLDEN / "cases" / "vqa_soft_avg.pkl").read_bytes())
    random = np.random.default_rng(seed)
    if seed % 2:
        content = content[: int(random.integers(len(content)))]
    else:
        # The pickled part of the archive stands at its beginning.
        for place in random.integers(0, 20_000, 30):
            content[place] ^= 1 << int(random.integers(8))
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    state, refused = {}, ""
    try:
        state, _ = load_upstream(path)
    except CheckpointError as error:
        refused = error.what
    assert str(path) in refused or all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert bool(state) != bool(refused)
