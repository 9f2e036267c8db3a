"""The built-in recipe of each data set: what differs from the plain defaults, by dotted key."""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_DATASET = "vqa"

# The published recipe with the steadiest routing; figures of the original's configuration.
_VQA: dict[str, object] = {
    "data.split": "train",
    "model.spans": (0, 1, 2, 3),
    "model.grid_size": 8,
    "model.routing": "soft",
    "model.pooling": "avg",
    "model.binarize": False,
    "train.batch_size": 64,
    "train.accumulation": 1,
    "train.learning_rate": 1e-4,
    "train.decay_epochs": (10, 12),
    "train.decay_factor": 0.2,
    "train.epochs": 13,
    "train.warmup_epochs": 3,
    "train.loss": "bce",
    "train.loss_reduction": "sum",
    "train.temperature_policy": 1,
}

_CLEVR: dict[str, object] = {
    "data.split": "train",
    "model.spans": (0, 1, 3),
    "model.grid_size": 14,
    "model.routing": "hard",
    "model.pooling": "fc",
    "model.binarize": True,
    "train.batch_size": 64,
    "train.accumulation": 2,
    "train.learning_rate": 4e-5,
    "train.decay_epochs": (13, 15),
    "train.decay_factor": 0.2,
    "train.epochs": 16,
    "train.warmup_epochs": 3,
    "train.loss": "ce",
    "train.loss_reduction": "sum",
    "train.temperature_policy": 0,
}

# Small enough for two CPU cores: 64x64 pictures of one shape each, 13 answers.
_EASY_VQA: dict[str, object] = {
    "data.split": "train",
    "model.num_layers": 1,
    "model.hidden_size": 64,
    "model.num_heads": 4,
    "model.feed_forward_size": 256,
    "model.dropout": 0.0,
    "model.word_embedding_size": 100,
    "model.flat_mlp_size": 64,
    "model.flat_out_size": 128,
    "model.spans": (0, 1, 2, 3),
    "model.grid_size": 4,
    "model.routing": "soft",
    "model.pooling": "avg",
    "train.batch_size": 128,
    "train.accumulation": 1,
    "train.learning_rate": 1.5e-3,
    "train.decay_epochs": (5,),
    "train.decay_factor": 0.2,
    "train.epochs": 6,
    "train.warmup_epochs": 0,
    "train.loss": "ce",
    "train.loss_reduction": "sum",
    # A second thread gains a third on an idle machine, and where another program runs it costs ten times as much.
    "run.num_threads": 1,
}

RECIPES: Mapping[str, Mapping[str, object]] = {"vqa": _VQA, "clevr": _CLEVR, "easy-vqa": _EASY_VQA}
