"""Checkpoints: one self-contained, checksummed safetensors file each, and the original's pickles.

A file holds the weights (``model.NAME``), both averages of Adam (``adam.average.NAME``, ``adam.square.NAME``), the
number of updates they have seen (``adam.step``) and, in its header, a JSON description: settings, vocabulary, answers,
state of the training, and a checksum over all of it. A file with the final name is whole. Loading reads tensors only;
nothing in a checkpoint is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trarctl.errors import CheckpointError, DataError
from trarctl.files import whole_file
from trarctl.model.original import translate_state
from trarctl.model.trar import TRAR

MODEL = "model."
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
    return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}


def restore_optimizer(model: TRAR, optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]) -> None:
    """Restore Adam's averages; of parameters that have none it starts from zero.

    Raises:
        CheckpointError: some are missing or of another shape.
    """
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
    """Write a checkpoint so that it is either whole or not there.

    Raises:
        DataError: if the disk is full or the folder cannot be written; what was there before stays.
    """
    held = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = orjson.dumps(description.model_dump(mode="json")).decode()
    metadata = {"trarctl": text, "sha256": _checksum(held, text)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            save_file(held, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write the checkpoint {path}: {error}",
            "free some space or permissions; earlier checkpoints are untouched: trarctl resume goes on from the latest",
        ) from error


def load_description(path: Path) -> Description:
    """Read a checkpoint's description without its tensors; CheckpointError if it is not whole or not one of ours."""
    with _opened(path) as file:
        return _describe(path, file.metadata())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read a whole checkpoint and verify its checksum.

    Raises:
        CheckpointError: if the file is missing, cut off, damaged, or not one of ours.
    """
    try:
        with _opened(path) as file:
            metadata = file.metadata()
            description = _describe(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if _checksum(tensors, metadata["trarctl"]) != metadata.get("sha256"):
        raise _damaged(path, "its checksum does not match")
    return tensors, description


def load_upstream(path: Path) -> tuple[dict[str, Tensor], int]:
    """Read a ``.pkl`` checkpoint of the original program, tensors only.

    Returns:
        Weights under this project's names, and the number of finished epochs.

    Raises:
        CheckpointError: if the file is missing, cut off, holds code, or has no state dict.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes its reader raise whatever it stumbles over
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds no state_dict of tensors", "give the epochN.pkl that the original program wrote"
        )
    epoch = content.get("epoch")
    return translate_state(state), epoch if isinstance(epoch, int) else 0


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
        raise CheckpointError(f"{path} was not written by trarctl", "give a run, a trarctl checkpoint or a .pkl file")
    try:
        return Description.model_validate(orjson.loads(text))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise CheckpointError(
            f"{path} has a description that this version cannot read: {str(error).splitlines()[0]}",
            "use the trarctl version that wrote it, or train again",
        ) from error


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise _missing(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def _missing(path: Path) -> CheckpointError:
    return CheckpointError(f"no checkpoint at {path}", "trarctl train makes one; --ckpt takes RUN, RUN@EPOCH or FILE")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is damaged ({why})", "use an earlier one: --ckpt RUN@EPOCH, or trarctl resume RUN"
    )
