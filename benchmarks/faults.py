"""Every fault that a run must survive, or end from with one clear message: a table, and an exit code.

    python -m benchmarks.faults [--kills N] [--only NAME ...]

Runs the tests of faults, the slow ones included, then what takes longer still. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.programs import POLL_SECONDS, Program, program, resume_command, train_command, wait_until
from tests.engine.running import Killed, kill_after, sets, tiny_settings, train, weights
from trarctl.config.resolve import resolve
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.engine.callbacks import Event, StepDone
from trarctl.engine.checkpoint import load_checkpoint
from trarctl.engine.evaluations import kept_in, load
from trarctl.engine.run import RunFolder, is_exported, list_runs
from trarctl.errors import CheckpointError

ROOT = Path(__file__).parents[1]
MINI = ROOT / "tests" / "golden" / "mini_vqa"
KILLED_RUN: dict[str, int] = {"train__epochs": 12, "run__log_every": 1, "run__save_every": 1, "run__validate_every": 4}
VICTIMS = ("all", "launcher", "one of two", "launcher", "one of two")
LONGEST_END = 60.0  # seconds until no process of a run may be left
Outcome = tuple[str, str, str]  # what was tried, "ok" or what went wrong, figures


class _Collector:
    """Notes how each test ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            name = report.nodeid.rpartition("/")[2].replace(".py::test_", ": ").replace("_", " ")
            result = "ok" if report.passed else report.outcome
            self.outcomes.append((name, result, f"{report.duration:.0f} s"))


def tests_of_faults() -> list[Outcome]:
    """The tests, slow ones included."""
    os.environ["FAULTS"] = "1"
    collector = _Collector()
    names = ("faults", "nonfinite", "trainer", "distributed", "resume", "checkpoint", "signals")
    files = [str(ROOT / "tests" / "engine" / f"test_{name}.py") for name in names]
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *files], plugins=[collector])
    return collector.outcomes


def random_kills(num_kills: int, folder: Path, data: Path) -> list[Outcome]:
    """SIGKILL at random moments, every third while a checkpoint is being written, until the run is done."""
    outcomes = []
    # The same kills each time: a failure can be looked at again.
    chance = random.Random(0)  # noqa: S311
    for gpus in ("cpu", "cpu:2"):
        settings = tiny_settings(data, folder / f"undisturbed-{gpus}", **KILLED_RUN, run__gpus=gpus)
        whole = train(settings)
        expected = weights(whole), _losses(whole)
        kills = in_save = runs = equal = 0
        while kills < num_kills // 2:
            runs += 1
            there = folder / f"{gpus}-{runs}"
            there.mkdir()
            run, command = RunFolder(there / "runs" / "tiny"), train_command(data, "vqa", **KILLED_RUN, run__gpus=gpus)
            while True:
                with program(command, there) as started:
                    victim = VICTIMS[kills % len(VICTIMS)] if gpus != "cpu" else "all"
                    is_hit, was_saving = _hit(started, run, chance, victim, in_a_save=kills % 3 == 2)
                    kills, in_save = kills + is_hit, in_save + was_saving
                    if not is_hit:
                        break
                if run.epoch_checkpoint(KILLED_RUN["train__epochs"]).is_file():
                    break
                if run.saved():
                    command = resume_command("tiny")
            equal += (weights(run), _losses(run)) == expected
        result = "ok" if equal == runs else f"{runs - equal} runs differ"
        figures = f"{kills} kills ({in_save} while saving), {equal} of {runs} runs byte-identical, no process left"
        outcomes.append((f"killed at random moments, {gpus}", result, figures))
    return outcomes


def _hit(started: Program, run: RunFolder, chance: random.Random, victim: str, *, in_a_save: bool) -> tuple[bool, bool]:
    """Kill a program some time after it has trained on: whether it was hit before its end, and in a save."""
    before = max((path.stat().st_mtime_ns for _, _, path in run.saved()), default=0)
    wait = chance.uniform(0, 0.8)
    since: float | None = None
    while started.process.poll() is None:
        if since is None and any(_changed(path) > before for _, _, path in run.saved()):
            since = time.monotonic()
        is_saving = any(run.checkpoints.glob(".*.tmp")) if run.checkpoints.is_dir() else False
        if since is not None and time.monotonic() - since > wait and (is_saving or not in_a_save):
            members, workers = started.members(), started.workers()
            for pid in {"all": members, "launcher": [started.process.pid]}.get(
                victim, workers and [chance.choice(workers)]
            ):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            was_saving = any(run.checkpoints.glob(".*.tmp"))
            started.process.wait(LONGEST_END)
            wait_until(lambda: not started.members(), LONGEST_END)
            return True, was_saving
        if not in_a_save:
            time.sleep(POLL_SECONDS)
    if started.process.returncode != 0:
        raise SystemExit(f"a run ended by itself: {started.errors()}")
    return False, False


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in run.metrics() if entry["event"] == "step"]


def _first_losses(num_steps: int, start: Callable[[Callable[[Event], None]], object]) -> torch.Tensor:
    losses: list[float] = []
    stop = kill_after(lambda event: isinstance(event, StepDone) and event.step == num_steps)

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and event.loss is not None:
            losses.append(event.loss)
        stop(event)

    with suppress(Killed):
        start(on_event)
    return torch.tensor(losses, dtype=torch.float64)


def bfloat16(folder: Path) -> list[Outcome]:
    """200 steps of easy-VQA in bf16 and in fp32."""
    data = folder / "easy"
    prepare(PrepareRequest("easy-vqa", out=data, vectors="none"))
    found = {}
    for precision in ("fp32", "bf16"):
        sets = [f"data.path={data}", f"run.folder={folder}/{precision}", "run.gpus=cpu", "run.log_every=1"]
        settings = resolve(dataset="easy-vqa", environ={}, sets=[*sets, f"run.precision={precision}"]).settings
        found[precision] = _first_losses(200, lambda on_event, settings=settings: train(settings, on_event=on_event))
    mean = {name: float(losses.mean()) for name, losses in found.items()}
    difference = abs(mean["bf16"] / mean["fp32"] - 1)
    windows = [losses.reshape(10, 20).mean(dim=1) for losses in (found["bf16"], found["fp32"])]
    worst = float((windows[0] / windows[1] - 1).abs().max())
    figures = f"mean loss differs by {difference:.2%}, the worst of ten windows by {worst:.2%}"
    return [("bf16 on the CPU, 200 steps", "ok" if difference < 0.02 else "differs", figures)]


def compiled(folder: Path, data: Path) -> list[Outcome]:
    """The same losses with torch.compile."""
    name = "--compile, 20 steps"
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        return [(name, "skipped", "no C++ compiler")]
    found = []
    for is_compiled in (False, True):
        changes = {"run__compile": is_compiled, "model__dropout": 0, "run__log_every": 1, "run__validate_every": 0}
        settings = tiny_settings(data, folder / f"compile-{is_compiled}", **changes, train__epochs=3)
        found.append(_first_losses(20, lambda on_event, settings=settings: train(settings, on_event=on_event)))
    worst = float((found[1] / found[0] - 1).abs().max())
    return [(name, "ok" if worst < 1e-4 else "differs", f"largest relative difference of a loss {worst:.1e}")]


def extractions(folder: Path, num_pictures: int = 10_000) -> list[Outcome]:
    """Features of many small pictures: killed three times and resumed, and by two processes, against one run."""
    chance = np.random.default_rng(0)
    for number in range(num_pictures):
        path = folder / "pictures" / f"set{number % 3}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((32, 24)).save(path)
    options = ["--extractor", "patches", "--grid", "4", "--gpus", "cpu"]
    command = [sys.executable, "-m", "trarctl", "extract", "pictures", *options, "--out"]

    def start(out: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, out], cwd=folder, env=os.environ | environment, stdout=subprocess.DEVNULL)

    def files(out: str) -> dict[str, Path]:
        # What is unfinished comes and goes meanwhile.
        paths = [Path(root, name) for root, _, names in os.walk(folder / out) for name in names if name != ".lock"]
        return {path.relative_to(folder / out).as_posix(): path for path in paths}

    def num_made() -> int:
        time.sleep(0.2)
        return sum(name.endswith(".png.npy") for name in files("killed"))

    began = time.monotonic()
    if start("whole").wait():
        raise SystemExit("the undisturbed extraction failed")
    seconds = time.monotonic() - began
    there = list[int]()
    for share in (0.2, 0.5, 0.8):
        process = start("killed")
        wait_until(lambda share=share: num_made() > share * num_pictures, 20 * seconds + LONGEST_END)
        process.kill()
        process.wait()
        there.append(num_made())
    codes = [start("killed").wait()]
    processes = [start("shared", RANK=str(rank), WORLD_SIZE="2", PYTHONPATH=str(ROOT)) for rank in (0, 1)]
    codes += [process.wait() for process in processes]
    outcomes = []
    expected = {name: path.read_bytes() for name, path in files("whole").items()}
    for out, how in (("killed", f"killed at {', '.join(map(str, there))} files"), ("shared", "two processes")):
        is_equal = not any(codes) and {name: path.read_bytes() for name, path in files(out).items()} == expected
        figures = f"{len(expected):,} files, {how}; {seconds:.0f} s undisturbed"
        outcomes.append((f"extract, {num_pictures:,} pictures", "ok" if is_equal else "differs", figures))
    return outcomes


@dataclass(frozen=True)
class Repeated:
    """A command that is killed, and given again as it was until it is done."""

    what: str
    command: list[object]
    result: Callable[[Path], object]  # what came out in a folder, comparable
    begun: str  # pattern of what is there while it writes: every second kill waits for that
    is_sound: Callable[[Path], bool] = lambda _: True  # after each kill
    start: Callable[[Path], None] = lambda _: None  # what a folder holds before


def killed_and_repeated(one: Repeated, folder: Path, num_kills: int) -> Outcome:
    """Kill a command at random moments, and compare its end with that of an undisturbed one."""
    chance = random.Random(one.what)  # noqa: S311 - the same kills each time
    expected: object = None
    seconds, kills, in_writing, lives, equal, unsound = 0.0, 0, 0, 0, 0, 0
    left = set[str]()
    while kills < num_kills or not lives:
        there = folder / str(lives)
        there.mkdir(parents=True)
        one.start(there)
        began, is_done = time.monotonic(), False
        while not is_done:
            wait = chance.uniform(0.3, 1.0) * seconds if lives and kills < num_kills else LONGEST_END * 10
            with program(one.command, there) as started:
                hit = _wait_to_kill(started, there, one.begun, wait, chance, in_writing=kills % 2 == 0 and lives > 0)
                is_writing = any(there.glob(one.begun))
                is_done = started.process.poll() is not None
                if is_done and started.wait():
                    return one.what, "refused", started.errors()[-300:]
            if not is_done:
                kills, in_writing = kills + hit, in_writing + is_writing
                unsound += not one.is_sound(there)
        found = one.result(there)
        if not lives:
            seconds, expected = time.monotonic() - began, found
        else:
            equal += found == expected
        names = (path.name for path in there.rglob(".*"))
        left |= {name for name in names if name.startswith((".building", ".unfinished")) or name.endswith(".tmp")}
        lives += 1
    result = "ok" if equal == lives - 1 and not unsound else "differs"
    figures = (
        f"{kills} kills ({in_writing} while writing), {equal} of {lives - 1} as undisturbed, {unsound} torn, "
        f"left behind: {', '.join(sorted(left)) or 'nothing'}"
    )
    return one.what, "leavings" if left else result, figures


def _wait_to_kill(
    started: Program, there: Path, begun: str, seconds: float, chance: random.Random, *, in_writing: bool
) -> bool:
    """Wait some time, or a moment longer than until it writes; whether it has not ended by itself."""
    since = time.monotonic()
    while started.process.poll() is None:
        if in_writing and any(there.glob(begun)):
            time.sleep(chance.uniform(0, 0.005))
            break
        if not in_writing and time.monotonic() - since > seconds:
            break
        time.sleep(0.0005)
    return started.process.poll() is None


def _of_runs(folder: Path) -> object:
    """All tensors of all checkpoints, and what was measured but times."""
    runs = {run.name: run for run in list_runs(folder / "runs")}
    tensors = {
        f"{name}/{path.name}": weights(run, path)
        for name, run in runs.items()
        for path in run.checkpoints.glob("*.safetensors")
    }
    kinds = ("step", "validation", "candidate")
    measured = {
        name: [
            {key: value for key, value in entry.items() if "second" not in key and key != "memory_bytes"}
            for entry in run.metrics()
            if entry["event"] in kinds
        ]
        for name, run in runs.items()
    }
    return tensors, measured, _of_evaluations(folder)


def _of_evaluations(folder: Path) -> object:
    """Figures and answers of the kept evaluations, of which none may be damaged."""
    found = {}
    for run in list_runs(folder / "runs"):
        evaluations, num_damaged = kept_in(run)
        for one in evaluations:
            answered = load(run, one)
            figures = dataclasses.asdict(one) | {"made": ""}
            answers = None if answered is None else (answered.accuracy.right.tolist(), list(answered.answers))
            found[run.name, one.checkpoint, one.split] = figures, answers
        found[run.name, "damaged", ""] = num_damaged
    return found


def repeated_commands(folder: Path, data: Path, num_kills: int) -> list[Outcome]:
    """Sweeps with averages, exports, packed features and kept evaluations, killed and begun again."""
    folder.mkdir()
    trarctl = [sys.executable, "-m", "trarctl"]
    sizes = {"run__log_every": 1, "run__keep": 0, "train__ema_decay": 0.9, "train__average_epochs": 2}
    texts = sets(**sizes, train__epochs=3, run__validate_every=1, train__warmup_epochs=0)
    given = [
        part for text in texts if not text.startswith(("run.name", "train.learning_rate")) for part in ("--set", text)
    ]
    sweep = [*trarctl, "train", "vqa", "--data", data, "--grid", "train.learning_rate=1e-4,1e-3", "--seeds", "1,2"]
    sweep += ["--name", "rates", *given]
    trained = train(tiny_settings(data, folder / "trained", train__epochs=2, run__keep=0))
    for number in range(2000):
        path = folder / "pictures" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 9)).save(path)
    extract = [*trarctl, "extract", folder / "pictures", "--extractor", "patches", "--grid", 4, "--gpus", "cpu"]

    def export_earlier(place: Path) -> None:
        command = [*trarctl, "export", "--ckpt", trained.epoch_checkpoint(1), "--data", data, "--out", "shared"]
        subprocess.run([str(part) for part in command], cwd=place, check=True, capture_output=True)

    def is_whole_or_none(place: Path) -> bool:
        if not is_exported(place / "shared"):
            return True
        with suppress(CheckpointError):
            return bool(load_checkpoint(place / "shared/model.safetensors"))
        return False

    def files(name: str) -> Callable[[Path], object]:
        def read(place: Path) -> object:
            paths = (path for path in (place / name).rglob("*") if path.is_file() and path.name != ".lock")
            return {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}

        return read

    def copy_run(place: Path) -> None:
        shutil.copytree(trained.path, place / "runs" / trained.name)

    cases = [
        Repeated("sweep with averages", sweep, _of_runs, "runs/*/checkpoints/.*.tmp"),
        Repeated(
            "export over an earlier one",
            [*trarctl, "export", "--ckpt", trained.epoch_checkpoint(2), "--data", data, "--out", "shared"],
            files("shared"),
            "shared/.building/*",
            is_whole_or_none,
            export_earlier,
        ),
        Repeated(
            "extract --pack", [*extract, "--pack", "--out", "feats"], files("feats"), "feats/.unfinished-0/features.zip"
        ),
        Repeated(
            "eval, which keeps its figures",
            [*trarctl, "eval", "--ckpt", trained.name, "--split", "val", "--gpus", "cpu"],
            _of_evaluations,
            "runs/*/evaluations/.*",
            start=copy_run,
        ),
    ]
    outcomes = [killed_and_repeated(one, folder / str(number), num_kills) for number, one in enumerate(cases)]
    return [*outcomes, _two_sweeps(sweep, folder / "two", _of_runs(folder / "0/0")),
            _sweep_without_room(sweep, folder / "full", _of_runs(folder / "0/0"))]  # fmt: skip


def _two_sweeps(command: list[object], folder: Path, expected: object) -> Outcome:
    """The same sweep by two processes at once: one is told of the other, and nothing is lost."""
    folder.mkdir()
    with program(command, folder) as first:
        wait_until(lambda: any(folder.glob("runs/*.sweep.json")))
        with program(command, folder) as second:
            codes = second.wait(), first.wait()
            said = second.complaints()
    is_told = codes == (5, 0) and len(said) == 1 and "another process writes sweep rates: " in said[0]
    is_late = codes == (0, 0)  # the first had finished: nothing was left to do, and tests hold what is said otherwise
    result = "ok" if (is_told or is_late) and _of_runs(folder) == expected else "differs"
    return "the same sweep twice at once", result, f"exit codes {codes}; {said[0][:60] if said else 'nothing said'}"


def _sweep_without_room(command: list[object], folder: Path, expected: object) -> Outcome:
    """No room for a checkpoint in the middle of a sweep, and room again."""
    folder.mkdir()
    with program(command, folder) as started:
        wait_until(lambda: any(folder.glob("runs/*/checkpoints/epoch-001.safetensors")))
        for pid in started.members():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        code, said = started.wait(), started.complaints()
    with program(command, folder) as again:
        is_done = again.wait() == 0
    is_told = code == 4 and len(said) == 1 and said[0].startswith("error: cannot write the checkpoint ")
    result = "ok" if is_told and is_done and _of_runs(folder) == expected else "differs"
    return "sweep without room", result, f"exit code {code}; {said[0][:60] if said else 'nothing said'}"


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=30, help="SIGKILLs at random moments, half of them on two processes"
    )
    parser.add_argument("--only", nargs="*", default=["tests", "kills", "repeated", "extract", "bf16", "compile"])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="trarctl-faults-") as name:
        folder = Path(name)
        data = folder / "data"
        prepare(PrepareRequest("vqa", out=data, raw=MINI / "raw", features=MINI / "feats", grid=4, vectors="none"))
        parts: dict[str, Callable[[], list[Outcome]]] = {
            "tests": tests_of_faults,
            "kills": lambda: random_kills(options.kills, folder, data),
            "repeated": lambda: repeated_commands(folder / "repeated", data, options.kills // 5),
            "extract": lambda: extractions(folder),
            "bf16": lambda: bfloat16(folder),
            "compile": lambda: compiled(folder, data),
        }
        for part in options.only:
            outcomes += parts[part]()
    width = max(len(what) for what, _, _ in outcomes)
    for what, result, figures in outcomes:
        print(f"{what:<{width}}  {result:<8}  {figures}")
    failed = sum(result not in ("ok", "skipped") for _, result, _ in outcomes)
    print(f"\n{len(outcomes) - failed} of {len(outcomes)} as they should be")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
