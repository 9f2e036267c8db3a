"""Published maps: padded and pooled as the original does, and everything that is no map named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trarctl.data.features.base import ExtractorOptions, make_extractor
from trarctl.data.features.extract import extract_folder
from trarctl.errors import DataError, SettingsError


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def random_map(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pooled(cells: torch.Tensor, grid: int) -> np.ndarray:
    """What the original makes of a map [W, R, C], by torch's own padding and pooling."""
    if cells.shape[1] > cells.shape[2]:
        cells = cells.transpose(1, 2)
    down, right = 32 - cells.shape[1], 32 - cells.shape[2]
    padded = torch.nn.functional.pad(cells, (right // 2, right - right // 2, down // 2, down - down // 2))
    return torch.nn.functional.max_pool2d(padded, 32 // grid).flatten(1).T.numpy().astype(np.float16)


@pytest.mark.parametrize("grid", [8, 16])
def test_maps_become_grids(grid: int, tmp_path: Path) -> None:
    wide, high = random_map(1, 2048, 19, 25), random_map(2048, 20, 19).half()
    write(tmp_path / "maps/train2014/9.pth", wide)
    write(tmp_path / "maps/val2014/b.jpg.pth", high)
    report = extract_folder(tmp_path / "maps", "maps", ExtractorOptions(grid), tmp_path / "out")
    assert (report.num_pictures, report.width) == (2, 2048)
    assert (report.description["name"], report.description["extraction"]["rule"]) == ("maps", "photo")
    np.testing.assert_array_equal(np.load(tmp_path / "out/train2014/9.npy"), pooled(wide[0], grid))
    np.testing.assert_array_equal(np.load(tmp_path / "out/val2014/b.jpg.npy"), pooled(high.float(), grid))


def test_what_is_no_map_is_named_and_the_others_kept(tmp_path: Path) -> None:
    with_nan = random_map(1, 2048, 2, 3)
    with_nan[0, 5, 1, 1] = torch.nan
    faults: dict[str, tuple[Any, str]] = {
        "batch": (random_map(2, 2048, 2, 2), r"has the shape \[2, 2048, 2, 2\], expected \[1, 2048, rows, columns\]"),
        "width": (random_map(1, 512, 2, 2), r"has the shape \[1, 512, 2, 2\]"),
        "large": (random_map(2048, 1, 33), r"has the shape \[2048, 1, 33\]"),
        "empty": (torch.zeros(2048, 0, 3), r"has the shape \[2048, 0, 3\]"),
        "flat": (torch.zeros(2048), r"has the shape \[2048\]"),
        "nan": (with_nan, "holds 1 values that are NaN or infinite"),
        "int": (torch.zeros(1, 2048, 2, 2, dtype=torch.int64), "holds a tensor of type int64"),
        "dict": ({"map": torch.zeros(1)}, "holds an object of type dict, not a tensor"),
        "path": (Path("x"), "holds an object of type PosixPath, not a tensor"),
        "code": (torch.nn.Linear(1, 1), r"holds objects other than tensors: torch\.nn\.modules\.linear\.Linear"),
        "few": (torch.zeros(1).expand(1, 2048, 30, 30), r"is \[1, 2048, 30, 30\], the file has fewer numbers"),
    }
    for name, (content, _) in faults.items():
        write(tmp_path / f"maps/{name}.pth", content)
    (tmp_path / "maps/cut.pth").write_bytes((tmp_path / "maps/nan.pth").read_bytes()[:-100])
    write(tmp_path / "maps/good.pth", random_map(1, 2048, 2, 2))
    for number, match in enumerate(match for _, match in faults.values()):
        with pytest.raises(DataError, match=match):
            make_extractor("maps", ExtractorOptions(8)).read(tmp_path / f"maps/{list(faults)[number]}.pth")
    with pytest.raises(DataError, match=r"12 map files are unusable: .*cut\.pth is damaged \(its archive is cut off"):
        extract_folder(tmp_path / "maps", "maps", ExtractorOptions(8), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.npy")] == ["good.npy"]
    with pytest.raises(DataError, match="is a folder, not a map file"):
        make_extractor("maps", ExtractorOptions(8)).read(tmp_path)


def test_maps_describe_no_pictures(tmp_path: Path) -> None:
    extractor = make_extractor("maps", ExtractorOptions(8))
    assert (extractor.geometry(480, 640).rows, extractor.geometry(480, 640).columns) == (25, 19)
    with pytest.raises(DataError, match="no map can be made of a picture") as raised:
        extractor.shrink(Image.new("RGB", (2, 2)))
    assert raised.value.hint == "name what made the maps: --extractor x152 --weights FILE"
    with pytest.raises(SettingsError, match="no grid of 7 x 7"):
        make_extractor("maps", ExtractorOptions(7))
    with pytest.raises(SettingsError, match="maps need no weights"):
        make_extractor("maps", ExtractorOptions(8, tmp_path / "w.pth"))
