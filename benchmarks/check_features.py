"""Compare features made here with published ones, file by file: for those who have both.

    make check-features PUBLISHED          where trarctl extract wrote to ./feats
    make check-features OURS PUBLISHED     as python -m benchmarks.check_features

OURS holds what ``trarctl extract`` wrote; PUBLISHED the same pictures' features as ``.npy`` or ``.npz``, or maps as
``.pth``. Names match by folder: whole but for endings, or else by the number they end in, as
``COCO_val2014_000000000042.jpg.npy`` and ``42.npy`` do. Differences are in units of the published file's standard
deviation.

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


def _files(folder: Path) -> list[Path]:
    found = {*folder.rglob("*"), *(folder / name for name in zipped.names_below(folder))}
    return sorted(path for path in found if path.suffix in ENDINGS and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return _PICTURE.sub("", path.name[: -len(path.suffix)])


def _number(path: Path) -> str:
    number = re.search(r"[0-9]+$", _stem(path))
    return str(int(number[0])) if number else ""


def matched(ours: Path, published: Path) -> tuple[list[tuple[Path, Path]], list[Path], list[Path]]:
    """Pair the feature files of two folders and those in them: by folder and name, then by the number at its end.

    Also gives those of each folder that have none, or more than one, of their name in the other.
    """
    left, pairs = [_files(ours), _files(published)], list[tuple[Path, Path]]()
    for key_of in (_stem, _number):
        groups: list[dict[tuple[Path, str], list[Path]]] = [{}, {}]
        for group, files, folder in zip(groups, left, (ours, published), strict=True):
            for path in files:
                if key := key_of(path):
                    group.setdefault((path.parent.relative_to(folder), key), []).append(path)
        alike = [(groups[0][key], groups[1][key]) for key in groups[0].keys() & groups[1].keys()]
        found = [(mine[0], theirs[0]) for mine, theirs in alike if len(mine) == len(theirs) == 1]
        pairs += found
        done = {path for pair in found for path in pair}
        left = [[path for path in files if path not in done] for files in left]
    return sorted(pairs), left[0], left[1]


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
    pairs, *left = matched(options.ours, options.published)
    for paths, folder, other in zip(
        left, (options.ours, options.published), (options.published, options.ours), strict=True
    ):
        if paths:
            missing = listed(path.relative_to(folder).as_posix() for path in paths)
            print(f"{len(paths):,} files have none of their name, or more than one, in {other}: {missing}")
    found: dict[Path, Difference] = {}
    for ours, published in pairs:
        try:
            mine = read(ours)
            found[ours] = one = compare(mine, read(published, len(mine)))
        except FeatureFileError as error:
            found[ours] = one = Difference(np.inf, np.inf, f"unusable: {error}")
        if options.files:
            print(f"{one.largest:9.2e} {one.mean:9.2e}  {one.verdict}  {ours.relative_to(options.ours).as_posix()}")
    verdicts = Counter(one.verdict for one in found.values())
    for verdict, count in verdicts.most_common():
        some = [(path, one) for path, one in found.items() if one.verdict == verdict]
        path, worst = max(some, key=lambda pair: pair[1].largest)
        mean = np.mean([one.mean for _, one in some])
        print(f"{count:,} {verdict}: largest difference {worst.largest:.2g} ({path}), mean {mean:.2g}")
    is_good = bool(found) and verdicts.keys() <= {"same", "close"} and not any(left)
    print(
        "no file is in both folders" if not found else f"verdict: {'the same' if is_good else 'not the same'} features"
    )
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
