"""Opening prepared data: what it gives, and that damage is refused with the command that mends it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.preparing import prepare_golden
from trarctl.data.manifest import MANIFEST
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared golden set."""
    prepare_golden("vqa", tmp_path / "vqa")
    return tmp_path / "vqa"


def test_no_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared data in") as error:
        open_prepared(tmp_path / "vqa" / "prepared")
    assert error.value.hint == f"trarctl prepare vqa --out {tmp_path}/vqa/prepared"


def test_raw_files_are_no_prepared_data(tmp_path: Path) -> None:
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text("{}")
    with pytest.raises(DataError, match="no prepared data in"):
        open_prepared(tmp_path)


def test_another_version(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"version": 7}))
    with pytest.raises(DataError, match="was prepared in format 7, this program reads format 1"):
        open_prepared(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', '{"version": 1, "extra": 2}'])
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"cannot read|is damaged|in format None"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", ""])
def test_a_manifest_cannot_lead_out_of_the_features_folder(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["images"]["image_sets"][0]["file"] = name
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is damaged: images.image_sets.0.file"):
        open_prepared(folder)


def test_missing_and_changed_files_are_all_named(folder: Path) -> None:
    (folder / "train/question_id.npy").unlink()
    os.truncate(folder / "val/image_id.npy", 50)
    with pytest.raises(DataError, match="missing or changed train/question_id.npy, val/image_id.npy") as error:
        open_prepared(folder)
    assert error.value.hint == f"trarctl prepare vqa --out {folder}"


def test_words_and_answers_are_checked_against_the_manifest(folder: Path) -> None:
    for name in ("vocabulary.json", "answers.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("yes", "yas").replace("dog", "dig"))
    data = open_prepared(folder)
    with pytest.raises(DataError, match="damaged: vocabulary.json"):
        _ = data.vocabulary
    with pytest.raises(DataError, match="damaged: answers.json"):
        _ = data.answers


def test_an_array_with_a_damaged_header(folder: Path) -> None:
    path = folder / "val/question_id.npy"
    content = bytearray(path.read_bytes())
    content[:4] = b"\x80\x04\x95."
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged: val/question_id.npy"):
        _ = open_prepared(folder).split("val").question_id


def test_a_copy_for_another_process_opens_the_folder_again(folder: Path) -> None:
    data = open_prepared(folder)
    _ = data.features, data.split("train").question_tokens
    content = pickle.dumps(data)
    assert len(content) < 500
    assert pickle.loads(content).vocabulary.words == data.vocabulary.words  # noqa: S301 - made two lines above


def test_splits_without_answers(folder: Path) -> None:
    split = open_prepared(folder).split("test")
    assert not split.is_annotated
    for ask in (split.truth, lambda: split.targets, lambda: split.training_order):
        with pytest.raises(DataError, match="the split 'test' has no answers"):
            ask()


def test_rows_that_do_not_exist(folder: Path) -> None:
    features = open_prepared(folder).features
    for rows in ([-1], [features.num_images]):
        with pytest.raises(DataError, match="no image in row"):
            features.read(np.array(rows))


def test_features_that_moved_away(tmp_path: Path, folder: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / "deeper" / "vqa")
    with pytest.raises(DataError, match="jpg.npy changed since they were prepared: the file is missing"):
        open_prepared(tmp_path / "deeper" / "vqa").features.read(np.array([0]))


def test_questions_as_they_were_asked(folder: Path) -> None:
    split = open_prepared(folder).split("val")
    assert split.question_text(3) == "  Right  wearing wearing frisbee?"
