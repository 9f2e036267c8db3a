"""The ResNets that describe pictures, in plain torch and without a classifier: plain, ResNeXt, deformable, and CLIP's.

Sources: He et al., CVPR 2016; Xie et al., CVPR 2017 (groups); Dai et al., ICCV 2017 (deformable convolutions); Radford
et al., ICML 2021 (CLIP). Tensors' names are detectron2's, those of CLIP's networks OpenAI's.

Axes: B images, C channels, H x W or R x C rows and columns of a map, R x S after a stride.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

_STEM_WIDTH, _FIRST_WIDTH = 64, 256  # channels after the stem, and after the first stage
_TAPS = 3  # along a side of a deformable convolution
_CLIP_EXPANSION = 4  # channels of a block's output for one of its inner 3x3 convolution
_CORNERS = 4  # of the cell of a map that a shifted tap falls into


class ConvNorm(nn.Conv2d):
    """A convolution and the batch norm after it, whose statistics stay as they are."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def reset_parameters(self) -> None:
        """Leave out the random numbers, which take longer than all else: weights are loaded in any case."""

    def forward(self, maps: Tensor) -> Tensor:
        """Turn [B, C, H, W] into [B, outputs, R, S]."""
        return self.norm(super().forward(maps))

    def fold(self) -> None:
        """Make one convolution of both, which gives the same but for rounding."""
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None  # noqa: S101 - for the type checker
            assert norm.running_var is not None  # noqa: S101
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            self.weight, self.bias = fuse_conv_bn_weights(self.weight, None, *statistics)
            self.norm = nn.Identity()


class DeformableConvNorm(ConvNorm):
    """A 3x3 convolution whose nine taps read the map where another convolution shifts them to."""

    def forward(self, maps: Tensor, shifts: Tensor) -> Tensor:  # type: ignore[override]
        """Turn [B, C, H, W], with shifts [B, 18, R, S], into [B, outputs, R, S]."""
        # What the taps of all cells read becomes one map, in which no two cells share a tap.
        read = shifted_taps(maps, shifts, self.stride[0])
        return self.norm(functional.conv2d(read, self.weight, self.bias, stride=_TAPS, groups=self.groups))


def shifted_taps(maps: Tensor, shifts: Tensor, stride: int) -> Tensor:
    """Read a map where the taps of a 3x3 convolution with padding 1 are shifted to.

    Values between cells are interpolated bilinearly, with 0 for what lies outside.

    Args:
        maps: [B, C, H, W], fastest with channels last.
        shifts: [B, 18, R, S], in cells: down and right for each tap, the taps row by row.
        stride: of the convolution.

    Returns:
        [B, C, 3R, 3S]: a 3x3 convolution of stride 3 without padding does the rest.
    """
    num_images, channels, height, width = maps.shape
    rows, columns = shifts.shape[2:]
    moved = shifts.float().reshape(num_images, _TAPS, _TAPS, 2, rows, columns).permute(3, 0, 4, 1, 5, 2)
    taps = torch.arange(-1, _TAPS - 1, device=maps.device)
    down = moved[0] + (torch.arange(rows, device=maps.device)[:, None] * stride + taps)[:, :, None, None]
    right = moved[1] + (torch.arange(columns, device=maps.device)[:, None] * stride + taps)
    first = torch.arange(num_images, device=maps.device)[:, None, None, None, None] * (height * width)
    cells, shares = [], []
    for row, row_share in _neighbors(down, height):
        for column, column_share in _neighbors(right, width):
            cells.append(first + row * width + column)
            shares.append(row_share * column_share)
    table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    read = functional.embedding_bag(
        torch.stack(cells, dim=-1).reshape(-1, _CORNERS),
        table,
        per_sample_weights=torch.stack(shares, dim=-1).reshape(-1, _CORNERS).to(table.dtype),
        mode="sum",
    )
    return read.reshape(num_images, rows * _TAPS, columns * _TAPS, channels).permute(0, 3, 1, 2)


def _neighbors(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Give the cells before and after a position along one side, and their shares of its value: 0 outside the map."""
    before = position.floor()
    after_share = position - before
    found = []
    for cell, share in ((before, 1 - after_share), (before + 1, after_share)):
        found.append((cell.long().clamp(0, size - 1), share * ((cell >= 0) & (cell < size))))
    return found


class Bottleneck(nn.Module):
    """Adds to a map what a 1x1, a 3x3 and a 1x1 convolution make of it; the first of a stage also changes its size."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, *, strides: tuple[int, int], groups: int, is_deformable: bool
    ) -> None:
        super().__init__()
        first, second = strides
        self.conv1 = ConvNorm(inputs, inner, 1, stride=first)
        make = DeformableConvNorm if is_deformable else ConvNorm
        self.conv2 = make(inner, inner, _TAPS, stride=second, groups=groups)
        self.conv2_offset = nn.Conv2d(inner, 2 * _TAPS**2, _TAPS, second, padding=1) if is_deformable else None
        self.conv3 = ConvNorm(inner, outputs, 1)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=first * second) if inputs != outputs else None

    def forward(self, maps: Tensor) -> Tensor:
        """Turn [B, inputs, H, W] into [B, outputs, R, S]."""
        inner = functional.relu_(self.conv1(maps))
        shifts = () if self.conv2_offset is None else (self.conv2_offset(inner),)
        outer = self.conv3(functional.relu_(self.conv2(inner, *shifts)))
        outer += maps if self.shortcut is None else self.shortcut(maps)
        return functional.relu_(outer)


class ResNet(nn.Sequential):
    """A stem and stages of bottlenecks: [B, 3, height, width] -> [B, 256 * 2 ** (stages - 1), R, S].

    The stem has stride 4, each stage but the first has 2; sizes are rounded up.

    Args:
        blocks: number of them in each stage.
        groups: of the 3x3 convolutions.
        inner_width: channels of the 3x3 convolutions in the first stage; each stage doubles them.
        is_first_strided: whether the stride of a stage is that of its first 1x1 convolution, not of its first 3x3.
        deformable: stages with deformable 3x3 convolutions, counted from 0.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        groups: int = 1,
        inner_width: int = 64,
        is_first_strided: bool = False,
        deformable: Container[int] = (),
    ) -> None:
        stem = OrderedDict[str, nn.Module](conv1=ConvNorm(3, _STEM_WIDTH, 7, stride=2))
        stem |= {"relu": nn.ReLU(inplace=True), "pool": nn.MaxPool2d(3, stride=2, padding=1)}
        children = OrderedDict[str, nn.Module](stem=nn.Sequential(stem))
        inputs = _STEM_WIDTH
        for stage, num_blocks in enumerate(blocks):
            made = []
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                one = Bottleneck(
                    inputs,
                    inner_width << stage,
                    _FIRST_WIDTH << stage,
                    strides=(stride, 1) if is_first_strided else (1, stride),
                    groups=groups,
                    is_deformable=stage in deformable,
                )
                made.append(one)
                inputs = _FIRST_WIDTH << stage
            children[f"res{stage + 2}"] = nn.Sequential(*made)
        super().__init__(children)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn pictures of one size into maps."""
        maps = pixels.contiguous(memory_format=torch.channels_last)
        for stage in self:
            maps = stage(maps)
        return maps


def fold(network: nn.Module) -> None:
    """Make each convolution and its norm one, in place: for use, not for training."""
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()


class ClipBlock(nn.Module):
    """Bottleneck block [B, inputs, R, C] -> [B, 4 * inner, R // stride, C // stride]; the stride is an average pool."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = _CLIP_EXPANSION * inner
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block makes of a map to the map itself."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        inner = functional.relu(self.bn2(self.conv2(inner)))
        if self.stride > 1:
            inner, x = (functional.avg_pool2d(one, self.stride) for one in (inner, x))
        return functional.relu(self.bn3(self.conv3(inner)) + self.downsample(x))


class ClipResNet(nn.Module):
    """A ResNet of CLIP's without its attention pool: [B, 3, height, width] -> [B, 32 * width of the stem, R, C].

    Modules have the names that OpenAI gave them.

    Args:
        num_blocks: of each of the four stages.
        stem_width: channels that the stem gives.
    """

    def __init__(self, num_blocks: tuple[int, int, int, int], stem_width: int) -> None:
        super().__init__()
        half = stem_width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, stem_width, 3, padding=1, bias=False), nn.BatchNorm2d(stem_width)
        inputs = stem_width
        for stage, count in enumerate(num_blocks):
            blocks = nn.Sequential()
            for block in range(count):
                inner = stem_width << stage
                blocks.append(ClipBlock(inputs, inner, stride=2 if stage and not block else 1))
                inputs = _CLIP_EXPANSION * inner
            self.add_module(f"layer{stage + 1}", blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        """Give the map of the fourth stage."""
        x = functional.relu(self.bn1(self.conv1(pixels)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        x = functional.avg_pool2d(x, 2)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
