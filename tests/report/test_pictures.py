from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trarctl.errors import DataError
from trarctl.report.pictures import LONGEST_SIDE, overlay, span_names, thumbnail, type_name


def decoded(uri: str) -> tuple[str, Image.Image]:
    kind, _, content = uri.partition(",")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def test_an_overlay_is_clear_where_the_most_is_looked_at() -> None:
    uri = overlay(np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32))
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        opacity = np.asarray(image)[..., 3]
    assert opacity.shape == (2, 2)
    assert opacity[1, 1] == 0
    assert (np.diff(opacity.reshape(-1).astype(int)) < 0).all()


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [((64, 64), "png", (64, 64)), ((1280, 640), "jpeg", (LONGEST_SIDE, LONGEST_SIDE // 2))],
)
def test_a_thumbnail_is_no_larger_than_it_has_to_be(
    size: tuple[int, int], kind: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("CMYK", size).save(tmp_path / "a.jpg")
    uri = thumbnail(tmp_path / "a.jpg")
    found, image = decoded(uri)
    assert found == f"data:image/{kind};base64"
    assert image.size == expected


def test_no_thumbnail_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a.png is not an image"):
        thumbnail(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b.png is missing"):
        thumbnail(tmp_path / "b.png")


def test_names_of_spans_and_types() -> None:
    assert span_names([0, 1, 3]) == ["whole", "3x3", "7x7"]
    assert span_names([1, "cross:2", 1]) == ["3x3 (1)", "cross:2", "3x3 (2)"]
    assert type_name("compare_numbers") == "compare numbers"
    assert type_name("") == "none"
