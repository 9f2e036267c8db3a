from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from trarctl import cli
from trarctl.data.prepared import open_prepared

GOLDEN = Path(__file__).parents[1] / "golden"
MINI = ["prepare", "vqa", "--raw", str(GOLDEN / "mini_vqa" / "raw"), "--vectors", "none", "--grid", "4"]


def test_prepares_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prepared"
    assert cli.run([*MINI, "--features", str(GOLDEN / "mini_vqa" / "feats"), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "v2_OpenEnded_mscoco_train2014_questions.json" in text
    assert re.search(rf"^vqa prepared in \d+ s: {re.escape(str(out))}$", text, re.MULTILINE)
    assert "  train: 140 questions about 14 images\n" in text
    assert "  word vectors: none; the word embedding starts from random numbers\n" in text
    assert "  features: 4 x 4 cells of 24 numbers, read where they are\n" in text
    assert text.endswith(f"next: trarctl train vqa --data {out}\n")
    assert len(open_prepared(out).split("train")) == 140


def test_a_second_time_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prepared"
    arguments = [*MINI, "--features", str(GOLDEN / "mini_vqa" / "feats"), "--out", str(out), "--pack", "float16"]
    assert cli.run(arguments) == 0
    assert "packed as float16\n" in capsys.readouterr().out
    assert cli.run(arguments) == 0
    assert f"vqa was up to date: {out}\n" in capsys.readouterr().out
    assert cli.run([*arguments, "--rebuild"]) == 0
    assert "vqa prepared in" in capsys.readouterr().out


def test_without_features_the_next_step_is_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*MINI, "--without-features", "--out", str(tmp_path / "prepared")]) == 0
    text = capsys.readouterr().out
    assert "  features: none yet; training needs them\n" in text
    raw = GOLDEN / "mini_vqa" / "raw"
    options = f"--raw {raw} --features DIR --grid 4 --vectors none --out {tmp_path / 'prepared'}"
    assert text.endswith(f"next: trarctl prepare vqa {options}\n")


def test_options_reach_the_data(tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    options = ["--max-words", "5", "--min-answer-count", "0", "--without-features"]
    assert cli.run([*MINI, *options, "--out", str(out)]) == 0
    prepared = open_prepared(out)
    assert prepared.manifest.text.max_words == 5
    assert prepared.split("train").question_tokens.shape == (140, 5)
    assert prepared.manifest.text.min_answer_count == 0


def test_oddities_are_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(GOLDEN / "mini_vqa" / "raw", raw)
    for file in raw.glob("VG_*"):
        file.unlink()
    arguments = ["prepare", "vqa", "--raw", str(raw), "--vectors", "none", "--without-features"]
    assert cli.run([*arguments, "--out", str(tmp_path / "prepared")]) == 0
    captured = capsys.readouterr()
    assert "VG_questions.json" in captured.out
    assert "not there, not needed" in captured.out


def test_half_a_feature_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = tmp_path / "feats"
    shutil.copytree(GOLDEN / "mini_vqa" / "feats", features)
    for file in sorted((features / "train2014").iterdir())[:3]:
        file.unlink()
    assert cli.run([*MINI, "--features", str(features), "--out", str(tmp_path / "prepared")]) == 4
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "\nhint:  " in captured.err
    assert "train2014" in captured.err


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run([*MINI, "--without-features", "--out", str(tmp_path / "file" / "prepared")]) == 4
    assert str(tmp_path / "file") in capsys.readouterr().err


# Checking without writing, and features from images


def test_check_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "mini_vqa"
    arguments = ["prepare", "vqa", "--raw", str(source / "raw"), "--features", str(source / "feats")]
    assert cli.run([*arguments, "--out", str(tmp_path / "out"), "--check"]) == 0
    out = capsys.readouterr().out
    assert "v2_mscoco_train2014_annotations.json" in out
    assert "nothing stops the preparation" in out
    assert not (tmp_path / "out").exists()


def test_check_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "mini_vqa" / "raw"
    raw = tmp_path / "raw"
    shutil.copytree(source, raw)
    (raw / "v2_mscoco_val2014_annotations.json").unlink()
    (raw / "v2_mscoco_train2014_annotations.json").write_text("{")
    assert cli.run(["prepare", "vqa", "--raw", str(raw), "--check"]) == 4
    captured = capsys.readouterr()
    assert "missing" in captured.out
    assert "damaged" in captured.out
    lines = captured.out.splitlines()
    for name, size in (("train2014", "13.5 GB"), ("val2014", "6.6 GB")):
        fetch = f"trarctl download vqa --raw {raw} --only {name}.zip ({size})"
        assert any(line.startswith(f"images of {name} ") and fetch in line for line in lines), name
    assert f"no file v2_mscoco_val2014_annotations.json in {raw}" in captured.err
    assert f"{raw}/v2_mscoco_train2014_annotations.json" in captured.err
    assert captured.err.endswith("error: 2 faults stop the preparation\nhint:  mend them in the order shown\n")
    assert max(map(len, lines)) < 300


def test_features_from_images_need_the_images_and_the_gpu_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = GOLDEN / "mini_vqa" / "raw"
    arguments = ["prepare", "vqa", "--raw", str(raw), "--out", str(tmp_path / "out"), "--images", str(tmp_path)]
    assert cli.run([*arguments, "--gpus", "99"]) == 6
    assert "--gpus 99" in capsys.readouterr().err
    assert cli.run(arguments) == 4
    captured = capsys.readouterr()
    assert captured.err.count("error:") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
