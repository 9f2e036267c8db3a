"""Foreign files of weights: what they are is told, and nothing in them is run, unpacked without bound or trusted."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trarctl.errors import CheckpointError, DataError, TrarError
from trarctl.weights import WeightsReader, archive_members, without_prefixes

READER = WeightsReader("weights file", DataError, "give another")
STATE = {f"layer.{number}.weight": torch.arange(200.0) + number for number in range(3)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE, "iteration": 90_000, "optimizer": {"state": {}}},
        {"state_dict": STATE, "epoch": 3},
        {"net": {"model_state_dict": STATE}},
        {"state_dict": prefixed("module.")},
        prefixed("module._orig_mod.model."),
        {**STATE, "epoch": 3, 5: torch.zeros(1)},
    ],
)
@pytest.mark.parametrize("way", ["zip", "legacy", "safetensors"])
def test_a_state_dict_is_found_and_unwrapped(content: Mapping[str, Any], way: str, tmp_path: Path) -> None:
    path = tmp_path / "some.bin"
    if way == "safetensors":
        flat = {name: value for name, value in content.items() if isinstance(value, torch.Tensor) and name != 5}
        save_file(flat or STATE, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    found = READER.weights(path)
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        name: value.tolist() for name, value in STATE.items()
    }
    assert found.versions == {}


def test_names_that_only_some_have_are_no_prefix(tmp_path: Path) -> None:
    """timm's VOLO has modules called network.0, beside others."""
    state = {"network.0.weight": torch.zeros(1), "pos_embed": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pth")
    assert READER.weights(tmp_path / "a.pth").tensors.keys() == state.keys()
    torch.save({"model": torch.zeros(1), "module.a": torch.zeros(1)}, tmp_path / "b.pth")
    assert READER.weights(tmp_path / "b.pth").tensors.keys() == {"model", "module.a"}
    assert without_prefixes("module.net._orig_mod.a.model.b") == "a.b"


@pytest.mark.parametrize("is_zip", [True, False])
def test_versions_of_modules(is_zip: bool, tmp_path: Path) -> None:
    state = OrderedDict(prefixed("module."))
    state._metadata = {"": {"version": 1}, "module.layer.0": {"version": 3}, "module.layer.1": {}}  # type: ignore[attr-defined]
    torch.save({"model": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    assert READER.weights(tmp_path / "a.pth").versions == {"": 1, "layer.0": 3}


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def bomb(path: Path, num_bytes: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
        with archive.open("a/data/0", "w", force_zip64=True) as file:
            for _ in range(num_bytes >> 20):
                file.write(bytes(1 << 20))


def lying_bomb(path: Path) -> None:
    """An archive whose directory says that a member is small, while it unpacks to 64 MB."""
    bomb(path, 64 << 20)
    content = path.read_bytes()
    size = struct.pack("<L", 64 << 20)
    directory = content.index(b"PK\x01\x02")
    at = content.index(size, directory)
    path.write_bytes(content[:at] + struct.pack("<L", 1000) + content[at + 4 :])


def changed(path: Path, tensor: torch.Tensor) -> None:
    saved = bytearray(path.read_bytes())
    saved[saved.index(tensor.numpy().tobytes()) + 40] ^= 4
    path.write_bytes(saved)


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    def made(name: str, write: Callable[[Path], object]) -> Path:
        write(tmp_path / name)
        return tmp_path / name

    def saved(content: object) -> Callable[[Path], object]:
        return lambda path: torch.save(content, path)

    torch.save(STATE, tmp_path / "crc")
    changed(tmp_path / "crc", STATE["layer.1.weight"])
    whole = (tmp_path / "crc").read_bytes()
    for path, message in (
        (tmp_path / "none", "no weights file at .*none$"),
        (tmp_path, "is a folder, not a weights file"),
        (made("pipe", os.mkfifo), "is a pipe or a device, not a weights file"),
        (made("empty", Path.touch), r"is damaged \(it is empty\)"),
        (
            made("lfs", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
            "a Git LFS pointer",
        ),
        (made("page", lambda path: path.write_text("<!doctype html><html>Sign in")), "is a web page or XML"),
        (made("xz", lambda path: path.write_bytes(b"\xfd7zXZ\0")), "is a gzip, bzip2 or xz archive"),
        (made("text", lambda path: path.write_text("weights")), "is a text file, no weights file"),
        (made("bytes", lambda path: path.write_bytes(bytes(range(256)))), "its beginning is that of no weights file"),
        (made("pickle", lambda path: path.write_bytes(pickle.dumps(1))), "a pickle that torch.save did not write"),
        (made("harm", saved({"a": Harm(tmp_path / "harmed")})), "holds objects other than tensors: posix.mkdir"),
        (made("crc2", lambda path: path.write_bytes(whole)), r"changed since it was written: crc/data/1\)"),
        (made("cut", lambda path: path.write_bytes(whole[:-50])), "its archive is cut off or changed"),
        (made("bomb", lambda path: bomb(path, 64 << 20)), "it would unpack to 67,"),
        (made("lying", lying_bomb), "damaged"),
        (made("list", saved([1, 2])), "holds no state_dict of tensors: it is of type list"),
        (made("other", saved({"epoch": 3})), "holds no state_dict of tensors: its keys are 'epoch'"),
        (
            made("few", saved({"a": torch.zeros(1).expand(9**9, 9)})),
            r"1 of 1 weights .* a is \[.*, 9\], the file has",
        ),
        (made("complex", saved({"a": torch.zeros(1, dtype=torch.complex64)})), "cannot be used: a holds complex64"),
        (made("float8", saved({"a": torch.zeros(1).to(torch.float8_e5m2)})), "a holds float8_e5m2"),
    ):
        with pytest.raises(DataError, match=message) as error:
            READER.weights(path)
        assert error.value.hint
    assert not (tmp_path / "harmed").exists()
    assert archive_members(tmp_path / "pipe") == archive_members(tmp_path / "cut") == set()


def test_each_purpose_has_its_own_words(tmp_path: Path) -> None:
    reader = WeightsReader("checkpoint", CheckpointError, "a", missing="b", folder="c", damaged_hint="d")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("x")
    for name, hint in (("text", "a"), ("none", "b"), ("", "c"), ("empty", "d")):
        with pytest.raises(TrarError, match="checkpoint") as error:
            reader.kind_of(tmp_path / name)
        assert (type(error.value), error.value.hint) == (CheckpointError, hint)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.0, torch.nan]), "b": torch.ones(3, dtype=torch.int64), "c": torch.ones(2)}
    with pytest.raises(DataError, match=r"not finite in 1 of 3 tensors: a \(1 of 2\)$") as error:
        READER.refuse_nonfinite(tmp_path, tensors)
    assert error.value.hint == "give another"
    READER.refuse_nonfinite(tmp_path, {"c": tensors["c"]})


def test_what_a_file_is_needs_no_torch(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    program = (
        "import sys; from pathlib import Path; from trarctl.data.features.base import *\n"
        "for name in ('r50', 'x101', 'x152', 'x152pp', 'resnet101', 'patches', 'maps', 'clip-rn50'):\n"
        f"    weights = None if name in ('patches', 'maps') else Path({str(tmp_path / 'a.pth')!r})\n"
        "    make_extractor(name, ExtractorOptions(8, weights)).describe()\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
