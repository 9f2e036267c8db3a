"""What pictures show is what the original computes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import GOLDEN
from tests.model.reference import span_maps
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.distributed import joined, plan_placement
from trarctl.engine.evaluator import Request, choose
from trarctl.engine.loading import Loaded
from trarctl.engine.predictor import inspect, look
from trarctl.model.layers import split_heads

CASES = ["vqa_soft_avg", "vqa_hard_attention_binarize", "vqa_soft_avg_two_glimpses_test", "clevr_hard_fc_binarize"]
ROWS = np.array([0, 3, 5, 17])


def opened(case: str, folders: dict[str, Path]) -> tuple[Loaded, PreparedData, str]:
    split = json.loads((GOLDEN / "cases" / f"{case}.json").read_text())["split"]
    file = GOLDEN / "cases" / case
    folder = folders[case.partition("_")[0]]
    chosen = choose(Request(f"{file}.pkl", folder, split, Path(f"{file}.yml"), gpus="cpu"))
    data = open_prepared(folder)
    with joined(plan_placement("cpu", dict(os.environ)), timeout_seconds=60) as world:
        return chosen.open_model(data, world), data, split


def inputs(data: PreparedData, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = data.split(split)
    tokens = torch.from_numpy(part.question_tokens[ROWS].astype(np.int64))
    return tokens, torch.from_numpy(data.features.read(part.image[ROWS]).astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_routes_and_probabilities_are_the_originals(case: str, golden_data: dict[str, Path]) -> None:
    loaded, data, split = opened(case, golden_data)
    tokens, features = inputs(data, split)
    insight = inspect(loaded, tokens, features)
    with np.load(GOLDEN / "cases" / f"{case}.npz") as theirs:
        assert np.abs(insight.routes - theirs["alphas"][ROWS]).max() < 1e-4
        scores = torch.from_numpy(theirs["scores"][ROWS]).double()
    expected = scores.softmax(dim=1) if data.dataset == "clevr" else scores.sigmoid()
    assert np.abs(insight.probabilities - expected.numpy()).max() < 1e-4
    for shares in (insight.answer_attention, insight.layer_attention):
        assert np.abs(shares.sum(axis=-1) - 1).max() < 1e-5
        assert (shares >= 0).all()


@pytest.mark.parametrize("case", CASES)
def test_maps_are_what_the_layers_attend_with(case: str, golden_data: dict[str, Path]) -> None:
    """The map, times the values, through the output linear, is what the layer itself gives."""
    loaded, data, split = opened(case, golden_data)
    tokens, features = inputs(data, split)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        layer.route.register_forward_hook(lambda _module, given, out: seen.append((given[0], out[0])))
        for layer in loaded.model.visual_layers
    ]
    _, _, _, maps = look(loaded, tokens, features)
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        for number, layer in enumerate(loaded.model.visual_layers):
            cells, out = seen[number]
            value = split_heads(layer.route.value(cells), layer.route.num_heads)
            attended = maps[number] @ value
            ours = layer.route.output(attended.transpose(1, 2).flatten(2))
            assert (ours - out).abs().max() < 1e-4


def test_attention_of_a_layer_by_the_definition(golden_data: dict[str, Path]) -> None:
    loaded, data, split = opened("vqa_hard_attention_binarize", golden_data)
    tokens, features = inputs(data, split)
    model, settings = loaded.model, loaded.model.settings
    insight = inspect(loaded, tokens, features)
    assert insight.answer_attention[~features.any(dim=-1).numpy()].max(initial=0.0) == 0.0
    with torch.inference_mode():
        cells = model.adapter(features)
        route = model.visual_layers[0].route
        query, key = (split_heads(part(cells), settings.num_heads) for part in (route.query, route.key))
        orders, is_padding = list(settings.spans), ~features.any(dim=-1)
        maps = span_maps(query, key, orders, settings.grid_size, is_padding).numpy()
    chosen = insight.routes[:, 0].argmax(axis=-1)
    one: NDArray[np.float32] = maps[np.arange(len(ROWS)), chosen].mean(axis=1)
    expected = np.einsum("bn,bnm->bm", insight.answer_attention, one)
    assert np.abs(insight.layer_attention[:, 0] - expected).max() < 1e-5
