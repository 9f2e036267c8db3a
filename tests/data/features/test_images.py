"""The image table: how files are found by name, and which set an image belongs to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trarctl.data.datasets.base import FileNaming, ImageSetFiles, feature_namings
from trarctl.data.datasets.clevr import CLEVR
from trarctl.data.datasets.vqa import VQA
from trarctl.data.features.images import build_table, feature_folders, fingerprint, refuse_missing, scan_folder
from trarctl.errors import DataError


def _touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    return folder


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (VQA, ["COCO_train2014_000000000009.jpg.npy", "COCO_train2014_000000000025.jpg.npy"]),
        (VQA, ["COCO_train2014_000000000009.jpg.npz", "COCO_train2014_000000000025.jpg.npz"]),
        (VQA, ["COCO_train2014_000000000009.npy", "COCO_train2014_000000000025.npy"]),
        (VQA, ["9.npy", "25.npy"]),
        (CLEVR, ["9.npz", "25.npz"]),
        (CLEVR, ["CLEVR_train_000009.png.npz", "CLEVR_train_000025.png.npz"]),
        (CLEVR, ["CLEVR_train_000009.npy", "CLEVR_train_000025.npy"]),
    ],
)
def test_names_that_are_understood(tmp_path: Path, dataset: object, names: list[str]) -> None:
    layout = VQA if dataset is VQA else CLEVR
    folder = scan_folder(_touch(tmp_path, *names, "README", "9"), feature_namings(layout.image_sets[0]))
    assert folder is not None
    assert folder.ids.tolist() == [9, 25]
    assert folder.num_odd == 2
    assert [folder.naming.name(9), folder.naming.name(25)] == names


def test_names_that_are_not(tmp_path: Path) -> None:
    naming = FileNaming("COCO_val2014_", 12, ".jpg.npy")
    odd = [
        "COCO_val2014_9.jpg.npy",
        "COCO_val2014_0000000000009.jpg.npy",
        "COCO_train2014_000000000009.jpg.npy",
        "COCO_val2014_000000000009.jpg.npy.tmp",
        "..",
    ]
    assert naming.ids(odd) == []
    assert naming.ids(["COCO_val2014_123456789012345.jpg.npy"]) == [123456789012345]


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    assert scan_folder(tmp_path / "missing", feature_namings(VQA.image_sets[0])) is None
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="cannot read the folder .*loop"):
        scan_folder(tmp_path / "loop", feature_namings(VQA.image_sets[0]))
    with pytest.raises(DataError, match="no folder of features"):
        feature_folders(VQA, tmp_path / "missing")


def _command(**changes: object) -> str:
    return f"trarctl prepare {changes}"


def _named(**splits: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(ids, dtype=np.int64) for name, ids in splits.items()}


def test_rows_go_set_by_set_and_by_id() -> None:
    table = build_table(VQA, _named(train=[7, 3, 7], val=[5], test=[1], vg=[5, 3, 9]), {})
    assert [images.ids.tolist() for images in table.sets] == [[3, 7, 9], [5], [1]]
    assert {name: rows.tolist() for name, rows in table.rows.items()} == {
        "train": [1, 0, 1],
        "val": [3],
        "test": [4],
        "vg": [3, 0, 2],
    }


def test_the_same_number_is_another_image_in_another_clevr_split() -> None:
    table = build_table(CLEVR, _named(train=[0, 1], val=[0], test=[1]), {})
    assert {name: rows.tolist() for name, rows in table.rows.items()} == {"train": [0, 1], "val": [2], "test": [3]}


def test_an_image_that_lies_in_another_set_is_found(tmp_path: Path) -> None:
    for name, number in (("train2014", 3), ("val2014", 5)):
        _touch(tmp_path / name, f"COCO_{name}_{number:012d}.jpg.npy")
    folders = feature_folders(VQA, tmp_path)
    table = build_table(VQA, _named(train=[3], val=[3, 5], vg=[5]), folders)
    assert {name: rows.tolist() for name, rows in table.rows.items()} == {"train": [0], "val": [0, 1], "vg": [1]}
    refuse_missing(table, tmp_path, VQA, _command)


def test_who_asks_about_missing_images_is_counted(tmp_path: Path) -> None:
    for name, number in (("train2014", 3), ("val2014", 5)):
        _touch(tmp_path / name, f"COCO_{name}_{number:012d}.jpg.npy")
    folders = feature_folders(VQA, tmp_path)
    table = build_table(VQA, _named(train=[3], val=[5], vg=[5, 99, 98, 99]), folders)
    said = "3 of the 4 questions of vg are left out: no image set has their images 98, 99"
    assert refuse_missing(table, tmp_path, VQA, _command) == (said,)
    assert table.rows["vg"].tolist() == [1, -1, -1, -1]
    # An image of val without features is missing once, whoever asks about it.
    table = build_table(VQA, _named(train=[3], val=[5, 99], vg=[5, 99, 98, 99]), folders)
    with pytest.raises(DataError, match=r"for image 99 \(.*val2014\): 1 questions of val, 2 questions of vg$") as error:
        refuse_missing(table, tmp_path, VQA, _command)
    assert "left out" not in str(error.value.hint)
    table = build_table(VQA, _named(train=[3], val=[5], vg=[98, 99]), folders)
    with pytest.raises(DataError, match=r"no features for images 98 \(.*, 99 \(.*: 2 questions of vg$") as error:
        refuse_missing(table, tmp_path, VQA, _command)
    assert str(error.value.hint).endswith("; without VG_questions.json and VG_annotations.json, vg is left out")


def test_a_missing_folder(tmp_path: Path) -> None:
    _touch(tmp_path / "train2014", "COCO_train2014_000000000003.jpg.npy")
    table = build_table(VQA, _named(train=[3], val=[5]), feature_folders(VQA, tmp_path))
    with pytest.raises(DataError, match=r"no folder .*/val2014 with the features of 1 images"):
        refuse_missing(table, tmp_path, VQA, _command)


def test_a_missing_folder_that_training_does_not_need(tmp_path: Path) -> None:
    _touch(tmp_path / "train", "3.npz")
    _touch(tmp_path / "val", "5.npz")
    table = build_table(CLEVR, _named(train=[3], val=[5], test=[1]), feature_folders(CLEVR, tmp_path))
    assert refuse_missing(table, tmp_path, CLEVR, _command) == (f"no features of test: {tmp_path}/test is missing",)


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = _touch(tmp_path / "train", "3.npz", "4.npz", "5.npz")
    table = build_table(CLEVR, _named(train=[3, 4]), feature_folders(CLEVR, tmp_path))
    before = fingerprint(table.sets[0])
    os.utime(folder / "5.npz", (1, 1))
    assert fingerprint(table.sets[0]) == before
    os.utime(folder / "4.npz", (1, 1))
    assert fingerprint(table.sets[0]) != before


def test_ids_that_are_texts(tmp_path: Path) -> None:
    naming = FileNaming("", None, ".npy")
    files = ImageSetFiles("all", None, True, FileNaming("", None, ""), naming)
    spec = replace(CLEVR, image_sets=(files,), splits=(replace(CLEVR.splits[0], image_set="all"),))
    named = {"train": np.array(["dog.jpg", "a cat", "dog.jpg", "ü"])}
    _touch(tmp_path / "all", "dog.jpg.npy", "a cat.npy", "README")
    table = build_table(spec, named, {"all": scan_folder(tmp_path / "all", [naming])})
    assert (table.sets[0].ids.tolist(), table.rows["train"].tolist()) == (["a cat", "dog.jpg", "ü"], [1, 0, 1, 2])
    assert table.sets[0].file("a cat") == tmp_path / "all" / "a cat.npy"
    with pytest.raises(DataError, match=r"no features for image ü \(.*/all\)"):
        refuse_missing(table, tmp_path, CLEVR, _command)
    (tmp_path / "empty").mkdir()
    empty = build_table(spec, named, {"all": scan_folder(tmp_path / "empty", [naming])})
    with pytest.raises(DataError, match="no features for images a cat .*, dog.jpg .*, ü "):
        refuse_missing(empty, tmp_path, CLEVR, _command)


def test_names_within_folders(tmp_path: Path) -> None:
    root = tmp_path / "all"
    for name in ("a.jpg", "x/a.jpg", "x/y/b 1.png", ".hidden/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "x" / "again").symlink_to(root / "x")  # a circle
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jpg").write_bytes(b"")
    folder = scan_folder(root, [FileNaming("", None, "", is_nested=True)])
    assert folder is not None
    assert folder.ids.tolist() == [".hidden/c.jpg", "a.jpg", "linked/d.jpg", "x/a.jpg", "x/y/b 1.png"]
    assert folder.path / folder.naming.name("x/y/b 1.png") == root / "x/y/b 1.png"


def test_numbered_folders_with_a_file_each(tmp_path: Path) -> None:
    for name in ("lab0/source.jpg", "lab12/source.jpg", "lab12/mask.jpg", "lab03/source.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = scan_folder(tmp_path, [FileNaming("lab", 1, "/source.jpg", is_nested=True)])
    assert folder is not None
    assert (folder.ids.tolist(), folder.num_odd) == ([0, 12], 2)
