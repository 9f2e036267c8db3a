"""How much of an extractor's time on a CPU goes into convolutions: ``python -m benchmarks.extractor [x101] [256x320]``.

One network with random weights, one picture, one thread. "Convolutions alone" are the same convolutions one after the
other, without norms, biases, ReLU, sums and pools, on inputs that lie ready, in the memory layout that is faster.
Rounds of both alternate in one process; medians of processor time, which others on the machine disturb less than the
clock. Target: the network takes at most 1.2 times as long.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from trarctl.data.features.base import ExtractorOptions, make_extractor
from trarctl.data.features.network import NetworkExtractor

ROUNDS = 9
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def filled(extractor: NetworkExtractor) -> nn.Module:
    """Make its network, with random weights of a size that keeps values finite."""
    torch.manual_seed(0)
    network = extractor.build().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return extractor.fast(network)


def convolutions(network: nn.Module, pixels: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """List the convolutions that a picture goes through, each with its input."""
    found: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: found.append((module, inputs[0].clone())))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    network(pixels)
    for hook in hooks:
        hook.remove()
    return found


def seconds_of_convolutions(found: list[tuple[nn.Conv2d, Tensor]]) -> float:
    total = 0.0
    for module, maps in found:
        start = time.process_time()
        functional.conv2d(maps, module.weight, None, module.stride, module.padding, module.dilation, module.groups)
        total += time.process_time() - start
    return total


def main() -> None:
    name, size = (sys.argv[1:] + ["x101", "256x320"][len(sys.argv) - 1 :])[:2]
    extractor = make_extractor(name, ExtractorOptions(8))
    assert isinstance(extractor, NetworkExtractor)
    height, width = map(int, size.split("x"))
    pixels = torch.randn(1, 3, height, width)
    torch.set_num_threads(1)
    with torch.inference_mode():
        network = filled(extractor)
        found = convolutions(network, pixels)
        laid_out = [[(module, maps.contiguous(memory_format=one)) for module, maps in found] for one in LAYOUTS]
        times: list[list[float]] = [[], *([] for _ in LAYOUTS)]
        for _ in range(ROUNDS + 1):
            start = time.process_time()
            network(pixels)
            times[0].append(time.process_time() - start)
            for own, inputs in zip(times[1:], laid_out, strict=True):
                own.append(seconds_of_convolutions(inputs))
    whole, *alone = (statistics.median(one[1:]) for one in times)  # the first round warms up
    ratios = [one / min(others) for one, *others in zip(*(own[1:] for own in times), strict=True)]
    print(f"{name}, {height} x {width} pixels, {len(found)} convolutions")
    print(f"network {whole:.3f} s; convolutions alone {alone[0]:.3f} s, channels last {alone[1]:.3f} s")
    print(f"ratio of the medians {whole / min(alone):.3f}, median of the ratios {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
