"""CLIP's ResNets as extractors of grid features, as CLIP-ViL uses them: every picture becomes 600 x 1000 pixels.

The networks differ from other ResNets in three ways: three convolutions in the stem, an average pool wherever others
have a stride, and an attention pool at the end, which is left out here. All pools round down, so that a map has 18 x 31
cells. CLIP-ViL keeps such maps; that they are padded and pooled to a grid by TRAR's rules is trarctl's own choice.

Source: CLIP (ICML 2021), CLIP-ViL (ICLR 2022). Axes: B images, R x C cells of a map, W feature width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trarctl.data.download import Download
from trarctl.data.features.base import ExtractorOptions, Float32s
from trarctl.data.features.network import NetworkExtractor, standardized
from trarctl.data.features.sizes import LONGER_SIDE, SHORTER_SIDE, Geometry, photo_size, refuse_photo_grid
from trarctl.registry import EXTRACTORS
from trarctl.weights import Weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

_ROWS, _COLUMNS = SHORTER_SIDE // 32, LONGER_SIDE // 32
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue in 0 to 1
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


_RENAMED = {  # names of OpenCLIP and timm, as regular expressions, and OpenAI's
    r"^visual\.": "",
    r"^stem\.conv(\d)\.conv\.": r"conv\1.",
    r"^stem\.conv(\d)\.bn\.": r"bn\1.",
    r"\.conv(\d)_[1k]x[1k]\.conv\.": r".conv\1.",
    r"\.conv(\d)_[1k]x[1k]\.bn\.": r".bn\1.",
    r"\.shortcut\.conv\.conv\.": ".downsample.0.",
    r"\.shortcut\.conv\.bn\.": ".downsample.1.",
    **{rf"^stages\.{stage}\.": f"layer{stage + 1}." for stage in range(4)},
}


def openai_name(name: str) -> str:
    """Give the name in ``ClipResNet`` of a tensor in a file of OpenAI's, OpenCLIP's or timm's."""
    for theirs, ours in _RENAMED.items():
        name = re.sub(theirs, ours, name)
    return name


class ClipExtractor(NetworkExtractor):
    """What the extractors of CLIP's ResNets have in common."""

    num_blocks: ClassVar[tuple[int, int, int, int]]
    stem_width: ClassVar[int] = 64

    def __init_subclass__(cls, *, model: str, about_bytes: int) -> None:
        """Say where OpenAI's weights of the network are: timm publishes them without the rest of CLIP, and no hash."""
        page = f"https://huggingface.co/timm/{model}.openai"
        address = f"{page}/resolve/main/model.safetensors"
        cls.published = Download(address, about_bytes=about_bytes, name=f"{model}.openai.safetensors")
        cls.weights_hint = f"--weights FILE: model.safetensors of {page}, or a state dict of OpenCLIP's"

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        refuse_photo_grid(options.grid_size, self.name)

    def build(self) -> nn.Module:
        """Make the network."""
        from trarctl.data.features.bottlenecks import ClipResNet

        return ClipResNet(self.num_blocks, self.stem_width)

    def renamed(self, weights: Weights) -> Mapping[str, Tensor]:
        """Give the tensors of any publisher OpenAI's names."""
        return {openai_name(name): value for name, value in weights.tensors.items()}

    def shrink(self, image: Image) -> Image:
        """Resize an image twice, as CLIP-ViL does: by the photo rule, then to 600 x 1000 whatever its shape."""
        from PIL.Image import Resampling

        photo = image.convert("RGB").resize(photo_size(*image.size), Resampling.BILINEAR)
        return photo.resize((LONGER_SIDE, SHORTER_SIDE), Resampling.BILINEAR)

    def pixels(self, image: Image) -> Float32s:
        """Standardize an image by the colors of CLIP's training pictures, [3, 600, 1000]."""
        return standardized(np.asarray(image, dtype=np.float32) / np.float32(255), _MEAN, _DEVIATION)

    def geometry(self, width: int, height: int) -> Geometry:  # noqa: ARG002 - it is the same for all pictures
        """Give where the cells lie: the same for every picture, which is stretched."""
        return Geometry(self.grid_size, _ROWS, _COLUMNS, SHORTER_SIDE, LONGER_SIDE)


@EXTRACTORS.register("clip-rn50")
class ClipRN50(ClipExtractor, model="resnet50_clip", about_bytes=154_000_000):
    """CLIP's ResNet-50."""

    name, width = "clip-rn50", 2048
    num_blocks = (3, 4, 6, 3)


@EXTRACTORS.register("clip-rn101")
class ClipRN101(ClipExtractor, model="resnet101_clip", about_bytes=226_000_000):
    """CLIP's ResNet-101."""

    name, width = "clip-rn101", 2048
    num_blocks = (3, 4, 23, 3)


@EXTRACTORS.register("clip-rn50x4")
class ClipRN50x4(ClipExtractor, model="resnet50x4_clip", about_bytes=349_000_000):
    """CLIP's ResNet-50 with about four times the arithmetic: wider and deeper."""

    name, width = "clip-rn50x4", 2560
    num_blocks = (4, 6, 10, 6)
    stem_width = 80
