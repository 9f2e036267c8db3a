"""Checkpoints: one self-contained, checksummed safetensors file each, and those that other programs wrote.

A file holds the weights (``model.NAME``), both averages of Adam (``adam.average.NAME``, ``adam.square.NAME``), the
number of updates they have seen (``adam.step``) and, in its header, a JSON description: settings, vocabulary, answers,
state of the training, and a checksum over all of it. With ``train.ema_decay`` there are ``ema.weights.NAME`` and
``ema.step``, too; the file of an average of weights holds the weights alone. A file with the final name is whole.
Loading reads tensors only; nothing in a checkpoint is executed. What kind a file is, its content says, never its name.
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import math
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trarctl.config import Cache, Precision
from trarctl.engine.averaging import EMA
from trarctl.engine.run import CHECKPOINT
from trarctl.errors import CheckpointError, DataError, first_line, listed
from trarctl.files import refusing, whole_file
from trarctl.model.original import translate_name
from trarctl.model.trar import TRAR

MODEL = "model."
_ADAM = "adam."
_AVERAGE, _SQUARE, _STEP = "adam.average.", "adam.square.", "adam.step"


class TrainState(BaseModel):
    """How far a training has come.

    ``epoch`` counts the finished epochs, ``step_in_epoch`` the steps done of the next one, ``step`` all steps;
    ``loss_sum`` is over ``samples_in_epoch``, the window's since the last logged step. The order of samples and every
    random number are functions of the seed, the step and the process, so that an exact resume needs no more than this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    samples_in_epoch: int = 0
    window_loss_sum: float = 0.0
    window_samples: int = 0
    best_epoch: int | None = None
    best_overall: float | None = None
    validations_since_best: int = 0


class Description(BaseModel):
    """Everything in a checkpoint that is not a tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    trarctl: str
    torch: str
    run: str
    dataset: str
    settings: dict[str, Any]
    progress: TrainState
    temperature: float
    learning_rate: float
    accuracy: dict[str, Any] | None = None
    vocabulary: list[str]
    answers: list[str]
    feature_width: int
    vectors: dict[str, Any] | None = None
    backbone: str | None = None
    data: str
    num_processes: int = 1
    samples: str | None = None  # digest of the training questions' ids in training order; None in old files
    features: dict[str, Any] | None = None  # statistics of the features that it was trained on; None in old files
    precision: Precision | None = None  # that it was trained in; None in old files
    cache: Cache | None = None  # where the features were kept; None in old files
    candidate: str | None = None  # ``ema`` or ``average`` if the weights are one; None: those of the training


def state_tensors(model: TRAR, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their names there."""
    tensors = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            tensors[_STEP] = state["step"]
            tensors[_AVERAGE + name] = state["exp_avg"]
            tensors[_SQUARE + name] = state["exp_avg_sq"]
    return tensors


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights among a checkpoint's tensors, under the model's own names."""
    return {_without_prefixes(name): tensor for name, tensor in tensors.items() if not name.startswith((_ADAM, EMA))}


def restore_optimizer(model: TRAR, optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """Restore Adam's averages; of parameters that have none it starts from zero."""
    for name, parameter in model.named_parameters():
        if _AVERAGE + name not in tensors:
            continue
        wanted = {_STEP: torch.Size(), _AVERAGE + name: parameter.shape, _SQUARE + name: parameter.shape}
        for held, shape in wanted.items():
            if held not in tensors or tensors[held].shape != shape:
                given = f"is {list(tensors[held].shape)}" if held in tensors else "is missing"
                raise CheckpointError(
                    f"the checkpoint's {held} {given}, expected {list(shape)}", "resume from another: --epoch N"
                )
        optimizer.state[parameter] = {
            "step": tensors[_STEP].to(parameter.device, copy=True),
            "exp_avg": tensors[_AVERAGE + name].to(parameter.device),
            "exp_avg_sq": tensors[_SQUARE + name].to(parameter.device),
        }


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a checkpoint so that it is either whole or not there; otherwise a DataError, and what was there stays."""
    held = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    content = description.model_dump(mode="json")
    checksum = _checksum(held, orjson.dumps(content).decode())
    # One entry only: several are written in random order, and the same state would make other bytes.
    metadata = {"trarctl": orjson.dumps({"sha256": checksum, **content}).decode()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            save_file(held, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write the checkpoint {path}: {error}",
            "free some space or permissions; earlier checkpoints are untouched: trarctl resume goes on from the latest",
        ) from error


def misnamed(path: Path, description: Description) -> str | None:
    """Say that a checkpoint was saved at another point than its name says; None if it was not."""
    match, state = CHECKPOINT.match(path.name), description.progress
    if not match or (int(match[1]), int(match[2] or 0)) == (state.epoch, state.step_in_epoch):
        return None
    return f"{path} was saved after {state.epoch} epochs and {state.step_in_epoch} steps, not when its name says"


def load_description(path: Path) -> Description:
    """Read a checkpoint's description without its tensors; CheckpointError if it is not whole or not one of ours."""
    with _opened(path) as file:
        return _describe(path, file.metadata())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read a checkpoint and verify its checksum; CheckpointError if it is missing, damaged, or not one of ours."""
    tensors, metadata = _content(path)
    description = _describe(path, metadata)
    text, checksum = metadata["trarctl"], metadata.get("sha256")
    if checksum is None:  # it stood beside the description up to version 0.3
        content = orjson.loads(text)
        checksum = content.pop("sha256", None)
        text = orjson.dumps(content).decode()
    if _checksum(tensors, text) != checksum:
        raise _damaged(path, "its checksum does not match")
    refuse_nonfinite(path, tensors)
    return tensors, description


def is_ours(path: Path) -> bool:
    """Whether trarctl wrote this checkpoint, by its content; a CheckpointError says what it is if it is none."""
    if _kind_of(path) != "safetensors":
        return False
    with _opened(path) as file:
        return "trarctl" in (file.metadata() or {})


def load_upstream(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Read a checkpoint of the original program, or of one that kept its names: tensors only, nothing is executed.

    The weights may stand under any of the usual keys, behind any of the usual prefixes, in any floating-point type.

    Returns:
        Weights under this project's names in float32, and the number of finished epochs, None if the file does not say.
    """
    content = _content(path)[0] if _kind_of(path) == "safetensors" else _unpickled(path)
    state = _state_in(content)
    if state is None:
        inside = f"it is of type {type(content).__name__}"
        if isinstance(content, Mapping) and content:
            inside = f"its keys are {listed((repr(str(key)) for key in content), len(content))}"
        raise CheckpointError(f"{path} holds no state_dict of tensors: {inside}", _FOREIGN_HINT)
    epoch = state.pop("epoch", None) if state is content else content.get("epoch")
    return _usable(path, state), _whole_number(epoch)


def refuse_nonfinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """See that all tensors are finite; a CheckpointError names those that are not."""
    odd = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
            odd.append(f"{name} ({count:,} of {tensor.numel():,})")
    if odd:
        raise CheckpointError(
            f"{path} holds values that are not finite in {len(odd)} of {len(tensors)} tensors: {listed(odd)}",
            "give an earlier checkpoint: --ckpt RUN@EPOCH, or another file",
        )


_COPY_HINT = "copy it again from where it came, and compare the sizes"
_FOREIGN_HINT = "give the epochN.pkl that the original program wrote, or a state dict of its model"
# What is taken for a checkpoint: how it begins, what it is, and what to do.
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", "fetch the file: git lfs pull"),
    (b"<", "a web page or XML, no checkpoint", "save the file itself, not the page about it"),
    (b"\x80", "a pickle that torch.save did not write", _FOREIGN_HINT),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), "a gzip, bzip2 or xz archive", "unpack it and give the checkpoint in it"),
)
# Where other programs keep a model's weights, and what they and their wrappers put before each name.
_STATES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
SAVED_SCORES = {"question_id.npy", "scores.npy"}  # what an archive of saved scores holds, and no checkpoint
PREFIXES = {"module", "_orig_mod", "model", "net", "network"}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The pickles of torch before 1.6 begin with this number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CHUNK = 1 << 20
# Plain values that programs keep beside the weights. None of them runs anything when it is read.
_scalar, _reconstruct = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_HARMLESS: list[Any] = [
    _scalar,
    _reconstruct,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"),
    (codecs.encode, "_codecs.encode"),
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]


def _kind_of(path: Path) -> Literal["safetensors", "zip", "legacy"]:
    """What a file is by its first bytes; CheckpointError says what it is if it cannot be a checkpoint."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint", "give a file in it, or the name of a run")
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}", "trarctl train makes one; --ckpt takes RUN, RUN@EPOCH or FILE"
        )
    with refusing(f"cannot read {path}", "make it readable: chmod u+r", CheckpointError), path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        _refuse_other_archive(path)
        return "zip"
    if head.startswith(_LEGACY):
        return "legacy"
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes < 1 << 32:
        return "safetensors"
    if not head:
        raise _damaged(path, "it is empty")
    for start, what, hint in _OTHER_FILES:
        if head.lstrip().startswith(start):
            raise CheckpointError(f"{path} is {what}", hint)
    if head.isascii() and b"\0" not in head:
        raise CheckpointError(f"{path} is a text file, no checkpoint", _FOREIGN_HINT)
    raise _damaged(path, "its beginning is that of no checkpoint")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        raise _damaged(path, "its archive is cut off or changed", _COPY_HINT) from error


def _refuse_other_archive(path: Path) -> None:
    """See that a zip archive holds what ``torch.save`` writes; one that cannot be listed is damaged."""
    with _archive(path) as archive:
        names = archive.namelist()
    if set(names) >= SAVED_SCORES:
        raise CheckpointError(f"{path} holds saved scores, no checkpoint", f"trarctl submit --ckpt {path} --data DIR")
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is an archive of other files: {listed(names)}", _FOREIGN_HINT)


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with _opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _unpickled(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is tensors and plain values."""
    if _kind_of(path) == "zip":
        _check_archive(path)
    try:
        # The open file, since torch goes by the ending of a name.
        with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise whatever it stumbles over
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds objects other than tensors: {foreign[1]}",
                "save its weights alone, where they come from: torch.save(model.state_dict(), FILE)",
            ) from error
        raise _damaged(path, "its content cannot be read", _COPY_HINT) from error


def _check_archive(path: Path) -> None:
    """See that a zip archive is one of ``torch.save``, whole by its own checksums, which torch does not compare."""
    with _archive(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > 4 * path.stat().st_size + _CHUNK:
            raise _damaged(path, f"it would unpack to {unpacked:,} bytes", _COPY_HINT)
        changed = [member.filename for member in members if not _is_intact(archive, member)]
    # Without a single right checksum the program that wrote it had them switched off.
    if changed and len(changed) < sum(member.file_size > 0 for member in members):
        what = f"changed since it was written: {listed(changed, most=3)}"
        raise _damaged(path, what, _COPY_HINT)


def _is_intact(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(_CHUNK):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _state_in(content: Any, depth: int = 4) -> dict[Any, Any] | None:
    """The state dict in what a program saved: the content itself, or what stands under one of the usual keys."""
    if not isinstance(content, dict) or not depth:
        return None
    inside = (_state_in(content.get(key), depth - 1) for key in _STATES)
    own = content if any(isinstance(value, Tensor) for value in content.values()) else None
    return next((state for state in inside if state is not None), own)


def _without_prefixes(name: str) -> str:
    """A parameter's name without what programs and their wrappers put before it."""
    return ".".join(part for part in name.split(".") if part not in PREFIXES)


def _usable(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Weights of another program under this project's names, in float32; CheckpointError if some cannot be used."""
    faults = [f"{key!r} is no name" for key in state if not isinstance(key, str)]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or name.startswith(_ADAM):
            continue
        if not isinstance(value, Tensor):
            faults.append(f"{name} is a {type(value).__name__}, not a tensor")
        elif value.dtype not in _FLOATS or value.layout is not torch.strided:
            faults.append(f"{name} holds {value.dtype}".replace("torch.", "") + ", expected floating-point numbers")
        elif value.is_meta or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            faults.append(f"{name} is {list(value.shape)}, the file has fewer numbers")
        else:
            own = translate_name(_without_prefixes(name))
            if own in renamed:
                faults.append(f"{name} is there twice, with and without a prefix")
            renamed[own] = value.float()
    if faults:
        raise CheckpointError(
            f"{len(faults):,} of {len(state):,} weights in {path} cannot be used: {listed(faults)}",
            _FOREIGN_HINT,
        )
    refuse_nonfinite(path, renamed)
    return renamed


def _whole_number(epoch: object) -> int | None:
    """A number of epochs in whatever type it was saved; None for what is no such number."""
    if isinstance(epoch, Tensor | np.ndarray | np.generic):
        epoch = epoch.item() if math.prod(epoch.shape) == 1 else None
    if isinstance(epoch, bool) or not isinstance(epoch, int | float) or not math.isfinite(epoch):
        return None
    return int(epoch) if epoch == int(epoch) and epoch > 0 else None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """A sha256 over the description, and over names, shapes, types and bytes of the tensors in order of the names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(path: Path, metadata: dict[str, str] | None) -> Description:
    text = (metadata or {}).get("trarctl")
    if text is None:
        raise _not_ours(path)
    try:
        content = orjson.loads(text)
        return Description.model_validate({name: value for name, value in content.items() if name != "sha256"})
    except (orjson.JSONDecodeError, AttributeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} has a description that this version cannot read: {first_line(error)}",
            "use the trarctl version that wrote it, or train again",
        ) from error


def _opened(path: Path) -> Any:
    if _kind_of(path) != "safetensors":
        raise _not_ours(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _not_ours(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} was not written by trarctl", "give a run, a trarctl checkpoint or a .pkl file")


def _damaged(path: Path, why: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is damaged ({why})",
        hint or "use an earlier one: --ckpt RUN@EPOCH, or trarctl resume RUN",
    )
