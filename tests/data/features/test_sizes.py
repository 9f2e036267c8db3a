"""The photo rule against the original's sizes and pooling, and drawings over the picture by plain indexing."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from tests.data.features.made_networks import GOLDEN
from trarctl.data.features.sizes import Geometry, photo_geometry, photo_size, refuse_photo_grid
from trarctl.errors import DataError, SettingsError


def _rows() -> list[dict[str, str]]:
    with (GOLDEN / "sizes.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_golden_sizes() -> None:
    rows = _rows()
    assert len(rows) == 454
    for row in rows:
        height, width = int(row["height"]), int(row["width"])
        if not row["cells8"]:
            with pytest.raises(DataError, match=r"its .* pixels are too narrow"):
                photo_size(width, height)
            continue
        resized = photo_size(width, height)
        assert resized == (int(row["resized_width"]), int(row["resized_height"]))
        assert photo_size(*resized) == resized  # a picture that was resized before stays as it is
        for grid in (8, 16):
            geometry = photo_geometry(grid, width, height)
            assert (geometry.rows, geometry.columns) == (int(row["rows"]), int(row["columns"]))
            assert geometry.is_transposed == (row["transposed"] == "1")
            filled = geometry.to_grid(np.ones((geometry.rows, geometry.columns, 1), dtype=np.float32))
            assert int(filled.sum()) == int(row[f"cells{grid}"])


def test_golden_pooling() -> None:
    golden = np.load(GOLDEN / "pooling.npz")
    names = [name for name in golden.files if "_" not in name]
    assert len(names) == 7
    for name in names:
        cells = golden[name].transpose(1, 2, 0)
        for grid in (8, 16):
            geometry = Geometry(grid, cells.shape[0], cells.shape[1], 32 * cells.shape[0], 32 * cells.shape[1])
            np.testing.assert_array_equal(geometry.to_grid(cells), golden[f"{name}_{grid}"])


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (640, 360), (350, 1400), (630, 640), (77, 77)])
@pytest.mark.parametrize("grid", [8, 16, 32])
def test_a_bright_cell_lies_where_the_network_saw_it(width: int, height: int, grid: int) -> None:
    geometry = photo_geometry(grid, width, height)
    rows, columns = geometry.rows, geometry.columns
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 3, columns // 2), (rows - 1, 0)):
        cells = np.zeros((rows, columns, 1), dtype=np.float32)
        cells[row, column] = 1
        shown = geometry.on_picture(geometry.to_grid(cells)[:, 0])
        resized = photo_size(width, height)
        assert shown.shape == (resized[1], resized[0])
        assert shown[min(32 * row + 5, resized[1] - 1), min(32 * column + 5, resized[0] - 1)] == 1
        assert shown.mean() <= 4 * (32 / grid) ** 2 / (rows * columns)


def test_grids_that_the_photo_rule_does_not_give() -> None:
    refuse_photo_grid(16, "x152")
    with pytest.raises(SettingsError, match="x152 gives no grid of 14 x 14 cells") as error:
        refuse_photo_grid(14, "x152")
    assert error.value.hint == "--grid 8 or --grid 16 or --grid 32"
