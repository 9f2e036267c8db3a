"""Fit settings, prepared data and checkpoints of either kind together, and build the model that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trarctl.config.resolve import Origin, Source
from trarctl.config.settings import ModelSettings, Settings
from trarctl.data.prepared import PreparedData, default_folder
from trarctl.engine.checkpoint import Description, load_checkpoint, load_upstream, model_tensors
from trarctl.engine.distributed import World
from trarctl.engine.schedules import temperature
from trarctl.errors import CheckpointError, DataError, SettingsError
from trarctl.model.original import shape_settings
from trarctl.model.spans import Spans, describe_coinciding
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.registry import POOLINGS

_UNKNOWN = Origin(Source.RECIPE, "recipe")  # of a value whose origin nobody gave


def prepared_folder(settings: Settings) -> Path:
    """Where the settings look for prepared data."""
    return settings.data.path or default_folder(settings.data.dataset)


def fit_to_data(settings: Settings, data: PreparedData, origin: Mapping[str, Origin]) -> tuple[Settings, list[str]]:
    """Take from the data what the settings leave open: the grid and the width of the word vectors.

    Returns:
        Settings that fit, and notes on what changed.

    Raises:
        SettingsError: if a value that the user gave does not fit the data.
        DataError: if the data has no features.
    """
    if settings.data.dataset != data.dataset:
        raise SettingsError(
            f"{data.path} holds {data.dataset} data, the settings are for {settings.data.dataset}",
            f"trarctl train {data.dataset} --data {data.path}",
        )
    if not data.features.num_images or not data.features.width:
        raise DataError(f"{data.path} has no grid features", f"trarctl prepare {data.dataset} --features DIR")
    wanted: dict[str, Any] = {"grid_size": data.manifest.grid_size}
    if data.vectors is not None:
        wanted["word_embedding_size"] = int(data.vectors.shape[1])
    changes: dict[str, Any] = {}
    notes = []
    for key, value in wanted.items():
        given = getattr(settings.model, key)
        if given == value:
            continue
        source = origin.get(f"model.{key}", _UNKNOWN)
        if source.is_users_choice:
            what = "its grid has" if key == "grid_size" else "its word vectors have width"
            raise SettingsError(
                f"model.{key} = {given} ({source.text}) does not fit {data.path}: {what} {value}",
                f"--set model.{key}={value}, or prepare the data again",
            )
        changes[key] = value
        notes.append(f"model.{key} = {value}, as the prepared data has it ({source.text}: {given})")
    if changes:
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=changes)})
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


@dataclass(frozen=True)
class Loaded:
    """A model with trained weights, in evaluation mode on its device."""

    model: TRAR
    settings: Settings  # that it was trained with, as far as the checkpoint or the user knows them
    temperature: float  # of the last epoch that it was trained for
    epoch: int  # finished ones
    source: Path
    description: Description | None  # None for the original's checkpoints

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device


def is_exclusive(settings: Settings) -> bool:
    """Whether probabilities are a softmax over the answers; otherwise a sigmoid of each."""
    return settings.train.loss != "bce"


def is_upstream(path: Path) -> bool:
    """Whether the file is a checkpoint of the original program, by its name."""
    return path.suffix in {".pkl", ".pth", ".pt"}


def load_model(
    path: Path, data: PreparedData, settings: Settings, *, origin: Mapping[str, Origin], world: World
) -> Loaded:
    """Load a checkpoint of ours, or a ``.pkl`` of the original program, for scoring ``data`` on this process's device.

    ``settings`` are for our own checkpoint those it holds, with what the user changed; for the original's what the
    shapes do not say.

    Raises:
        CheckpointError: if the file is missing or damaged, or does not fit the data or the settings.
    """
    state, epoch, description = _read(path, data)
    if description is None:
        settings = _with_shape(path, state, settings, origin, data)
        last_temperature = temperature(settings.train, epoch=max(epoch - 1, 0))
    else:
        last_temperature = description.temperature
    check_shape(settings.model)
    model = _new_model(settings, data)
    load_weights(model, state, path)
    return Loaded(model.to(world.device).eval(), settings, last_temperature, epoch, path, description)


def adopt_shape(path: Path, settings: Settings, origin: Mapping[str, Origin], data: PreparedData) -> Settings:
    """Settings for a run that starts from the weights of a checkpoint: what its shapes say, the rest as given.

    Raises:
        CheckpointError: if the file cannot be read, or fits neither the data nor what the user asked for.
    """
    return _with_shape(path, _read(path, data)[0], settings, origin, data)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of either kind, under the model's own names."""
    return load_upstream(path)[0] if is_upstream(path) else model_tensors(load_checkpoint(path)[0])


def load_weights(model: TRAR, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a model with weights, all of them and nothing else; CheckpointError names the first that do not fit."""
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is not part of the model" for name in state if name not in own]
    shapes = [(name, list(state[name].shape), list(tensor.shape)) for name, tensor in own.items() if name in state]
    faults += [f"{name} is {given}, expected {wanted}" for name, given, wanted in shapes if given != wanted]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(faults[:3])}{more}",
            "give the settings that it was trained with: --config FILE or --set model.KEY=VALUE",
        )
    model.load_state_dict(dict(state))


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
            index = next(index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
            difference = f"entry {index} is {theirs[index]!r}, in the data {ours[index]!r}"
        raise CheckpointError(
            f"{path} was trained with another {what} than {data.path} ({difference})",
            f"give the prepared data that it was trained on: --data DIR (it was {description.data})",
        )


def _new_model(settings: Settings, data: PreparedData, word_vectors: Tensor | None = None) -> TRAR:
    """The one place where a command's model is built."""
    return TRAR(settings.model, model_sizes(data), word_vectors, attention=settings.run.attention)


def _read(path: Path, data: PreparedData) -> tuple[dict[str, Tensor], int, Description | None]:
    """Weights, finished epochs and description of a checkpoint of either kind, checked against the data."""
    if is_upstream(path):
        state, epoch = load_upstream(path)
        description = None
    else:
        tensors, description = load_checkpoint(path)
        check_words(path, description, data)
        state, epoch = model_tensors(tensors), description.progress.epoch
    sizes = model_sizes(data)
    for name, axis, ours, what in (
        ("embedding.weight", 0, sizes.vocabulary, "words"),
        ("head.weight", 0, sizes.answers, "answers"),
        ("adapter.weight", 1, sizes.feature_width, "features a cell"),
    ):
        if name in state and state[name].shape[axis] != ours:
            raise CheckpointError(
                f"{path} has {state[name].shape[axis]} {what}, {data.path} has {ours}",
                "give the data that it was trained on; a published checkpoint needs every question file, Visual Genome"
                " and test included, when the data is prepared",
            )
    return state, epoch, description


def _with_shape(
    path: Path, state: Mapping[str, Tensor], settings: Settings, origin: Mapping[str, Origin], data: PreparedData
) -> Settings:
    """Settings with what a checkpoint's shapes say; what the user asked for must agree."""
    model = settings.model
    try:
        shapes = shape_settings(state)
    except KeyError as error:
        raise CheckpointError(
            f"{path} is not a TRAR checkpoint: {error.args[0]} is missing", "give an epochN.pkl of TRAR-VQA"
        ) from error
    num_spans = shapes.pop("num_spans")
    if num_spans != len(model.spans):
        raise CheckpointError(
            f"{path} has {num_spans} spans, the settings name {len(model.spans)}: {list(model.spans)}",
            "give its trar.yml: --config FILE, or --set model.spans=0,1,2",
        )
    fixed: dict[str, Any] = shapes | {"grid_size": data.manifest.grid_size}
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
