from __future__ import annotations

import base64
import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.bright import Bright, BrightClip, BrightPhoto, lightest, picture, save_on_its_side
from trarctl.data.features.base import ExtractorOptions
from trarctl.data.features.reading import read_image
from trarctl.errors import DataError
from trarctl.report.pictures import LONGEST_SIDE, ShownSpans, overlay, thumbnail, type_name, worth_showing


def decoded(uri: str) -> tuple[str, Image.Image]:
    kind, _, content = uri.partition(",")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


def test_an_overlay_is_the_lighter_the_more_is_looked_at() -> None:
    uri = overlay(np.array([0.0, 0.1, 0.2, 0.4], dtype=np.float32))
    kind, image = decoded(uri)
    assert kind == "data:image/png;base64"
    pixels = np.asarray(image).reshape(4, 4)
    # The ends of viridis, and its colors at a quarter and a half of the way.
    expected = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (253, 231, 37)]
    assert np.abs(pixels[:, :3].astype(int) - expected).max() <= 4
    assert set(pixels[:, 3]) == {153}
    lightness = pixels[:, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 30).all()


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [((64, 64), "png", (64, 64)), ((1280, 640), "jpeg", (LONGEST_SIDE, LONGEST_SIDE // 2))],
)
def test_a_thumbnail_is_no_larger_than_it_has_to_be(
    size: tuple[int, int], kind: str, expected: tuple[int, int], tmp_path: Path
) -> None:
    Image.new("CMYK", size).save(tmp_path / "a.jpg")
    shrunk = thumbnail(tmp_path / "a.jpg")
    assert shrunk.size == size
    found, image = decoded(shrunk.uri)
    assert found == f"data:image/{kind};base64"
    assert image.size == expected


def test_no_thumbnail_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a.png is not an image"):
        thumbnail(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b.png is missing"):
        thumbnail(tmp_path / "b.png")


def test_names_of_spans_and_types() -> None:
    assert ShownSpans([0, 1, 3], 8).names == ["whole", "3x3", "7x7"]
    assert ShownSpans([1, "window:2", 1], 8).names == ["3x3", "window:2"]
    assert type_name("compare_numbers") == "compare numbers"
    assert type_name("") == "none"


def test_spans_that_show_the_same_cells_are_one() -> None:
    spans = ShownSpans([0, 1, 2, 3], 4)
    assert spans.names == ["whole", "3x3", "5x5"]
    merged = spans.merged([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(merged, [[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]])


def test_answers_of_less_than_a_thousandth_are_left_out() -> None:
    assert worth_showing([("a", 0.9), ("b", 0.001), ("c", 0.0009)]) == [("a", 0.9), ("b", 0.001)]
    assert worth_showing([("a", 0.0001), ("b", 0.0001)]) == [("a", 0.0001)]
    assert worth_showing([]) == []


SIZES = {"landscape": (320, 240), "portrait": (240, 320), "panorama": (800, 200), "tower": (200, 800), "even": (99, 99)}
# Cells of the grid along the picture, by the golden sizes of the photo rule; others have S along each side.
PHOTO_CELLS = {"landscape": (25, 19), "portrait": (19, 25), "panorama": (32, 8), "tower": (8, 32), "even": (19, 19)}


@pytest.mark.parametrize("grid_size", [8, 16])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kind", [Bright, BrightPhoto, BrightClip])
def test_the_brightest_cell_is_drawn_over_the_bright_place(
    kind: type[Bright], shape: str, grid_size: int, tmp_path: Path
) -> None:
    """Stored upright and on its side: the lightest part of the shade lies within a cell of the bright square."""
    extractor = kind(ExtractorOptions(grid_size))
    width, height = SIZES[shape]
    pooled = 32 // grid_size
    for number, (across, down) in enumerate([(0.15, 0.2), (0.85, 0.3), (0.4, 0.75)]):
        path = tmp_path / f"{number}.png"
        image = picture(width, height, across, down)
        save_on_its_side(image, path) if number % 2 else image.save(path)
        shrunk = thumbnail(path)
        assert shrunk.size == (width, height)
        attention = extractor.extract([read_image(path)])[0, :, 0]
        _, shade = decoded(overlay(attention, extractor.geometry(*shrunk.size)))
        found = lightest(np.asarray(shade))
        cells = {Bright: (grid_size, grid_size), BrightClip: (31 / pooled, 19 / pooled)}.get(kind)
        columns, rows = cells or (one / pooled for one in PHOTO_CELLS[shape])
        assert abs(found[0] - across) <= 0.75 / columns, (number, found)
        assert abs(found[1] - down) <= 0.75 / rows, (number, found)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kind", [Bright, BrightPhoto, BrightClip])
def test_the_box_of_the_grid_says_the_same_as_the_drawing(kind: type[Bright], shape: str) -> None:
    """Each cell, found in the box as a reader of the JSON would: it covers what the drawing gives it."""
    width, height = SIZES[shape]
    geometry = kind(ExtractorOptions(8)).geometry(width, height)
    left, top, right, bottom = geometry.box
    drawn = geometry.on_picture(np.arange(64))
    step = max(drawn.shape[0] // 60, 1)
    for row, column in product(range(0, drawn.shape[0], step), range(0, drawn.shape[1], step)):
        across, down = (column + 0.5) / drawn.shape[1], (row + 0.5) / drawn.shape[0]
        place = int(8 * (across - left) / (right - left)), int(8 * (down - top) / (bottom - top))
        if kind is BrightClip and (column >= 992 or row >= 576):
            continue  # such a network does not see the last pixels
        cell = place[0] * 8 + place[1] if geometry.is_transposed else place[1] * 8 + place[0]
        assert cell == drawn[row, column]
