"""easy-VQA: the package's questions and images, prepared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trarctl.data.datasets import easy_vqa
from trarctl.data.datasets.easy_vqa import package_data, question_type
from trarctl.data.features.origin import extractor_of
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError


def _write(folder: Path, num_images: int = 5) -> Path:
    """Write a small set in the package's layout, its pictures random."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True)
        questions = [["what color is it?", "red", 0], ["is it a circle?", "no", 1], ["what shape is it?", "circle", 2]]
        ending = "" if split == "train" else "?"
        questions = [[f"{text}{ending}", answer, image] for text, answer, image in questions]
        (folder / split / "questions.json").write_text(json.dumps(questions * 2))
        for number in range(num_images):
            picture = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / split / "images" / f"{number}.png")
    return folder


def test_a_small_set(tmp_path: Path) -> None:
    report = prepare(PrepareRequest("easy-vqa", raw=_write(tmp_path / "raw"), out=tmp_path / "out", vectors="none"))
    data = open_prepared(tmp_path / "out")
    val = data.split("test")
    truth = val.truth()

    assert val.name == "val"
    assert data.answers == ("red", "no", "circle")
    assert [truth.question_types[code] for code in truth.question_type] == ["color", "yes/no", "shape"] * 2
    assert val.question_id.tolist() == list(range(6))
    assert (data.features.num_images, data.features.num_cells, data.features.width) == (6, 16, 56)
    train = data.features.read(np.arange(3)).reshape(-1, 56)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-4)
    assert report.manifest.images.backbone == "patches"


def test_the_stored_backbone_gives_the_stored_features(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))
    data = open_prepared(tmp_path / "out")
    with Image.open(raw / "test/images/1.png") as picture:
        described = extractor_of(data.card)[0].extract([picture])
    np.testing.assert_array_equal(described, data.features.read(data.split("val").image[1:2]))


def test_bad_images_are_all_named(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    (raw / "train/images/0.png").write_bytes(b"")
    (raw / "train/images/2.png").write_bytes((raw / "train/images/2.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"2 image files are unusable: .*0.png is empty.*2.png is truncated"):
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))


def test_a_missing_image(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw", num_images=2)
    with pytest.raises(DataError, match=r"no images for images 2 \(.*train/images\), 2 \(.*test/images\)"):
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))


def test_bad_rows(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    (raw / "train/questions.json").write_text('[["a?", "yes", 0], ["b?", "no"], ["c?", "no", "x"], 4]')
    with pytest.raises(
        DataError, match=r'record 1 is not an object, record 2 has "x" as .*, record 3 is not an object'
    ):
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))


def test_options_that_do_not_apply(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    with pytest.raises(SettingsError, match="easy-vqa packs what it makes of its images anyway"):
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", pack="float32"))


def test_another_grid_and_other_features(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "fine", grid=8, vectors="none"))
    made = open_prepared(tmp_path / "fine")
    assert (made.features.num_cells, made.manifest.images.backbone) == (64, "patches")
    own, chance = tmp_path / "own", np.random.default_rng(0)
    for name in ("train", "val"):
        (own / name).mkdir(parents=True)
        for picture in easy_vqa.image_folder(raw, name).iterdir():
            np.save(own / name / f"{picture.stem}.npy", chance.standard_normal((4, 3), dtype=np.float32))
    out = tmp_path / "given"
    prepare(PrepareRequest("easy-vqa", raw=raw, features=own, out=out, grid=2, pack="float32", vectors="none"))
    given = open_prepared(out)
    assert (given.features.num_cells, given.features.width, given.manifest.images.backbone) == (4, 3, None)
    assert np.array_equal(given.features.read(given.split("train").image[:1])[0], np.load(own / "train" / "0.npy"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easy_vqa.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="the package easy-vqa is not installed") as error:
        package_data()
    assert error.value.hint == 'pip install "trarctl[demo]"'


def test_the_real_answers_have_types() -> None:
    answers = (package_data() / "answers.txt").read_text().split()
    assert len(answers) == 13
    assert {question_type(answer) for answer in answers} == {"yes/no", "color", "shape"}


@pytest.mark.parametrize(("source", "copy"), [("train", "test"), ("test", "train")])
def test_a_copy_of_the_other_split(tmp_path: Path, source: str, copy: str) -> None:
    raw = _write(tmp_path / "raw")
    shutil.copy(raw / source / "questions.json", raw / copy / "questions.json")
    with pytest.raises(DataError, match="train/questions.json and .*test/questions.json are the same file"):
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))


def test_a_missing_file_of_one_s_own_set(tmp_path: Path) -> None:
    raw = _write(tmp_path / "raw")
    for split in ("train", "test"):
        (raw / split / "questions.json").unlink()
    with pytest.raises(DataError, match="no files train/questions.json, test/questions.json in") as error:
        prepare(PrepareRequest("easy-vqa", raw=raw, out=tmp_path / "out", vectors="none"))
    assert str(error.value.hint).endswith("brings the whole set, for which --raw is left out")
