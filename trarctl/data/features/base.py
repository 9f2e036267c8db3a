"""Pictures to grid features: what every extractor offers, and how one is made; ``reading`` decodes the pictures.

An extractor is one class in one file, registered by name; ``tests/extending/test_extractor.py`` has a small one.

Axes: B images, S cells along one side, N = S * S cells in row-major order, W feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data import Progress, no_progress
from trarctl.data.features.reading import picture_endings, read_image
from trarctl.data.features.sizes import Geometry
from trarctl.data.manifest import StoredType
from trarctl.errors import DataError, SettingsError
from trarctl.files import read_regular
from trarctl.registry import EXTRACTORS, PLUGINS_VARIABLE

if TYPE_CHECKING:
    from PIL.Image import Image

Float32s = npt.NDArray[np.float32]

_AGAIN = "prepare the data again"


@dataclass(frozen=True)
class ExtractorOptions:
    """What a user can choose: cells along one side, a network's weights (None: a download), and a copy a device."""

    grid_size: int
    weights: Path | None = None
    devices: tuple[str, ...] = ("cpu",)
    model: str = ""  # what stands behind the colon of the extractor's name, as in timm:vit_small_patch16_224


def resized(image: Image, side: int) -> Image:
    """Resize an image; RGB of that size stays as it is."""
    from PIL.Image import Resampling

    return image.convert("RGB").resize((side, side), Resampling.BICUBIC)


class Extractor(ABC):
    """Turns images into a grid of feature vectors; ``extract`` is called from several threads.

    Making one is cheap, as it happens even if all features are there: ``fetch`` downloads weights, ``load`` loads them.
    Features of an image must not depend on which others are in its batch, but for rounding.
    """

    name: str
    width: int  # feature width W; 0 where it is known from the weights alone, until ``fetch``
    takes_model: ClassVar[bool] = False  # whether its name goes on with a colon and a model
    stored_type: ClassVar[StoredType] = "float16"  # of feature files; values that float16 cannot hold stay in float32
    takes_pictures: ClassVar[bool] = True  # otherwise it takes what somebody else made of them
    is_fitted: ClassVar[bool] = False  # whether ``fit`` has to see the training images before anything is extracted
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)  # those that ``precision`` may be
    precision = "fp32"  # of the computation

    def __init__(self, options: ExtractorOptions) -> None:
        self.grid_size = options.grid_size
        if bool(options.model) != self.takes_model:
            given = f"{self.name}:{options.model}" if options.model else self.name
            needed = f"{self.name}:MODEL" if self.takes_model else self.name
            raise SettingsError(f"no extractor is called {given}", f"--extractor {needed}")

    @abstractmethod
    def extract(self, images: Sequence[Image]) -> Float32s:
        """Turn RGB images of any size into features [B, N, W]; those that ``shrink`` gave or not, with one result."""

    def endings(self) -> frozenset[str]:
        """List the endings of the files that ``read`` takes, in lower case."""
        return picture_endings()

    def feature_name(self, name: str) -> str:
        """Name the file of features that ``trarctl extract`` makes of a file."""
        return f"{name}.npy"

    def read(self, path: Path) -> Any:
        """Read a file to what ``extract`` takes; a DataError says why that cannot be done."""
        return self.shrink(read_image(path))

    def shrink(self, image: Image) -> Image:
        """Resize an image to what ``extract`` works on; called as soon as it is decoded, so that few are in memory."""
        return image

    def geometry(self, width: int, height: int) -> Geometry:  # noqa: ARG002 - for those that depend on it
        """Give where the cells lie on an upright picture of this size, in pixels; the grid covers it by default."""
        return Geometry.whole(self.grid_size)

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

    def fetch(self, progress: Progress = no_progress) -> None:  # noqa: ARG002 - for those that download
        """Download weights where none are named and none are there; called before ``identity`` and ``load``."""
        return

    def about(self) -> tuple[str, ...]:
        """Tell what a user should know of it, a line each, such as the license of its weights; after ``fetch``."""
        return ()

    def load(self) -> None:
        """Load what ``extract`` needs and what takes its time; called before it, perhaps more than once."""
        return


def is_extractor(name: str) -> bool:
    """Whether there is an extractor of this name; the model behind a colon is not looked at."""
    return name.partition(":")[0] in EXTRACTORS


def make_extractor(name: str, options: ExtractorOptions) -> Extractor:
    """Make the extractor called NAME or NAME:MODEL; SettingsError if there is none."""
    family, _, model = name.partition(":")
    extractor: Extractor = EXTRACTORS[family](replace(options, model=model))
    return extractor


def read_description(path: Path, again: str = _AGAIN) -> dict[str, Any]:
    """Read what a file says of the extractor that made features; a DataError says that it is missing or damaged.

    ``again`` is what helps where it is damaged.
    """
    try:
        description = orjson.loads(read_regular(path))
        name = description["name"]
    except FileNotFoundError:
        raise DataError(f"no extractor is stored as {path}", "prepare from images to have one") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}", again) from None
    if not isinstance(name, str):
        raise DataError(f"unknown extractor {name!r} in {path}", again)
    return dict(description)


def restored(description: Mapping[str, Any], path: Path, options: ExtractorOptions, again: str = _AGAIN) -> Extractor:
    """Make the extractor that ``read_description`` found in a file, without its weights: to ask it for a geometry."""
    name, grid_size = description["name"], description.get("grid_size")
    if not is_extractor(name):
        raise DataError(f"unknown extractor {name!r} in {path}", f"{PLUGINS_VARIABLE}=MODULE that adds it, or {again}")
    if type(grid_size) is int and grid_size > 0:
        options = replace(options, grid_size=grid_size)
    extractor = make_extractor(name, options)
    try:
        extractor.restore(dict(description))
    except Exception as error:  # an extractor may raise anything over a damaged description
        raise DataError(f"the description of the extractor in {path} is damaged: {error}", again) from error
    if type(extractor.grid_size) is not int or extractor.grid_size < 1:
        raise DataError(f"the description of the extractor in {path} is damaged: its grid", again)
    return extractor


def read_extractor(path: Path, options: ExtractorOptions, progress: Progress = no_progress) -> Extractor:
    """Make the extractor that a file describes, and have its weights; a DataError says why that cannot be done."""
    return made_again(read_description(path), path, f"the features in {path.parent}", options, progress)


def made_again(
    description: Mapping[str, Any], path: Path, features: str, options: ExtractorOptions, progress: Progress
) -> Extractor:
    """As ``read_extractor``, of a description found in a file; ``features`` says in messages what it made."""
    extractor = restored(description, path, options)
    extractor.fetch(progress)
    # The file may say more, such as how pictures were read.
    if {**description, **extractor.describe()} != description:
        raise other_weights(features, extractor.name, options.weights)
    return extractor


def other_weights(features: str, name: str, weights: Path | None) -> DataError:
    """Say that ``the features in FOLDER`` were made with other weights."""
    here = "those that are downloaded" if weights is None else weights
    what = f"{features} were made by {name} with weights other than {here}"
    return DataError(what, "--weights FILE: the file that they were made with")
