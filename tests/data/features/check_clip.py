"""CLIP's ResNets on whole pictures against numbers of the original programs; about two minutes, by make alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.features.made_networks import GOLDEN, MAP_TOLERANCE
from tests.data.features.test_clip import NETWORKS, golden_of, loaded, tensors_of
from trarctl.data.features.reading import read_image

STAGES = {"stem": "layer1", "layer1": "layer2", "layer2": "layer3", "layer3": "layer4"}  # each is the next one's input


@pytest.fixture(scope="module", params=["RN50", "RN50x4"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("clip") / "weights.pth"
    torch.save(tensors_of(request.param), path)
    return request.param, path


@pytest.mark.parametrize("picture", ["landscape", "portrait"])
def test_a_whole_picture(network: tuple[str, Path], picture: str) -> None:
    original, weights = network
    extractor, module = loaded(NETWORKS[original][0], weights, grid_size=16)
    image = read_image(GOLDEN / "pictures" / f"{picture}.jpg")
    golden, _ = golden_of(original, picture, extractor.shrink(image))
    maps: dict[str, Any] = {}
    for name, following in STAGES.items():
        module.get_submodule(following).register_forward_pre_hook(
            lambda _module, inputs, name=name: maps.__setitem__(name, inputs[0])
        )
    module.get_submodule("layer4").register_forward_hook(lambda _module, _inputs, made: maps.__setitem__("map", made))
    (sixteen,) = extractor.extract([image])
    for name, made in maps.items():
        values = made[0].numpy().reshape(-1)[golden[f"{name}_index"]]
        np.testing.assert_allclose(values, golden[f"{name}_value"], rtol=0, atol=MAP_TOLERANCE * golden[f"{name}_std"])
    bound = MAP_TOLERANCE * float(golden["map_std"])
    cells = sixteen.reshape(-1)[golden["trar16_index"]]
    np.testing.assert_allclose(cells, golden["trar16_value"], rtol=2**-11, atol=bound)
    np.testing.assert_array_equal(sixteen.any(axis=1), golden["trar16_full"].reshape(-1))
    eight = sixteen.reshape(8, 2, 8, 2, -1).max(axis=(1, 3)).reshape(64, -1)
    cells = eight.reshape(-1)[golden["trar8_index"]]
    np.testing.assert_allclose(cells, golden["trar8_value"], rtol=2**-11, atol=bound)
    if "trar8" in golden:  # kept of one picture
        np.testing.assert_allclose(eight, golden["trar8"], rtol=2**-11, atol=bound)
