"""Checkpoints: whole or not there, and nothing in them is ever executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tests.conftest import GOLDEN
from tests.engine.running import tiny_settings, train
from trarctl.config.settings import Settings
from trarctl.data.prepared import open_prepared
from trarctl.engine.checkpoint import (
    Description,
    TrainState,
    is_ours,
    load_checkpoint,
    load_description,
    load_upstream,
    misnamed,
    restore_optimizer,
    save_checkpoint,
    state_tensors,
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
    with pytest.raises(CheckpointError, match=r"other\.safetensors was not written by trarctl") as caught:
        load_checkpoint(path)
    assert caught.value.hint == "give a run, a trarctl checkpoint or a .pkl file"
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


# Checkpoints of other programs: what they save, and what wraps it


ORIGINAL = GOLDEN / "cases" / "vqa_soft_avg.pkl"
Change = Callable[[dict[str, Any]], Any]


def content() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(ORIGINAL, map_location="cpu", weights_only=True)
    return loaded


def with_prefix(prefix: str) -> Change:
    return lambda saved: {**saved, "state_dict": {prefix + name: value for name, value in saved["state_dict"].items()}}


def inside_names(saved: dict[str, Any]) -> Any:
    """Only a part of the model was compiled."""
    return {**saved, "state_dict": {k.replace(".", "._orig_mod.", 1): v for k, v in saved["state_dict"].items()}}


def with_state(**changes: Any) -> Change:
    """Replace weights, under the names that the original gives them (``__`` stands for a point)."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda saved: {**saved, "state_dict": saved["state_dict"] | changed}


def in_itself(_: dict[str, Any]) -> dict[str, Any]:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    return endless


def in_type(kind: torch.dtype) -> Change:
    return lambda saved: {**saved, "state_dict": {name: value.to(kind) for name, value in saved["state_dict"].items()}}


@pytest.mark.parametrize(
    ("change", "epoch"),
    [
        (lambda saved: saved, 13),
        (with_prefix("module."), 13),
        (with_prefix("_orig_mod."), 13),
        (with_prefix("module._orig_mod."), 13),
        (with_prefix("_orig_mod.module.model."), 13),
        (with_prefix("net."), 13),
        (
            lambda saved: {
                **saved,
                "state_dict": {k.replace(".", "._orig_mod.", 1): v for k, v in saved["state_dict"].items()},
            },
            13,
        ),
        (lambda saved: saved["state_dict"], None),
        (lambda saved: {"model": saved["state_dict"], "epoch": 2}, 2),
        (lambda saved: {"model_state_dict": saved["state_dict"]}, None),
        (lambda saved: {**saved["state_dict"], "epoch": 6}, 6),
        (lambda saved: {"net": {"state_dict": saved["state_dict"]}, "epoch": np.int64(4)}, 4),
        (lambda saved: {**saved, "epoch": 13.0}, 13),
        (lambda saved: {**saved, "epoch": np.float64(13)}, 13),
        (lambda saved: {**saved, "epoch": np.array([13])}, 13),
        (lambda saved: {**saved, "epoch": torch.tensor(13)}, 13),
        (lambda saved: {**saved, "epoch": 12.5}, None),
        (lambda saved: {**saved, "epoch": float("nan")}, None),
        (lambda saved: {**saved, "epoch": -1}, None),
        (lambda saved: {**saved, "epoch": True}, None),
        (lambda saved: {**saved, "epoch": "13"}, None),
        (lambda saved: {**saved, "epoch": None}, None),
        (lambda saved: {**saved, "lr_base": np.float64(1e-4), "seen": np.arange(3), "names": np.array(["a"])}, 13),
        (lambda saved: {**saved, "args": argparse.Namespace(lr=1e-4, out=Path("x"))}, 13),
        (in_type(torch.float64), 13),
        (with_state(adam__step=torch.tensor(3)), 13),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_wrappers_leave_changes_no_weight(change: Change, epoch: int | None, is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "some.bin"
    torch.save(change(content()), path, _use_new_zipfile_serialization=is_zip)
    expected = load_upstream(ORIGINAL)[0]
    state, found = load_upstream(path)
    assert found == epoch
    assert not is_ours(path)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_and_nothing_else(kind: torch.dtype, tmp_path: Path) -> None:
    torch.save(in_type(kind)(content()), tmp_path / "half.pt")
    expected = load_upstream(ORIGINAL)[0]
    state, _ = load_upstream(tmp_path / "half.pt")
    assert all(torch.equal(state[name], expected[name].to(kind).float()) for name in expected)


def test_safetensors_of_another_program(tmp_path: Path, run: RunFolder) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in content()["state_dict"].items()}, path)
    expected, state = load_upstream(ORIGINAL)[0], load_upstream(path)[0]
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    # One of ours that another program has written again, without the description.
    own = run.epoch_checkpoint(1)
    tensors, _ = load_checkpoint(own)
    save_file(tensors, path)
    assert is_ours(own)
    assert not is_ours(path)
    state, epoch = load_upstream(path)
    assert epoch is None
    assert state.keys() == {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    assert all(torch.equal(state[name], tensors[f"model.{name}"]) for name in state)


BIAS = content()["state_dict"]["proj.bias"]
SPOILT = torch.where(torch.arange(len(BIAS)) < 2, torch.nan, BIAS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_state(proj__bias=SPOILT), rf"not finite in 1 of \d+ tensors: head\.bias \(2 of {len(BIAS)}\)$"),
        (with_state(proj__bias=BIAS.double() * 1e300), r"not finite in 1 of \d+ tensors: head\.bias"),
        (
            with_state(proj__bias=BIAS.long()),
            r"1 of \d+ weights in .* cannot be used: proj\.bias holds int64, exp",
        ),
        (with_state(proj__bias=BIAS.to(torch.complex64)), r"proj\.bias holds complex64"),
        (with_state(proj__bias=BIAS > 0), r"proj\.bias holds bool"),
        (with_state(proj__bias=BIAS.to_sparse()), r"proj\.bias holds float32|damaged"),
        (with_state(proj__bias=[0.0]), r"proj\.bias is a list, not a tensor"),
        (with_state(module__proj__bias=BIAS), r"proj\.bias is there twice, with and without a prefix"),
        (with_state(proj__bias=torch.zeros(1).expand(10**6, 10**6)), "the file has fewer numbers"),
        (with_state(proj__bias=BIAS.to("meta")), "the file has fewer numbers"),
        (in_itself, "holds no state_dict of tensors: its keys are 'model'"),
        (lambda saved: {**saved, "state_dict": {**saved["state_dict"], 5: BIAS}}, "cannot be used: 5 is no name"),
        (
            lambda _: {"epoch": 13, "weights": "elsewhere"},
            "no state_dict of tensors: its keys are 'epoch', 'w",
        ),
        (lambda saved: list(saved["state_dict"].values()), "holds no state_dict of tensors: it is of type list"),
        (lambda _: BIAS, "holds no state_dict of tensors: it is of type Tensor"),
        (lambda _: torch.nn.Linear(2, 2), r"holds objects other than tensors: torch\.nn\.modules\.linear\.Linear"),
        (lambda saved: {**saved, "when": np.datetime64("2021-01-01")}, "holds objects other|damaged"),
        (lambda saved: {**saved, "config": CheckpointError}, "objects other than tensors: trarctl.errors.CheckpointEr"),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_weights_that_cannot_be_used(change: Change, message: str, is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "epoch13.pkl"
    torch.save(change(content()), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_upstream(path)
    assert "weights_only" not in raised.value.what + str(raised.value.hint)


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page or XML"),
        (b"\n  <html>Sign in</html>", "is a web page or XML"),
        (b"", "is damaged [(]it is empty[)]"),
        (b'{"weight_map": {}}', "is a text file, no checkpoint"),
        (b"\x1f\x8b" + bytes(40), "is a gzip, bzip2 or xz archive"),
        (pickle.dumps({"state_dict": {}}), "is a pickle that torch.save did not write"),
        (bytes(range(256)), "is damaged"),
        (ORIGINAL.read_bytes()[:-40], "is damaged .*archive is cut off or changed"),
        (ORIGINAL.read_bytes()[: 1 << 12], "is damaged"),
        (
            changed(ORIGINAL.read_bytes(), ORIGINAL.read_bytes().find(BIAS.numpy().tobytes()) + 2),
            "changed since it was written: vqa_soft_avg/",
        ),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    for name in ("epoch13.pkl", "model.safetensors", "model.bin"):
        (tmp_path / name).write_bytes(content)
        for load in (load_upstream, load_checkpoint, is_ours):
            if load is is_ours and content[:2] == b"PK":
                continue
            with pytest.raises(CheckpointError, match=f"{name}|{message}") as raised:
                load(tmp_path / name)
            assert load is load_checkpoint or re.search(message, raised.value.what)
    with pytest.raises(CheckpointError, match="is a folder, not a checkpoint"):
        is_ours(tmp_path)


def test_archives_of_other_things(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", scores=np.zeros(3), question_id=np.zeros(3))
    with pytest.raises(CheckpointError, match="holds saved scores, no checkpoint"):
        load_upstream(tmp_path / "scores.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("epoch13.pkl", ORIGINAL.read_bytes())
    with pytest.raises(CheckpointError, match=r"is an archive of other files: epoch13\.pkl"):
        load_upstream(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("bomb/data/0", bytes(50 << 20))
    with pytest.raises(CheckpointError, match="would unpack to 52,4"):
        load_upstream(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["model.a", "adam.average.a"])
def test_values_that_are_not_finite_in_one_of_ours(name: str, description: Description, tmp_path: Path) -> None:
    path = tmp_path / "epoch-003.safetensors"
    save_checkpoint(path, TENSORS | {name: torch.tensor([[1.0, torch.inf, 0.0]])}, description)
    with pytest.raises(CheckpointError, match=rf"not finite in 1 of 3 tensors: {name} \(1 of 3\)"):
        load_checkpoint(path)


def test_files_of_earlier_versions_lack_what_is_optional(description: Description, tmp_path: Path) -> None:
    path = tmp_path / "epoch-003.safetensors"
    save_checkpoint(path, TENSORS, description.model_copy(update={"samples": "ab", "features": {"mean": 0.5}}))
    assert (load_description(path).samples, load_description(path).features) == ("ab", {"mean": 0.5})
    old = {key: value for key, value in description.model_dump().items() if key not in ("samples", "features")}
    assert Description.model_validate(old) == description


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


def trained() -> tuple[Any, torch.optim.Adam]:
    """Two layers after two steps; the first of their parameters is not trained, and so has no averages."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: torch.optim.Adam) -> None:
    optimizer.zero_grad()
    model(torch.tensor([[1.0, -2.0]])).square().sum().backward()
    optimizer.step()


def test_adam_goes_on_as_if_it_had_not_been_saved() -> None:
    model, optimizer = trained()
    tensors = {name: tensor.clone() for name, tensor in state_tensors(model, optimizer).items()}
    names = ("0.bias", "1.weight", "1.bias")
    adam = {"adam.step", *(f"adam.{kind}.{name}" for kind in ("average", "square") for name in names)}
    assert tensors.keys() == {f"model.{name}" for name in ("0.weight", *names)} | adam
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    other[0].weight.requires_grad_(False)
    other.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    resumed = torch.optim.Adam(other.parameters(), lr=0.1)
    restore_optimizer(other, resumed, tensors)  # type: ignore[arg-type]
    assert not resumed.state.get(other[0].weight)
    for name in names:
        state = resumed.state[other.get_parameter(name)]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.equal(state["exp_avg"], tensors[f"adam.average.{name}"])
        assert torch.equal(state["exp_avg_sq"], tensors[f"adam.square.{name}"])
    for one in ((model, optimizer), (other, resumed)):
        step(*one)
    after = [state_tensors(*one) for one in ((model, optimizer), (other, resumed))]
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])
    assert (tensors["adam.step"], after[1]["adam.step"]) == (2, 3)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("adam.square.1.weight", None, "adam.square.1.weight is missing, expected [1, 3]"),
        ("adam.step", None, "adam.step is missing, expected []"),
        ("adam.step", torch.ones(1), "adam.step is [1], expected []"),
        ("adam.average.0.bias", torch.ones(3, 1), "adam.average.0.bias is [3, 1], expected [3]"),
    ],
)
def test_averages_that_do_not_fit(name: str, tensor: torch.Tensor | None, message: str) -> None:
    model, optimizer = trained()
    tensors = state_tensors(model, optimizer)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(CheckpointError) as caught:
        restore_optimizer(model, optimizer, tensors)
    assert caught.value.what == f"the checkpoint's {message}"


def test_a_folder_that_is_missing_is_made(description: Description, tmp_path: Path) -> None:
    path = tmp_path / "one" / "two" / "some.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint at .*two/some.safetensors") as caught:
        load_description(path)
    assert caught.value.hint == "trarctl train makes one; --ckpt takes RUN, RUN@EPOCH or FILE"
    save_checkpoint(path, TENSORS, description)
    assert load_description(path) == description
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors", metadata={"trarctl": "{}"})
    with pytest.raises(CheckpointError, match=r"other\.safetensors has a description that this version cannot read"):
        load_description(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("epoch", "number"),
    [(1, 1), (0, None), (-3, None), (2.0, 2), (2.5, None), (torch.tensor([7]), 7), (torch.tensor([1, 2]), None)],
)
def test_the_epoch_of_a_foreign_checkpoint(epoch: object, number: int | None, tmp_path: Path) -> None:
    torch.save({"state_dict": {"proj.weight": torch.ones(2, 2)}, "epoch": epoch}, tmp_path / "some.pkl")
    assert load_upstream(tmp_path / "some.pkl")[1] == number


def test_a_foreign_checkpoint_with_values_that_are_not_finite_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"proj.weight": torch.full((2, 2), torch.nan)}}, tmp_path / "some.pkl")
    with pytest.raises(CheckpointError, match=r"some\.pkl holds values that are not finite in 1 of 1 tensors"):
        load_upstream(tmp_path / "some.pkl")


FOREIGN = "give the epochN.pkl that the original program wrote, or a state dict of its model"
UNPACK = "unpack it and give the checkpoint in it"


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "fetch the file: git lfs pull"),
        (b" \n<html>", "a web page or XML, no checkpoint", "save the file itself, not the page about it"),
        (b"\x80\x04K\x01.", "a pickle that torch.save did not write", FOREIGN),
        (b"\x1f\x8b\x08\0", "a gzip, bzip2 or xz archive", UNPACK),
        (b"BZh91AY", "a gzip, bzip2 or xz archive", UNPACK),
        (b"\xfd7zXZ\0", "a gzip, bzip2 or xz archive", UNPACK),
        (b"epoch,loss\n", "a text file, no checkpoint", FOREIGN),
    ],
)
def test_what_a_file_is_instead_and_what_to_do(content: bytes, what: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_upstream(path)
    assert caught.value.what.startswith(f"{path} is {what}")
    assert caught.value.hint == hint


@pytest.mark.parametrize("content", [b"epoch\0loss", "lösung, no number".encode()])
def test_what_is_nothing_known_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="its beginning is that of no checkpoint"):
        load_upstream(path)


def test_the_changed_part_of_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.pkl"
    weights = {f"proj{number}.weight": torch.arange(100.0) + 1000 * number for number in range(3)}
    torch.save({"state_dict": weights}, path)
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data/1"))
    saved = path.read_bytes()
    at = saved.index(weights["proj1.weight"].numpy().tobytes())
    path.write_bytes(changed(saved, at + 40))
    with pytest.raises(CheckpointError) as caught:
        load_upstream(path)
    assert f"(changed since it was written: {name})" in caught.value.what


def test_the_same_state_makes_the_same_bytes(description: Description, tmp_path: Path) -> None:
    contents = set()
    for number in range(16):
        save_checkpoint(tmp_path / f"{number}.safetensors", TENSORS, description)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_a_checksum_beside_the_description_is_read_too(description: Description, tmp_path: Path) -> None:
    """As version 0.3 wrote it."""
    save_checkpoint(tmp_path / "new.safetensors", TENSORS, description)
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        content = json.loads(file.metadata()["trarctl"])
    checksum = content["sha256"]
    for sha256, is_whole in ((checksum, True), ("0" * 64, False)):
        old = tmp_path / "old.safetensors"
        text = orjson.dumps(description.model_dump(mode="json")).decode()
        save_file(TENSORS, old, metadata={"trarctl": text, "sha256": sha256})
        if is_whole:
            assert load_checkpoint(old)[1] == description
        else:
            with pytest.raises(CheckpointError, match=r"old\.safetensors is damaged"):
                load_checkpoint(old)


@pytest.mark.parametrize(
    ("name", "is_right"),
    [
        ("epoch-003.safetensors", False),
        ("epoch-003-step-000004.safetensors", True),
        ("epoch-003-step-000001.safetensors", False),
        ("epoch-003-step-000003.safetensors", False),
        ("epoch-004-step-000004.safetensors", False),
        ("best.safetensors", True),  # it says nothing
    ],
)
def test_a_name_that_says_another_point(name: str, is_right: bool, description: Description) -> None:
    progress = TrainState(epoch=3, step_in_epoch=4, step=25)
    said = misnamed(Path(name), description.model_copy(update={"progress": progress}))
    assert said == (None if is_right else f"{name} was saved after 3 epochs and 4 steps, not when its name says")
    whole = misnamed(Path(name), description)  # of the end of epoch 3
    assert (whole is None) == (name in ("epoch-003.safetensors", "best.safetensors"))


@pytest.mark.parametrize(
    ("name", "candidate", "said"),
    [
        ("epoch-003-ema.safetensors", "ema", None),
        ("epoch-002-ema.safetensors", "ema", "was saved after 3 epochs and 0 steps, not when its name says"),
        (
            "epoch-003-ema.safetensors",
            "average",
            "holds the weights of 'average', not the weights of 'ema' as its name says",
        ),
        ("epoch-003-ema.safetensors", None, "holds an epoch's own weights, not the weights of 'ema' as its name says"),
        ("epoch-003.safetensors", "ema", "holds the weights of 'ema', not an epoch's own weights as its name says"),
    ],
)
def test_a_name_that_says_other_weights(
    name: str, candidate: str | None, said: str | None, description: Description
) -> None:
    found = misnamed(Path(name), description.model_copy(update={"candidate": candidate}))
    assert found == (said and f"{name} {said}")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "epoch-001.safetensors"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=f"cannot read {path}: Permission denied") as caught:
        load_upstream(path)
    assert caught.value.hint == "make it readable: chmod u+r"
