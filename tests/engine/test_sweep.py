"""Sweeps: which runs a command means, what they are called, and what is refused before any is planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trarctl.config.settings import Settings
from trarctl.engine.sweep import (
    Member,
    Sweep,
    combinations,
    find_checkpoint_names,
    find_runs,
    find_sweep,
    names_of,
    read_axes,
    read_sweep,
    refuse_taken,
)
from trarctl.errors import CheckpointError, SettingsError


def make_sweep(folder: Path, *rates: float, name: str = "rates") -> Sweep:
    chosen = combinations({"train.learning_rate": list(rates)})
    members = []
    for values, run_name in zip(chosen, names_of(name, chosen), strict=True):
        tables = Settings().model_dump(mode="json")
        tables["train"]["learning_rate"] = values["train.learning_rate"]
        tables["run"] |= {"name": run_name, "folder": str(folder)}
        members.append(Member(Settings.model_validate(tables), values))
    return Sweep(name, folder, folder / "data", None, tuple(members))


def make_run(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "settings.json").write_text("{}")


def test_the_product_of_all_values_the_last_one_fastest() -> None:
    axes = read_axes("1,2", ["train.learning_rate=1e-4, 3e-4", "model.spans=[0,1],[0]"])
    chosen = combinations(axes)
    assert len(chosen) == 8
    assert chosen[1] == {"train.learning_rate": 1e-4, "model.spans": [0, 1], "train.seed": 2}
    names = names_of("s", chosen)
    assert names[0] == "s-learning_rate-0.0001-spans-0_1-seed-1"
    assert names[-1] == "s-learning_rate-0.0003-spans-0-seed-2"


def test_names_of_settings_of_two_tables_are_told_apart() -> None:
    assert names_of("s", [{"data.cache": "ram", "run.precision": "bf16"}]) == ["s-cache-ram-precision-bf16"]
    assert names_of("s", [{"model.seed": 1, "train.seed": None}]) == ["s-model.seed-1-train.seed-none"]
    with pytest.raises(SettingsError, match="two runs would have the same name: s-x-a_b"):
        names_of("s", [{"m.x": "a:b"}, {"m.x": "a,b"}])


@pytest.mark.parametrize(
    ("seeds", "grids", "message"),
    [
        ("1,1", [], "--seeds 1,1: 1 is listed twice"),
        ("1,,2", [], "--seeds 1,,2: there is no value between two commas"),
        (None, ["train.learning_rate=1e-4,0.0001"], "0.0001 is listed twice"),
        (None, ["train.learning_rate=1,1.0"], "1.0 is listed twice"),
        (None, ["train.learning_rate"], "must be KEY=VALUE,VALUE"),
        (None, ["train.learning_rate="], "must be KEY=VALUE,VALUE"),
        (None, ["train.lerning_rate=1"], "unknown setting train.lerning_rate"),
        (None, ["run.name=a,b"], "run.name is the same for all runs of a sweep"),
        (None, ["data.path=a,b"], "data.path is the same for all runs of a sweep"),
        (None, ["train.epochs=1", "train.epochs=2"], "--grid train.epochs is given twice"),
        ("1", ["train.seed=2"], "--seeds and --grid train.seed are the same setting"),
        (None, ["model.spans=0,1"], "model.spans is a list, so each value needs brackets"),
        (",".join(map(str, range(1001))), [], "1,001 runs are more than a sweep may have, 1,000"),
    ],
)
def test_what_no_sweep_can_mean_is_refused(seeds: str | None, grids: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_axes(seeds, grids)
    assert message in caught.value.what
    assert caught.value.hint


def test_a_description_is_read_as_it_was_written_also_elsewhere(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs", 1e-4, 3e-4)
    sweep.write()
    there = read_sweep(sweep.file)
    assert [one.run.path for one in there.members] == [one.run.path for one in sweep.members]
    assert [one.settings.train for one in there.members] == [one.settings.train for one in sweep.members]
    assert there.data == sweep.data.absolute()
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = find_sweep("rates", tmp_path / "moved")
    assert moved is not None
    assert moved.members[0].run.path == tmp_path / "moved" / "rates-learning_rate-0.0001"
    sweep = make_sweep(tmp_path / "moved", 5e-4)
    before = sweep.file.read_bytes()
    sweep.write()
    assert sweep.file.read_bytes() == before


def test_another_sweep_or_run_of_the_name_is_not_replaced(tmp_path: Path) -> None:
    make_sweep(tmp_path, 1e-4).write()
    refuse_taken(make_sweep(tmp_path, 1e-4))
    with pytest.raises(
        SettingsError, match="sweep rates exists in .* and is another: its runs are rates-learning"
    ) as one:
        refuse_taken(make_sweep(tmp_path, 2e-4))
    assert "goes on with it; --name gives a new one another name" in str(one.value.hint)
    changed = json.loads((tmp_path / "rates.sweep.json").read_text())
    changed["runs"][0]["settings"]["train"]["epochs"] = 99
    (tmp_path / "rates.sweep.json").write_text(json.dumps(changed))
    with pytest.raises(SettingsError, match="is another: train.epochs is 99, not 13"):
        refuse_taken(make_sweep(tmp_path, 1e-4))
    make_run(tmp_path, "other-learning_rate-0.0001")
    with pytest.raises(SettingsError, match="there is already a run other-learning_rate-0.0001"):
        refuse_taken(make_sweep(tmp_path, 1e-4, name="other"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"runs": [{}]}',
        '{"data": "x", "init": null, "runs": [{"name": "a", "settings": []}]}',
        '{"data": 1, "init": null, "runs": [{"name": 1}]}',
    ],
)
def test_a_damaged_description_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "rates.sweep.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match="cannot read the sweep .*it is cut off or changed"):
        find_sweep("rates", tmp_path)


@pytest.mark.parametrize("runs", ["none", "one twice", "elsewhere", "of another name"])
def test_a_description_of_runs_that_no_sweep_has(runs: str, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, 1e-4, 3e-4)
    sweep.write()
    document = json.loads(sweep.file.read_text())
    if runs == "none":
        document["runs"].clear()
    elif runs == "one twice":
        document["runs"].append(document["runs"][0])
    else:
        document["runs"][0]["name"] = "../rates" if runs == "elsewhere" else "tiny"
    if runs == "elsewhere":
        document["runs"][0]["settings"]["run"]["name"] = "../rates"
    sweep.file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"cannot read the sweep .*it is cut off or changed"):
        find_sweep("rates", tmp_path)


def test_patterns_and_sweeps_mean_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    for name in ("a-2", "a-10", "b", "rates-learning_rate-0.0003"):
        make_run(folder, name)
    make_sweep(folder, 1e-4, 3e-4).write()
    assert [run.name for run in find_runs(["a-*"], folder)] == ["a-2", "a-10"]
    assert [run.name for run in find_runs(["b", "*"], folder)] == ["b", "a-2", "a-10", "rates-learning_rate-0.0003"]
    assert [run.name for run in find_runs(["rates"], folder)] == ["rates-learning_rate-0.0003"]
    assert [run.name for run in find_runs(["runs/a-*"], Path("elsewhere"))] == ["a-2", "a-10"]
    assert [run.name for run in find_runs([str(tmp_path / "runs" / "a-[0-9]")], folder)] == ["a-2"]
    assert find_checkpoint_names(["b@3", "a-*@2", "x.pkl"], folder) == ["b@3", "a-2@2", "a-10@2", "x.pkl"]
    assert find_checkpoint_names(["runs/b*"], Path("elsewhere")) == ["runs/b"]
    for nothing in ("c-*", "**c", "["):
        with pytest.raises(CheckpointError, match="in runs"):
            find_runs([nothing], folder)
