"""From raw files to prepared data: golden sets, current and interrupted preparations, and bad input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN, clevr_question, edit_json, prepare_golden, write_clevr, write_features
from trarctl.data import prepare as prepare_module
from trarctl.data.manifest import MANIFEST
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError

CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.json"))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both golden sets, prepared."""
    folder = tmp_path_factory.mktemp("golden")
    for dataset in ("vqa", "clevr"):
        prepare_golden(dataset, folder / dataset)
    return {dataset: folder / dataset for dataset in ("vqa", "clevr")}


@pytest.mark.parametrize("case", CASES)
def test_golden_words_and_answers(golden: dict[str, Path], case: str) -> None:
    expected = json.loads((GOLDEN / "cases" / f"{case}.json").read_text())
    arrays = np.load(GOLDEN / "cases" / f"{case}.npz")
    data = open_prepared(golden[expected["dataset"]])
    split = data.split(expected["split"])

    assert data.vocabulary.words == tuple(expected["token_to_ix"])
    assert list(data.answers) == expected["answers"]
    np.testing.assert_array_equal(split.question_id, arrays["question_id"])
    np.testing.assert_array_equal(split.question_tokens, arrays["question_tokens"])


@pytest.mark.parametrize("dataset", ["vqa", "clevr"])
def test_each_question_gets_the_features_of_its_image(golden: dict[str, Path], dataset: str) -> None:
    data = open_prepared(golden[dataset])
    grid = data.manifest.images.grid_size
    for name in data.split_names:
        split = data.split(name)
        for row in range(0, len(split), 7):
            image = int(split.image[row])
            number, folder = data.features.image_id(image), data.features.image_set(image)
            assert number == split.image_id[row]
            file = f"COCO_{folder}_{number:012d}.jpg.npy" if dataset == "vqa" else f"{number}.npz"
            loaded = np.load(GOLDEN / f"mini_{dataset}" / "feats" / folder / file)
            expected = np.zeros((grid * grid, data.features.width), dtype=np.float32)
            stored = (loaded if dataset == "vqa" else loaded["x"])[: grid * grid]
            expected[: len(stored)] = stored
            np.testing.assert_array_equal(data.features.read(np.array([image]))[0], expected)


def test_samples_follow_the_annotations(golden: dict[str, Path]) -> None:
    split = open_prepared(golden["vqa"]).split("train")
    annotations = json.loads((GOLDEN / "mini_vqa/raw/v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    questions = json.loads((GOLDEN / "mini_vqa/raw/v2_OpenEnded_mscoco_train2014_questions.json").read_text())

    assert split.question_id[split.training_order].tolist() == [entry["question_id"] for entry in annotations]
    assert split.question_id.tolist() == [entry["question_id"] for entry in questions["questions"]]
    assert split.question_text(3) == questions["questions"][3]["question"]
    truth = split.truth()
    row = int(split.training_order[5])
    assert [truth.strings[code] for code in truth.codes[row]] == [a["answer"] for a in annotations[5]["answers"]]
    assert truth.question_types[truth.question_type[row]] == annotations[5]["question_type"]


def test_targets_count_annotators(golden: dict[str, Path]) -> None:
    from trarctl.data.text import normalize_answer

    data = open_prepared(golden["vqa"])
    split = data.split("train")
    truth, (offsets, answer, count) = split.truth(), split.targets
    for row in range(len(split)):
        given = [normalize_answer(truth.strings[code]) for code in truth.codes[row]]
        expected = {text: given.count(text) for text in data.answers if text in given}
        span = slice(offsets[row], offsets[row + 1])
        assert {data.answers[a]: int(c) for a, c in zip(answer[span], count[span], strict=True)} == expected


def test_a_single_answer_counts_for_all(golden: dict[str, Path]) -> None:
    split = open_prepared(golden["clevr"]).split("val")
    offsets, _, count = split.targets
    assert (np.diff(offsets) == 1).all()
    assert set(count.tolist()) == {10}


def test_an_unchanged_folder_is_left_alone(tmp_path: Path) -> None:
    first = prepare_golden("vqa", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = prepare_golden("vqa", tmp_path)
    assert (first.was_current, second.was_current) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("options", [{"max_words": 3}, {"min_answer_count": 0}, {"grid": 2}, {"pack": "float32"}])
def test_a_changed_request_prepares_again(tmp_path: Path, options: dict[str, Any]) -> None:
    prepare_golden("vqa", tmp_path)
    report = prepare_golden("vqa", tmp_path, **options)
    assert not report.was_current
    fresh = prepare_golden("vqa", tmp_path / "fresh", **options).manifest
    assert report.manifest.text.splits == fresh.text.splits
    assert report.manifest.files == fresh.files


def test_a_changed_source_prepares_again(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    edit_json(raw / "questions/CLEVR_train_questions.json", lambda c: c["questions"][0].update(question="why so?"))
    report = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    assert not report.was_current
    assert open_prepared(tmp_path / "out").split("train").question_text(0) == "why so?"


def test_a_touched_source_does_not(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    prepare(request)
    os.utime(raw / "questions/CLEVR_train_questions.json", (1, 1))
    assert prepare(request).was_current


def test_a_failure_leaves_the_old_data_whole(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")
    prepare(request)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    (tmp_path / "feats/train/1.npz").write_bytes(b"")
    with pytest.raises(DataError, match="1.npz is empty"):
        prepare(request)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    assert len(open_prepared(tmp_path / "out").split("train")) == 6


def test_an_interrupted_preparation_goes_on_behind_the_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_clevr(tmp_path)
    request = PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "build_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(request)
    with pytest.raises(DataError, match="no prepared data"):
        open_prepared(tmp_path / "out")

    monkeypatch.setattr(prepare_module, "build_text", interrupt)
    assert not prepare(request).was_current
    assert len(open_prepared(tmp_path / "out").split("val")) == 6


def test_only_questions_without_features(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    shutil.rmtree(tmp_path / "feats")
    prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", vectors="none"))
    features = open_prepared(tmp_path / "out").features
    assert (features.num_images, features.width) == (9, 0)
    with pytest.raises(DataError, match="without features of train") as error:
        features.read(np.array([0]))
    assert error.value.hint is not None
    assert "trarctl prepare clevr --features DIR" in error.value.hint


def test_optional_splits_may_be_missing(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, train=1, val=1)
    report = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    assert any("without the questions of test the vocabulary lacks" in warning for warning in report.warnings)
    files = "questions/CLEVR_test_questions.json"
    assert [row.verdict for row in report.checks if row.file in (files, "images of test")] == [
        "not there, not needed",
        "not there, not needed",
    ]
    with pytest.raises(DataError, match="no split 'test'"):
        open_prepared(tmp_path / "out").split("test")


def test_needed_files_may_not(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    for split in ("train", "val"):
        (raw / f"questions/CLEVR_{split}_questions.json").unlink()
    with pytest.raises(DataError, match=r"no files .*CLEVR_train_questions.json, .*CLEVR_val_questions.json in"):
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", vectors="none"))


def test_a_missing_raw_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of raw files") as error:
        prepare(PrepareRequest("vqa", raw=tmp_path / "raw", out=tmp_path / "out"))
    assert error.value.hint is not None
    assert "--raw DIR" in error.value.hint


def test_every_missing_image_is_counted(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, num_images=20)
    for image in range(15):
        (tmp_path / f"feats/val/{image}.npz").unlink()
    with pytest.raises(DataError, match=r"no features for images 0 \(.*val\), 1 .*, 9 \(.*val\) and 5 more"):
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))


def test_visual_genome_finds_its_images_in_train_and_val(golden: dict[str, Path]) -> None:
    data = open_prepared(golden["vqa"])
    split = data.split("vg")
    sets = {data.features.image_set(int(row)) for row in split.image}
    assert sets == {"train2014", "val2014"}
    assert [data.features.image_id(int(row)) for row in split.image] == split.image_id.tolist()


def test_mixed_widths_name_the_odd_files(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    write_features(tmp_path / "feats/val/2.npz", np.ones((4, 7), dtype=np.float32))
    with pytest.raises(DataError, match=r"mixed widths: 8 files have 6, but .*val/2.npz has 7"):
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))


def test_a_grid_that_does_not_fit_the_files_warns(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, features=(25, 6))
    report = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))
    assert any("at least 25 rows, of which 4 are used; --grid 5" in warning for warning in report.warnings)
    report = prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=6, vectors="none"))
    assert any("feature files have 25 or fewer rows for the 36 cells" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_index": "07"}, 'record 2 has "07" as "question_index", expected an integer from 0'),
        ({"question_index": True}, 'record 2 has true as "question_index"'),
        ({"question_index": 2**70}, "record 2 has 1180591620717411303424 as .*, expected an integer from 0 to"),
        ({"question_index": 2**63}, "record 2 has 9223372036854775808 as"),
        ({"question_index": -1}, 'record 2 has -1 as "question_index"'),
        ({"question_index": 1}, "question_index 1 appears more than once"),
        ({"image_index": None}, 'record 2 has null as "image_index"'),
        ({"image_index": 77}, r"no features for image 77 \(.*train\)"),
        ({"question": ["a"]}, "expected a text"),
        ({"question": "a " * 600}, "the longest question has 600 words"),
        ({"answer": 3.5}, 'record 2 has 3.5 as "answer", expected a text that is not empty'),
        ({"answer": None}, 'record 2 has null as "answer", expected a text that is not empty'),
        ({"answer": " "}, 'record 2 has " " as "answer", expected a text that is not empty'),
        ({"program": []}, "record 2 has a program without a last function"),
        ({"program": [{"function": 4}]}, "record 2 has a program without a last function"),
    ],
)
def test_bad_records(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    raw = write_clevr(tmp_path)
    edit_json(raw / "questions/CLEVR_train_questions.json", lambda c: c["questions"][2].update(change))
    with pytest.raises(DataError, match=message):
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))


def test_every_bad_record_is_counted(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, num_images=20)
    path = raw / "questions/CLEVR_train_questions.json"
    path.write_text(json.dumps({"questions": [7] * 13 + [clevr_question(1, "train")]}))
    with pytest.raises(DataError, match="record 0 is not an object, .*record 9 is not an object and 3 more"):
        prepare(PrepareRequest("clevr", raw=raw, out=tmp_path / "out", grid=2, vectors="none"))


def _vqa(tmp_path: Path, file: str, change: Any) -> None:
    shutil.copytree(GOLDEN / "mini_vqa", tmp_path / "vqa")
    edit_json(tmp_path / "vqa/raw" / file, change)
    prepare_golden("vqa", tmp_path / "out", raw=tmp_path / "vqa/raw")


def test_vqa_annotations_of_unknown_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotates questions that .* does not hold: 12345"):
        _vqa(
            tmp_path,
            "v2_mscoco_train2014_annotations.json",
            lambda c: c["annotations"][0].update(question_id=12345),
        )


def test_vqa_val_questions_without_annotation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no annotations of the questions 34488000"):
        _vqa(tmp_path, "v2_mscoco_val2014_annotations.json", lambda c: _drop(c["annotations"], 34488000))


def _drop(annotations: list[dict[str, Any]], question: int) -> None:
    annotations[:] = [entry for entry in annotations if entry["question_id"] != question]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "record 4 has 0 answers"),
        ({"answers": [{"answer": "x"}] * 11}, "record 4 has 11 answers, expected 1 to 10"),
        ({"answers": [{"answer": 1.5}]}, 'record 4 has {"answer": 1.5} among its "answers", expected'),
        ({"answers": "yes"}, "expected a list"),
        ({"multiple_choice_answer": 4.5}, "expected a text"),
    ],
)
def test_vqa_bad_annotations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _vqa(tmp_path, "v2_mscoco_val2014_annotations.json", lambda c: c["annotations"][4].update(change))


def test_an_answer_limit_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answer occurs more than 5000 times") as error:
        prepare_golden("vqa", tmp_path, min_answer_count=5000)
    assert error.value.hint is not None
    assert "--min-answer-count 0" in error.value.hint


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("grid", 0, "--grid must be 1 to 256, got 0"),
        ("grid", 257, "--grid must be 1 to 256, got 257"),
        ("max_words", 0, "--max-words must be 1 to 10,000, got 0"),
        ("max_words", 99_999_999_999, "--max-words must be 1 to 10,000, got 99,999,999,999"),
        ("min_answer_count", -1, "--min-answer-count must be 0 or more, got -1"),
    ],
)
def test_limits_of_options(tmp_path: Path, option: str, value: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        prepare(PrepareRequest("vqa", raw=tmp_path, out=tmp_path / "out", **{option: value}))
