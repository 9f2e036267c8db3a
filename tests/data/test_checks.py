"""``--check`` finds what ``prepare`` refuses, all of it; and its table of files: found, expected, verdict, advice."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, edit_json, write_clevr, write_features
from tests.small_runs import make_raw
from trarctl import cli
from trarctl.data.prepare import PrepareRequest, check, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError, TrarError
from trarctl.registry import DATASETS


def test_every_file_of_a_golden_set() -> None:
    rows = check(PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw", vectors="none")).rows
    found = {Path(row.file).name: (row.found, row.expected, row.verdict) for row in rows}
    assert found["v2_mscoco_train2014_annotations.json"] == (140, 443_757, "other count")
    assert found["v2_OpenEnded_mscoco_test2015_questions.json"] == (100, 447_793, "other count")
    assert found["VG_questions.json"] == (20, None, "ok")
    assert found["train2014"] == (14, 82_783, "other count")
    assert found["test2015"] == (10, 81_434, "other count")


def test_nothing_is_written(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(PrepareRequest("clevr", raw=raw, out=tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, train=1, val=1)
    (raw / "questions/CLEVR_val_questions.json").unlink()
    edit_json(
        raw / "questions/CLEVR_train_questions.json", lambda content: content["questions"][1].__delitem__("question")
    )
    found = check(PrepareRequest("clevr", raw=raw, without_features=True))
    rows = {row.file: row for row in found.rows}
    train = rows["questions/CLEVR_train_questions.json"]
    assert train.verdict == "damaged"
    missing, damaged = found.faults
    assert "no file questions/CLEVR_val_questions.json in" in missing.what
    assert 'record 1 has no "question"' in damaged.what
    val = rows["questions/CLEVR_val_questions.json"]
    assert (val.verdict, val.expected) == ("missing", 149_991)
    assert val.advice.startswith("trarctl download clevr ")
    assert rows["questions/CLEVR_test_questions.json"].verdict == "not there, not needed"


def test_what_is_missing_has_its_size_and_the_command_for_it(tmp_path: Path) -> None:
    for name, expected in {
        "vqa": {
            "v2_mscoco_val2014_annotations.json": "trarctl download vqa {raw} (10.5 MB)",
            "v2_OpenEnded_mscoco_test2015_questions.json": "only for the split test, and for the vocabulary of"
            " published checkpoints: trarctl download vqa {raw} (its size is not published)",
            "images of val2014": "needed for training: trarctl download vqa {raw} --only val2014.zip (6.6 GB), or"
            " --features DIR",
            "images of test2015": "",
        },
        "aokvqa": {
            "images of val2017": "needed for training: trarctl download aokvqa {raw} --only train2014.zip --only"
            " val2014.zip (20.2 GB), or --features DIR",
        },
        "clevr": {
            "images of val": "needed for training: trarctl download clevr {raw} --images (19.0 GB), or --features DIR",
        },
        "vqa-cp": {
            "vqacp_v2_train_questions.json": DATASETS["vqa-cp"].download_hint,
            "vqacp_v2_test_annotations.json": "as above",
        },
    }.items():
        found = check(PrepareRequest(name, raw=tmp_path / "none", vectors="none"))
        advice = {row.file: row.advice for row in found.rows}
        for file, words in expected.items():
            assert advice[file] == words.replace("{raw}", f"--raw {tmp_path / 'none'}")
        assert [fault.what for fault in found.faults] == [f"no folder of raw files {tmp_path / 'none'}"]


def test_files_with_odd_names_are_mentioned(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    (tmp_path / "feats/val/notes.txt").write_text("")
    rows = {Path(row.file).name: row for row in check(PrepareRequest("clevr", raw=raw)).rows}
    assert rows["val"].advice == "are all images there?; 1 files with other names are left out"


# What one finds, the other refuses


def _drop_features(folder: Path) -> None:
    for number in (0, 2):
        (folder / f"feats/train/{number}.npz").unlink()


def _spoil_features(folder: Path) -> None:
    (folder / "feats/val/1.npz").write_bytes(b"x")


def _beyond_half(folder: Path) -> None:
    write_features(folder / "feats/val/1.npz", np.full((4, 6), 1e6, np.float32))


def _zeros(folder: Path) -> None:
    for path in (folder / "feats/test").iterdir():
        write_features(path, np.zeros((4, 6), np.float32))


def _foreign(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/vocabulary.json").write_text("[]")


def _file_as_folder(folder: Path) -> None:
    (folder / "out").write_text("")


def _long_question(folder: Path) -> None:
    path = folder / "raw/questions/CLEVR_train_questions.json"
    edit_json(path, lambda content: content["questions"][2].update(question="a " * 600))


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "two images missing": (_drop_features, {}, r"no features for images 0 \(.*train\), 2 "),
    "a damaged feature file": (_spoil_features, {}, "1 feature file is unusable: .*1.npz is truncated or damaged"),
    "beyond float16": (_beyond_half, {"pack": "float16"}, "beyond the range of float16"),
    "all zero": (_zeros, {}, "the features of all 3 images of test are zero"),
    "another width": (
        lambda folder: write_features(folder / "feats/val/1.npz", np.ones((4, 7), np.float32)),
        {},
        "mixed widths: 8 files have 6",
    ),
    "no folder of features": (lambda folder: shutil.rmtree(folder / "feats/val"), {}, "no folder .*feats/val with"),
    "empty folders of images": (
        lambda folder: [(folder / "images" / name).mkdir(parents=True) for name in ("train", "val", "test")],
        {"features": None, "images": "images", "extractor": "patches"},
        "no images for images 0 ",
    ),
    "no vectors": (lambda _: None, {"vectors": "/nowhere/glove.txt"}, "nowhere"),
    "a foreign folder": (_foreign, {}, "holds vocabulary.json, not written by this program"),
    "a file as folder": (_file_as_folder, {}, "cannot write to the folder"),
    "a long question": (_long_question, {}, "the longest question has 600 words"),
    "no questions": (
        lambda folder: (folder / "raw/questions/CLEVR_val_questions.json").unlink(),
        {},
        "no file questions/CLEVR_val_questions.json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_what_prepare_refuses(tmp_path: Path, fault: str) -> None:
    raw = write_clevr(tmp_path)
    damage, options, message = FAULTS[fault]
    damage(tmp_path)
    given = {"features": tmp_path / "feats", "vectors": "none", "grid": 2} | options
    if "images" in given:
        given["images"] = tmp_path / "images"
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", **given)
    before = sorted(tmp_path.rglob("*"))
    found = check(request)
    assert sorted(tmp_path.rglob("*")) == before
    assert [bool(re.search(message, one.what)) for one in found.faults] == [True], found.faults
    with pytest.raises(TrarError, match=message) as error:
        prepare(request)
    assert (error.value.what, error.value.hint) == (found.faults[0].what, found.faults[0].hint)


def test_no_answer_left() -> None:
    request = PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw", grid=4, vectors="none", min_answer_count=5000)
    assert ["no answer occurs more than 5000" in one.what for one in check(request).faults] == [True]


def test_faults_of_all_kinds_are_found_together(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    for damage in (_drop_features, _spoil_features, _foreign):
        damage(tmp_path)
    path = raw / "questions/CLEVR_test_questions.json"
    path.write_text("{")
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    parts = ("not written by this program", "CLEVR_test_questions.json", "no features for", "1.npz is truncated")
    assert [[part in one.what for part in parts].index(True) for one in check(request).faults] == [0, 1, 2, 3]


def test_a_check_that_finds_nothing_is_followed_by_a_preparation(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    found = check(request)
    assert not found.faults
    report = prepare(request)
    assert found.rows == report.checks
    assert set(found.warnings) <= set(report.warnings)


# Hints are commands that work


def _run(hint: str | None) -> None:
    """Do what a hint says, as it would be pasted."""
    assert hint is not None
    if hint.startswith("trarctl "):
        assert cli.run(shlex.split(hint)[1:]) == 0, hint
    else:
        subprocess.run(hint, shell=True, check=True)  # noqa: S602 - a hint of ours, on temporary files


def _deeper_features(folder: Path) -> None:
    (folder / "feats/train/train").mkdir()
    for path in (folder / "feats/train").glob("*.npz"):
        path.rename(folder / "feats/train/train" / path.name)


def _moved(source: str, target: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)

    return move


def _extra_level(folder: Path) -> None:
    (folder / "feats").rename(folder / "kept")
    (folder / "feats").mkdir()
    (folder / "kept").rename(folder / "feats/grid features")


HINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "one folder deeper": (_deeper_features, "; 3 such files lie in .*feats/train/train$"),
    "all sets deeper": (_extra_level, "no folder .*feats/train with .*, but .*feats/grid features/train$"),
    "questions deeper": (
        _moved("raw/questions/CLEVR_val_questions.json", "raw/CLEVR val/CLEVR_val_questions.json"),
        "; .*raw/CLEVR val/CLEVR_val_questions.json is there",
    ),
    "raw deeper": (_moved("raw/questions", "raw/CLEVR_v1.0/questions"), ", but in .*raw/CLEVR_v1.0"),
    "an image missing": (lambda folder: (folder / "feats/val/1.npz").unlink(), "no features for image 1"),
}


@pytest.mark.parametrize("case", HINTS)
def test_hints_of_prepare_work_when_they_are_pasted(tmp_path: Path, case: str) -> None:
    (tmp_path / "a set").mkdir()
    raw = write_clevr(tmp_path / "a set")
    change, message = HINTS[case]
    change(tmp_path / "a set")
    features = tmp_path / "a set/feats"
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "o u t", features=features, grid=2, vectors="none")
    with pytest.raises(DataError, match=message) as error:
        prepare(request)
    hint = error.value.hint or ""
    _run(hint.partition("leave features out: ")[2] or hint)
    if not hint.startswith("trarctl ") and "leave features out" not in hint:
        prepare(request)
    assert len(open_prepared(tmp_path / "o u t").split("val")) == 6


def test_files_of_other_names_are_named_with_the_name_that_is_wanted(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    for path in (tmp_path / "feats").rglob("*.npy"):
        path.rename(path.with_suffix(".pth"))
    request = PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw", features=tmp_path / "feats", out=tmp_path / "out")
    wanted = "14 files have other names than COCO_train2014_000000002053.jpg.npy, such as COCO_.*2053.jpg.pth"
    with pytest.raises(DataError, match=wanted):
        prepare(replace(request, grid=4, vectors="none"))


@pytest.mark.parametrize("is_same", [True, False])
def test_two_files_of_one_image_have_to_be_the_same(tmp_path: Path, is_same: bool) -> None:
    raw = write_clevr(tmp_path)
    for image in range(3):
        write_features(tmp_path / f"feats/val/{image}.npy", np.full((4, 6), image + (1 if is_same else 2), np.float16))
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    if is_same:
        prepare(request)
    else:
        with pytest.raises(DataError, match=r"val holds two files each for 3 images, and they differ: 0.np. and 0.np."):
            prepare(request)


def test_files_of_two_namings_are_counted(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    write_features(tmp_path / "feats/val/7.npy", np.ones((4, 6), np.float32))
    report = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    assert [one for one in report.warnings if "left out" in one] == [
        f"1 files in {tmp_path}/feats/val are left out, since they are named like 7.npy, and 3 like 0.npz"
    ]


def test_features_are_not_lost_by_a_command_that_forgets_them(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    (tmp_path / "feats").rename(tmp_path / "elsewhere")
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", features=tmp_path / "elsewhere", grid=2)
    prepare(replace(request, vectors="none", pack="float16"))
    with pytest.raises(DataError, match="has features, but no folder of features is given") as error:
        prepare(replace(request, vectors="none", features=None))
    _run(error.value.hint)
    assert open_prepared(tmp_path / "out").manifest.images.pack == "float16"
    without = prepare(replace(request, vectors="none", features=None, without_features=True))
    assert without.manifest.images.feature_width == 0


def test_the_hint_of_a_damaged_folder_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_clevr(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = {"raw": raw.relative_to(tmp_path), "features": Path("feats"), "out": Path("out")}
    prepare(PrepareRequest("clevr", **relative, grid=2, vectors="none", pack="float16", max_words=3))
    whole = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npy")}
    (tmp_path / "out/val/question_tokens.npy").write_bytes(b"")
    monkeypatch.chdir("/")
    with pytest.raises(DataError, match="missing or changed val/question_tokens.npy") as error:
        open_prepared(tmp_path / "out")
    _run(error.value.hint)
    open_prepared(tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.npy")} == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": Path("a"), "images": Path("b")}, "--features and --images exclude each other"),
        ({"features": Path("a"), "without_features": True}, "--features and --without-features exclude each other"),
        ({"weights": Path("a")}, "--weights without --images would have no effect"),
        ({"extractor": "patches"}, "--extractor without --images would have no effect"),
    ],
)
def test_options_that_would_be_dropped_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check(PrepareRequest("clevr", raw=write_clevr(tmp_path), **options))


def test_archives_beside_the_raw_folder(tmp_path: Path) -> None:
    raw = Path(shutil.copytree(GOLDEN / "mini_vqa/raw", tmp_path / "my raw"))
    names = ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"]
    for name, archive in zip(names, ("v2_Questions_Val_mscoco.zip", "v2_Annotations_Val_mscoco.zip"), strict=True):
        with zipfile.ZipFile(tmp_path / archive, "w") as packed:
            packed.write(raw / name, name)
        (raw / name).unlink()
    request = PrepareRequest("vqa", raw=raw, out=tmp_path / "out", vectors="none", without_features=True)
    (fault,) = check(request).faults
    assert re.search(
        r"no files .* but packed in .*_Annotations_Val_mscoco.zip, .*_Questions_Val_mscoco.zip$", fault.what
    )
    subprocess.run(fault.hint or "false", shell=True, check=True)  # noqa: S602
    assert check(request).faults == ()


def test_features_of_all_sets_in_one_folder(tmp_path: Path) -> None:
    feats = tmp_path / "feats"
    shutil.copytree(GOLDEN / "mini_vqa/feats", feats)
    (feats / "all").mkdir()
    for name in ("train2014", "val2014", "test2015"):
        for path in (feats / name).iterdir():
            path.rename(feats / "all" / path.name)
        (feats / name).rmdir()
    request = PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw", features=feats, grid=4, vectors="none", out=tmp_path)
    for name, number in (("train2014", 14), ("val2014", 10)):
        (fault,) = check(request).faults if name == "val2014" else check(request).faults[:1]
        assert f"no folder {feats / name} with the features of {number} images, but {number} such" in fault.what
        subprocess.run(fault.hint or "false", shell=True, check=True)  # noqa: S602
        assert len(list((feats / name).iterdir())) == number
    assert check(request).faults == ()


def test_a_folder_that_is_a_broken_link(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    shutil.move(tmp_path / "feats/val", tmp_path / "val")
    (tmp_path / "feats/val").symlink_to(tmp_path / "gone")
    (fault,) = check(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")).faults
    assert fault.what.endswith(f": it is a link to {tmp_path}/gone, which is not there")


def test_another_data_set_is_not_replaced(tmp_path: Path) -> None:
    report = prepare(PrepareRequest("clevr", raw=write_clevr(tmp_path), out=tmp_path / "out", grid=2, vectors="none"))
    before = {path: path.read_bytes() for path in report.out.rglob("*") if path.is_file()}
    request = PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw", out=report.out, vectors="none", without_features=True)
    with pytest.raises(DataError, match="out holds prepared clevr data, which vqa would replace"):
        prepare(request)
    (fault,) = check(request).faults
    assert fault.what == f"{report.out} holds prepared clevr data, which vqa would replace"
    assert {path: path.read_bytes() for path in report.out.rglob("*") if path.is_file()} == before


def test_answers_that_differ_in_capitals_alone_are_said(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    edit_json(raw / "questions/CLEVR_val_questions.json", lambda content: content["questions"][1].update(answer=" Yes"))
    request = PrepareRequest("clevr", raw=raw, vectors="none", without_features=True)
    (said,) = [one for one in check(request).warnings if "capitals" in one]
    assert said.endswith(": 'yes', ' Yes'")


def test_sets_by_two_extractors_are_said_before(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "mini_vqa/feats", tmp_path / "feats")
    for path in (tmp_path / "feats/val2014").iterdir():
        np.save(path, 3 * np.load(path).astype(np.float32))
    request = PrepareRequest(
        "vqa", raw=GOLDEN / "mini_vqa/raw", features=tmp_path / "feats", grid=4, vectors="none", out=tmp_path / "out"
    )
    found = check(request).warnings
    assert sum("differ as if two extractors had made them" in one for one in found) == 2
    assert found == prepare(request).warnings


def test_the_file_of_another_split_is_no_cure(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", num_train=4, num_test=2)
    (tmp_path / "raw/train/questions.json").unlink()
    with pytest.raises(DataError, match=r"no file train/questions.json in .*raw; .*train holds images") as raised:
        prepare(PrepareRequest("easy-vqa", raw=tmp_path / "raw", out=tmp_path / "out", vectors="none"))
    assert "mv" not in (raised.value.hint or "")
