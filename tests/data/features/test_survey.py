"""What is odd about feature files: found, counted, said once, or refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, prepare_golden
from trarctl.data.features.survey import Oddity, Survey, in_common, oddity_of
from trarctl.errors import DataError

RANDOM = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def _normal(rows: int = 16, width: int = 24) -> Array:
    return RANDOM.standard_normal((rows, width)).astype(np.float32)


def _with(array: Array, rows: Any, value: Any) -> Array:
    array[rows] = value
    return array


@pytest.mark.parametrize(
    ("array", "oddity"),
    [
        (_normal(), None),
        (np.maximum(_normal(), 0), None),
        (_normal(width=1), None),
        (_normal(rows=1), None),
        (_with(_normal(), slice(9, None), 0), None),  # padded
        (
            _with(np.zeros((16, 24), np.float32), (7, 23), 1),
            None,
        ),  # one number, in a column that is not looked at first
        (np.zeros((16, 24), np.float32), Oddity.ZERO),
        (np.full((16, 24), 3, np.float32), Oddity.CONSTANT),
        (_with(np.full((16, 24), 3, np.float32), slice(9, None), 0), Oddity.CONSTANT),
        (_with(_normal(), 5, 2.5), Oddity.FLAT_CELLS),
        (np.tile(_normal(rows=1), (16, 1)), Oddity.REPEATED),
        (_with(np.tile(_normal(rows=1), (16, 1)), slice(9, None), 0), Oddity.REPEATED),
        ((_normal() * 1e-6).astype(np.float16), Oddity.SUBNORMAL),
        ((_normal() * 1e-6), None),
    ],
)
def test_what_is_odd_about_an_image(array: Array, oddity: Oddity | None) -> None:
    assert oddity_of(array) is oddity


def test_parts_of_a_survey_add_up_and_survive_being_written_down() -> None:
    arrays = [_normal() for _ in range(6)]
    arrays += [arrays[0], np.zeros((16, 24), np.float32), arrays[5], np.zeros((16, 24), np.float32)]
    whole, parts = Survey(), [Survey(), Survey(), Survey()]
    for row, array in enumerate(arrays):
        whole.look(row, array)
        parts[row // 4].look(row, array)
    first, *others = parts
    for part in others:
        first.add(part)
    for survey in (whole, first, Survey.restored(first.described())):
        assert survey.num_images == 10
        assert {one: count for one, count in survey.counts.items() if count} == {Oddity.ZERO: 2, Oddity.DUPLICATE: 2}
        assert survey.warnings("val")[0].startswith("the features of 2 of 10 images of val are ")


def test_a_survey_of_zeros_is_refused() -> None:
    survey = Survey()
    for row in range(3):
        survey.look(row, np.zeros((16, 24), np.float32))
    with pytest.raises(DataError, match="the features of all 3 images of val are zero"):
        survey.warnings("val")


# Whole folders: change every n-th file, and read what prepare says


def _edit(folder: Path, change: Callable[[Array], Array], *, sets: str = "*", every: int = 1) -> None:
    for path in sorted(folder.glob(f"{sets}/*.npy"))[::every]:
        np.save(path, change(np.load(path).astype(np.float32)))


def _square(array: Array) -> Array:
    return np.concatenate([array, array])[:16]


@pytest.fixture
def feats(tmp_path: Path) -> Path:
    """Copy the golden features, each as 16 rows of 24 numbers."""
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    _edit(tmp_path / "feats", _square)
    return tmp_path / "feats"


def _prepared(feats: Path, **options: Any) -> tuple[str, ...]:
    report = prepare_golden("vqa", feats.parent / "out", features=feats, **options)
    return report.manifest.images.warnings


def test_sound_features_are_not_warned_of(feats: Path) -> None:
    assert _prepared(feats) == _prepared(feats, pack="float16") == ()


ODD: dict[str, tuple[Callable[[Array], Array], str]] = {
    "zero": (lambda array: array * 0, "the features of 7 of 14 images of train2014 are all zero, which counts as"),
    "constant": (lambda array: array * 0 + 2, "the features of 7 of 14 images of train2014 are one number throughout"),
    "repeated": (lambda array: np.tile(array[:1], (16, 1)), "7 of 14 images of train2014 are the same in every cell"),
    "flat": (lambda array: _with(array, 3, 1), "7 of 14 images of train2014 are one number throughout in some cells"),
    "same": (lambda _: np.arange(16 * 24, dtype=np.float32).reshape(16, 24), "6 of 14 .* those of another image"),
    "tiny": (lambda array: (array * 1e-7).astype(np.float16), "7 of 14 images of train2014 are so small that float16"),
    "more rows": (
        lambda array: np.tile(array, (2, 1)),
        r"7 of 34 feature files have more than 16 rows, which are cut \("
        "rows by files: 16 in 27, 32 in 7\\)",
    ),
}


@pytest.mark.parametrize("pack", [None, "float16"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_counted_once(feats: Path, kind: str, pack: Any) -> None:
    change, message = ODD[kind]
    _edit(feats, change, sets="train2014", every=2)
    warnings = [warning for warning in _prepared(feats, pack=pack) if SETS_THAT_DIFFER not in warning]
    assert len(warnings) == 1
    assert re.search(message, warnings[0])


def test_what_was_found_is_said_again_of_packed_files_that_are_kept(feats: Path) -> None:
    _edit(feats, ODD["flat"][0], sets="train2014", every=2)
    first = _prepared(feats, pack="float16")
    _edit(feats, lambda array: array, sets="val2014")  # other times, so that this set is packed again
    assert first == _prepared(feats, pack="float16") == _prepared(feats, pack="float16", max_words=5)
    assert len(first) == 1


SETS_THAT_DIFFER = "differ as if two extractors had made them"
WHOLE: dict[str, tuple[Callable[[Array], Array], str, str]] = {
    "class token": (lambda a: np.concatenate([a[:1], a]), "*", "17 rows, one more than cells: if the first is a class"),
    "other grid": (
        lambda a: np.tile(a, (5, 1))[:64],
        "*",
        "at least 64 rows, of which 16 are used; --grid 8 would use",
    ),
    "few rows": (lambda a: a[:9], "*", "feature files have 9 or fewer rows for the 16 cells: the others are zero"),
    "scaled set": (lambda a: a * 2, "val2014", SETS_THAT_DIFFER),
    "moved set": (lambda a: a + 1, "train2014", SETS_THAT_DIFFER),
}


@pytest.mark.parametrize("pack", [None, "float32"])
@pytest.mark.parametrize("kind", WHOLE)
def test_sets_of_another_kind_are_said(feats: Path, kind: str, pack: Any) -> None:
    change, sets, message = WHOLE[kind]
    _edit(feats, change, sets=sets)
    warnings = _prepared(feats, pack=pack)
    assert all(message in warning for warning in warnings), warnings
    # A set that differs is compared with each of the other two.
    assert len(warnings) == (2 if message == SETS_THAT_DIFFER else 1)


def test_a_set_that_is_a_copy_of_another_is_said(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "mini_clevr/feats", tmp_path / "feats")
    for path in (tmp_path / "feats/val").iterdir():
        shutil.copy(tmp_path / "feats/train" / path.name, path)
    report = prepare_golden("clevr", tmp_path / "out", features=tmp_path / "feats")
    assert report.manifest.images.warnings == ("the features of val seem to be those of train, by 10 sampled images",)


REFUSED: dict[str, tuple[Callable[[Array], Array], str, str]] = {
    "all zero": (lambda a: a * 0, "the features of all 14 images of train2014 are zero", "good copies"),
    "transposed": (lambda a: a.T, r"all 34 feature files are transposed: .* \[24, 16\]", "array.T"),
    "boxes": (lambda a: np.tile(a, (128, 2))[:2048, :36], r"are transposed: .* \[2048, 36\]", "array.T"),
    "map": (
        lambda a: a.T.reshape(1, 24, 4, 4),
        r"34 feature files .* shape \[1, 24, 4, 4\]",
        "array.reshape(24, 16).T",
    ),
    "map of one": (lambda a: a.T.reshape(24, 4, 4), r"has the shape \[24, 4, 4\]", "array.reshape(24, 16).T"),
    "channels last": (lambda a: a.reshape(4, 4, 24), r"has the shape \[4, 4, 24\]", "array.reshape(16, 24)"),
    "batch": (lambda a: a[None], r"has the shape \[1, 16, 24\]", "array[0]"),
    "float64": (lambda a: a.astype(np.float64) * 1e300, "holds 384 values beyond the range of float32", "good copies"),
}


@pytest.mark.parametrize("pack", [None, "float16"])
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_meant_is_refused(feats: Path, kind: str, pack: Any) -> None:
    change, message, hint = REFUSED[kind]
    _edit(feats, change)
    with pytest.raises(DataError, match=message) as error:
        _prepared(feats, pack=pack)
    assert error.value.hint is not None
    assert hint in error.value.hint
    assert not (feats.parent / "out/manifest.json").exists()


@pytest.mark.parametrize("kind", ["map", "map of one", "channels last", "batch", "transposed"])
def test_what_the_hint_says_gives_the_features_back(kind: str) -> None:
    array = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    change, *_, hint = REFUSED[kind]
    expression = hint.removeprefix("save ").partition(" in their place")[0]
    np.testing.assert_array_equal(eval(expression, {"array": change(array)}), array)  # noqa: S307 - as written above


def test_all_boxes_of_bottom_up_attention_are_refused(feats: Path) -> None:
    for path in sorted(feats.rglob("*.npy")):
        array = _normal(10 + int(path.name[-9]), 2048)
        boxes = {"bbox": np.zeros((len(array), 4), "f4"), "num_bbox": np.array(len(array)), "image_w": np.array(640)}
        np.savez(path.with_suffix(".npz"), x=array.T, **boxes)
        path.unlink()
    with pytest.raises(DataError, match=r"all 34 feature files are transposed: .* \[2048, ") as error:
        _prepared(feats)
    assert error.value.hint is not None
    assert "save array.T" in error.value.hint


@pytest.mark.parametrize(
    ("shapes", "num_cells", "is_refused"),
    [
        ({(2048, 36): 5}, 64, True),
        ({(2048, 36): 5, (2048, 100): 3}, 64, True),
        ({(2048, 64): 5}, 64, True),
        ({(768, 196): 5}, 196, True),
        ({(64, 2048): 5}, 64, False),
        ({(42, 2048): 5, (64, 2048): 2}, 64, False),
        ({(1024, 256): 5}, 256, False),  # 32 x 32 cells of 256 numbers, or 16 x 16 of 1,024: not certain
        ({(1024, 640): 5}, 64, False),
        ({(2048, 36): 5, (64, 36): 3}, 64, False),
        ({(100, 64): 5}, 64, False),  # 10 x 10 cells of 64 numbers
    ],
)
def test_only_what_is_certainly_transposed_is_refused(
    shapes: dict[tuple[int, int], int], num_cells: int, is_refused: bool
) -> None:
    found = {(*shape, 4): [Path("1.npy")] * count for shape, count in shapes.items()}
    if is_refused:
        with pytest.raises(DataError, match="feature files are transposed"):
            in_common(found, num_cells)
    else:
        in_common(found, num_cells)


@pytest.mark.parametrize(
    ("rows", "is_said"),
    [([36] * 30, True), (range(10, 101, 3), True), ([64] * 30, False), (range(30, 48), False), ([16] * 30, False)],
)
def test_rows_of_boxes_are_told(rows: list[int], is_said: bool) -> None:
    warnings = in_common({(number, 2048, 4): [Path(f"{number}.npy")] for number in rows}, 16).warnings
    assert any("bottom-up attention" in one for one in warnings) is is_said
    assert not any("--grid 6" in one for one in warnings)
