"""The original program's ``trar.yml``, read as it is: its keys and values in terms of ours.

Source: the configuration files and their defaults of TRAR-VQA (2021).
"""

from __future__ import annotations

import ast
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trarctl.config.settings import nearest_key
from trarctl.errors import SettingsError, listed

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

# Keys that have no meaning here, each with the reason that the user is shown.
IGNORED: dict[str, str] = {
    **dict.fromkeys(("BBOXFEAT_EMB_SIZE", "BBOX_NORMALIZE"), "there is no bounding-box branch"),
    **dict.fromkeys(("CKPT_EPOCH", "CKPT_PATH", "CKPT_VERSION"), "name a checkpoint with trarctl resume or --ckpt"),
    "DATA_ROOT": "prepared data is named with --data",
    "EVAL_BATCH_SIZE": "it does not change a score",
    "FEAT_SIZE": "the width is that of the feature files",
    "GPU": "devices are named with --gpus",
    "MODEL": "there is one model, TRAR",
    "NUM_WORKERS": "loading works differently here: data.num_workers",
    **dict.fromkeys(("PIN_MEM", "VERBOSE"), "it does not change a result"),
    "RESUME": "go on with trarctl resume",
    "RUN_MODE": "the command says it",
    "TEST_SAVE_PRED": "scores are saved with --save-scores",
    "USE_GLOVE": "word vectors are chosen by trarctl prepare --vectors",
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


def _clip(limit: object) -> object:
    """The original clips only where the limit is above 0."""
    return None if isinstance(limit, int | float) and not isinstance(limit, bool) and limit <= 0 else limit


# Keys whose values are written differently here.
CONVERTED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "EVAL_EVERY_EPOCH": ("run.validate_every", lambda on: {"true": 1, "false": 0}.get(str(on).casefold(), on)),
    "GRAD_NORM_CLIP": ("train.gradient_clip", _clip),
    "LOSS_REDUCTION": ("train.loss_reduction", lambda text: "mean" if text == "elementwise_mean" else text),
}

# With the keys that depend on each other, those of routing and optimizer.
KNOWN = {*SAME, *CONVERTED, *IGNORED, *FIXED, "ROUTING", "POOLING", "ROUTING_MODE", "OPT_PARAMS"}

# What torch's Adam has where OPT_PARAMS says nothing, and so had the original.
ADAM: dict[str, tuple[str, object]] = {"betas": ("train.adam_betas", (0.9, 0.999)), "eps": ("train.adam_epsilon", 1e-8)}
ADAM_REFUSED = ("weight_decay", "amsgrad")


def read_yaml(text: str) -> object:
    """Read YAML as the original does, but for what that would read in silence as something else than it looks.

    ValueError if it is none, has a key twice, or a number that is not decimal.
    """
    try:
        import yaml
    except ImportError as error:
        raise SettingsError("files of the original's settings are read by PyYAML", "pip install pyyaml") from error

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            refuse_repeated([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
            number = super().construct_yaml_int(node)
            text = str(node.value).lstrip("+-")
            if (text.isdecimal() and text[0] == "0" and number) or ":" in text:
                reads = f"line {node.start_mark.line + 1}: YAML reads {node.value} as {number}"
                raise ValueError(f"{reads}: write {number}, or the number meant")
            return number

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def refuse_repeated(names: Sequence[object]) -> None:
    """See that no key stands twice in one table of a file; raise a ValueError that names those that do."""
    repeated = [str(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"has the key {', '.join(repeated[:10])} more than once")


Document = Mapping[Any, Any]
Values = dict[str, tuple[object, str]]


def translate(document: Document, source: str) -> tuple[Values, list[str]]:
    """Translate the original's configuration: our key -> (value, the original's key), and notes for the user."""
    if unknown := [reprlib.repr(key).strip("'") for key in document if key not in KNOWN]:
        near = nearest_key(unknown[0], KNOWN)
        general = "a .yml file holds the original's keys; trarctl's own go into a .toml file"
        what = f"{source}: unknown key{'s' if len(unknown) > 1 else ''} {listed(unknown)}"
        raise SettingsError(what, f"did you mean {near}?" if near else general)
    for key, (fixed, reason) in FIXED.items():
        given = document.get(key, fixed)
        if given != fixed and str(given).casefold() != str(fixed).casefold():
            what = f"{source} ({key}: {reprlib.repr(given)}): must be {fixed}: {reason}"
            raise SettingsError(what, f"set {key} to {fixed}")
    values: Values = {SAME[key]: (value, key) for key, value in document.items() if key in SAME}
    values |= {ours: (read(document[key]), key) for key, (ours, read) in CONVERTED.items() if key in document}
    if "WARMUP_EPOCH" in document:
        values["train.caps_warmup"] = (False, "WARMUP_EPOCH")
    notes = [f"{source}: {key} is ignored: {IGNORED[key]}" for key in document if key in IGNORED]
    _read_routing(document, source, values, notes)
    if "OPT" in document or "OPT_PARAMS" in document:
        _read_optimizer(document, source, values, notes)
    return values, notes


def _read_routing(document: Document, source: str, values: Values, notes: list[str]) -> None:
    """Routing and pooling; the original's CLEVR file has the two swapped."""
    pooling_key = "POOLING" if "POOLING" in document else "ROUTING_MODE"
    routing, pooling = document.get("ROUTING"), document.get(pooling_key)
    if routing in ("avg", "attention", "fc") and pooling in ("soft", "hard"):
        routing, pooling = pooling, routing
        swapped = f"ROUTING and {pooling_key} are swapped there; taken as routing {routing}, pooling {pooling}"
        notes.append(f"{source}: {swapped}")
    for key, name, value in (("model.routing", "ROUTING", routing), ("model.pooling", pooling_key, pooling)):
        if name in document:
            values[key] = (value, name)


def _read_optimizer(document: Document, source: str, values: Values, notes: list[str]) -> None:
    """Adam's parameters, which the original writes as Python text: ``betas: '(0.9, 0.98)'``."""
    parameters = document.get("OPT_PARAMS") or {}
    if not isinstance(parameters, Mapping):
        what = f"{source} (OPT_PARAMS: {reprlib.repr(parameters)}): must be a table of parameters"
        raise SettingsError(what, "OPT_PARAMS: {betas: '(0.9, 0.98)', eps: '1e-9'}")
    for name, text in parameters.items():
        value = _python_value(text)
        if name in ADAM:
            values[ADAM[name][0]] = (value, f"OPT_PARAMS.{name}")
        elif name not in ADAM_REFUSED:
            near = nearest_key(str(name), known := (*ADAM, *ADAM_REFUSED))
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"{source}: unknown key OPT_PARAMS.{reprlib.repr(name).strip(chr(39))}", hint)
        elif value:
            what = f"{source} (OPT_PARAMS.{name}: {reprlib.repr(text)}): trarctl's Adam has no {name}"
            raise SettingsError(what, f"remove {name} from OPT_PARAMS")
    for name, (key, value) in ADAM.items():
        if key not in values:
            values[key] = (value, "OPT")
            notes.append(f"{source}: no {name} in OPT_PARAMS: {value}, as Adam has it by default")


def _python_value(text: object) -> object:
    """The value that Python text stands for; what is none is left to validation."""
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
