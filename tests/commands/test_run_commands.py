"""train, resume, eval and submit as a user types them, on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import GOLDEN

Run = Callable[..., tuple[int, str, str]]
TINY = {
    "num_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "feed_forward_size": 32,
    "word_embedding_size": 8,
    "flat_mlp_size": 16,
    "flat_out_size": 24,
    "spans": "0,1",
}
SETS = [argument for key, value in TINY.items() for argument in ("--set", f"model.{key}={value}")]


@pytest.fixture(scope="module")
def home(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data where users expect it, and one run of two epochs."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        from trarctl import cli

        arguments = ["train", "vqa", "--data", golden_data["vqa"], "--epochs", 2, "--batch-size", 20, "--name", "first"]
        assert cli.run([str(argument) for argument in [*arguments, "--gpus", "cpu", *SETS]]) == 0
    return folder


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


# What a run leaves behind


def test_a_run_leaves_settings_log_metrics_and_checkpoints(home: Path) -> None:
    run = home / "runs" / "first"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch-001.safetensors",
        "epoch-002.safetensors",
    ]
    settings = json.loads((run / "settings.json").read_text())
    assert settings["model"]["hidden_size"] == 16
    assert settings["model"]["grid_size"] == 4
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["epoch"]) for entry in entries if entry["event"] != "step"] == [
        ("epoch", 1),
        ("validation", 1),
        ("epoch", 2),
        ("validation", 2),
    ]
    log = (run / "log.txt").read_text()
    assert "epoch 2: loss " in log
    assert "epoch 2: val " in log


def test_eval_without_arguments_takes_the_best_epoch_of_the_latest_run(there: Path, trarctl: Run) -> None:
    code, out, err = trarctl("eval", "--json", "-", "--gpus", "cpu")
    assert code == 0
    document = json.loads(out)
    assert "the latest run, its best epoch" in err
    assert "no split given: using val" in err
    assert document["split"] == "val"
    logged = [json.loads(line) for line in (there / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert document["overall"] == max(entry["overall"] for entry in logged if entry["event"] == "validation")


def test_eval_of_an_epoch_and_of_a_file_agree(there: Path, trarctl: Run) -> None:
    by_name = trarctl("eval", "--ckpt", "first@1", "--json", "-", "--save-scores", "name.npz")
    by_file = trarctl("eval", "--ckpt", "runs/first/checkpoints/epoch-001.safetensors", "--save-scores", "file.npz")
    assert by_name[0] == by_file[0] == 0
    with np.load("name.npz") as name, np.load("file.npz") as file:
        assert np.array_equal(name["scores"], file["scores"])
        assert name["scores"].dtype == np.float32


def test_submit_averages_checkpoints_and_saved_scores(there: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("submit", "--ckpt", "first@1", "--save-scores", "one.npz", "--out", "one.json")
    assert code == 0
    assert "100 answers to vqa test" in out
    code, _, err = trarctl("submit", "--ckpt", "first@2", "--ckpt", "one.npz", "--out", "both.json")
    assert code == 0, err
    rows = json.loads(Path("both.json").read_text())
    assert len({row["question_id"] for row in rows}) == 100
    assert all(row["answer"].strip() for row in rows)


def test_submit_checks_a_file_from_elsewhere(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    trarctl("submit", "--ckpt", "first", "--out", "whole.json")
    data = golden_data["vqa"]
    assert trarctl("submit", "--validate", "whole.json", "--data", data)[0] == 0
    rows = json.loads(Path("whole.json").read_text())
    Path("short.json").write_text(json.dumps(rows[1:]))
    code, _, err = trarctl("submit", "--validate", "short.json", "--data", data)
    assert code == 4
    assert "short.json would be rejected" in err


def test_eval_scores_a_file_from_elsewhere(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    case = json.loads((GOLDEN / "cases" / "vqa_soft_avg.json").read_text())
    numbers = np.load(GOLDEN / "cases" / "vqa_soft_avg.npz")["question_id"]
    rows = [
        {"question_id": int(number), "answer": answer}
        for number, answer in zip(numbers, case["expected"]["answers"], strict=True)
    ]
    (there / "result.json").write_text(json.dumps(rows))
    code, out, _ = trarctl("eval", "--answers", "result.json", "--data", golden_data["vqa"], "--json", "-")
    assert code == 0
    assert json.loads(out)["overall"] == case["expected"]["accuracy"]["official"]["overall"]


def test_dry_run_shows_each_setting_and_its_origin(there: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("train", "vqa", "--batch-size", 32, "--dry-run")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert any("batch_size" in line[0] and "32" in line and line[-1] == "--batch-size" for line in lines if line)
    assert "recipe vqa" in out
    assert not (there / "runs" / "vqa").exists()


def test_resume_after_the_end_says_how_to_train_on(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl("resume", "first")
    assert code == 3
    assert "run first has finished its 2 epochs" in err
    assert "trarctl resume first --epochs 3" in err


def test_a_run_is_not_overwritten(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    code, _, err = trarctl("train", "--data", golden_data["vqa"], "--name", "first", "--batch-size", 20, *SETS)
    assert code == 3
    assert "run first exists" in err
    assert "trarctl resume first" in err


def test_start_weights_from_the_original(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    file = GOLDEN / "cases" / "vqa_soft_avg"
    arguments = ["train", "--data", golden_data["vqa"], "--config", f"{file}.yml", "--init", f"{file}.pkl"]
    code, _, err = trarctl(*arguments, "--epochs", 1, "--batch-size", 20, "--name", "tuned")
    assert code == 0, err
    assert trarctl("eval", "--ckpt", "tuned", "--json", "-")[0] == 0
    shutil.rmtree(there / "runs" / "tuned")


def test_checkpoints_side_by_side(there: Path, trarctl: Run) -> None:
    single = json.loads(trarctl("eval", "--ckpt", "first@1", "--evaluator", "upstream", "--json", "-")[1])
    code, out, err = trarctl("eval", "--compare", "first@1", "first@2", "--evaluator", "upstream", "--json", "c.json")
    assert code == 0, err
    assert "first@1" in out
    assert "against published" not in out
    assert "first@1: published results are of 214,354 questions, not of these 100" in err
    rows = json.loads(Path("c.json").read_text())["checkpoints"]
    assert [row["checkpoint"] for row in rows] == ["first@1", "first@2"]
    assert rows[0]["overall"] == single["overall"]
    assert "difference" not in rows[0]
    code, _, err = trarctl("eval", "first@1")
    assert code == 3
    assert "trarctl eval --ckpt first@1" in err


# What goes wrong


def test_no_data(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl("train", "clevr")
    assert code == 4
    assert "error: no prepared data in data/clevr/prepared" in err
    assert "hint:  trarctl prepare clevr" in err


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trarctl: Run) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = trarctl("eval")
    assert code == 5
    assert "error: no runs in runs" in err
    assert "hint:  start one: trarctl train" in err


def test_no_such_epoch(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl("eval", "--ckpt", "first@9")
    assert code == 5
    assert "run first has no checkpoint of epoch 9" in err
    assert "there are: 1, 2" in err


def test_a_checkpoint_of_another_vocabulary(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    code, _, err = trarctl("eval", "--ckpt", "first", "--data", golden_data["clevr"])
    assert code == 5
    assert "was trained with another vocabulary than" in err
    assert "--data DIR" in err


def test_an_upstream_checkpoint_of_another_vocabulary(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    file = GOLDEN / "cases" / "vqa_soft_avg"
    code, _, err = trarctl("eval", "--ckpt", f"{file}.pkl", "--config", f"{file}.yml", "--data", golden_data["clevr"])
    assert code in (3, 5)
    assert err.count("error:") == 1
    assert "Traceback" not in err


def test_a_truncated_checkpoint(there: Path, trarctl: Run) -> None:
    whole = Path("runs/first/checkpoints/epoch-002.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = trarctl("eval", "--ckpt", "cut.safetensors")
    assert code == 5
    assert "the checkpoint cut.safetensors is damaged" in err
    pickled = (GOLDEN / "cases" / "vqa_soft_avg.pkl").read_bytes()
    Path("cut.pkl").write_bytes(pickled[: len(pickled) // 2])
    code, _, err = trarctl("eval", "--ckpt", "cut.pkl", "--data", "data", "--config", GOLDEN / "cases/vqa_soft_avg.yml")
    assert code in (4, 5)
    assert "Traceback" not in err


def test_spans_that_do_not_fit_a_checkpoint(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    file = GOLDEN / "cases" / "vqa_soft_avg.pkl"
    code, _, err = trarctl("eval", "--ckpt", file, "--data", golden_data["vqa"])
    assert code == 5
    assert "has 3 spans, the settings name 4: [0, 1, 2, 3]" in err
    assert "--config FILE" in err


def test_settings_of_another_grid(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    file = GOLDEN / "cases" / "vqa_soft_avg"
    Path("wide.yml").write_text(file.with_suffix(".yml").read_text().replace("IMG_SCALE: 4", "IMG_SCALE: 8"))
    arguments = ["eval", "--ckpt", file.with_suffix(".pkl"), "--config", "wide.yml", "--data", golden_data["vqa"]]
    code, _, err = trarctl(*arguments)
    assert code == 5
    assert "has grid_size 4, the settings say 8" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "model.hiden_size=3"], 3, "unknown setting model.hiden_size"),
        (["--batch-size", "0"], 3, "--batch-size 0"),
        (["--batch-size", "64", "--accu", "3"], 3, "nearest that do: 2 and 4"),
        (["--batch-size", "4096"], 3, "batch size 4096 is larger than the 140"),
        (["--gpus", "7"], 6, "--gpus 7"),
        (["--gpus", "x"], 6, "--gpus x"),
        (["--set", "model.grid_size=8"], 3, "model.grid_size = 8"),
        (["--set", "model.num_heads=5"], 3, "num_heads"),
        (["--split", "test"], 3, "test"),
        (["--loss", "ce"], 2, "--loss"),
        (["--set", "run.folder=/proc/none", "--batch-size", "20"], 4, "cannot write the run folder /proc/none"),
    ],
)
def test_bad_arguments(
    there: Path, golden_data: dict[str, Path], trarctl: Run, arguments: list[str], code: int, message: str
) -> None:
    ended, _, err = trarctl("train", "--data", golden_data["vqa"], *SETS, "--name", "bad", *arguments)
    assert (ended, message in err) == (code, True), err
    assert "Traceback" not in err
    assert not (there / "runs" / "bad").exists()


def test_scores_that_cannot_be_written(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl("eval", "--ckpt", "first", "--save-scores", "nowhere/scores.npz")
    assert code == 4
    assert "cannot write nowhere/scores.npz: No such file or directory" in err


# Situations of users' bug reports


@pytest.mark.parametrize("epoch", ["²", "-1", "best", "1.0", "٢"])
def test_an_epoch_that_is_no_number(there: Path, trarctl: Run, epoch: str) -> None:
    code, _, err = trarctl("eval", "--ckpt", f"first@{epoch}")
    assert code == 5
    assert f"error: run first has no checkpoint of epoch {epoch}\n" in err


def test_commands_name_a_run_outside_the_default_folder_by_its_path(there: Path, tmp_path: Path, trarctl: Run) -> None:
    shutil.copytree("runs", tmp_path / "elsewhere")
    code, _, err = trarctl("resume", "first", "--set", f"run.folder={tmp_path}/elsewhere")
    assert code == 3
    command = err.partition("hint:  trarctl ")[2].partition(" trains on")[0]
    assert command == f"resume {tmp_path}/elsewhere/first --epochs 3"
    code, _, err = trarctl(*command.split())
    assert code == 0, err
    following = err.partition("next: trarctl ")[2].split() or ["eval", "--ckpt", f"{tmp_path}/elsewhere/first"]
    assert following[-1] == f"{tmp_path}/elsewhere/first"
    assert trarctl(*following)[0] == 0


def test_scores_are_known_by_their_content(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    assert trarctl("submit", "--ckpt", "first@1", "--save-scores", "one.npz", "--out", "one.json")[0] == 0
    Path("one.npz").rename("one.scores")
    answers = ["--data", golden_data["vqa"], "--out", "two.json"]
    code, _, err = trarctl("submit", "--ckpt", "one.scores", *answers, "--gpus", "cpu", "--set", "run.num_threads=1")
    assert code == 0, err
    assert "note:  submit of saved scores makes no use of --set, --gpus" in err
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()
    code, _, err = trarctl("eval", "--ckpt", "one.scores")
    assert code == 5
    assert "one.scores holds saved scores, no checkpoint\nhint:  trarctl submit --ckpt one.scores --data DIR\n" in err


@pytest.mark.parametrize(
    "target", ["prepared/manifest.json", "prepared/answers.json", "runs/first/settings.json", "runs/first/log.txt"]
)
def test_no_result_replaces_a_file_of_data_or_of_a_run(
    there: Path, golden_data: dict[str, Path], tmp_path: Path, trarctl: Run, target: str
) -> None:
    shutil.copytree(golden_data["vqa"], tmp_path / "prepared")
    shutil.copytree("runs", tmp_path / "runs")
    file = tmp_path / target
    before = file.read_bytes()
    for command, flag in (("submit", "--out"), ("eval", "--json"), ("submit", "--save-scores")):
        code, _, err = trarctl(command, "--ckpt", "first@1", flag, file)
        assert code == 4
        assert f"error: {file} belongs to a run or to prepared data, and would be overwritten" in err
        assert file.read_bytes() == before
    assert trarctl("eval", "--ckpt", "first@1", "--json", file.with_name("mine.json"))[0] == 0


@pytest.mark.parametrize(
    ("setting", "difference"),
    [("model.num_heads=4", "model.num_heads = 4 (was 2)"), ("model.spans=0,2", "model.spans = [0, 2] (was [0, 1])")],
)
def test_scoring_another_model_than_was_trained_is_said(
    there: Path, trarctl: Run, setting: str, difference: str
) -> None:
    code, _, err = trarctl("eval", "--ckpt", "first@1", "--set", setting)
    assert code == 0
    assert f"what is scored is not the model that was trained: {difference}" in err
    assert "not the model that was trained" not in trarctl("eval", "--ckpt", "first@1", "--set", "model.dropout=0")[2]


def test_a_checkpoint_under_the_name_of_another_epoch(there: Path, tmp_path: Path, trarctl: Run) -> None:
    shutil.copytree("runs", tmp_path / "runs")
    checkpoints = tmp_path / "runs" / "first" / "checkpoints"
    shutil.copy(checkpoints / "epoch-001.safetensors", checkpoints / "epoch-009.safetensors")
    code, _, err = trarctl("eval", "--ckpt", f"{tmp_path}/runs/first@9")
    assert code == 0
    assert "epoch-009.safetensors was saved after 1 epochs and 0 steps, not when its name says" in err


def test_data_that_was_moved(there: Path, golden_data: dict[str, Path], tmp_path: Path, trarctl: Run) -> None:
    shutil.copytree(golden_data["vqa"], tmp_path / "then")
    run = ["--set", f"run.folder={tmp_path}/runs"]
    start = ["train", "vqa", "--data", tmp_path / "then", "--epochs", 1, "--batch-size", 20, "--name", "moved"]
    assert trarctl(*start, "--gpus", "cpu", *SETS, *run)[0] == 0
    (tmp_path / "then").rename(tmp_path / "now")
    for command in (["resume", "moved", "--epochs", 2], ["eval", "--ckpt", "moved"]):
        code, _, err = trarctl(*command, *run)
        assert code == 4
        assert (
            f"error: no prepared data in {tmp_path}/then\nhint:  --data DIR names the folder that it is in now" in err
        )
    assert trarctl("resume", "moved", "--epochs", 2, *run, "--data", tmp_path / "now")[0] == 0
    # The checkpoint of epoch 1 names the old place, its run the new one.
    code, _, err = trarctl("eval", "--ckpt", "moved@1", *run)
    assert code == 0, err


def test_a_model_that_no_memory_holds(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    wide = ["--set", "model.hidden_size=20000000", "--set", "model.num_heads=2"]
    code, _, err = trarctl("train", "vqa", "--data", golden_data["vqa"], "--name", "wide", "--gpus", "cpu", *wide)
    assert code == 6
    assert "error: the computer has too little memory: " in err
    assert "hint:  take a smaller model: --set model.hidden_size=N" in err
    assert not (there / "runs" / "wide").exists()


def test_a_folder_where_the_log_should_be(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    (there / "runs" / "odd" / "log.txt").mkdir(parents=True)
    start = ["train", "vqa", "--data", golden_data["vqa"], "--epochs", 1, "--batch-size", 20, "--name", "odd"]
    code, _, err = trarctl(*start, "--gpus", "cpu", *SETS)
    assert code == 4
    assert "odd/log.txt: Is a directory\nhint:  move it away; choose another with --name NAME\n" in err
    (there / "runs" / "odd" / "log.txt").rmdir()
    assert trarctl(*start, "--gpus", "cpu", *SETS)[0] == 0
    shutil.rmtree(there / "runs" / "odd")
