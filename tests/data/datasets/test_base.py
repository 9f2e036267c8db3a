"""Names of image files, and what the registered data sets say about themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, feature_namings
from trarctl.errors import SettingsError
from trarctl.registry import DATASETS

BUILT_IN = DATASETS.built_in


@pytest.mark.parametrize(
    ("naming", "image_id", "name"),
    [
        (FileNaming("COCO_val2014_", 12, ".jpg"), 42, "COCO_val2014_000000000042.jpg"),
        (FileNaming("", 1, ".png"), 7, "7.png"),
        (FileNaming("", None, ""), "a b.png", "a b.png"),
        (FileNaming("", None, ".npy"), "007", "007.npy"),
    ],
)
def test_names_and_ids_are_each_others_inverse(naming: FileNaming, image_id: int | str, name: str) -> None:
    assert naming.name(image_id) == name
    assert naming.ids([name, f"{name}.part", f".{name}x"])[:1] == [image_id]


def test_names_that_do_not_follow_are_left_out() -> None:
    assert FileNaming("", 1, ".png").ids(["7.png", "007.png", "x.png", "7.jpg", "-7.png", ".png"]) == [7]
    assert FileNaming("", None, ".png").ids(["7.png", "007.png", "7.jpg", ".png"]) == ["7", "007"]


def test_feature_files_of_text_ids_are_named_after_the_id() -> None:
    images = ImageSetFiles("pictures", None, True, FileNaming("", None, ".png"), FileNaming("", None, ".npy"))
    names = [naming.name("a") for naming in feature_namings(images)]
    assert names == ["a.npy", "a.png.npy", "a.png.npz", "a.npz"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_data_set_is_whole(name: str) -> None:
    spec: DatasetSpec = DATASETS[name]
    splits = {split.name for split in spec.splits}
    assert spec.name == name
    assert set(spec.answer_splits) <= splits
    assert set(spec.aliases.values()) | set(spec.split_notes) | set(spec.published) <= splits
    assert {split.image_set for split in spec.splits} == {images.name for images in spec.image_sets}
    assert spec.answer_file.suffix.startswith(".")


def test_what_was_published_and_where() -> None:
    clevr: DatasetSpec = DATASETS["clevr"]
    (row,) = clevr.published_on("val")
    assert (row.name, row.overall, row.per_type["compare_attribute"]) == ("hard, fc, binarize", 99.08, 99.40)
    assert clevr.published_on("test") == ()
    assert DATASETS["vqa"].split_title("val") == "vqa val"
    assert DATASETS["easy-vqa"].split_title("val") == "easy-vqa val, the package's test set"
    assert DATASETS["vqa"].default_raw_folder() == Path("data/vqa/raw")


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="unknown data set 'vqa2'") as caught:
        _ = DATASETS["vqa2"]
    assert "vqa, clevr, easy-vqa" in (caught.value.hint or "")
