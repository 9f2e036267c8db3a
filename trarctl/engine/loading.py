"""Fit settings, prepared data and checkpoints of either kind together, and build the model that they describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from trarctl.config.resolve import Origin, Source
from trarctl.config.settings import ModelSettings, Settings, flat, to_text
from trarctl.data.manifest import MANIFEST, prepare_command
from trarctl.data.prepared import PreparedData, default_folder
from trarctl.engine.checkpoint import Description, is_ours, load_checkpoint, load_upstream, model_tensors
from trarctl.engine.distributed import World, enough_memory
from trarctl.engine.schedules import temperature
from trarctl.errors import CheckpointError, DataError, SettingsError, listed
from trarctl.model.original import shape_settings
from trarctl.model.spans import Spans, describe_coinciding
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.registry import POOLINGS

_UNKNOWN = Origin(Source.RECIPE, "recipe")  # of a value whose origin nobody gave


def prepared_folder(settings: Settings) -> Path:
    """Where the settings look for prepared data."""
    return settings.data.path or default_folder(settings.data.name or settings.data.dataset)


def is_prepared(path: Path) -> bool:
    """Whether there is prepared data in a folder, of whatever kind and state."""
    return (path / MANIFEST).exists()


def recorded_data(path: Path, dataset: str) -> Path:
    """A prepared folder that a run or a checkpoint names; a DataError says so if it is not there any more."""
    if not is_prepared(path):
        hint = f"--data DIR names the folder that it is in now; {prepare_command(dataset)} --out {path} makes it again"
        raise DataError(f"no prepared data in {path}", hint)
    return path


def fit_to_data(settings: Settings, data: PreparedData, origin: Mapping[str, Origin]) -> tuple[Settings, list[str]]:
    """Take from the data what the settings leave open: the grid and the width of the word vectors.

    Returns:
        Settings that fit, and notes on what changed. A value of the user's that does not fit is a SettingsError.
    """
    if settings.data.dataset != data.dataset:
        raise SettingsError(
            f"{data.path} holds {data.dataset} data, the settings are for {settings.data.dataset}",
            f"trarctl train {data.dataset} --data {data.path}",
        )
    if not data.features.num_images or not data.features.width:
        raise DataError(f"{data.path} has no grid features", f"trarctl prepare {data.dataset} --features DIR")
    wanted = [("grid_size", data.manifest.images.grid_size, "its grid has")]
    if data.vectors is not None:
        wanted.append(("word_embedding_size", int(data.vectors.shape[1]), "its word vectors have width"))
    notes = []
    for key, value, what in wanted:
        given, source = getattr(settings.model, key), origin.get(f"model.{key}", _UNKNOWN)
        if given == value:
            continue
        if source.is_users_choice:
            raise SettingsError(
                f"model.{key} = {given} ({source.text}) does not fit {data.path}: {what} {value}",
                f"--set model.{key}={value}, or prepare the data again",
            )
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={key: value})})
        notes.append(f"model.{key} = {value}, as the prepared data has it ({source.text}: {given})")
    return settings, notes + describe_coinciding(settings.model.spans, settings.model.grid_size)


def check_shape(settings: ModelSettings) -> None:
    """Refuse spans or a pooling, of a plugin perhaps, that the model cannot have on this grid, with a SettingsError."""
    try:
        Spans(settings.spans, settings.grid_size)
        POOLINGS[settings.pooling](settings.hidden_size)
    except ValueError as error:
        raise SettingsError(str(error), "--set model.spans=LIST or --set model.pooling=NAME chooses others") from error


def model_sizes(data: PreparedData) -> ModelSizes:
    """The sizes that the data gives the model."""
    return ModelSizes(vocabulary=len(data.vocabulary), answers=len(data.answers), feature_width=data.features.width)


def build_model(settings: Settings, data: PreparedData) -> TRAR:
    """A model with start weights: a function of the seed, and of the data's word vectors if it has any."""
    torch.manual_seed(settings.train.seed)
    vectors = None if data.vectors is None else torch.from_numpy(data.vectors.astype("float32"))
    return _new_model(settings, data, vectors)


def setting_changes(then: Settings, now: Settings, keys: Iterable[str]) -> list[str]:
    """How some settings differ from those of a checkpoint, in words."""
    before, after = flat(then), flat(now)
    return [f"{key} = {to_text(after[key])} (was {to_text(before[key])})" for key in keys if after[key] != before[key]]


def model_changes(then: Settings, now: Settings, *, may_change: Sequence[str] = ()) -> list[str]:
    """How a model differs from that of a checkpoint; its dropout may change like a learning rate."""
    free = ("model.dropout", *may_change)
    return setting_changes(then, now, [key for key in flat(then) if key.startswith("model.") and key not in free])


@dataclass(frozen=True)
class Loaded:
    """A model with trained weights, in evaluation mode on its device."""

    model: TRAR
    settings: Settings  # that it was trained with, as far as the checkpoint or the user knows them
    temperature: float  # of the last epoch that it was trained for
    epoch: int  # finished ones
    source: Path
    description: Description | None  # None for the original's checkpoints
    warnings: tuple[str, ...] = ()  # what is odd about it, or could not be checked

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<Loaded {self.source}, epoch {self.epoch}: {count:,} parameters on {self.device}>"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device


def is_exclusive(settings: Settings) -> bool:
    """Whether probabilities are a softmax over the answers; otherwise a sigmoid of each."""
    return settings.train.loss != "bce"


def load_model(
    path: Path, data: PreparedData, settings: Settings, *, origin: Mapping[str, Origin], world: World
) -> Loaded:
    """Load a checkpoint of ours, or a ``.pkl`` of the original program, for scoring ``data`` on this process's device.

    ``settings`` are for our own checkpoint those it holds, with what the user changed; for the original's what the
    shapes do not say.
    """
    state, epoch, description, warnings = _read(path, data)
    if description is None:
        settings = _with_shape(path, state, settings, origin, data)
        last_temperature = _last_temperature(path, settings, epoch)
        if settings.model.routing == "hard" and (epoch or 0) > settings.train.epochs:
            warnings.append(
                f"{path} is of epoch {epoch}, the settings are for {settings.train.epochs}: "
                f"its temperature is perhaps not {last_temperature}; give its trar.yml: --config FILE"
            )
    else:
        last_temperature = description.temperature
        _refuse_other_features(path, description, data)
    if (given := settings.model.grid_size) != (grid := data.manifest.images.grid_size):
        raise CheckpointError(
            f"{path} is scored with model.grid_size = {given}, {data.path} has a grid of size {grid}",
            "leave model.grid_size out, or give other data: --data DIR",
        )
    check_shape(settings.model)
    model = _new_model(settings, data)
    load_weights(model, state, path)
    model = model.to(world.device).eval()
    return Loaded(model, settings, last_temperature, epoch or 0, path, description, tuple(warnings))


def adopt_shape(
    path: Path, settings: Settings, origin: Mapping[str, Origin], data: PreparedData
) -> tuple[Settings, list[str]]:
    """Settings for a run that starts from the weights of a checkpoint: what its shapes say, the rest as given.

    Returns:
        Those settings, and what is odd about the checkpoint or could not be checked.
    """
    state, _, _, odd = _read(path, data)
    return _with_shape(path, state, settings, origin, data), odd


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of either kind, under the model's own names."""
    return model_tensors(load_checkpoint(path)[0]) if is_ours(path) else load_upstream(path)[0]


def load_weights(model: TRAR, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a model with weights, all of them and nothing else; CheckpointError names the first that do not fit."""
    own = model.state_dict()
    faults = [f"{name} is not part of the model" for name in state if name not in own]
    for name, wanted in own.items():
        given = state.get(name)
        if given is None:
            faults.append(f"{name} is missing")
        elif given.shape != wanted.shape:
            faults.append(f"{name} is {list(given.shape)}, expected {list(wanted.shape)}")
        elif wanted.is_floating_point() and not given.is_floating_point():
            faults.append(f"{name} holds {given.dtype}".replace("torch.", "") + ", expected floating-point numbers")
    if faults:
        raise CheckpointError(
            f"{path} does not fit the model: {listed(faults, most=3)}",
            "give the settings that it was trained with: --config FILE or --set model.KEY=VALUE",
        )
    model.load_state_dict(dict(state))


def check_data(path: Path, description: Description, data: PreparedData) -> list[str]:
    """Compare what a checkpoint was trained on with data: a CheckpointError names both of what differs.

    Returns:
        What is odd: features that are far from those of the training.
    """
    check_words(path, description, data)
    _refuse_other_features(path, description, data)
    return _feature_warnings(path, description, data)


def _refuse_other_features(path: Path, description: Description, data: PreparedData) -> None:
    trained = f"give the data that it was trained on: --data {description.data}"
    for what, theirs, ours in (
        ("a grid of size", description.settings.get("model", {}).get("grid_size"), data.manifest.images.grid_size),
        ("features of width", description.feature_width, data.features.width),
        ("features by the extractor", description.backbone, data.manifest.images.backbone),
    ):
        if None not in (theirs, ours) and theirs != ours:
            raise CheckpointError(f"{path} was trained on {what} {theirs}, {data.path} has {ours}", trained)


def _feature_warnings(path: Path, description: Description, data: PreparedData) -> list[str]:
    if (difference := data.feature_difference(description.features)) is None:
        return []
    what = f"{path} was trained on other features than those of {data.path}: {difference}"
    return [f"{what}; give the data that it was trained on: --data {description.data}"]


def check_words(path: Path, description: Description, data: PreparedData) -> None:
    """Compare words and answers of a checkpoint with the data's; a CheckpointError names the first difference."""
    for what, theirs, ours in (
        ("vocabulary", description.vocabulary, list(data.vocabulary.words)),
        ("answer list", description.answers, list(data.answers)),
    ):
        if theirs == ours:
            continue
        if len(theirs) != len(ours):
            difference = f"{len(theirs)} entries, the data has {len(ours)}"
        else:
            pairs = enumerate(zip(theirs, ours, strict=True))
            difference = next(f"entry {index} is {a!r}, in the data {b!r}" for index, (a, b) in pairs if a != b)
        raise CheckpointError(
            f"{path} was trained with another {what} than {data.path} ({difference})",
            f"give the prepared data that it was trained on: --data DIR (it was {description.data})",
        )


def _new_model(settings: Settings, data: PreparedData, word_vectors: Tensor | None = None) -> TRAR:
    """The one place where a command's model is built."""
    with enough_memory("take a smaller model: --set model.hidden_size=N or model.num_layers=N"):
        return TRAR(settings.model, model_sizes(data), word_vectors, attention=settings.run.attention)


def _read(path: Path, data: PreparedData) -> tuple[dict[str, Tensor], int | None, Description | None, list[str]]:
    """Weights, finished epochs and description of a checkpoint of either kind, checked against the data; oddities."""
    epoch: int | None
    description = None
    if is_ours(path):
        tensors, description = load_checkpoint(path)
        check_words(path, description, data)
        state, epoch = model_tensors(tensors), description.progress.epoch
    else:
        state, epoch = load_upstream(path)
    sizes = model_sizes(data)
    for name, axis, ours, what in (
        ("embedding.weight", 0, sizes.vocabulary, "words"),
        ("head.weight", 0, sizes.answers, "answers"),
        ("adapter.weight", 1, sizes.feature_width, "features a cell"),
    ):
        if name in state and state[name].ndim == 2 and state[name].shape[axis] != ours:
            raise CheckpointError(
                f"{path} has {state[name].shape[axis]} {what}, {data.path} has {ours}",
                "give the data that it was trained on; a published checkpoint needs every question file, Visual Genome"
                " and test included, when the data is prepared",
            )
    odd = [_order_warning(path, state, data)] if description is None else _feature_warnings(path, description, data)
    # No training leaves such layers behind.
    zero = [name for name, tensor in state.items() if name.endswith(("weight", "gain")) and not tensor.any()]
    if zero:
        odd.append(f"{path}: all weights are zero in {len(zero)} layers: {listed(zero)}")
    return state, epoch, description, odd


def _last_temperature(path: Path, settings: Settings, epoch: int | None) -> float:
    """The temperature of a checkpoint's last epoch; CheckpointError if hard routing needs it and nothing says it."""
    train = settings.train
    is_constant = len({temperature(train, epoch=one) for one in range(train.epochs)}) == 1
    if epoch is None and settings.model.routing == "hard" and not is_constant:
        last = train.temperature_min
        raise CheckpointError(
            f"{path} does not say after which epoch it was saved, and so not its temperature, which hard routing needs",
            f"give the temperature of its last epoch, here {last} as after a whole training: --set"
            f" train.temperature_policy=0 --set train.temperature_max={last} --set train.temperature_min={last}",
        )
    return temperature(train, epoch=max((epoch or 0) - 1, 0))


def _order_warning(path: Path, state: Mapping[str, Tensor], data: PreparedData) -> str:
    """Say what could be found out about the order of words and answers, which such a checkpoint does not hold.

    Embeddings start from word vectors, and those of rare words stay close to them.
    """
    what = "words and answers"
    vectors = data.vectors
    if vectors is not None and vectors.shape == state["embedding.weight"].shape:
        known = vectors.any(axis=1)
        ours, theirs = vectors[known].astype(np.float32), state["embedding.weight"].numpy()[known]
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        share = float(((ours * theirs).sum(axis=1) > _ALIKE * lengths).mean()) if len(ours) else 0.0
        if share >= _MOST:
            what = "answers"
        else:
            what += f" ({share:.0%} of the words have embeddings like the word vectors of {data.path})"
    return (
        f"{path} does not name its words and answers: that the {what} of {data.path} stand in the same order cannot be"
        f" checked; their accuracy shows it: trarctl eval --ckpt {path} --data {data.path} --split val"
    )


_ALIKE, _MOST = 0.5, 0.9  # cosine of two vectors of one word; share of words


def _with_shape(
    path: Path, state: Mapping[str, Tensor], settings: Settings, origin: Mapping[str, Origin], data: PreparedData
) -> Settings:
    """Settings with what a checkpoint's shapes say; what the user asked for must agree."""
    model = settings.model
    try:
        shapes = shape_settings(state)
        ModelSettings.model_validate(model.model_dump() | {key: shapes[key] for key in shapes if key != "num_spans"})
    except (IndexError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "a weight has too few dimensions"
        raise CheckpointError(
            f"{path} has weights of shapes that do not fit the settings: {reason}",
            "give an epochN.pkl of TRAR-VQA and its trar.yml: --config FILE",
        ) from error
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a TRAR checkpoint: {error.args[0]} is missing; it has {listed(state, most=3)}",
            "give an epochN.pkl of TRAR-VQA",
        ) from error
    num_spans = shapes.pop("num_spans")
    if num_spans != len(model.spans):
        raise CheckpointError(
            f"{path} has {num_spans} spans, the settings name {len(model.spans)}: {list(model.spans)}",
            "give its trar.yml: --config FILE, or --set model.spans=0,1,2",
        )
    fixed: dict[str, Any] = shapes | {"grid_size": data.manifest.images.grid_size}
    for key, value in fixed.items():
        given, source = getattr(model, key), origin.get(f"model.{key}", _UNKNOWN)
        if given != value and source.is_users_choice:
            holder = data.path if key == "grid_size" else path
            raise CheckpointError(
                f"{holder} has {key} {value}, the settings say {given} ({source.text})",
                "give settings, checkpoint and data that belong together: --config FILE, --ckpt FILE, --data DIR",
            )
    adopted = ModelSettings.model_validate(model.model_dump() | fixed)
    return settings.model_copy(update={"model": adopted})
