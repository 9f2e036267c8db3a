"""Pictures to grid features: what every extractor offers, how one is made, and how pictures are read.

An extractor is one class in one file; registering it is all that the rest of the program needs::

    @EXTRACTORS.register("mean-color")
    class MeanColor(Extractor):
        name, width = "mean-color", 3

        def extract(self, images):
            colors = [np.asarray(image.convert("RGB"), np.float32).mean(axis=(0, 1)) for image in images]
            return np.repeat(np.stack(colors)[:, None], self.grid_size**2, axis=1)

Axes: B images, S cells along one side, N = S * S cells in row-major order, W feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data.manifest import StoredType
from trarctl.errors import DataError
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ExtractorOptions:
    """What a user can choose about an extractor.

    Attributes:
        grid_size: cells S along one side.
        weights: file of a network's weights; None: those that it downloads.
        devices: where a network runs, such as ``cpu`` or ``cuda:0``, one copy each.
    """

    grid_size: int
    weights: Path | None = None
    devices: tuple[str, ...] = ("cpu",)


class Extractor(ABC):
    """Turns images into a grid of feature vectors; ``extract`` is called from several threads.

    Making one must be cheap: it happens even if all features are there. Networks are loaded by ``load``.

    Attributes:
        name: under which it is registered.
        width: feature width W.
        stored_type: number type of feature files; values that float16 cannot hold keep an image in float32.
        is_fitted: whether ``fit`` has to see the training images before anything is extracted.
    """

    name: ClassVar[str]
    width: int
    stored_type: ClassVar[StoredType] = "float16"
    is_fitted: ClassVar[bool] = False

    def __init__(self, options: ExtractorOptions) -> None:
        self.grid_size = options.grid_size

    @abstractmethod
    def extract(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Turn images of any size and mode into features [B, N, W]."""

    def identity(self) -> dict[str, Any]:
        """Give what features depend on besides name, grid and fit, as JSON can hold it."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Give all that is needed to make the same extractor again, as JSON can hold it."""
        return {"name": self.name, "grid_size": self.grid_size, **self.identity()}

    def restore(self, description: dict[str, Any]) -> None:
        """Take over what a description says; a damaged one may raise anything."""
        self.grid_size = description["grid_size"]

    def fit(self, batches: Iterable[Sequence[Image]]) -> None:
        """Fit to the training images; only called if ``is_fitted``."""
        raise NotImplementedError

    def load(self) -> None:
        """Load what ``extract`` needs and what takes its time; called once before it."""
        return


def read_extractor(path: Path, options: ExtractorOptions) -> Extractor:
    """Make the extractor that a file describes.

    Raises:
        DataError: the description is missing, damaged, of an unknown extractor, or of one with other weights.
    """
    again = "prepare the data again"
    try:
        description = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"no extractor is stored as {path}", "prepare from images to have one") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", again) from None
    if not isinstance(description, dict) or not isinstance(description.get("name"), str):
        raise DataError(f"{path} is damaged", again)
    name = description["name"]
    if name not in EXTRACTORS:
        raise DataError(f"unknown extractor {name!r} in {path}", f"register it, or {again}")
    extractor: Extractor = EXTRACTORS[name](options)
    try:
        extractor.restore(description)
    except Exception as error:  # whatever a damaged description makes an extractor stumble over
        raise DataError(f"the description of the extractor in {path} is damaged: {error}", again) from error
    if extractor.describe() != description:
        raise other_weights(path.parent, name, options.weights)
    return extractor


def other_weights(folder: Path, name: str, weights: Path | None) -> DataError:
    """Say that features were made with other weights."""
    here = "those that torchvision downloads" if weights is None else weights
    return DataError(
        f"the features in {folder} were made by {name} with other weights than {here}",
        "--weights FILE: the file that trarctl prepare was given",
    )


def read_image(path: Path) -> Image | str:
    """Decode an image file to RGB; of an unusable one say what is wrong, beginning with its name."""
    import PIL.Image

    if path.exists() and not path.is_file():
        return f"{path} is no file"
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        return f"{path} is missing"
    except PIL.UnidentifiedImageError:
        return f"{path} is no image, or empty"
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        return f"{path} is truncated or damaged: {error}"


def load_images(paths: Iterable[Path]) -> tuple[list[Image], list[str]]:
    """Decode image files.

    Returns:
        Images in RGB, for unusable files a black pixel; and what is wrong with those.
    """
    import PIL.Image

    found = [read_image(path) for path in paths]
    black = PIL.Image.new("RGB", (1, 1))
    return [black if isinstance(one, str) else one for one in found], [one for one in found if isinstance(one, str)]
