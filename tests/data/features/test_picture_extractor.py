from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.features.test_extract import MeanColor, extractor, request_with_images
from trarctl.data.features.picture_extractor import extractor_of
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError

__all__ = ["extractor", "request_with_images"]


@pytest.mark.parametrize("pack", [None, "float16"])
def test_features_made_of_images_name_their_backbone(
    pack: str | None, request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path
) -> None:
    request = PrepareRequest(**(vars(request_with_images) | {"pack": pack}))
    prepare(request)
    data = open_prepared(tmp_path / "out")
    assert extractor_of(data) is extractor
    described = extractor.extract([Image.open(tmp_path / "images" / "train" / "CLEVR_train_000000.png")])
    assert np.allclose(described[0], data.features.read(np.array([0]))[0], rtol=1e-3)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"others")
    with pytest.raises(DataError, match=r"were made by resnet101 with other weights than .*weights\.pth") as raised:
        extractor_of(data, weights)
    assert raised.value.hint == "--weights FILE: the file that trarctl prepare was given"


def test_what_lies_about_is_not_taken_for_it(
    request_with_images: PrepareRequest, extractor: MeanColor, tmp_path: Path
) -> None:
    """Features of another making, beside a folder of extracted ones that are no longer in use."""
    prepare(request_with_images)
    (folder,) = (tmp_path / "out" / "extracted").iterdir()
    shutil.copytree(folder, tmp_path / "others")
    for file in (tmp_path / "others").rglob("*.npy"):
        np.save(file, np.load(file) + 1)
    values = vars(request_with_images) | {"images": None, "features": tmp_path / "others"}
    prepare(PrepareRequest(**values))
    with pytest.raises(DataError, match="came from files made elsewhere"):
        extractor_of(open_prepared(tmp_path / "out"))
