"""Any model of timm (PyTorch Image Models) as an extractor, ``timm:NAME``; needs the extra ``timm``.

By the square rule: a picture is resized to the grid's cells times the model's stride, whatever its shape. The features
of a cell are what the model's last stage gives there: of a convolutional network its map, of a Vision Transformer its
patch tokens after the last norm, without class and register tokens. Positions learned at another size are interpolated.

Axes: B images, R x C cells of a map, W feature width.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trarctl.data import Progress, no_progress
from trarctl.data.features.base import ExtractorOptions, Float32s
from trarctl.data.features.network import NetworkExtractor, standardized
from trarctl.data.features.weights import weights_reader
from trarctl.errors import DataError, SettingsError, first_line
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image

_INSTALL = 'pip install "trarctl[timm]"; torchvision, which timm needs, has to be the release made for your torch'


class LastMap(nn.Module):
    """The map of a model's last stage: [B, 3, height, width] -> [B, W, R, C]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.has_norm = True

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the model but for its head."""
        options = {"indices": 1, "output_fmt": "NCHW", "intermediates_only": True}
        model: Any = self.model
        try:
            maps = model.forward_intermediates(pixels, norm=self.has_norm, **options)
        except AssertionError:  # so timm says that a model has no norm there
            if not self.has_norm:
                raise
            self.has_norm = False
            maps = model.forward_intermediates(pixels, norm=False, **options)
        last: Tensor = maps[-1]
        return last


@EXTRACTORS.register("timm")
class TimmExtractor(NetworkExtractor):
    """Runs images through a model of timm, standardized and resized as its weights were trained.

    The model's name with its tag, such as ``resnet18.a1_in1k``, and a digest of all its tensors identify the weights,
    so that a file and what timm downloads are the same if their numbers are.
    """

    name, width = "timm", 0
    takes_model = True
    weights_hint: ClassVar[str] = "--weights FILE, as timm publishes it for this model, such as model.safetensors"

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self.name = f"timm:{options.model}"
        self._model = _full_name(options.model)
        self._digest = None  # of the tensors, not of the file
        self._input: dict[str, Any] | None = None  # how pictures are standardized and resized
        self._native: Any = None  # the model, of its own size or of any
        self._takes_any_size = False
        self._stride = 0

    def fetch(self, progress: Progress = no_progress) -> None:
        """Read the weights, or have timm download them to its own cache."""
        if self._digest is not None:
            return
        progress(f"weights of {self._model}", 0, None)
        native: Any = self._published() if self._path is None else self._from_file()
        self._native = native
        tensors = native.state_dict()
        weights_reader(self.weights_hint).refuse_nonfinite(self._path or Path(self._model), tensors)
        self._digest = _digest_of(tensors)
        config = native.pretrained_cfg
        self._input = self._input or {
            "mean": list(config["mean"]),
            "deviation": list(config["std"]),
            "interpolation": config["interpolation"],
        }
        last = (getattr(native, "feature_info", None) or [None])[-1]
        if not hasattr(native, "forward_intermediates") or not isinstance(last, dict):
            what = f"{self.name} gives no map of features: timm offers the output of its last layer only"
            raise DataError(what, "take another model: timm.list_models() in Python lists them")
        self._stride, self.width = int(last["reduction"]), int(last["num_chs"])

    def about(self) -> tuple[str, ...]:
        """Tell the license of the weights."""
        license_name = _config_of(self._model).license or "not stated by timm"
        return (f"{self.name} is {self._model}; license of its weights: {license_name}",)

    def identity(self) -> dict[str, Any]:
        """Give what identifies the weights, and how pictures are standardized and resized."""
        assert self._input is not None, "fetch comes first"  # noqa: S101 - a promise of the interface
        return {"model": self._model, **super().identity(), **self._input}

    def restore(self, description: dict[str, Any]) -> None:
        """Take over grid, model and how pictures are standardized: timm may change them for a name without a tag."""
        super().restore(description)
        self._model = _full_name(description["model"])
        self._input = {name: description[name] for name in ("mean", "deviation", "interpolation")}

    def build(self) -> nn.Module:
        """Make the model for pictures of the grid's size, with its weights, and see that it gives a map of the grid.

        Raises:
            DataError: if it gives none of this size.
        """
        side, problem = self.grid_size * self._stride, ""

        def resized() -> nn.Module:
            return self._created(self._native.state_dict(), img_size=side)

        # Positions are interpolated as it runs, or when its weights are loaded; the others take any size, or one only.
        ways: list[Callable[[], nn.Module]] = [lambda: self._native, resized]
        for way in ways if self._takes_any_size else reversed(ways):
            try:
                network = LastMap(way()).eval()
                with torch.inference_mode():
                    shape = list(network(torch.zeros(1, 3, side, side)).shape[1:])
            except Exception as error:  # noqa: BLE001 - what a model raises over an option or a size is its own
                problem = _reason(error)
                continue
            if shape[1:] == [self.grid_size] * 2:
                self.width = shape[0]
                return network
            problem = f"its last stage gives the shape {shape}"
        grid, own = f"{self.grid_size} x {self.grid_size}", _config_of(self._model).input_size[-1]
        what = f"{self.name} gives no grid of {grid} cells: at {side} x {side} pixels, {self._stride} a cell, {problem}"
        raise DataError(what, f"--grid {max(own // self._stride, 1)}: it was trained at {own} x {own} pixels")

    def fill(self, network: nn.Module) -> None:
        """Leave the weights as they are: timm gave them to the network when it was made."""

    def shrink(self, image: Image) -> Image:
        """Resize an image to the model's input, as its weights were trained."""
        from PIL.Image import Resampling

        assert self._input is not None, "fetch comes first"  # noqa: S101 - a promise of the interface
        side = self.grid_size * self._stride
        kind = Resampling.__members__.get(self._input["interpolation"].upper(), Resampling.BICUBIC)
        return image.convert("RGB").resize((side, side), kind)

    def pixels(self, image: Image) -> Float32s:
        """Standardize an image by the model's mean and deviation, [3, height, width]."""
        assert self._input is not None, "fetch comes first"  # noqa: S101 - a promise of the interface
        values = np.asarray(image, dtype=np.float32) / np.float32(255)
        return standardized(values, self._input["mean"], self._input["deviation"])

    def _published(self) -> nn.Module:
        """Have timm make the model at its own size with the weights of its hub."""
        timm = _timm()
        if not _config_of(self._model).has_weights:
            raise DataError(f"timm publishes no weights for {self._model}", self.weights_hint)
        try:
            return self._of_any_size(partial(timm.create_model, self._model, pretrained=True))
        except Exception as error:  # those of timm, its hub, and what they download with
            what = f"timm cannot download the weights of {self._model}: {first_line(error)}"
            raise DataError(what, f"{self.weights_hint}, needs no network") from error

    def _from_file(self) -> nn.Module:
        """Have timm make the model at its own size with the weights of a file."""
        assert self._path is not None, "that is asked before"  # noqa: S101 - a promise of the interface
        tensors = weights_reader(self.weights_hint).weights(self._path).tensors
        try:
            return self._of_any_size(partial(self._created, tensors))
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"{self._path} does not hold the weights of {self._model}: {_reason(error)}"
            raise DataError(what, self.weights_hint) from error

    def _of_any_size(self, make: Callable[..., nn.Module]) -> nn.Module:
        """Make a model that interpolates its positions as it runs; of its own size, if it has no such option."""
        try:
            model, self._takes_any_size = make(dynamic_img_size=True), True
        except TypeError:
            model = make()
        return model

    def _created(self, tensors: Mapping[str, Tensor], **options: Any) -> nn.Module:
        """Have timm make the model and load tensors, all of them or none; the head has the classes that they have."""
        heads = _config_of(self._model).classifier or ()
        head = f"{heads if isinstance(heads, str) or not heads else heads[0]}.weight"
        num_classes = len(tensors[head]) if head in tensors else 0
        overlay = {"state_dict": dict(tensors), "num_classes": num_classes, "label_offset": 0}
        model: Any = _timm().create_model(
            self._model, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay, **options
        )
        model.pretrained_cfg = model.pretrained_cfg | {"state_dict": None}  # or copies would hold the tensors twice
        return model


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter where torchvision does not fit torch
        raise DataError(f"timm cannot be loaded: {first_line(error)}", _INSTALL) from None
    return timm


def _config_of(model: str) -> Any:
    """Give what timm says of a model's weights; RuntimeError if there is no model or no tag of this name."""
    _timm()
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(model, allow_unregistered=False)


def _full_name(model: str) -> str:
    """Give a model's name with the tag of its weights; SettingsError with similar names if there is none."""
    timm = _timm()
    try:
        config = _config_of(model)
    except RuntimeError:
        architecture = model.partition(".")[0]
        known = timm.list_models()
        if architecture in known:
            alike = timm.list_models(f"{architecture}.*", pretrained=True)
        else:
            alike = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        names = " or ".join(f"timm:{one}" for one in alike[:8])
        hint = f"--extractor {names}" if names else "timm.list_models() in Python lists them"
        raise SettingsError(f"timm has no model called {model!r}", hint) from None
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)


def _reason(error: Exception) -> str:
    """Give what a message about weights begins with: the second line names them where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else first_line(error))[:200]


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and numbers, hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
