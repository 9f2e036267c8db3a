"""What extractors with a network share: when it is loaded, and what stays as it was around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trarctl.data.features.base import ExtractorOptions, Float32s
from trarctl.data.features.network import NetworkExtractor, standardized


class Seeing(nn.Module):
    """Notes whether cuDNN might use TF32, once as many threads as expected are in it."""

    seen: list[bool]
    together: threading.Barrier

    def forward(self, pixels: Tensor) -> Tensor:
        Seeing.together.wait(timeout=60)
        Seeing.seen.append(torch.backends.cudnn.allow_tf32)
        return pixels[:, :, :2, :2]


class Small(NetworkExtractor):
    name, width = "small", 3
    num_built = 0

    def build(self) -> nn.Module:
        Small.num_built += 1
        return Seeing()

    def fill(self, network: nn.Module) -> None:
        pass

    def pixels(self, image: Image.Image) -> Float32s:
        return standardized(np.asarray(image, dtype=np.float32), (0, 0, 0), (1, 1, 1))


@pytest.fixture(params=[True, False])
def allowed(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


def test_tf32_is_off_while_any_thread_extracts_and_then_as_before(allowed: bool) -> None:
    Seeing.seen, Seeing.together = [], threading.Barrier(2)
    extractor = Small(ExtractorOptions(2, devices=("cpu", "cpu")))
    extractor.load()
    assert torch.backends.cudnn.allow_tf32 == allowed
    images = [Image.new("RGB", (4, 4), (1, 2, 3))]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(extractor.extract, [images] * 6))
    assert Seeing.seen == [False] * 6
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert {tuple(one[0, 0].tolist()) for one in results} == {(1.0, 2.0, 3.0)}


def test_tf32_is_as_before_after_an_error(allowed: bool) -> None:
    Seeing.seen, Seeing.together = [], threading.Barrier(1)
    Seeing.together.abort()
    extractor = Small(ExtractorOptions(2))
    extractor.load()
    with pytest.raises(threading.BrokenBarrierError):
        extractor.extract([Image.new("RGB", (4, 4))])
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_a_network_is_made_once() -> None:
    Small.num_built = 0
    extractor = Small(ExtractorOptions(2))
    for _ in range(3):
        extractor.load()
    assert Small.num_built == 1
