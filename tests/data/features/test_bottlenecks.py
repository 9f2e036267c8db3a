"""The networks themselves: golden maps, deformable sampling by its definition, and folded norms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.data.features.made_networks import (
    GOLDEN,
    MAP_TOLERANCE,
    NETWORKS,
    made_weights,
    network_with,
    normal,
    photo_extractor,
    small_input,
)
from trarctl.data.features.bottlenecks import DeformableConvNorm, ResNet, fold, shifted_taps


def test_golden_maps_of_small_inputs() -> None:
    """One test for all: they share most of their numbers, which take the longest."""
    for name, published in NETWORKS.items():
        golden = np.load(GOLDEN / "small" / f"{published}.npz")
        extractor = photo_extractor(name)
        with torch.inference_mode():
            made = network_with(extractor, made_weights(extractor))(small_input(golden))[0].numpy()
        assert made.shape == golden["map"].shape
        assert np.abs(made - golden["map"]).max() <= MAP_TOLERANCE * golden["map"].std(), name
    normal.cache_clear()


def _read_at(plane: NDArray[np.float64], down: float, right: float) -> float:
    """Interpolate a plane, 0 outside, one neighbor after the other."""
    total = 0.0
    for row in (math.floor(down), math.floor(down) + 1):
        for column in (math.floor(right), math.floor(right) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total += (1 - abs(down - row)) * (1 - abs(right - column)) * plane[row, column]
    return total


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shifted_taps_by_their_definition(stride: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 5, 7).contiguous(memory_format=layout)
    rows, columns = -(-5 // stride), -(-7 // stride)
    shifts = 2.5 * torch.randn(2, 18, rows, columns)
    shifts[0, :4, 0] = torch.tensor([-1.0, 0.0, 3.0, 1e9])[:, None]  # on cells, and far outside
    read = shifted_taps(maps, shifts, stride)
    assert read.shape == (2, 3, 3 * rows, 3 * columns)
    for image, row, column, tap in np.ndindex(2, rows, columns, 9):
        down = row * stride - 1 + tap // 3 + shifts[image, 2 * tap, row, column].item()
        right = column * stride - 1 + tap % 3 + shifts[image, 2 * tap + 1, row, column].item()
        expected = [_read_at(plane.double().numpy(), down, right) for plane in maps[image]]
        found = read[image, :, 3 * row + tap // 3, 3 * column + tap % 3]
        np.testing.assert_allclose(found, expected, atol=2e-6)


def _random_norms(network: torch.nn.Module) -> None:
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 1e-5, 1)


@pytest.mark.parametrize("options", [{}, {"groups": 32, "inner_width": 256, "deformable": (1,)}])
def test_a_folded_network_is_the_same(options: dict[str, Any]) -> None:
    network = ResNet((1, 2), **options).eval().requires_grad_(False)
    _random_norms(network)
    network.double()  # rounding would hide other differences
    pixels = torch.randn(2, 3, 45, 62, dtype=torch.float64)
    before = network(pixels)
    assert before.shape == (2, 512, 6, 8)
    fold(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert (network(pixels) - before).abs().max() < 1e-5 * before.std()


def test_a_folded_convolution_is_plain_arithmetic() -> None:
    network = ResNet((1,)).eval().requires_grad_(False)
    _random_norms(network)
    conv = network.get_submodule("res2.0.conv3")
    norm = network.get_submodule("res2.0.conv3.norm")
    maps = torch.randn(1, 64, 3, 4)
    mixed = np.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0].double().numpy(), maps[0].double().numpy())
    names = ("running_mean", "running_var", "weight", "bias")
    own = [getattr(norm, name).double().numpy()[:, None, None] for name in names]
    expected = (mixed - own[0]) / np.sqrt(own[1] + 1e-5) * own[2] + own[3]
    fold(network)
    np.testing.assert_allclose(conv(maps)[0].numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def torchvision() -> Any:
    """The package, where it is installed and fits torch."""
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolutions_of_torchvision(torchvision: Any, stride: int) -> None:
    torch.manual_seed(0)
    conv = DeformableConvNorm(64, 64, 3, stride=stride, groups=32).eval().requires_grad_(False)
    torch.nn.init.normal_(conv.weight)
    fold(conv)
    maps, shifts = torch.randn(2, 64, 12, 17), 3 * torch.randn(2, 18, -(-12 // stride), -(-17 // stride))
    expected: Tensor = torchvision.ops.deform_conv2d(maps, shifts, conv.weight, conv.bias, stride, padding=1)
    assert (conv(maps, shifts) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("groups", "inner_width"), [(1, 64), (32, 256)])
def test_networks_of_torchvision(torchvision: Any, groups: int, inner_width: int) -> None:
    from torchvision.models.resnet import Bottleneck
    from torchvision.models.resnet import ResNet as Theirs

    from trarctl.data.features.resnet import _from_torchvision

    theirs = Theirs(Bottleneck, [2, 1, 2, 1], groups=groups, width_per_group=inner_width // groups).eval()
    theirs.requires_grad_(False)
    _random_norms(theirs)
    ours = ResNet((2, 1, 2, 1), groups=groups, inner_width=inner_width).eval().requires_grad_(False)
    renamed = {_from_torchvision(name): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict({name: value for name, value in renamed.items() if not name.startswith("fc.")})
    fold(ours.double())  # rounding would hide other differences
    theirs.double()
    pixels = torch.randn(2, 3, 70, 101, dtype=torch.float64)
    theirs.avgpool = theirs.fc = torch.nn.Identity()
    expected = theirs(pixels).reshape(2, 2048, 3, 4)
    assert (ours(pixels) - expected).abs().max() < 1e-5 * expected.std()
