"""Checkpoints: one self-contained, checksummed safetensors file each, and those that other programs wrote.

A file holds the weights (``model.NAME``), both averages of Adam (``adam.average.NAME``, ``adam.square.NAME``), the
number of updates they have seen (``adam.step``) and, in its header, a JSON description: settings, vocabulary, answers,
state of the training, and a checksum over all of it. With ``train.ema_decay`` there are ``ema.weights.NAME`` and
``ema.step``, too; the file of an average of weights holds the weights alone. A file with the final name is whole. Of an
exported folder, the file holds the weights alone, under their own names, and the description is beside it. Loading
reads tensors only; nothing in a checkpoint is executed. What kind a file is, its content says, never its name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trarctl.config import Cache, Precision
from trarctl.data.card import DataCard
from trarctl.data.text import Vocabulary
from trarctl.engine.averaging import EMA
from trarctl.engine.run import CANDIDATE, CHECKPOINT, EXPORTED, EXPORTED_CONFIG
from trarctl.errors import CheckpointError, DataError, first_line
from trarctl.files import read_regular, refusing, whole_file, write_json
from trarctl.model.original import translate_name
from trarctl.model.trar import TRAR
from trarctl.weights import Kind, WeightsReader, archive_members, fault_of, without_prefixes

MODEL = "model."
_ADAM = "adam."
_BESIDE = orjson.dumps({"description": EXPORTED_CONFIG}).decode()  # stands for a description in a file of its own
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


class TrainedOn(BaseModel):
    """The questions that a model was trained on; of foreign weights it is not known which they were."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # what commands call the data
    title: str  # what it shows, in a few words
    split: str | None  # the splits of the last epoch
    questions: int | None  # samples of an epoch
    type_label: str  # what accuracies by type group questions by


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
    max_words: int | None = None  # words of a question that are read; None in old files
    extractor: dict[str, Any] | None = None  # what made the features, as ``backbone.json`` has it; None: unknown
    trained_on: TrainedOn | None = None  # None in old files
    candidate: str | None = None  # ``ema`` or ``average`` if the weights are one; None: those of the training

    @property
    def data_name(self) -> str:
        """What commands call the data that it was trained on."""
        return self.dataset if self.trained_on is None else self.trained_on.name

    @property
    def data_title(self) -> str:
        """What that data shows, in a few words."""
        return self.dataset if self.trained_on is None else self.trained_on.title

    def card(self, path: Path) -> DataCard | None:
        """What is needed to ask the model in ``path`` about a picture; None if it lacks a part that old files lack."""
        grid_size = self.settings.get("model", {}).get("grid_size")
        if self.max_words is None or not grid_size or (self.backbone is None) != (self.extractor is None):
            return None
        texts = self.data_title, Vocabulary(tuple(self.vocabulary)), tuple(self.answers)
        shape = self.max_words, grid_size, self.feature_width
        return DataCard(path, *texts, *shape, self.backbone, self.extractor)


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
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith((_ADAM, EMA))}
    return {without_prefixes(name): tensor for name, tensor in own.items()}


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


def save_exported(folder: Path, weights: Mapping[str, Tensor], description: Description) -> None:
    """Write weights and description as two files, which together are read as a checkpoint; an OSError if it fails."""
    held = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    content = description.model_dump(mode="json")
    checksum = _checksum(held, orjson.dumps(content).decode())
    with whole_file(folder / EXPORTED) as temporary:
        save_file(held, temporary, metadata={"trarctl": _BESIDE})
    write_json(folder / EXPORTED_CONFIG, {"sha256": checksum, **content})


def misnamed(path: Path, description: Description) -> str | None:
    """Say that a checkpoint is of another point, or of other weights, than its name says; None if it is not."""
    state, match = description.progress, CHECKPOINT.match(path.name)
    average = CANDIDATE.match(path.name)
    if match is None and average is None:
        return None
    held, named = description.candidate, average and average[2]
    if held != named:
        kinds = [f"the weights of {one!r}" if one else "an epoch's own weights" for one in (held, named)]
        return f"{path} holds {kinds[0]}, not {kinds[1]} as its name says"
    point = (int(match[1]), int(match[2] or 0)) if match else (int(average[1]) if average else 0, 0)
    if point == (state.epoch, state.step_in_epoch):
        return None
    return f"{path} was saved after {state.epoch} epochs and {state.step_in_epoch} steps, not when its name says"


def load_description(path: Path) -> Description:
    """Read a checkpoint's description without its tensors; CheckpointError if it is not whole or not one of ours."""
    with _opened(path) as file:
        return _describe(path, file.metadata())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read a checkpoint and verify its checksum; CheckpointError if it is missing, damaged, or not one of ours."""
    if _kind_of(path) != "safetensors":
        raise _not_ours(path)
    tensors, metadata = _READER.safetensors(path)
    description = _describe(path, metadata)
    text, checksum = _description_text(path, metadata) or "", metadata.get("sha256")
    if checksum is None:  # it stood beside the description up to version 0.3
        content = orjson.loads(text)
        checksum = content.pop("sha256", None)
        text = orjson.dumps(content).decode()
    if _checksum(tensors, text) != checksum:
        raise _READER.damaged(path, "its checksum does not match", _READER.damaged_hint)
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
    _kind_of(path)
    content = _READER.content(path)
    state = _READER.state_in(path, content)
    epoch = state.pop("epoch", None) if state is content else content.get("epoch")
    return _usable(path, state), _whole_number(epoch)


def refuse_nonfinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """See that all tensors are finite; a CheckpointError names those that are not."""
    _READER.refuse_nonfinite(path, tensors, "give an earlier checkpoint: --ckpt RUN@EPOCH, or another file")


_FOREIGN_HINT = "give the epochN.pkl that the original program wrote, or a state dict of its model"
SAVED_SCORES = {"question_id.npy", "scores.npy"}  # what an archive of saved scores holds, and no checkpoint
_READER = WeightsReader(
    "checkpoint",
    CheckpointError,
    _FOREIGN_HINT,
    missing="trarctl train makes one; --ckpt takes RUN, RUN@EPOCH or FILE",
    folder="give a file in it, or the name of a run",
    damaged_hint="use an earlier one: --ckpt RUN@EPOCH, or trarctl resume RUN",
)


def _kind_of(path: Path) -> Kind:
    """What a file is by its content; CheckpointError says what it is if it cannot be a checkpoint."""
    if archive_members(path) >= SAVED_SCORES:
        raise CheckpointError(f"{path} holds saved scores, no checkpoint", f"trarctl submit --ckpt {path} --data DIR")
    return _READER.kind_of(path)


def _usable(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Weights of another program under this project's names, in float32; CheckpointError if some cannot be used."""
    faults = [f"{key!r} is no name" for key in state if not isinstance(key, str)]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or name.startswith(_ADAM):
            continue
        if isinstance(value, Tensor) and not value.is_floating_point():
            faults.append(f"{name} holds {value.dtype}".replace("torch.", "") + ", expected floating-point numbers")
        elif fault := fault_of(value):
            faults.append(f"{name} {fault}")
        else:
            own = translate_name(without_prefixes(name))
            if own in renamed:
                faults.append(f"{name} is there twice, with and without a prefix")
            renamed[own] = value.float()
    if faults:
        raise _READER.unusable(path, faults, len(state))
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


def _description_text(path: Path, metadata: Mapping[str, str] | None) -> str | None:
    """The description as JSON, from the header or from the file that it names; None if it is not ours."""
    text = (metadata or {}).get("trarctl")
    if text != _BESIDE:
        return text
    beside = path.with_name(EXPORTED_CONFIG)
    hint = f"{path.name} and {beside.name} belong together: take the whole exported folder"
    with refusing(f"cannot read {beside}", hint, CheckpointError):
        return read_regular(beside).decode("utf-8", "replace")


def _describe(path: Path, metadata: dict[str, str] | None) -> Description:
    text = _description_text(path, metadata)
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
    return _READER.opened(path)


def _not_ours(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} was not written by trarctl", "give a run, a trarctl checkpoint or a .pkl file")
