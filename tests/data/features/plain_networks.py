"""The networks once more, as plain functions of a published file's tensors, with weights made up by name.

Nothing here is trarctl's: names and shapes follow from the tables below, rules of size and pooling from torch's own
functions. Sources: He et al. (ResNet), Xie et al. (ResNeXt), Dai et al. (deformable convolutions), CLIP, CLIP-ViL.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Plain:
    """A network: what its file is named after, blocks of each stage, groups and width of the first 3x3 convolution."""

    form: str
    blocks: tuple[int, ...]
    groups: int = 1
    inner: int = 64
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_first_strided: bool = False
    deformable: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        return 4 * (64 if self.form != "clip" else self.inner) << len(self.blocks) - 1


_X152 = {"blocks": (3, 8, 36, 3), "groups": 32, "inner": 256}
PLAIN = {
    "r50": Plain("detectron2", (3, 4, 6, 3), is_first_strided=True),
    "x101": Plain("detectron2", (3, 4, 23, 3), 32, 256, (57.375, 57.120, 58.395)),
    "x152": Plain("detectron2", **_X152),  # type: ignore[arg-type]
    "x152pp": Plain("detectron2", **_X152, deformable=(2, 3)),  # type: ignore[arg-type]
    "resnet101": Plain("torchvision", (3, 4, 23), deviation=(0.229, 0.224, 0.224)),
    "clip-rn50": Plain("clip", (3, 4, 6, 3)),
    "clip-rn101": Plain("clip", (3, 4, 23, 3)),
    "clip-rn50x4": Plain("clip", (4, 6, 10, 6), inner=80),
}
_STEM = {"detectron2": ("backbone.stem.conv1", "backbone.stem.conv1.norm"), "torchvision": ("conv1", "bn1")}


def _names(plain: Plain, stage: int, block: int) -> dict[str, tuple[str, str]]:
    """Names of each convolution of a block and of its norm."""
    if plain.form == "detectron2":
        here = f"backbone.res{stage + 2}.{block}"
        return {one: (f"{here}.{one}", f"{here}.{one}.norm") for one in ("conv1", "conv2", "conv3", "shortcut")}
    here = f"{'visual.' if plain.form == 'clip' else ''}layer{stage + 1}.{block}"
    found = {f"conv{number}": (f"{here}.conv{number}", f"{here}.bn{number}") for number in (1, 2, 3)}
    return found | {"shortcut": (f"{here}.downsample.0", f"{here}.downsample.1")}


def _blocks(plain: Plain) -> Iterator[tuple[int, int, dict[str, tuple[str, str]]]]:
    return (
        (stage, block, _names(plain, stage, block)) for stage, num in enumerate(plain.blocks) for block in range(num)
    )


def made_up(name: str) -> dict[str, Tensor]:
    """Make up the tensors of a network under the names of its published file."""
    plain, made = PLAIN[name], dict[str, Tensor]()

    def add(names: tuple[str, str], shape: tuple[int, ...], scale: float = 1.0) -> None:
        numbers = torch.Generator().manual_seed(zlib.crc32(names[0].encode()))

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=numbers)

        made[f"{names[0]}.weight"] = normal(*shape) * (2 / np.prod(shape[1:])) ** 0.5
        made[f"{names[1]}.weight"] = scale * (1 + 0.1 * normal(shape[0]))
        made[f"{names[1]}.bias"] = 0.1 * normal(shape[0])
        made[f"{names[1]}.running_mean"] = 0.1 * normal(shape[0])
        made[f"{names[1]}.running_var"] = 0.5 + normal(shape[0]).abs()

    inputs = plain.inner if plain.form == "clip" else 64
    if plain.form == "clip":
        for number, shape in enumerate(((inputs // 2, 3), (inputs // 2, inputs // 2), (inputs, inputs // 2)), start=1):
            add((f"visual.conv{number}", f"visual.bn{number}"), (*shape, 3, 3))
    else:
        # Those whose input is not divided by a deviation see numbers of up to 255.
        add(_STEM[plain.form], (64, 3, 7, 7), 1 / 64 if plain.deviation == (1, 1, 1) else 1.0)
    for stage, block, names in _blocks(plain):
        inner, outputs = plain.inner << stage, plain.width >> len(plain.blocks) - 1 - stage
        add(names["conv1"], (inner, inputs, 1, 1))
        add(names["conv2"], (inner, inner // plain.groups, 3, 3))
        add(names["conv3"], (outputs, inner, 1, 1), 0.2)
        if block == 0:
            add(names["shortcut"], (outputs, inputs, 1, 1))
        if stage in plain.deformable:
            numbers = torch.Generator().manual_seed(stage * 100 + block)
            shape = (18, inner, 3, 3)
            made[f"{names['conv2'][0]}_offset.weight"] = (
                torch.randn(shape, generator=numbers) * 0.2 * (9 * inner) ** -0.5
            )
            made[f"{names['conv2'][0]}_offset.bias"] = torch.randn(18, generator=numbers)
        inputs = outputs
    return made


def plain_map(name: str, tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Run pictures [B, 3, height, width] through a network: the map of its last stage, [B, W, R, C]."""
    plain, is_clip = PLAIN[name], PLAIN[name].form == "clip"

    def step(x: Tensor, names: tuple[str, str], stride: int = 1, groups: int = 1) -> Tensor:
        weight = tensors[f"{names[0]}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        norm = (tensors[f"{names[1]}.{one}"] for one in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *norm, eps=1e-5)

    if is_clip:
        x = pixels
        for number, stride in ((1, 2), (2, 1), (3, 1)):
            x = step(x, (f"visual.conv{number}", f"visual.bn{number}"), stride).relu()
        x = functional.avg_pool2d(x, 2)
    else:
        x = functional.max_pool2d(step(pixels, _STEM[plain.form], 2).relu(), 3, 2, 1)
    for stage, block, names in _blocks(plain):
        stride = 2 if stage and not block else 1
        strides = (stride, 1) if plain.is_first_strided else (1, stride)
        if is_clip:
            strides = (1, 1)
        inner = step(x, names["conv1"], strides[0]).relu()
        if stage in plain.deformable:
            inner = _deformed(inner, tensors, names["conv2"], strides[1], plain.groups).relu()
        else:
            inner = step(inner, names["conv2"], strides[1], plain.groups).relu()
        if is_clip and stride == 2:
            inner, x = functional.avg_pool2d(inner, 2), functional.avg_pool2d(x, 2)
        if block == 0:
            x = step(x, names["shortcut"], 1 if is_clip else stride)
        x = (step(inner, names["conv3"]) + x).relu()
    return x


def _deformed(x: Tensor, tensors: dict[str, Tensor], names: tuple[str, str], stride: int, groups: int) -> Tensor:
    """A 3x3 convolution as the sum of nine 1x1 ones, each on the map as its tap sees it."""
    shifts = functional.conv2d(
        x, tensors[f"{names[0]}_offset.weight"], tensors[f"{names[0]}_offset.bias"], stride=stride, padding=1
    )
    height, width = x.shape[2:]
    rows, columns = (torch.arange(size) * stride for size in shifts.shape[2:])
    summed = torch.zeros(())
    for tap in range(9):
        down = rows[:, None] + tap // 3 - 1 + shifts[:, 2 * tap]
        right = columns + tap % 3 - 1 + shifts[:, 2 * tap + 1]
        # Centers of cells, where -1 and 1 are the map's outer borders: a map of one row has no distance between rows.
        where = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
        seen = functional.grid_sample(x, where, align_corners=False)
        weight = tensors[f"{names[0]}.weight"][:, :, tap // 3, tap % 3, None, None]
        summed = summed + functional.conv2d(seen, weight, groups=groups)
    norm = (tensors[f"{names[1]}.{one}"] for one in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(summed, *norm, eps=1e-5)


def plain_features(
    name: str, tensors: dict[str, Tensor], upright: Image.Image, grid: int, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Give the features [N, W] of an upright picture; ``size`` is what the photo rule resizes it to."""
    plain = PLAIN[name]
    if plain.form == "torchvision":
        image = upright.resize((16 * grid, 16 * grid), Image.Resampling.BICUBIC)
        scaled = (np.asarray(image) / 255 - (0.485, 0.456, 0.406)) / plain.deviation
    else:
        image = upright.resize(size, Image.Resampling.BILINEAR)
        if plain.form == "clip":
            image = image.resize((1000, 600), Image.Resampling.BILINEAR)
            mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            scaled = (np.asarray(image) / 255 - mean) / deviation
        else:
            scaled = (np.asarray(image)[..., ::-1] - (103.530, 116.280, 123.675)) / plain.deviation
    with torch.inference_mode():
        maps = plain_map(name, tensors, torch.from_numpy(scaled.transpose(2, 0, 1).copy()).float()[None])
    if plain.form == "torchvision":
        return maps[0].flatten(1).T.numpy()
    rows, columns = maps.shape[2:]
    if rows > columns:
        maps, rows, columns = maps.transpose(2, 3), columns, rows
    top, left = (32 - rows) // 2, (32 - columns) // 2
    padded = functional.pad(maps, (left, 32 - columns - left, top, 32 - rows - top))
    return functional.max_pool2d(padded, 32 // grid)[0].flatten(1).T.numpy()
