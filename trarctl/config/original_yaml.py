"""The original program's ``trar.yml``, read as it is: its keys and values in terms of ours.

Source: the configuration files and their defaults of TRAR-VQA (2021).
"""

from __future__ import annotations

import ast
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trarctl.config.keys import nearest_key
from trarctl.errors import SettingsError

# Keys whose values mean the same here.
SAME: dict[str, str] = {
    "BATCH_SIZE": "train.batch_size",
    "BINARIZE": "model.binarize",
    "DATASET": "data.dataset",
    "DROPOUT_R": "model.dropout",
    "FF_SIZE": "model.feed_forward_size",
    "FLAT_GLIMPSES": "model.flat_glimpses",
    "FLAT_MLP_SIZE": "model.flat_mlp_size",
    "FLAT_OUT_SIZE": "model.flat_out_size",
    "GRAD_ACCU_STEPS": "train.accumulation",
    "HIDDEN_SIZE": "model.hidden_size",
    "IMG_SCALE": "model.grid_size",
    "LAYER": "model.num_layers",
    "LOSS_FUNC": "train.loss",
    "LR_BASE": "train.learning_rate",
    "LR_DECAY_LIST": "train.decay_epochs",
    "LR_DECAY_R": "train.decay_factor",
    "MAX_EPOCH": "train.epochs",
    "MULTI_HEAD": "model.num_heads",
    "ORDERS": "model.spans",
    "SEED": "train.seed",
    "SPLIT": "data.split",
    "TAU_MAX": "train.temperature_max",
    "TAU_MIN": "train.temperature_min",
    "TAU_POLICY": "train.temperature_policy",
    "TRAIN_SPLIT": "data.split",
    "WARMUP_EPOCH": "train.warmup_epochs",
    "WORD_EMBED_SIZE": "model.word_embedding_size",
}

# Keys that have no meaning here, each with the reason that the user is told.
IGNORED: dict[str, str] = {
    "BBOXFEAT_EMB_SIZE": "there is no bounding-box branch",
    "BBOX_NORMALIZE": "there is no bounding-box branch",
    "CKPT_EPOCH": "name a checkpoint with trarctl resume or --ckpt",
    "CKPT_PATH": "name a checkpoint with trarctl resume or --ckpt",
    "CKPT_VERSION": "name a checkpoint with trarctl resume or --ckpt",
    "DATA_ROOT": "prepared data is named with --data",
    "EVAL_BATCH_SIZE": "it does not change a score",
    "FEAT_SIZE": "the width is that of the feature files",
    "GPU": "devices are named with --gpus",
    "MODEL": "there is one model, TRAR",
    "NUM_WORKERS": "loading works differently here: data.num_workers",
    "PIN_MEM": "it does not change a result",
    "RESUME": "go on with trarctl resume",
    "RUN_MODE": "the command says it",
    "TEST_SAVE_PRED": "scores are saved with --save-scores",
    "USE_GLOVE": "word vectors are chosen by trarctl prepare --vectors",
    "VERBOSE": "it does not change a result",
    "VERSION": "a run is named with --name",
}

# Keys that have one value here.
FIXED: dict[str, tuple[object, str]] = {
    "FEATURES": ("grid", "TRAR looks at grid features only"),
    "MODEL_USE": ("TRAR", "trarctl has no other model"),
    "OPT": ("Adam", "trarctl has no other optimizer"),
    "USE_AUX_FEAT": (False, "there is no second set of features"),
    "USE_BBOX_FEAT": (False, "there is no bounding-box branch"),
}

ROUTINGS = ("soft", "hard")
POOLINGS = ("avg", "attention", "fc")

# What torch's Adam has where OPT_PARAMS says nothing, and so had the original.
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


@dataclass
class UpstreamValues:
    """Our keys with their values, the original's key behind each, and what the user should know."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, key: str, value: object, upstream_key: str) -> None:
        """Keep one value."""
        self.values[key] = value
        self.origins[key] = upstream_key


def translate(document: Mapping[Any, Any], source: str) -> UpstreamValues:
    """Translate the original's configuration.

    Args:
        document: what the YAML file holds.
        source: the file's name, for messages.

    Raises:
        SettingsError: for keys that neither program knows, and for values that only the original has.
    """
    _refuse_unknown(document, source)
    result = UpstreamValues()
    for key, value in document.items():
        if key in SAME:
            result.take(SAME[key], value, key)
        elif key in IGNORED:
            result.notes.append(f"{source}: {key} is ignored: {IGNORED[key]}")
        elif key in FIXED:
            _check_fixed(key, value, source)
    for keys, read in SPECIAL:
        if any(key in document for key in keys):
            read(document, source, result)
    return result


def _refuse_unknown(document: Mapping[Any, Any], source: str) -> None:
    known = {*SAME, *IGNORED, *FIXED, *(key for keys, _ in SPECIAL for key in keys)}
    unknown = [key for key in document if key not in known]
    if not unknown:
        return
    near = nearest_key(str(unknown[0]), known)
    listed = ", ".join(reprlib.repr(key).strip("'") for key in unknown[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    general = "a .yml file holds the original's keys; trarctl's own go into a .toml file"
    raise SettingsError(
        f"{source}: unknown key{'s' if len(unknown) > 1 else ''} {listed}{more}",
        f"did you mean {near}?" if near else general,
    )


def _check_fixed(key: str, value: object, source: str) -> None:
    expected, reason = FIXED[key]
    given = value.casefold() if isinstance(value, str) else value
    if given not in (expected, str(expected).casefold()):
        raise SettingsError(
            f"{source} ({key}: {reprlib.repr(value)}): must be {expected}: {reason}", f"set {key} to {expected}"
        )


def _read_routing(document: Mapping[Any, Any], source: str, result: UpstreamValues) -> None:
    """Routing and pooling; the original's CLEVR file has the two swapped."""
    pooling_key = "POOLING" if "POOLING" in document else "ROUTING_MODE"
    routing, pooling = document.get("ROUTING"), document.get(pooling_key)
    if routing in POOLINGS and pooling in ROUTINGS:
        routing, pooling = pooling, routing
        result.notes.append(
            f"{source}: ROUTING and {pooling_key} are swapped there; taken as routing {routing}, pooling {pooling}"
        )
    if "ROUTING" in document:
        result.take("model.routing", routing, "ROUTING")
    if pooling_key in document:
        result.take("model.pooling", pooling, pooling_key)


def _read_clip(document: Mapping[Any, Any], _source: str, result: UpstreamValues) -> None:
    """The original clips only where the limit is above 0."""
    limit = document["GRAD_NORM_CLIP"]
    is_off = isinstance(limit, int | float) and not isinstance(limit, bool) and limit <= 0
    result.take("train.gradient_clip", None if is_off else limit, "GRAD_NORM_CLIP")


def _read_reduction(document: Mapping[Any, Any], _source: str, result: UpstreamValues) -> None:
    reduction = document["LOSS_REDUCTION"]
    result.take("train.loss_reduction", "mean" if reduction == "elementwise_mean" else reduction, "LOSS_REDUCTION")


def _read_validation(document: Mapping[Any, Any], _source: str, result: UpstreamValues) -> None:
    value = document["EVAL_EVERY_EPOCH"]
    switches = {"true": 1, "false": 0}
    result.take("run.validate_every", switches.get(str(value).casefold(), value), "EVAL_EVERY_EPOCH")


def _read_optimizer(document: Mapping[Any, Any], source: str, result: UpstreamValues) -> None:
    """Adam's parameters, which the original writes as Python text: ``betas: '(0.9, 0.98)'``."""
    parameters = document.get("OPT_PARAMS") or {}
    if not isinstance(parameters, Mapping):
        raise SettingsError(
            f"{source} (OPT_PARAMS: {reprlib.repr(parameters)}): must be a table of parameters",
            "OPT_PARAMS: {betas: '(0.9, 0.98)', eps: '1e-9'}",
        )
    known = ("betas", "eps", "weight_decay", "amsgrad")
    for name, text in parameters.items():
        if name not in known:
            near = nearest_key(str(name), known)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"{source}: unknown key OPT_PARAMS.{reprlib.repr(name).strip(chr(39))}", hint)
        value = _python_value(text)
        if name in ("weight_decay", "amsgrad") and value:
            raise SettingsError(
                f"{source} (OPT_PARAMS.{name}: {reprlib.repr(text)}): trarctl's Adam has no {name}",
                f"remove {name} from OPT_PARAMS",
            )
        if name == "betas":
            result.take("train.adam_betas", value, "OPT_PARAMS.betas")
        elif name == "eps":
            result.take("train.adam_epsilon", value, "OPT_PARAMS.eps")
    _fill_adam(source, result)


def _fill_adam(source: str, result: UpstreamValues) -> None:
    for key, value, name in (
        ("train.adam_betas", ADAM_BETAS, "betas"),
        ("train.adam_epsilon", ADAM_EPSILON, "eps"),
    ):
        if key not in result.values:
            result.take(key, value, "OPT")
            result.notes.append(f"{source}: no {name} in OPT_PARAMS: {value}, as Adam has it by default")


def _python_value(text: object) -> object:
    """The value that Python text stands for; what is none is left to validation."""
    if not isinstance(text, str):
        return text
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value


Reader = Callable[[Mapping[Any, Any], str, UpstreamValues], None]

# Keys whose values need more than a new name; one reader for keys that depend on each other.
SPECIAL: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("ROUTING", "POOLING", "ROUTING_MODE"), _read_routing),
    (("GRAD_NORM_CLIP",), _read_clip),
    (("LOSS_REDUCTION",), _read_reduction),
    (("EVAL_EVERY_EPOCH",), _read_validation),
    (("OPT", "OPT_PARAMS"), _read_optimizer),
)
