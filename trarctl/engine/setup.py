"""From settings and prepared data to a model: what the data decides, and what does not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trarctl.config.resolve import Origin, Source
from trarctl.config.settings import Settings
from trarctl.data.prepared import PreparedData
from trarctl.errors import DataError, SettingsError
from trarctl.model.trar import TRAR, ModelSizes


def fit_to_data(settings: Settings, data: PreparedData, origin: Mapping[str, Origin]) -> tuple[Settings, list[str]]:
    """Take from the data what the settings leave open: the grid and the width of the word vectors.

    Args:
        settings: as resolved.
        data: opened prepared data.
        origin: where each dotted key came from; a default or a recipe's value yields to the data.

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
        source = origin.get(f"model.{key}", Origin(Source.RECIPE, "recipe"))
        if source.is_users_choice:
            what = "its grid has" if key == "grid_size" else "its word vectors have width"
            raise SettingsError(
                f"model.{key} = {given} ({source.text}) does not fit {data.path}: {what} {value}",
                f"--set model.{key}={value}, or prepare the data anew",
            )
        changes[key] = value
        notes.append(f"model.{key} = {value}, as the prepared data has it ({source.text}: {given})")
    if changes:
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=changes)})
    return settings, notes


def model_sizes(data: PreparedData) -> ModelSizes:
    """The sizes that the data gives the model."""
    return ModelSizes(vocabulary=len(data.vocabulary), answers=len(data.answers), feature_width=data.features.width)


def build_model(settings: Settings, data: PreparedData) -> TRAR:
    """A model with start weights: a function of the seed, and of the data's word vectors if it has any."""
    torch.manual_seed(settings.train.seed)
    vectors = None if data.vectors is None else torch.from_numpy(data.vectors.astype("float32"))
    return TRAR(settings.model, model_sizes(data), vectors, attention=settings.run.attention)
