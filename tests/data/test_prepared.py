"""Opening prepared data: what it gives, and that damage is refused with the command that mends it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, edit_json, prepare_golden, write_clevr
from trarctl.data.loader import training_samples
from trarctl.data.manifest import MANIFEST
from trarctl.data.prepare import PrepareRequest, prepare
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
    del content["digest"]
    (folder / MANIFEST).write_text(json.dumps(content | {"version": 7}))
    with pytest.raises(DataError, match="was prepared in format 7, this program reads format 1"):
        open_prepared(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', '{"version": 1, "extra": 2}'])
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"cannot read|is damaged|in format None"):
        open_prepared(folder)


@pytest.mark.parametrize("names", ["answer_types", "question_types"])
def test_a_manifest_that_lost_the_names_of_types(folder: Path, names: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    content["text"]["splits"]["val"][names].pop()
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is damaged: manifest.json: types of val"):
        open_prepared(folder).split("val").truth()


@pytest.mark.parametrize("change", ["swapped", "twice", "lost"])
def test_a_manifest_whose_image_sets_were_changed(folder: Path, change: str) -> None:
    """Their order says which rows are whose: features of other images would be read."""
    content = json.loads((folder / MANIFEST).read_text())
    sets = content["images"]["image_sets"]
    sets[:] = {"swapped": sets[::-1], "twice": [sets[0], *sets], "lost": sets[1:]}[change]
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is damaged: it is not what was written"):
        open_prepared(folder)


@pytest.mark.parametrize("count", [1, 10**12, 2**63])
def test_a_manifest_that_counts_other_questions(folder: Path, count: int) -> None:
    """Nothing is made room for by what the manifest says alone."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    content["text"]["splits"]["val"]["questions"] = count
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is damaged: val/question_id\.npy"):
        len(open_prepared(folder).split("val"))


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", ""])
def test_a_manifest_cannot_lead_out_of_the_features_folder(folder: Path, name: str) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["digest"]
    content["images"]["image_sets"][0]["file"] = name
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is damaged: images.image_sets.0.file"):
        open_prepared(folder)


def test_missing_and_changed_files_are_all_named(folder: Path) -> None:
    (folder / "train/question_id.npy").unlink()
    os.truncate(folder / "val/image_id.npy", 50)
    with pytest.raises(DataError, match="missing or changed train/question_id.npy, val/image_id.npy") as error:
        open_prepared(folder)
    source = GOLDEN / "mini_vqa"
    expected = (
        f"trarctl prepare vqa --raw {source}/raw --features {source}/feats --grid 4 --vectors none --out {folder}"
    )
    assert error.value.hint == expected


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
    for rows in ([-2], [features.num_images]):
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


# What identifies the data


def test_the_digest_of_a_split_is_that_of_its_ids_texts_and_images(folder: Path) -> None:
    split = open_prepared(folder).split("val")
    texts = [split.question_text(row).encode() for row in range(len(split))]
    starts = np.cumsum([0, *map(len, texts)]).astype("<i8").tobytes()
    ids = [array.astype("<i8").tobytes() for array in (split.question_id, split.image_id)]
    content = b"".join(b"i" + len(one).to_bytes(8, "little") + one for one in ids) + starts + b"".join(texts)
    assert split.digest == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("change", ["order", "text", "image", "id"])
def test_another_question_image_or_order_is_another_digest(tmp_path: Path, change: str) -> None:
    raw = write_clevr(tmp_path)
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    prepare(request)
    before = {name: open_prepared(tmp_path / "out").split(name).digest for name in ("train", "val", "test")}
    assert len(set(before.values())) == 3

    def edit(content: Any) -> None:
        first = content["questions"][0]
        match change:
            case "order":
                content["questions"].reverse()
            case "text":
                first["question"] = "is train number 7?"
            case "image":
                first["image_index"] = 2
            case _:
                first["question_index"] = 77

    edit_json(raw / "questions/CLEVR_train_questions.json", edit)
    prepare(request)
    after = {name: open_prepared(tmp_path / "out").split(name).digest for name in before}
    assert [name for name in before if before[name] != after[name]] == ["train"]


def test_digests_of_words_answers_vectors_and_features(tmp_path: Path) -> None:
    def digests(name: str, **options: Any) -> dict[str, str]:
        prepare_golden("vqa", tmp_path / name, **options)
        return open_prepared(tmp_path / name).digests

    first, again = digests("a"), digests("b")
    assert sorted(first) == ["answers", "features", "vectors", "words"]
    assert again == first
    assert digests("c", pack="float32") == first
    assert digests("d", min_answer_count=0).keys() == first.keys()
    assert [name for name, one in digests("d", min_answer_count=0).items() if one != first[name]] == ["answers"]
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    for path in (tmp_path / "feats").rglob("*.npy"):
        np.save(path, np.load(path)[::-1])
    other = digests("e", features=tmp_path / "feats")
    assert [name for name, one in other.items() if one != first[name]] == ["features"]


def test_statistics_of_features_are_those_of_the_numbers(folder: Path) -> None:
    data = open_prepared(folder)
    statistics = data.feature_statistics()
    assert statistics is not None
    # All images are in the sample, as there are fewer than 64 of each set.
    cells = data.features.read(np.arange(data.features.num_images)).astype(np.float64)
    assert statistics["mean"] == pytest.approx(cells.mean(), rel=1e-5)
    assert statistics["deviation"] == pytest.approx(cells.std(), rel=1e-5)
    assert statistics["zero_cells"] == pytest.approx((cells == 0).all(axis=2).mean(), rel=1e-5)
    assert sum(map(len, statistics["images"].values())) == len(cells)
    first = statistics["images"][data.features.image_set(0)][str(data.features.image_id(0))]
    assert first[:2] == pytest.approx([cells[0].mean(), cells[0].std()], rel=1e-5)


def test_features_are_compared_within_the_rounding_of_float16(tmp_path: Path, folder: Path) -> None:
    data, statistics = open_prepared(folder), open_prepared(folder).feature_statistics()
    prepare_golden("vqa", tmp_path / "half", pack="float16")
    assert open_prepared(tmp_path / "half").feature_difference(statistics) is None
    assert data.feature_difference(None) is None
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    for path in (tmp_path / "feats").rglob("*.npy"):
        np.save(path, np.load(path) * np.float32(1.05))
    prepare_golden("vqa", tmp_path / "other", features=tmp_path / "feats")
    difference = open_prepared(tmp_path / "other").feature_difference(statistics)
    assert difference is not None
    assert "of 34 sampled images differ: image" in difference


def test_features_of_other_images_are_compared_by_scale(folder: Path) -> None:
    statistics = open_prepared(folder).feature_statistics()
    assert statistics is not None
    others = {f"other {name}": images for name, images in statistics["images"].items()}
    assert open_prepared(folder).feature_difference(statistics | {"images": others}) is None
    scaled = {"mean": statistics["mean"] * 2, "deviation": statistics["deviation"] * 2, "images": others}
    difference = open_prepared(folder).feature_difference(statistics | scaled)
    assert difference is not None
    assert f"expected mean {scaled['mean']:g}" in difference


@pytest.mark.parametrize("pack", [None, "float16"])
def test_features_that_changed_since_are_not_trained_on(tmp_path: Path, pack: Any) -> None:
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    prepare_golden("vqa", tmp_path / "out", features=tmp_path / "feats", pack=pack)
    training_samples(open_prepared(tmp_path / "out"), "train", "bce")
    changed = tmp_path / "out/features" if pack else tmp_path / "feats/val2014"
    for path in changed.glob("*.npy"):
        array = np.load(path)
        np.save(path, np.zeros_like(array) if pack else array + 1)
    with pytest.raises(DataError, match="changed since they were prepared: the features of .* sampled images differ"):
        training_samples(open_prepared(tmp_path / "out"), "train", "bce")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("train/question_tokens", lambda data: data.split("train").question_tokens),
        ("train/target_answer", lambda data: data.split("train").targets),
        ("train/training_order", lambda data: data.split("train").training_order),
        ("val/question_text", lambda data: data.split("val").digest),
        ("val/truth_codes", lambda data: data.split("val").truth()),
        ("images/val.rows", lambda data: data.split("val").image),
        ("images/train2014.ids", lambda data: data.features),
        ("vectors", lambda data: data.vectors),
    ],
)
def test_an_array_that_lost_its_content_is_refused_and_mended(tmp_path: Path, name: str, use: Any) -> None:
    (tmp_path / "glove.txt").write_text("is 0.1 0.2\nthe 0.3 0.4\nwhat 0.5 0.6\n")
    options = {"vectors": str(tmp_path / "glove.txt")}
    prepare_golden("vqa", tmp_path / "vqa", **options)
    path = tmp_path / "vqa" / f"{name}.npy"
    whole = path.read_bytes()
    use(open_prepared(tmp_path / "vqa"))
    path.write_bytes(whole[:128] + bytes(len(whole) - 128))
    with pytest.raises(DataError, match=f"is damaged: {name}.npy"):
        use(open_prepared(tmp_path / "vqa"))
    assert not prepare_golden("vqa", tmp_path / "vqa", **options).was_current
    assert path.read_bytes() == whole
    use(open_prepared(tmp_path / "vqa"))


def test_a_manifest_that_is_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(DataError, match="manifest.json: it is no file"):
        open_prepared(folder)
    (folder / MANIFEST).unlink()
    prepare_golden("vqa", folder)
    open_prepared(folder)


@pytest.mark.parametrize("place", range(6, 100, 9))
def test_any_flipped_bit_in_the_header_of_an_array_is_damage(folder: Path, place: int) -> None:
    path = folder / "val/image_id.npy"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["digest"]
    for checksums in (manifest["checksums"], {}):  # version 0.1 had none
        (folder / MANIFEST).write_text(json.dumps(manifest | {"checksums": checksums}))
        try:
            ids = open_prepared(folder).split("val").image_id
        except DataError as error:
            assert "val/image_id.npy" in error.what  # noqa: PT017 - a blank may be another one
        else:
            assert not checksums
            assert len(ids) == len(open_prepared(folder).split("val"))


@pytest.mark.parametrize("moments", [[], [1.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
def test_statistics_of_another_form_are_a_difference(folder: Path, moments: list[float]) -> None:
    golden_data = open_prepared(folder)
    statistics = golden_data.feature_statistics()
    assert statistics is not None
    name, images = next(iter(statistics["images"].items()))
    statistics["images"][name] = dict.fromkeys(images, moments)
    assert "sampled images differ" in (golden_data.feature_difference(statistics) or "")
    assert "cannot be read" in (golden_data.feature_difference({"mean": "x"}) or "")
