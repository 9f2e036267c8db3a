"""What made the features that a model is trained on: written down beside them, stated by the user, or unknown.

Whoever knows it can make features of any other picture, and lay what a model looks at over the pictures.
Axes: N cells, W feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.data import Progress, no_progress
from trarctl.data.features.base import (
    Extractor,
    ExtractorOptions,
    is_extractor,
    made_again,
    make_extractor,
    read_description,
    restored,
)
from trarctl.data.features.extract import extractor_of_version_0_1
from trarctl.data.features.images import ImageSet
from trarctl.data.features.reading import read_image
from trarctl.data.features.sizes import Geometry, NoSuchGridError
from trarctl.data.manifest import BACKBONE, EXTRACTION
from trarctl.errors import DataError, SettingsError, TrarError
from trarctl.registry import EXTRACTORS

if TYPE_CHECKING:
    from trarctl.data.card import DataCard
    from trarctl.data.prepared import PreparedData

# In deviations of the stored numbers, root mean square: float16, another decoder of JPEG or a GPU's rounding stay far
# below it; exchanged colors, other weights, means or sizes are beyond.
MOST_DIFFERENCE = 0.05
_COVERS = "attention is drawn as if the grid covered the picture"
_MOST_LOOKED_FOR = 10_000  # images of which one with a picture is looked for


@dataclass(frozen=True)
class Stated:
    """What a user says about the extractor of the features that a model was trained on.

    Attributes:
        extractor: its name, where the data does not say it.
        weights: file of its weights; None: a download, or none needed.
        images: folder of the data's pictures, to compare features of one; None: where the data set keeps its own.
    """

    extractor: str | None = None
    weights: Path | None = None
    images: Path | None = None


def known_extractor(card: DataCard, name: str | None = None) -> tuple[Extractor | None, str | None]:
    """Make the extractor of the data, without its weights, to ask it for a geometry; None and why, if unknown.

    ``name`` is what a user states, where the data does not say it; a TrarError says that both do not fit.
    """
    options = ExtractorOptions(card.grid_size)
    if _is_stated(card, name):
        return _stated(card, str(name), options), None
    if card.extractor_name is None:
        return None, f"what made {card.features} is unknown: {_COVERS} (--extractor NAME)"
    try:
        return _recorded(card), None
    except TrarError as error:
        return None, f"{error.what}: {_COVERS}"


def extractor_of(
    card: DataCard,
    stated: Stated | None = None,
    devices: Sequence[str] = ("cpu",),
    progress: Progress = no_progress,
) -> tuple[Extractor, tuple[str, ...]]:
    """Load the extractor that made the features of the data, and give notes on how that is known.

    A stated one is compared with the stored features of one picture, where that is at hand.

    Raises:
        DataError: if it is unknown, has other weights, or gives other features.
        SettingsError: if what is stated does not fit.
    """
    stated = stated or Stated()
    options = ExtractorOptions(card.grid_size, stated.weights, tuple(devices))
    extractor: Extractor | None = None
    is_stated = _is_stated(card, stated.extractor)
    if is_stated:
        extractor = _stated(card, str(stated.extractor), options)
    elif card.extractor_name is not None:
        description = card.describe_extractor()
        extractor = made_again(description, card.extractor_source, card.features, options, progress)
    elif card.prepared is not None:
        extractor = extractor_of_version_0_1(card.prepared, options, progress)
    if extractor is None:
        why = "came from files made elsewhere, so trarctl cannot make matching features of a picture"
        hint = "say what made them: --extractor NAME --weights FILE; or give the picture's features: --features FILE"
        raise DataError(f"{card.features} {why}", hint)
    _refuse_other_shape(card, extractor)
    extractor.fetch(progress)
    _refuse_other_shape(card, extractor)
    if stated.weights is not None and "weights" not in extractor.identity():
        raise SettingsError(f"{card.features} were made without weights", "leave out --weights")
    extractor.load()
    return extractor, (_compared(card, extractor, stated.images),) if is_stated else ()


def geometry_of(extractor: Extractor | None, size: tuple[int, int] | None) -> Geometry | None:
    """Give where cells lie on an upright picture of this width and height; None if that cannot be known."""
    try:
        return None if extractor is None or size is None else extractor.geometry(*size)
    except TrarError:  # its features were not made by this extractor
        return None


def _recorded(card: DataCard) -> Extractor:
    """Make the extractor that the data names, without its weights."""
    return restored(card.describe_extractor(), card.extractor_source, ExtractorOptions(card.grid_size))


def _is_stated(card: DataCard, name: str | None) -> bool:
    """Whether a user states the extractor, and not the data; a SettingsError says that both do, and differ."""
    recorded = card.extractor_name
    if name is None or name == recorded:
        return False
    if recorded is not None and not (is_extractor(recorded) and not _recorded(card).takes_pictures):
        what = f"{card.features} were made by {recorded}, not by {name}"
        raise SettingsError(what, "leave out --extractor")
    return True


def _stated(card: DataCard, name: str, options: ExtractorOptions) -> Extractor:
    if not is_extractor(name):
        raise SettingsError(f"unknown extractor {name!r}", f"--extractor {' or '.join(EXTRACTORS.names())}")
    try:
        extractor = make_extractor(name, options)
    except NoSuchGridError as error:  # the grid is the data's, and cannot be chosen here
        what = f"{error.what}, which {card.features} have"
        raise SettingsError(what, "state the extractor that made them") from None
    if extractor.is_fitted:
        what = f"{name} was fitted to training pictures, so that its name does not say what made the features"
        raise SettingsError(what, f"prepare with the folder that holds {BACKBONE} beside them: --features DIR")
    _refuse_other_shape(card, extractor)
    return extractor


def _refuse_other_shape(card: DataCard, extractor: Extractor) -> None:
    kept = card.grid_size, card.feature_width
    made = extractor.grid_size, extractor.width or kept[1]
    if made != kept:
        given, there = (f"{size} x {size} cells of {width} numbers" for size, width in (made, kept))
        what = f"the extractor {extractor.name} gives {given}, {card.features} are {there}"
        is_recorded = card.extractor_name is not None
        raise DataError(what, "prepare the data again" if is_recorded else "state the extractor that made them")


def _compared(card: DataCard, extractor: Extractor, images: Path | None) -> str:
    """Make features of one picture whose features are stored, and compare both; DataError if they differ."""
    unchecked = f"that {extractor.name} made {card.features} could not be checked:"
    if (data := card.prepared) is None:
        return f"{unchecked} none of them is at hand (--data DIR)"
    folder = images if images is not None else data.own_pictures()
    found = None if folder is None else next(_pictures(data, folder), None)
    if found is None:
        where = "no folder of the data's pictures is known"
        where = where if folder is None else f"none of its pictures is in {folder}"
        return f"{unchecked} {where} (--images DIR)"
    row, path = found
    made = extractor.extract([extractor.shrink(read_image(path))])[0].astype(np.float64)
    stored = data.features.read(np.array([row]))[0].astype(np.float64)
    deviation = float(stored.std())
    difference = float(np.sqrt(np.square(made - stored).mean())) / max(deviation, 1e-12)
    figures = f"{100 * difference:.3g} % of their deviation"
    if not difference <= MOST_DIFFERENCE:
        ours, theirs = (f"mean {one.mean():.3g}, deviation {one.std():.3g}" for one in (made, stored))
        what = f"{extractor.name} did not make the features in {data.path}: those that it makes of {path} differ by"
        hint = "--extractor and --weights that made them; or give the picture's features: --features FILE"
        raise DataError(f"{what} {figures} (made: {ours}; stored: {theirs})", hint)
    return f"{extractor.name} gives the stored features of {path} but for {figures}"


def _pictures(data: PreparedData, folder: Path) -> Iterator[tuple[int, Path]]:
    """Give rows of the image table whose features are stored and whose pictures are in a folder, and these."""
    start = 0
    for part in data.manifest.images.image_sets:
        rows = range(start, start + part.num_images) if part.kind != "none" else range(0)
        for row in islice(rows, _MOST_LOOKED_FOR):
            if (path := data.picture(folder, row)) is not None:
                yield row, path
        start += part.num_images


# What prepare does with features of a folder that says what made them.


@dataclass(frozen=True)
class Origin:
    """What a folder of features says of itself: the content of its file, and the extractor (None: unknown here)."""

    file: Path
    content: dict[str, Any]
    extractor: Extractor | None

    @property
    def name(self) -> str:
        """The name of the extractor."""
        return str(self.content["name"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say that the extractor is not known here, if so."""
        what = f"{self.file} names the extractor {self.name}, which cannot be made here"
        return () if self.extractor else (f"{what}: its grid and width are not compared, and predict will need it",)

    def refuse_other_width(self, width: int) -> None:
        """Compare the width of the feature files; a DataError says that it is another."""
        if self.extractor is not None and self.extractor.width and width not in (0, self.extractor.width):
            what = f"{self.file} says that {self.name} made features of width {self.extractor.width}"
            raise DataError(f"{what}, but the files have {width}", _hint(self.file))


def origin_of(root: Path, sets: Sequence[ImageSet], grid_size: int) -> Origin | None:
    """Read what made the features in a folder, or in the folders of its image sets; None if nothing says it.

    A DataError says that it is damaged, that it is another grid's, or that image sets differ.
    """
    folders = [root, *(images.folder.path for images in sets if images.folder is not None)]
    files = [path for folder in folders if (path := folder / BACKBONE).is_file()]
    if not files:
        return None
    found = [read_description(path, _hint(path)) for path in files]
    own = [{key: value for key, value in one.items() if key != EXTRACTION} for one in found]
    for path, other in zip(files[1:], own[1:], strict=True):
        if other != own[0]:
            what = f"{files[0]} and {path} say that different extractors made the features"
            raise DataError(what, "use features of one extractor, with the same weights and grid")
    path, content = files[0], found[0]
    try:
        options = ExtractorOptions(grid_size)
        extractor = restored(content, path, options, _hint(path)) if is_extractor(content["name"]) else None
    except SettingsError:  # such as a model whose package is not installed
        extractor = None
    if extractor is not None and extractor.grid_size != grid_size:
        made, asked = (f"{size} x {size} cells" for size in (extractor.grid_size, grid_size))
        raise DataError(f"{path} says that the features are {made}, not {asked}", f"--grid {extractor.grid_size}")
    return Origin(path, content, extractor)


def _hint(path: Path) -> str:
    return f"extract the features again; or, if they are right, remove {path}, so that nothing says what made them"
