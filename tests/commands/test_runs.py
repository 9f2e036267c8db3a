from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.small_runs import SmallRun, make_run
from trarctl import cli
from trarctl.files import claimed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("runs"))


def rows(out: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}


def aged(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def test_a_finished_run_in_a_table_and_as_json(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["runs", str(run.runs)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["run", "data", "model", "epochs", "best,", "%", "size", "state"]
    (row,) = rows(out).values()
    assert row[:7] == ["easy-vqa", "soft,", "avg,", "spans", "0", "1", "2"]
    assert row[7] == "2/2"
    assert row[-1] == "finished"
    assert cli.run(["runs", str(run.runs), "--json", "-"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert entry["state"] == "finished"
    assert entry["num_bytes"] == sum(path.stat().st_size for path in run.runs.rglob("*") if path.is_file())
    assert f"{entry['best']:.2f}" == row[8]


def test_runs_that_are_going_on_stopped_or_damaged(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = (run.runs / run.name / "metrics.jsonl").read_text().splitlines()
    first_epoch = [line for line in metrics if json.loads(line)["epoch"] == 1]
    for name, lines in {"new": first_epoch, "old": metrics[:2], "later": [*first_epoch, metrics[-3]]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_bytes((run.runs / run.name / "settings.json").read_bytes())
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"cut": ')
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "settings.json").write_text("{")
    aged(tmp_path / "old", 4000)
    aged(tmp_path / "later", 4000)
    with claimed(tmp_path / "new", "run new"):
        assert cli.run(["runs", str(tmp_path), "--json", "-"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["runs"]}
    assert entries["new"]["state_text"].startswith("running after epoch 1, wrote ")
    assert entries["old"]["state_text"] == "stopped in epoch 1"
    assert entries["old"]["best"] is None
    assert entries["later"]["state_text"] == "stopped in epoch 2"
    assert entries["bad"]["state_text"] == "settings.json cannot be read"
    assert cli.run(["runs", str(tmp_path), "--json", "-"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["runs"]}
    assert entries["new"]["state_text"] == "stopped after epoch 1"  # its writer has let go of it, a moment ago
    assert cli.run(["runs", str(tmp_path)]) == 0
    assert list(rows(capsys.readouterr().out))[-2:] == ["new", "bad"]
    assert cli.run(["runs", str(tmp_path / "old")]) == 0
    assert list(rows(capsys.readouterr().out)) == ["old"]
    assert cli.run(["runs", str(tmp_path / "bad" / "settings.json")]) == 5
    assert (
        "settings.json is not a folder\nhint:  name the folder of the runs: trarctl runs DIR" in capsys.readouterr().err
    )


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["runs", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"note:  no runs in {tmp_path / 'none'}; start one: trarctl train\n"


def test_a_narrow_terminal_leaves_the_model_out(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.run(["runs", str(run.runs)]) == 0
    out = capsys.readouterr().out
    assert "soft" not in out
    assert len(rows(out)) == 1
    assert max(map(len, out.splitlines())) <= 60


def test_the_list_does_not_replace_a_file_of_a_run(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run.runs / run.name / "settings.json"
    before = settings.read_bytes()
    assert cli.run(["runs", str(run.runs), "--json", str(settings)]) == 4
    assert f"error: {settings} belongs to a run or to prepared data" in capsys.readouterr().err
    assert settings.read_bytes() == before
