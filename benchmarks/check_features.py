"""Compare features made here with published ones, file by file: for those who have both.

    python -m benchmarks.check_features OURS PUBLISHED

OURS holds what ``trarctl extract`` wrote; PUBLISHED the same pictures' features as ``.npy`` or ``.npz``, or maps as
``.pth``. Names match by folder and by the number they end in, as ``COCO_val2014_000000000042.jpg.npy`` and ``42.npy``
do, or else whole but for endings. Differences are in units of the published file's standard deviation.

- same: no value differs by more than 2e-3 of itself or of the deviation; float16 rounds to half of that
- close: on average less than 2e-3, as another JPEG decoder, Pillow or device does
- different: other weights, sizes, colors, or order of cells
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trarctl.data.features import zipped
from trarctl.data.features.base import ExtractorOptions, make_extractor
from trarctl.data.features.grid import FeatureFileError, read_features
from trarctl.errors import DataError, SettingsError, listed

MOST_MOVED, MOST_MOVED_ON_AVERAGE = 2e-3, 2e-3
ENDINGS = (".npy", ".npz", ".pth")
_PICTURE = re.compile(r"\.(jpe?g|png|bmp|gif|webp|tiff?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Difference:
    """How far the features of a picture differ: in units of the deviation, and a verdict."""

    largest: float
    mean: float
    verdict: str


def named(folder: Path) -> dict[tuple[str, str], Path]:
    """List the feature files of a folder and those in it, by folder and id."""
    found = {}
    for path in sorted({*folder.rglob("*"), *(folder / name for name in zipped.names_below(folder))}):
        if path.suffix in ENDINGS and not path.name.startswith("."):
            stem = _PICTURE.sub("", path.name[: -len(path.suffix)])
            number = re.search(r"[0-9]+$", stem)
            found[path.parent.relative_to(folder).as_posix(), str(int(number[0])) if number else stem] = path
    return found


def read(path: Path, num_cells: int | None = None) -> npt.NDArray[np.float64]:
    """Read features [N, W], pooled to ``num_cells`` where the file is a map; FeatureFileError says why it is none."""
    if path.suffix == ".pth":
        try:
            maps = make_extractor("maps", ExtractorOptions(round((num_cells or 64) ** 0.5)))
            return maps.extract([maps.read(path)])[0].astype(np.float16).astype(np.float64)
        except (DataError, SettingsError) as error:
            raise FeatureFileError(error.what) from None
    return read_features(path).astype(np.float64)


def compare(ours: npt.NDArray[np.float64], published: npt.NDArray[np.float64]) -> Difference:
    """Compare the features of a picture, [N, W]."""
    if ours.shape != published.shape:
        return Difference(np.inf, np.inf, f"other shape: {list(ours.shape)}, published {list(published.shape)}")
    if not (np.isfinite(ours).all() and np.isfinite(published).all()):
        return Difference(np.inf, np.inf, "NaN or infinite")
    deviation = max(float(published.std()), 1e-12)
    moved = np.abs(ours - published)
    largest, mean = float(moved.max()) / deviation, float(moved.mean()) / deviation
    if (moved <= MOST_MOVED * np.maximum(np.abs(published), deviation)).all():
        return Difference(largest, mean, "same")
    return Difference(largest, mean, "close" if mean <= MOST_MOVED_ON_AVERAGE else "different")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two folders and print what was found; 0 if all is there and the same or close."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path)
    parser.add_argument("published", type=Path)
    parser.add_argument("--files", action="store_true", help="print every file")
    options = parser.parse_args(arguments)
    ours, published = named(options.ours), named(options.published)
    for folder, there, other, wanted in (
        (options.published, published, options.ours, ours),
        (options.ours, ours, options.published, published),
    ):
        if missing := [wanted[key].relative_to(other).as_posix() for key in wanted.keys() - there.keys()]:
            print(f"{len(missing):,} files have none of their name in {folder}: {listed(sorted(missing))}")
    found: dict[Path, Difference] = {}
    for key in sorted(ours.keys() & published.keys()):
        try:
            mine = read(ours[key])
            found[ours[key]] = compare(mine, read(published[key], len(mine)))
        except FeatureFileError as error:
            found[ours[key]] = Difference(np.inf, np.inf, f"unusable: {error}")
        if options.files:
            print(f"{found[ours[key]].largest:9.2e} {found[ours[key]].mean:9.2e}  {found[ours[key]].verdict}  {key[1]}")
    verdicts = Counter(one.verdict for one in found.values())
    for verdict, count in verdicts.most_common():
        some = [(path, one) for path, one in found.items() if one.verdict == verdict]
        path, worst = max(some, key=lambda pair: pair[1].largest)
        mean = np.mean([one.mean for _, one in some])
        print(f"{count:,} {verdict}: largest difference {worst.largest:.2g} ({path}), mean {mean:.2g}")
    is_good = bool(found) and verdicts.keys() <= {"same", "close"} and ours.keys() == published.keys()
    print(
        "no file is in both folders" if not found else f"verdict: {'the same' if is_good else 'not the same'} features"
    )
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
