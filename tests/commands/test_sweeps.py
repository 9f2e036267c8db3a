"""Several runs by one command: trained, stopped and gone on with, compared by ``runs`` and ``eval --compare``."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from tests.small_runs import TINY, make_raw
from trarctl.commands import sweeps
from trarctl.engine import evaluator, trainer
from trarctl.engine.run import RunFolder
from trarctl.engine.sweep import find_sweep
from trarctl.engine.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]
GRID = ["--grid", "train.learning_rate=1e-4,3e-2", "--seeds", "1,2"]
NAMES = [f"rates-learning_rate-{rate}-seed-{seed}" for rate in ("0.0001", "0.03") for seed in (1, 2)]
SETS = [part for text in TINY for part in ("--set", text)]
TRAIN = ["train", "easy-vqa", "--gpus", "cpu", "--epochs", "2", "-q", *SETS]


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved for it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data and a finished sweep of two rates and two seeds; what it said is in ``out.txt``."""
    from trarctl import cli

    folder = tmp_path_factory.mktemp("sweep")
    make_raw(folder / "raw")
    prepared = folder / "data" / "easy-vqa" / "prepared"
    assert cli.run(["prepare", "easy-vqa", "--raw", str(folder / "raw"), "--out", str(prepared)]) == 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli.run([*TRAIN, *GRID, "--name", "rates"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def there(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the finished sweep."""
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same data and no run."""
    (tmp_path / "data").symlink_to(home / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tensors(run: RunFolder) -> dict[str, list[float]]:
    with safe_open(run.epoch_checkpoint(2), "pt") as file:
        return {name: file.get_tensor(name).flatten().tolist() for name in file.keys()}  # noqa: SIM118


def columns(out: str, start: str) -> list[list[str]]:
    """The rows of a table that begin with ``start``."""
    return [line.split() for line in out.splitlines() if line.startswith(start)]


def test_a_sweep_is_runs_like_any_other(there: Path, elsewhere: Path, home: Path, trarctl: Run) -> None:
    alone = [*TRAIN, "--seed", "1", "--set", "train.learning_rate=0.03", "--name", NAMES[2]]
    code, _, err = trarctl(*alone)
    assert code == 0, err
    assert tensors(RunFolder(Path("runs") / NAMES[2])) == tensors(RunFolder(home / "runs" / NAMES[2]))


def test_the_table_says_which_rate_and_whether_it_is_real(there: Path, trarctl: Run) -> None:
    code, out, err = trarctl("runs", "rates")
    assert code == 0, err
    header = out.splitlines()[0].split()
    assert header[:3] == ["run", "learning_rate", "seed"]
    assert [row[:3] for row in columns(out, "rates-")] == [
        [name, rate, seed] for name, rate, seed in zip(NAMES, ["0.0001", "0.0001", "0.03", "0.03"], "1212", strict=True)
    ]
    document = json.loads(trarctl("runs", "rates", "--json", "-")[1])
    first, second = document["groups"]
    assert (first["settings"], second["settings"]) == (
        {"train.learning_rate": "0.0001"},
        {"train.learning_rate": "0.03"},
    )
    assert first["runs"] == NAMES[:2]
    best = {run["name"]: run["best"] for run in document["runs"]}
    assert first["mean"] == pytest.approx((best[NAMES[0]] + best[NAMES[1]]) / 2)
    assert first["standard_deviation"] == pytest.approx(abs(best[NAMES[0]] - best[NAMES[1]]) / 2**0.5)
    assert document["bootstrap"] == {"resamples": 10_000, "seed": 0, "level": 0.95, "questions": 48}
    lower = min(document["groups"], key=lambda group: group["mean"])
    difference = lower["difference"]
    # Accuracies are printed with two decimals; the difference is of what they are rounded from.
    assert difference["mean"] == pytest.approx(lower["mean"] - max(first["mean"], second["mean"]), abs=0.011)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert " is best, " in out
    assert "10,000 bootstrap resamples (seed 0) of the 48 questions; a question's accuracy is first averaged" in err


def test_runs_shows_what_was_evaluated(there: Path, trarctl: Run) -> None:
    runs = json.loads(trarctl("runs", "--json", "-")[1])["runs"]
    kept = {run["name"]: run["evaluations"] for run in runs}
    assert sorted(kept) == NAMES
    assert all([one["split"] for one in evaluations] == ["val"] for evaluations in kept.values())
    assert "evaluated, %" in trarctl("runs")[1]


def test_the_same_command_again_trains_nothing(there: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    monkeypatch.setattr(evaluator, "score_chosen", lambda *_: pytest.fail("scored again"))
    code, out, err = trarctl(*TRAIN, *GRID, "--name", "rates")
    assert code == 0, err
    assert "run 4 of 4, rates-learning_rate-0.03-seed-2: finished" in err
    assert out.startswith("\nrun ")
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    again = trarctl("resume", "rates", "-q")
    assert again[:2] == (0, out)


def test_killed_in_the_third_run_and_resumed_it_is_the_same(
    elsewhere: Path, home: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunFolder.record

    def killing(run: RunFolder, entry: dict[str, Any]) -> None:
        if run.name == NAMES[2] and entry["epoch"] == 2:
            raise Killed
        record(run, entry)

    monkeypatch.setattr(RunFolder, "record", killing)
    with pytest.raises(Killed):
        trarctl(*TRAIN, *GRID, "--name", "rates")
    monkeypatch.setattr(RunFolder, "record", record)
    assert [Path("runs", name).exists() for name in NAMES] == [True, True, True, False]
    assert RunFolder(Path("runs") / NAMES[2]).saved_epochs() == [1]
    code, out, err = trarctl("resume", "rates", "-q")
    assert code == 0, err
    assert "run 2 of 4, rates-learning_rate-0.0001-seed-2: finished" in err
    for name in NAMES:
        assert tensors(RunFolder(Path("runs") / name)) == tensors(RunFolder(home / "runs" / name))
    table = trarctl("runs", "rates")[1]
    assert table in out
    monkeypatch.chdir(home)
    # Sizes may differ by the length of a time.
    sizes = re.compile(r"[0-9.]+ (kB|MB)")
    assert sizes.sub("", table) == sizes.sub("", trarctl("runs", "rates")[1])


def test_a_second_process_is_told_who_trains_the_sweep(elsewhere: Path, trarctl: Run) -> None:
    first = RunFolder(Path("runs") / "both-seed-1")
    command = [*TRAIN, "--epochs", "1", "--seeds", "1,2", "--name", "both"]
    with first.claimed():
        code, out, err = trarctl(*command)
        assert (code, out) == (5, "")
        assert f"error: another process writes run both-seed-1: process {os.getpid()} on " in err
        assert "hint:  wait until it has finished, or stop that process" in err
        assert not Path("runs", "both-seed-2").exists()
    sweep = find_sweep("both", Path("runs"))
    assert sweep is not None
    with sweep.claimed():  # between two runs nobody writes one
        code, out, err = trarctl(*command)
    assert (code, out) == (5, "")
    assert f"error: another process writes sweep both: process {os.getpid()} on " in err
    assert not first.path.exists()
    assert trarctl(*command)[0] == 0
    assert not list(Path("runs").glob(".*"))
    assert [RunFolder(Path("runs") / f"both-seed-{seed}").saved_epochs() for seed in (1, 2)] == [[1], [1]]


def test_a_signal_stops_the_whole_sweep_after_saving(elsewhere: Path, trarctl: Run) -> None:
    second = RunFolder(Path("runs") / "stop-epochs-60")
    is_over = threading.Event()

    def stop() -> None:
        while not second.metrics_file.exists() and not is_over.is_set():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    sets = ["--set", "train.decay_epochs=[]"]
    code, out, err = trarctl(*[one for one in TRAIN if one not in ("--epochs", "2")], *sets, "--grid",
                             "train.epochs=1,60,2", "--name", "stop")  # fmt: skip
    is_over.set()
    thread.join()
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert "stopped: sweep stop, run 2 of 3, stop-epochs-60: " in err
    assert "hint:  trarctl resume stop goes on with the sweep" in err
    assert second.saved()
    assert not Path("runs", "stop-epochs-2").exists()


def test_the_time_is_that_of_all_runs_together(
    elsewhere: Path, home: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, step = [0.0], Trainer.train_step

    def tick() -> float:
        now[0] += 1
        return now[0]

    def timed(*arguments: Any, **options: Any) -> Any:
        tick()
        return step(*arguments, **options)

    # Each of the 12 steps of a run takes a second, and so does what comes before a run.
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sweeps, "time", SimpleNamespace(monotonic=tick))
    monkeypatch.setattr(Trainer, "train_step", timed)
    code, out, err = trarctl(*TRAIN, *GRID, "--name", "rates", "--max-time", "17s")
    assert (code, out) == (142, "")
    assert (
        f"stopped: sweep rates, run 2 of 4, {NAMES[1]}: run {NAMES[1]} stopped by run.max_time = 17s after step 3;"
        in err
    )
    code, _, err = trarctl("resume", "rates", "-q", "--max-time", "24s")
    assert code == 142
    assert f"stopped: sweep rates stopped by run.max_time = 24s before run 4 of 4, {NAMES[3]}\n" in err
    assert "hint:  trarctl resume rates goes on with the sweep\n" in err
    assert trarctl("resume", "rates", "-q")[0] == 0  # for 17 s again
    for name in NAMES:
        assert tensors(RunFolder(Path("runs") / name)) == tensors(RunFolder(home / "runs" / name))


# What is refused before the first run begins


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds 1,2 --seed 3", "--seed and --seeds both say what train.seed is"),
        ("--seeds 1,2 --set train.seed=3", "--set and --seeds both say what train.seed is"),
        ("--grid train.batch_size=16,8 --batch-size 16", "--batch-size and --grid train.batch_size both say"),
        ("--grid train.batch_size=16,x", "--grid train.batch_size x: train.batch_size must be a whole number"),
        ("--grid train.batch_size=16,1000", "batch size 1000 is larger than the 96 samples of train"),
        ("--grid model.hidden_size=16,17", "hidden_size 17 must be a multiple of num_heads 2"),
        ("--seeds 1,-2", "--seeds -2: train.seed must be 0 or more"),
        ("--seeds 1 --name a/b", "may hold up to 200 letters"),
        (f"--seeds 1 --name {'n' * 199}", "may hold up to 200 letters"),
        ("--grid model.routing=soft,harsh", "--grid model.routing harsh"),
        ("--seeds 1 --init nothing.pkl", "nothing.pkl"),
    ],
)
def test_wrong_values_are_refused_before_the_first_run(
    arguments: str, message: str, elsewhere: Path, trarctl: Run
) -> None:
    sets = [part for text in TINY if text.partition("=")[0] not in arguments for part in ("--set", text)]
    code, out, err = trarctl("train", "easy-vqa", "--gpus", "cpu", *sets, *arguments.split())
    assert code in (3, 5), err
    assert out == ""
    assert message in err
    assert not Path("runs").exists()


def test_a_sweep_of_other_settings_does_not_take_the_name(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl(*TRAIN, "--seeds", "1,2", "--name", "rates")
    assert code == 3
    assert "error: sweep rates exists in runs and is another: its runs are rates-learning_rate-0.0001-seed-1" in err
    code, _, err = trarctl(*TRAIN, "--epochs", "3", *GRID, "--name", "rates")
    assert code == 3
    assert "train.epochs is 2, not 3" in err
    code, _, err = trarctl(*TRAIN, "--name", "rates")  # one run, which would hide the sweep
    assert code == 3
    assert "error: rates is the name of a sweep in runs\n" in err
    assert not Path("runs/rates").exists()
    code, _, err = trarctl("resume", "rates", "--epochs", "3", "--set", "train.seed=1")
    assert code == 3
    assert "resume of a sweep makes no use of --epochs, --set" in err


def test_torchrun_is_refused(elsewhere: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    code, _, err = trarctl(*TRAIN, *GRID)
    assert code == 3
    assert "a sweep starts its processes itself, and cannot work in those that torchrun or Slurm has started" in err


def test_a_dry_run_lists_the_runs(elsewhere: Path, trarctl: Run) -> None:
    code, out, err = trarctl(*TRAIN, *GRID, "--dry-run")
    assert code == 0, err
    assert out.splitlines()[0].rstrip() == "4 runs of sweep easy-vqa-sweep"
    assert columns(out, "easy-vqa-sweep-")[3] == ["easy-vqa-sweep-learning_rate-0.03-seed-2", "0.03", "2"]
    assert not Path("runs").exists()


def test_a_rate_that_diverges_does_not_end_the_sweep(elsewhere: Path, trarctl: Run) -> None:
    grid = ["--grid", "train.learning_rate=1e30,1e-3"]
    code, out, err = trarctl(*TRAIN, "--epochs", "1", *grid, "--name", "far")
    assert code == 7
    assert "warning: " in err
    assert "the sweep goes on without it" in err
    assert "error: 1 of 2 runs could not be finished" in err
    assert RunFolder(Path("runs") / "far-learning_rate-0.001").saved_epochs() == [1]
    assert len(columns(out, "far-")) == 2


# eval --compare


def test_compare_takes_patterns_and_scores_nothing_twice(
    there: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "score_chosen", lambda *_: pytest.fail("scored again"))
    code, out, err = trarctl("eval", "--compare", "*-seed-1", "--json", "c.json")
    assert code == 0, err
    assert "evaluated before, and not scored again: " in err
    document = json.loads(Path("c.json").read_text())
    assert [row["checkpoint"] for row in document["checkpoints"]] == [NAMES[0], NAMES[2]]
    assert [row["differs"] for row in document["checkpoints"]] == [
        {"train.learning_rate": "0.0001"},
        {"train.learning_rate": "0.03"},
    ]
    assert len(document["groups"]) == 2
    assert out.splitlines()[1].split()[:3] == ["checkpoint", "learning_rate", "overall,"]
    code, _, err = trarctl("eval", "--compare", "nothing-*")
    assert code == 5
    assert "error: no run matches 'nothing-*' in runs" in err


def test_a_narrow_table_keeps_names_legible(there: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four settings that differ two are shown beside the accuracies, and the others named."""
    shutil.copytree("runs", "others")
    for number, name in enumerate(NAMES[2:]):
        file = Path("others", name, "settings.json")
        settings = json.loads(file.read_text())
        settings["train"] |= {"gradient_clip": 1.0 + number, "decay_factor": 0.3}
        file.write_text(json.dumps(settings))
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = trarctl("runs", "others")
    shutil.rmtree("others")
    assert code == 0, err
    assert out.split()[:5] == ["run", "learning_rate", "decay_factor", "seed", "best,"]
    assert "also different: train.gradient_clip; --json - has all of them" in err
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_one_page_for_several_runs(there: Path, trarctl: Run) -> None:
    code, _, err = trarctl("eval", "--compare", "rates", "--report", "page")
    assert code == 0, err
    page = Path("page", "index.html").read_text()
    assert page.count("<polyline") == 12  # accuracy, loss and rate of four runs
    assert all(name in page for name in NAMES)
    assert "learning_rate 0.0001" in page
    assert "Where they disagree most" in page
    # Cards that a phone folds, and the script that does, which the page's policy lets run.
    cards = page.count("<article")
    assert cards == page.count("<details open><summary>image and answers</summary>") > 0
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "10,000 bootstrap resamples (seed 0)" in page
    assert "<img src=x" not in page  # a question that is markup


def test_what_a_set_changed_is_neither_kept_nor_reused(there: Path, trarctl: Run, tmp_path: Path) -> None:
    shutil.copytree(Path("runs") / NAMES[0], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "evaluations")
    options = ["--ckpt", tmp_path / "copy", "--gpus", "cpu", "--json", "-", "-q"]
    assert trarctl("eval", *options, "--set", "data.num_workers=1")[0] == 0
    assert not (tmp_path / "copy" / "evaluations").exists()
    assert trarctl("eval", *options)[0] == 0
    assert len(list((tmp_path / "copy" / "evaluations").iterdir())) == 2
