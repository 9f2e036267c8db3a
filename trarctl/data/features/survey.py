"""What is odd about feature files, found while their numbers are read anyway: counted, said once, or refused.

Axes: R rows of a file, N cells, W feature width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from trarctl.data.features.grid import Floats, Problem
from trarctl.data.manifest import FeatureStatistics, StoredType
from trarctl.errors import DataError, listed

# Widths of the networks whose features are in use, none of which is a square grid's number of cells.
_WIDTHS_OF_NETWORKS = frozenset({512, 640, 768, 1280, 1536, 2048, 2560})
_MOST_CELLS = 256
# Bottom-up attention describes 36 boxes of every image, or 10 to 100; maps of a network have few shapes.
_USUAL_BOXES, _FEWEST_BOXES, _MOST_BOXES, _MOST_SHAPES = 36, 10, 100, 20
_FEWEST_TO_COMPARE = 8
_SMALLEST_NORMAL = np.finfo(np.float16).smallest_normal


class Oddity(StrEnum):
    """What the features of an image can be, though hardly any picture has such features."""

    ZERO = "all zero, which counts as padding"
    CONSTANT = "one number throughout"
    REPEATED = "the same in every cell"
    FLAT_CELLS = "one number throughout in some cells"
    SUBNORMAL = "so small that float16 rounds them coarsely"
    DUPLICATE = "those of another image"


@dataclass
class Survey:
    """What was found in the files of an image set, or in a part of them; images are known by their rows."""

    num_images: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[Oddity] = field(default_factory=Counter)
    first: dict[Oddity, int] = field(default_factory=dict)  # the first image of each kind
    seen: set[tuple[int, int]] = field(default_factory=set)  # to find the same content again

    def look(self, row: int, array: Floats) -> None:
        """Look at the features of an image, [R, W]."""
        self.num_images += 1
        # One sum of 32 bits would be the same for some of a hundred thousand images by chance.
        numbers = np.ascontiguousarray(array)
        content = (crc32(numbers.data), crc32(numbers[0].data))
        oddity = oddity_of(array)
        if oddity is None and content in self.seen:
            oddity = Oddity.DUPLICATE
        if oddity is None:
            self.seen.add(content)
        else:
            self.counts[oddity] += 1
            self.first.setdefault(oddity, row)

    def add(self, other: Survey) -> None:
        """Add what was found in the images that follow."""
        again = self.seen & other.seen
        self.num_images += other.num_images
        self.problems += other.problems
        self.counts += other.counts
        self.counts[Oddity.DUPLICATE] += len(again)
        for oddity, row in other.first.items():
            self.first.setdefault(oddity, row)
        self.seen |= other.seen

    def described(self) -> dict[str, Any]:
        """Give the counts as JSON can hold them."""
        return {
            "images": self.num_images,
            "odd": {one.name: [count, self.first.get(one, 0)] for one, count in self.counts.items() if count},
        }

    @classmethod
    def restored(cls, content: Mapping[str, Any]) -> Survey:
        """Give back what ``described`` gave; KeyError or ValueError if it is anything else."""
        odd = {Oddity[name]: (int(count), int(row)) for name, (count, row) in content["odd"].items()}
        counts = Counter({one: count for one, (count, _) in odd.items()})
        return cls(int(content["images"]), [], counts, {one: row for one, (_, row) in odd.items()})

    def warnings(self, name: str, file: Callable[[int], Path] | None = None) -> tuple[str, ...]:
        """Say what is odd about a set, ``file`` names an image's; DataError if all features are zero."""
        if self.num_images and self.counts[Oddity.ZERO] == self.num_images:
            what = f"the features of all {self.num_images:,} images of {name} are zero"
            raise DataError(what, "replace them with good copies")
        said = []
        for oddity, count in self.counts.items():
            if count:
                example = f", such as those in {file(self.first.get(oddity, 0))}" if file else ""
                said.append(f"the features of {count:,} of {self.num_images:,} images of {name} are {oddity}{example}")
        return tuple(said)


def oddity_of(array: Floats) -> Oddity | None:
    """Say what is odd about the features of an image, [R, W]; a few columns are enough to see that nothing is."""
    some = array[:, :: max(1, array.shape[1] // 8)]
    is_filled = some.any(axis=1)
    if not is_filled.any() and not array.any():
        return Oddity.ZERO
    if array.shape[1] > 1 and (some[is_filled] == some[is_filled][:, :1]).all(axis=1).any():
        rows = array[is_filled]
        if (rows == rows[0, 0]).all():
            return Oddity.CONSTANT
        if (rows == rows[:, :1]).all(axis=1).any():
            return Oddity.FLAT_CELLS
    if is_filled.sum() > 1 and (some[is_filled] == some[is_filled][:1]).all():
        rows = array[is_filled]
        if (rows == rows[0]).all():
            return Oddity.REPEATED
    if array.dtype == np.float16 and all(np.abs(part).max() < _SMALLEST_NORMAL for part in (some, array)):
        return Oddity.SUBNORMAL
    return None


@dataclass(frozen=True)
class Common:
    """What feature files have in common: width W, number type, and what is odd but usable."""

    width: int
    stored_type: StoredType
    warnings: tuple[str, ...]


def in_common(found: Mapping[tuple[int, int, int], Sequence[Path]], num_cells: int) -> Common:
    """Compare all files, listed by rows, width and bytes per number; DataError if widths differ or are exchanged."""
    widths, rows = Counter[int](), Counter[int]()
    for (height, width, _), paths in found.items():
        widths[width] += len(paths)
        rows[height] += len(paths)
    _refuse_transposed(found, rows, widths, num_cells)
    width = max(widths, key=lambda one: widths[one])
    others = sorted(f"{path} has {one}" for (_, one, _), paths in found.items() if one != width for path in paths)
    if others:
        what = f"features of mixed widths: {widths[width]:,} files have {width}, but {listed(others, len(others))}"
        raise DataError(what, "keep features of one extractor only")
    stored_type: StoredType = "float16" if all(size == 2 for _, _, size in found) else "float32"
    return Common(width, stored_type, tuple(_row_warnings(rows, width, num_cells)))


def _refuse_transposed(
    found: Mapping[tuple[int, int, int], Sequence[Path]], rows: Counter[int], widths: Counter[int], num_cells: int
) -> None:
    """Refuse files [W, boxes or cells]: all of a network's width in rows, and no wider than a grid has cells."""
    if len(rows) > 1:
        return
    (height,), widest = rows, max(widths)
    is_network = height in _WIDTHS_OF_NETWORKS and widest <= _MOST_CELLS
    is_grid = set(widths) == {num_cells} and height > num_cells and round(height**0.5) ** 2 != height
    if is_network or is_grid:
        path = next(iter(found.values()))[0]
        what = f"all {sum(rows.values()):,} feature files are transposed: {path} has the shape [{height}, {widest}]"
        raise DataError(f"{what}, expected [rows, width]", "save array.T in their place; boxes are no cells of a grid")


def _row_warnings(rows: Counter[int], width: int, num_cells: int) -> list[str]:
    smallest, largest, num_files = min(rows), max(rows), sum(rows.values())
    is_varied = smallest >= _FEWEST_BOXES and largest <= _MOST_BOXES and len(rows) > _MOST_SHAPES
    are_boxes = num_cells != smallest == largest == _USUAL_BOXES or is_varied
    said = []
    if smallest == largest == num_cells + 1:
        rest = "if the first is a class token, it becomes cell 0: save array[1:] in that case"
        said.append(f"every feature file has {smallest} rows, one more than cells: {rest}")
    elif smallest > num_cells:
        side = round(smallest**0.5)
        fitting = f"; --grid {side} would use all" if side * side == smallest == largest and not are_boxes else ""
        said.append(f"every feature file has at least {smallest} rows, of which {num_cells} are used{fitting}")
    elif largest > num_cells:
        longer = sum(count for one, count in rows.items() if one > num_cells)
        shown = [f"{one} in {count:,}" for one, count in sorted(rows.items(), key=lambda entry: -entry[1])]
        said.append(
            f"{longer:,} of {num_files:,} feature files have more than {num_cells} rows, which are cut"
            f" (rows by files: {listed(shown, len(shown), most=5)})"
        )
    elif largest < num_cells:
        rest = "the others are zero, which counts as padding"
        said.append(f"feature files have {largest} or fewer rows for the {num_cells} cells: {rest}")
    if are_boxes:
        said.append("so many rows have the features of boxes (bottom-up attention), which are no cells of a grid")
    if len(rows) == 1 and width == num_cells and largest != num_cells:
        said.append(f"every feature file has {width} columns, the number of cells: are rows and width exchanged?")
    return said


def set_warnings(statistics: FeatureStatistics | None) -> tuple[str, ...]:
    """Say which sets seem to come from different extractors, or to be copies of each other."""
    said = []
    sets = {} if statistics is None else statistics.images
    for one, other in combinations(sets, 2):
        shared = sets[one].keys() & sets[other].keys()
        if shared and all(sets[one][name] == sets[other][name] for name in shared):
            said.append(f"the features of {other} seem to be those of {one}, by {len(shared):,} sampled images")
        if min(len(sets[one]), len(sets[other])) < _FEWEST_TO_COMPARE:
            continue
        medians = {name: np.median(list(sets[name].values()), axis=0)[:2] for name in (one, other)}
        means, deviations = zip(*medians.values(), strict=True)
        smaller, larger = sorted(deviations)
        if larger > 1.4 * smaller or abs(means[0] - means[1]) > 0.5 * larger:
            facts = "; ".join(f"{name}: mean {mean:.3g}, deviation {dev:.3g}" for name, (mean, dev) in medians.items())
            said.append(f"the features of two image sets differ as if two extractors had made them ({facts})")
    return tuple(said)
