"""ResNet and ResNeXt as extractors: those of grid features for VQA-v2, and ResNet-101 as CLEVR's features were made.

Sources: grid-feats-vqa (CVPR 2020) for ``r50``, ``x101``, ``x152`` and ``x152pp``, and detectron2 for their files of
weights; the features of CLEVR (CVPR 2017) and torchvision for ``resnet101``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trarctl.data.download import Download
from trarctl.data.features.base import ExtractorOptions, Float32s, resized
from trarctl.data.features.network import NetworkExtractor, standardized
from trarctl.data.features.sizes import Geometry, photo_geometry, photo_size, refuse_photo_grid
from trarctl.data.features.weights import HINT
from trarctl.errors import DataError
from trarctl.registry import EXTRACTORS
from trarctl.weights import Weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

Color = tuple[float, float, float]
"""A number for each channel, in the order in which the network takes them."""

_PHOTO_MEAN = (103.530, 116.280, 123.675)  # blue, green, red of 0 to 255
_PHOTO_DEVIATION = (57.375, 57.120, 58.395)
_MEAN = (0.485, 0.456, 0.406)  # red, green, blue of 0 to 1
_OLD_DEVIATION = (0.229, 0.224, 0.225)  # of earlier versions of trarctl
TORCHVISION_WEIGHTS = "IMAGENET1K_V1"  # what they called the published weights of ResNet-101
_EPSILON = 1e-5  # of all norms
_RESNEXT: dict[str, Any] = {"groups": 32, "inner_width": 256}


class _ResNetExtractor(NetworkExtractor):
    """What all of them share; ``network`` has the arguments of ``bottlenecks.ResNet``."""

    network: ClassVar[dict[str, Any]]

    def build(self) -> nn.Module:
        """Make the network; its weights' names are those of detectron2."""
        from trarctl.data.features.bottlenecks import ResNet

        return ResNet(**self.network)

    def fast(self, network: nn.Module) -> nn.Module:
        """Make one convolution of each and its norm."""
        from trarctl.data.features.bottlenecks import fold

        fold(network)
        return network

    def _refuse_larger(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse weights of a network that has all that this one has, and more in the same stages."""
        import torch

        with torch.device("meta"):
            names = self.build().state_dict()
        stages = {name.partition(".")[0] for name in names}
        more = [name for name in tensors if name not in names and name.startswith("res")]
        if more := [name for name in more if name.partition(".")[0] in stages]:
            raise DataError(f"{self._path} holds the weights of another network than {self.name}: {more[0]}", HINT)


class PhotoResNet(_ResNetExtractor):
    """Runs pictures through four stages by the photo rule; weights as detectron2 writes them."""

    width = 2048
    deviation: ClassVar[Color] = (1.0, 1.0, 1.0)  # blue, green, red

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        refuse_photo_grid(options.grid_size, self.name)

    def shrink(self, image: Image) -> Image:
        """Resize an image by the photo rule; DataError if it is too narrow."""
        from PIL.Image import Resampling

        return image.convert("RGB").resize(photo_size(*image.size), Resampling.BILINEAR)

    def geometry(self, width: int, height: int) -> Geometry:
        """Give where the cells lie on a picture of this size."""
        return photo_geometry(self.grid_size, width, height)

    def pixels(self, image: Image) -> Float32s:
        """Standardize an image, blue first, [3, height, width]."""
        return standardized(np.asarray(image, dtype=np.float32)[..., ::-1], _PHOTO_MEAN, self.deviation)

    def renamed(self, weights: Weights) -> Mapping[str, Tensor]:
        """Give the backbone's tensors, with the statistics that old versions of the frozen norm left out or changed."""
        import torch

        tensors = {name.removeprefix("backbone."): value for name, value in weights.tensors.items()}
        versions = {name.removeprefix("backbone."): version for name, version in weights.versions.items()}
        for name in [name.removesuffix(".weight") for name in tensors if name.endswith(".norm.weight")]:
            version = versions.get(name)
            if version is None or version < 2:
                tensors.setdefault(f"{name}.running_mean", torch.zeros_like(tensors[f"{name}.weight"]))
                tensors.setdefault(f"{name}.running_var", torch.ones_like(tensors[f"{name}.weight"]))
            if version is not None and version < 3 and f"{name}.running_var" in tensors:
                tensors[f"{name}.running_var"] = tensors[f"{name}.running_var"] - _EPSILON
        self._refuse_larger(tensors)
        return tensors


def _published(name: str) -> Download:
    """Give where the weights of grid-feats-vqa lie; neither sizes nor hashes are published."""
    return Download(f"https://dl.fbaipublicfiles.com/grid-feats-vqa/{name}/{name}.pth")


@EXTRACTORS.register("r50")
class R50(PhotoResNet):
    """ResNet-50; a stage's stride is that of its first 1x1 convolution."""

    name = "r50"
    network: ClassVar[dict[str, Any]] = {"blocks": (3, 4, 6, 3), "is_first_strided": True}
    published = _published("R-50")


@EXTRACTORS.register("x101")
class X101(PhotoResNet):
    """ResNeXt-101, 32 groups of 8."""

    name = "x101"
    network: ClassVar[dict[str, Any]] = {"blocks": (3, 4, 23, 3), **_RESNEXT}
    deviation = _PHOTO_DEVIATION
    published = _published("X-101")


@EXTRACTORS.register("x152")
class X152(PhotoResNet):
    """ResNeXt-152, 32 groups of 8."""

    name = "x152"
    network: ClassVar[dict[str, Any]] = {"blocks": (3, 8, 36, 3), **_RESNEXT}
    published = _published("X-152")


@EXTRACTORS.register("x152pp")
class X152Deformable(PhotoResNet):
    """ResNeXt-152 with deformable convolutions in the last two stages, which is called X-152++."""

    name = "x152pp"
    network: ClassVar[dict[str, Any]] = {"blocks": (3, 8, 36, 3), **_RESNEXT, "deformable": (2, 3)}
    published = _published("X-152pp")


@EXTRACTORS.register("resnet101")
class ResNet101(_ResNetExtractor):
    """Runs images, resized to 16 * S pixels, through the first three stages of ResNet-101; weights are torchvision's.

    CLEVR's published features were made with the deviation of green for blue, and the models trained on them saw that.
    Earlier versions of trarctl took ImageNet's: a description without a deviation stands for it.
    """

    name = "resnet101"
    width = 1024
    network: ClassVar[dict[str, Any]] = {"blocks": (3, 4, 23)}
    published = Download(
        "https://download.pytorch.org/models/resnet101-63fe2227.pth",
        about_bytes=178_794_000,
        sha256="63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    )
    _deviation: Color = (0.229, 0.224, 0.224)
    _is_named = False  # whether such a description names the published weights, in place of their hash

    def identity(self) -> dict[str, Any]:
        """Give what identifies the weights, and the deviation."""
        weights = super().identity()
        if self._deviation == _OLD_DEVIATION:
            is_published = weights["weights"] == self.published.sha256
            return {"weights": TORCHVISION_WEIGHTS} if is_published and self._is_named else weights
        return {**weights, "deviation": list(self._deviation)}

    def restore(self, description: dict[str, Any]) -> None:
        """Take over the size of the grid, and how pixels were standardized."""
        super().restore(description)
        if "deviation" not in description:
            self._deviation, self._is_named = _OLD_DEVIATION, description["weights"] == TORCHVISION_WEIGHTS

    def shrink(self, image: Image) -> Image:
        """Resize an image to the network's input; the third stage sees it at a sixteenth of its size."""
        return resized(image, self.grid_size * 16)

    def pixels(self, image: Image) -> Float32s:
        """Standardize an image, red first, [3, side, side]."""
        return standardized(np.asarray(image, dtype=np.float32) / np.float32(255), _MEAN, self._deviation)

    def renamed(self, weights: Weights) -> Mapping[str, Tensor]:
        """Give torchvision's tensors detectron2's names."""
        tensors = {_from_torchvision(name): value for name, value in weights.tensors.items()}
        self._refuse_larger(tensors)
        return tensors


def _from_torchvision(name: str) -> str:
    name = re.sub(r"^(conv|bn)1\.", r"stem.\g<0>", name)
    name = re.sub(r"^layer([1-4])\.", lambda stage: f"res{int(stage[1]) + 1}.", name)
    name = re.sub(r"\.bn([1-3])\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
