"""What several surfaces start from, made once a process: prepared golden sets and a small run with pictures."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests.data.preparing import GOLDEN, prepare_golden
from tests.fuzz.mutators import load_json
from tests.small_runs import TINY, SmallRun, make_run
from trarctl import cli

VQA_FILES = ("train2014", "val2014", "test2015")


@cache
def scratch() -> Path:
    """Give a folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-bases-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def golden_prepared(dataset: str) -> Path:
    """Prepare a golden set."""
    prepare_golden(dataset, scratch() / dataset)
    return scratch() / dataset


@cache
def small_run() -> SmallRun:
    """Train a tiny model on drawn pictures."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return make_run(scratch() / "run")


def write_small_vqa(raw: Path, num_questions: int = 8) -> set[int]:
    """Take a few records of each golden VQA file, so that an input is read in milliseconds; return the image ids."""
    raw.mkdir(parents=True)
    ids: set[int] = set()
    images: set[int] = set()
    files = [path for path in (GOLDEN / "mini_vqa/raw").iterdir() if "test-dev" not in path.name]
    for path in sorted(files, key=lambda path: "question" not in path.name.lower()):
        document = load_json(path)
        if "questions" in document:
            document["questions"] = document["questions"][:num_questions]
            ids |= {record["question_id"] for record in document["questions"]}
            images |= {record["image_id"] for record in document["questions"]}
        else:
            document["annotations"] = [one for one in document["annotations"] if one["question_id"] in ids]
            images |= {record["image_id"] for record in document["annotations"]}
        (raw / path.name).write_text(json.dumps(document))
    return images


def write_small_clevr(raw: Path, num_questions: int = 10) -> None:
    """Take a few records of each golden CLEVR file."""
    (raw / "questions").mkdir(parents=True)
    for path in (GOLDEN / "mini_clevr/raw/questions").iterdir():
        document = load_json(path)
        document["questions"] = document["questions"][:num_questions]
        (raw / "questions" / path.name).write_text(json.dumps(document))


@cache
def golden_run(dataset: str) -> Path:
    """Train a tiny model for an epoch on a golden set; give the folder of runs, which holds the run ``golden``."""
    runs = scratch() / f"runs-{dataset}"
    sets = [part for text in (*TINY, f"run.folder={runs}", "model.spans=0,1") for part in ("--set", text)]
    data = golden_prepared(dataset)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments = ["train", dataset, "--data", str(data), "--name", "golden", "--epochs", "1", "--gpus", "cpu"]
        assert cli.run([*arguments, *sets]) == 0
    return runs


@cache
def golden_scores(dataset: str, split: str) -> Path:
    """Save the scores of that run."""
    target = scratch() / f"{dataset}-{split}.npz"
    arguments = ["submit", "--ckpt", "golden", "--set", f"run.folder={golden_run(dataset)}", "--split", split]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = cli.run([*arguments, "--save-scores", str(target), "--out", str(scratch() / "answers"), "-q"])
        assert code == 0
    return target


def _quietly(*arguments: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.run([str(argument) for argument in arguments]) == 0


@cache
def averaged_run() -> Path:
    """Train with both averages of weights; give the folder of runs, which holds the run ``averaged``."""
    runs = scratch() / "averaged-runs"
    texts = (*TINY, f"run.folder={runs}", "train.ema_decay=0.5", "train.average_epochs=2")
    sets = [part for text in texts for part in ("--set", text)]
    data = small_run().prepared
    _quietly("train", "easy-vqa", "--data", data, "--name", "averaged", "--epochs", 2, "--gpus", "cpu", "-q", *sets)
    return runs


@cache
def exported(run: str = "tiny") -> Path:
    """Export a run: the small one, or the one with averages."""
    runs, out = small_run().runs if run == "tiny" else averaged_run(), scratch() / f"exported-{run}"
    _quietly("export", "--ckpt", runs / run, "--out", out)
    return out


def sweep_command(runs: Path) -> list[object]:
    """The command of a sweep of two rates."""
    sets = [part for text in (*TINY, f"run.folder={runs}") for part in ("--set", text)]
    grid = ["--grid", "train.learning_rate=1e-4,3e-2", "--name", "rates", "--epochs", 1, "--gpus", "cpu", "-q"]
    return ["train", "easy-vqa", "--data", small_run().prepared, *grid, *sets]


@cache
def small_sweep() -> Path:
    """Train a sweep of two rates, ``rates``; give the folder of runs."""
    runs = scratch() / "sweep-runs"
    _quietly(*sweep_command(runs))
    return runs
