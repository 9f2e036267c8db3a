from __future__ import annotations

import json

import pytest
import torch

from tests.conftest import GOLDEN
from trarctl.config.settings import ModelSettings
from trarctl.engine.checkpoint import load_upstream
from trarctl.model.original import shape_settings, translate_name
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.weights import PREFIXES

CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.pkl"))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_a_place(case: str) -> None:
    description = json.loads((GOLDEN / "cases" / f"{case}.json").read_text())
    state, epoch = load_upstream(GOLDEN / "cases" / f"{case}.pkl")
    assert epoch == 13
    shapes = shape_settings(state)
    num_spans = shapes.pop("num_spans")
    config = description["config"]
    assert num_spans == len(config["ORDERS"])
    settings = ModelSettings(
        **shapes, spans=config["ORDERS"], grid_size=config["IMG_SCALE"], num_heads=config["MULTI_HEAD"]
    )
    assert (settings.num_layers, settings.hidden_size) == (config["LAYER"], config["HIDDEN_SIZE"])
    assert (settings.feed_forward_size, settings.pooling) == (config["FF_SIZE"], config["POOLING"])
    assert (settings.flat_mlp_size, settings.flat_glimpses) == (config["FLAT_MLP_SIZE"], config["FLAT_GLIMPSES"])
    assert (settings.flat_out_size, settings.word_embedding_size) == (
        config["FLAT_OUT_SIZE"],
        config["WORD_EMBED_SIZE"],
    )
    sizes = ModelSizes(len(description["token_to_ix"]), len(description["answers"]), state["adapter.weight"].shape[1])
    ours = {name: list(tensor.shape) for name, tensor in TRAR(settings, sizes).state_dict().items()}
    assert {translate_name(name): shape for name, shape in description["shapes"].items()} == ours


def test_names_of_this_project_stay() -> None:
    sizes = ModelSizes(5, 3, 4)
    for pooling in ("avg", "fc", "attention"):
        settings = ModelSettings(hidden_size=16, num_heads=2, grid_size=4, spans=(0, 1), pooling=pooling)
        names = list(TRAR(settings, sizes).state_dict())
        assert [translate_name(name) for name in names] == names
        # No part of a name is one that a wrapper puts before it, so that such parts can be left out wherever they are.
        assert not {part for name in names for part in name.split(".")} & PREFIXES


def test_a_state_without_its_parts_is_no_trar() -> None:
    with pytest.raises(KeyError, match="adapter.weight"):
        shape_settings({"embedding.weight": torch.zeros(2, 2)})
