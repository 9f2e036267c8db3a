"""Kept evaluations: what comes back, and when they hold no longer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.running import tiny_settings, train
from trarctl.data.metrics import measure
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import evaluations
from trarctl.engine.evaluations import Answered, find, keep, kept_in, load
from trarctl.engine.run import RunFolder


@pytest.fixture(scope="module")
def trained(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("kept"), train__epochs=2))


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def answer(data: PreparedData) -> Answered:
    part = data.split("val")
    words = [data.answers[index % len(data.answers)] for index in range(len(part))]
    return Answered(measure(words, data, part, "official"), words)


def test_what_is_kept_comes_back_whole(run: RunFolder, golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["vqa"])
    part, checkpoint, given = data.split("val"), run.epoch_checkpoint(2), answer(data)
    assert find(checkpoint, data, part, "official") is None
    keep(checkpoint, given, data, part)
    found = find(checkpoint, data, part, "official")
    assert found is not None
    assert list(found.answers) == list(given.answers)
    for name, value in vars(given.accuracy).items():
        np.testing.assert_array_equal(getattr(found.accuracy, name), value)
    assert find(checkpoint, data, part, "upstream") is None
    assert find(run.epoch_checkpoint(1), data, part, "official") is None
    other_figures(run)  # written in another way
    (one,), num_damaged = kept_in(run)
    assert num_damaged == 0
    assert (one.epoch, one.split, one.evaluator, one.overall) == (2, "val", "official", given.accuracy.overall)
    again = load(run, one)
    assert again is not None
    assert again.accuracy.overall == given.accuracy.overall
    assert sum(path.stat().st_size for path in (run.path / "evaluations").iterdir()) < 20_000


def replace_checkpoint(run: RunFolder) -> None:
    shutil.copyfile(run.epoch_checkpoint(1), run.epoch_checkpoint(2))


def other_figures(run: RunFolder, *, is_sealed: bool = True, **changes: object) -> None:
    """Change figures; sealed: and their digest, which is of the document with sorted keys, as short as can be."""
    path = next((run.path / "evaluations").glob("*.json"))
    document = json.loads(path.read_text()) | changes
    digest = document.pop("digest")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest() if is_sealed else digest
    path.write_text(json.dumps({"digest": digest, **document}, indent=1))


def other_data(run: RunFolder) -> None:
    other_figures(run, data_digest="0" * 64)


def older_version(run: RunFolder) -> None:
    other_figures(run, trarctl="0.0.1")


def change_figures(run: RunFolder) -> None:
    other_figures(run, is_sealed=False, overall=99.9)


def no_digest(run: RunFolder) -> None:
    path = next((run.path / "evaluations").glob("*.json"))
    document = json.loads(path.read_text())
    del document["digest"]
    path.write_text(json.dumps(document))


def cut_questions(run: RunFolder) -> None:
    path = next((run.path / "evaluations").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:-1])


def cut_json(run: RunFolder) -> None:
    path = next((run.path / "evaluations").glob("*.json"))
    path.write_bytes(path.read_bytes()[:40])


DAMAGED_FIGURES = (change_figures, no_digest, cut_json)


@pytest.mark.parametrize("damage", [replace_checkpoint, other_data, older_version, cut_questions, *DAMAGED_FIGURES])
def test_what_belongs_to_something_else_or_is_damaged_is_passed_over(
    damage: Callable[[RunFolder], None], run: RunFolder, golden_data: dict[str, Path]
) -> None:
    data = open_prepared(golden_data["vqa"])
    part = data.split("val")
    keep(run.epoch_checkpoint(2), answer(data), data, part)
    damage(run)
    assert find(run.epoch_checkpoint(2), data, part, "official") is None
    found, num_damaged = kept_in(run)
    assert num_damaged == (damage in DAMAGED_FIGURES)
    assert bool(found) == (damage not in (replace_checkpoint, *DAMAGED_FIGURES))
    keep(run.epoch_checkpoint(2), answer(data), data, part)
    assert find(run.epoch_checkpoint(2), data, part, "official") is not None


def test_killed_between_the_two_files_nothing_wrong_is_believed(
    run: RunFolder, golden_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_prepared(golden_data["vqa"])
    part, checkpoint = data.split("val"), run.epoch_checkpoint(2)
    words = [data.answers[0]] * len(part)
    keep(checkpoint, Answered(measure(words, data, part, "official"), words), data, part)
    before = {path.name: path.read_bytes() for path in (run.path / "evaluations").iterdir()}
    killed = type("Killed", (BaseException,), {})

    def die(*_: object) -> None:
        raise killed

    monkeypatch.setattr(evaluations, "write_json", die)
    with pytest.raises(killed):
        keep(checkpoint, answer(data), data, part)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in (run.path / "evaluations").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["epoch-002-val-official.npz"]
    assert find(checkpoint, data, part, "official") is None
    (one,), num_damaged = kept_in(run)
    assert (load(run, one), num_damaged) == (None, 0)
    keep(checkpoint, answer(data), data, part)
    found = find(checkpoint, data, part, "official")
    assert found is not None
    assert list(found.answers) == list(answer(data).answers)


def test_a_folder_that_cannot_be_written_is_a_note(run: RunFolder, golden_data: dict[str, Path]) -> None:
    data = open_prepared(golden_data["vqa"])
    (run.path / "evaluations").write_text("in the way")
    text = keep(run.epoch_checkpoint(2), answer(data), data, data.split("val"))
    assert text == f"the evaluation is not kept: cannot write {run.path / 'evaluations'}: File exists"
    assert keep(run.path / "elsewhere.safetensors", answer(data), data, data.split("val")) is None
