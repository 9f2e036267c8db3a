"""Which extractor made the features of prepared data, so that other pictures can be described alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trarctl.data.datasets.base import layout_of
from trarctl.data.features.extract_stage import EXTRACTED, ExtractorOptions, extracted_folder
from trarctl.data.features.files import read_cells
from trarctl.data.features.patches import Extractor
from trarctl.data.features.resnet101 import NAME
from trarctl.data.prepared import PreparedData
from trarctl.errors import DataError

# Features may have been packed as float16 since they were made.
_TOLERANCE = 1e-2


def extractor_of(data: PreparedData, weights: Path | None = None) -> Extractor:
    """Load the extractor that made the features of prepared data.

    Args:
        data: the prepared data.
        weights: file of the extractor's weights, if ``prepare`` was given one.

    Raises:
        DataError: the features came from files made elsewhere, the extractor is not installed, or its weights are
            others.
    """
    if data.manifest.images.backbone is not None:
        return data.extractor()
    made = (data.path / EXTRACTED).glob(f"{NAME}-{data.manifest.grid_size}-*")
    ours = [folder for folder in made if _holds_features(folder, data)]
    if not ours:
        raise DataError(
            f"the features in {data.path} came from files made elsewhere, so a picture cannot be described alike",
            "predict needs data whose features trarctl made from the images: trarctl prepare --help",
        )
    options = ExtractorOptions(data.path, NAME, data.manifest.grid_size, weights, ("cpu",))
    if extracted_folder(data.path, options) not in ours:
        raise DataError(
            f"the features in {data.path} were made by {NAME} with other weights than "
            f"{weights if weights is not None else 'those that torchvision downloads'}",
            "--weights FILE: the file that trarctl prepare was given",
        )
    return options.make()


def _holds_features(folder: Path, data: PreparedData) -> bool:
    """Whether the first image's features were made here: those in the folder are the ones that the data has."""
    name, image_id = data.features.image_set(0), data.features.image_id(0)
    image_set = next(one for one in layout_of(data.dataset).image_sets if one.name == name)
    made = np.zeros((data.features.num_cells, data.features.width), dtype=np.float32)
    try:
        read_cells((folder / name / image_set.features.name(image_id)).with_suffix(".npy"), made)
        stored = data.features.read(np.array([0]))[0]
    except DataError:
        return False
    return bool(np.allclose(made, stored.astype(np.float32), rtol=_TOLERANCE, atol=_TOLERANCE))
