"""Whole pictures through whole networks against the original programs' numbers: ``make test-extractors``, minutes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from tests.data.features.made_networks import (
    GOLDEN,
    MAP_TOLERANCE,
    NETWORKS,
    fingerprint,
    made_weights,
    network_with,
    normal,
    photo_extractor,
)
from trarctl.data.features.reading import read_image

PICTURES = json.loads((GOLDEN / "pictures.json").read_text())


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    extractor = photo_extractor(request.param)
    weights = made_weights(extractor)
    normal.cache_clear()
    assert fingerprint(weights) == json.loads((GOLDEN / "weights.json").read_text())[NETWORKS[request.param]]
    return request.param, network_with(extractor, weights)


@pytest.mark.parametrize("picture", PICTURES)
def test_golden_features_of_whole_pictures(network: tuple[str, torch.nn.Module], picture: str) -> None:
    name, module = network
    path = GOLDEN / "maps" / NETWORKS[name] / f"{picture.partition('.')[0]}.npz"
    if not path.exists():
        pytest.skip("the original was not run on it")
    golden = np.load(path)
    image = read_image(GOLDEN / "pictures" / picture)
    extractor = photo_extractor(name)
    shrunk = extractor.shrink(image)
    seen = hashlib.sha256(np.asarray(shrunk)[..., ::-1].tobytes()).hexdigest()
    assert seen in (PICTURES[picture]["resized_bgr_sha256"], PICTURES[picture]["resized_bgr_sha256_pillow12"])
    with torch.inference_mode():
        maps = module(torch.from_numpy(extractor.pixels(shrunk))[None])[0].numpy()
    tolerance = MAP_TOLERANCE * golden["map_std"]
    assert tolerance < 1e-3
    assert maps.shape == tuple(golden["shape"])
    worst = {"map": np.abs(maps.reshape(-1)[golden["map_index"]] - golden["map_value"]).max()}
    assert np.isclose(maps.mean(dtype=np.float64), golden["map_mean"], rtol=1e-5)
    assert np.isclose((maps == 0).mean(), golden["map_zero"], atol=1e-4)
    for grid in (8, 16):
        geometry = photo_extractor(name, grid).geometry(*image.size)
        assert geometry.is_transposed == golden["transposed"]
        cells = geometry.to_grid(maps.transpose(1, 2, 0))
        np.testing.assert_array_equal(cells.any(axis=1), golden[f"trar{grid}_full"])
        difference = np.abs(cells.reshape(-1)[golden[f"trar{grid}_index"]] - golden[f"trar{grid}_value"])
        worst[str(grid)] = difference.max()
        if f"trar{grid}" in golden:
            stored = golden[f"trar{grid}"]
            half_a_step = np.abs(stored.astype(np.float32)) * 2**-11 + 2**-25
            assert (np.abs(cells - stored) <= tolerance + half_a_step).all()
    print(f"\n{name} {picture}: " + ", ".join(f"{key} {value / golden['map_std']:.1e}" for key, value in worst.items()))  # noqa: T201 - how close they are
    assert max(worst.values()) <= tolerance
