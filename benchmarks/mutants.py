"""Mutation testing: small changes of the code that numbers and checkpoints depend on, each of which a test must notice.

    python -m benchmarks.mutants [--only NAME ...] [--processes N]

mutmut makes the mutants and runs, for each, the tests that reach it. What it prints at the end: the share of mutants
that a test noticed, and the survivors. ``benchmarks/mutants.toml`` names those that were read and change nothing that
anybody could notice. The texts of errors are not changed here: the tests of messages hold them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".mutants"
GOAL = 90.0  # percent
# An exception's arguments are words for people.
WORDS = r"\braise \w+\("


@dataclass(frozen=True)
class Group:
    """Modules that the same tests reach."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = {
    "numbers": Group(
        ("trarctl/data/metrics.py", "trarctl/data/text.py", "trarctl/engine/schedules.py"),
        (
            *(f"tests/data/test_{name}.py" for name in ("metrics", "answers", "text", "vocabulary", "baselines")),
            "tests/engine/test_schedules.py",
        ),
    ),
    "submission": Group(("trarctl/data/submission.py",), ("tests/data/test_submission.py",)),
    "checkpoint": Group(("trarctl/engine/checkpoint.py",), ("tests/engine/test_checkpoint.py",)),
    "resume": Group(
        ("trarctl/engine/run.py", "trarctl/engine/jobs.py"),
        (
            *(f"tests/engine/test_{name}.py" for name in ("run", "resume", "jobs")),
            "-k",  # but those that start programs, and wait for them
            "not at_once and not lets_go and not before_the_first_epoch",
        ),
    ),
}


@dataclass
class Result:
    """Of one module."""

    killed: int = 0
    equivalent: int = 0
    survivors: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Percent of the mutants that could be noticed."""
        return 100 * self.killed / max(self.killed + len(self.survivors), 1)


def run(group: Group, folder: Path, processes: int) -> dict[str, str]:
    """Make and try the mutants of a group in a copy of the program: how each ended."""
    shutil.rmtree(folder, ignore_errors=True)
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)  # noqa: S607
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    config = {
        "source_paths": ["trarctl"],
        "only_mutate": list(group.modules),
        "do_not_mutate_patterns": [WORDS],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-p", "no:xdist"],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "also_copy": ["README.md", "CONTRIBUTING.md", "docs", "examples"],
        "timeout_multiplier": 5.0,
        "timeout_constant": 2.0,
    }
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
    mutmut = [sys.executable, "-m", "mutmut"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*mutmut, "run", "--max-children", str(processes)], cwd=folder, env=environ, check=False)
    if done.returncode:
        raise SystemExit(f"mutmut failed with exit code {done.returncode}")
    listed = subprocess.check_output([*mutmut, "results", "--all", "true"], cwd=folder, env=environ, text=True)
    ends = (line.strip().partition(": ") for line in listed.splitlines() if "__mutmut_" in line)
    return {name: end for name, _, end in ends}


def difference(name: str, folder: Path) -> tuple[str, str]:
    """The lines that a mutant takes away and adds."""
    shown = subprocess.check_output([sys.executable, "-m", "mutmut", "show", name], cwd=folder, text=True)
    lines = [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    away, new = ([line[1:].strip() for line in lines if line[0] == sign] for sign in "-+")
    return " ".join(away), " ".join(new)


def measure(group: Group, folder: Path, processes: int, equivalent: set[tuple[str, str]]) -> dict[str, Result]:
    """Results of each module of a group."""
    results: dict[str, Result] = defaultdict(Result)
    for name, end in run(group, folder, processes).items():
        module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
        function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        result = results[module]
        if end in ("killed", "timeout", "suspicious"):
            result.killed += 1
            continue
        away, new = difference(name, folder)
        if (function, new) in equivalent:
            result.equivalent += 1
        else:
            result.survivors.append(f"{function} ({end})\n    - {away}\n    + {new}")
    return results


def main() -> None:
    """Try the mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    named = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text())
    equivalent = {(entry["function"], entry["becomes"]) for entry in named.get("equivalent", [])}
    results: dict[str, Result] = {}
    for name in arguments.only:
        results |= measure(GROUPS[name], WORK / name, arguments.processes, equivalent)
    for module, result in results.items():
        print("\n".join([f"\n{module}: {len(result.survivors)} survivors", *result.survivors]))
    print(f"\n{'module':32}{'killed':>8}{'of':>6}{'score':>8}   equivalent ones left out")
    total = Result()
    for module, result in [*results.items(), ("all", total)]:
        print(
            f"{module:32}{result.killed:8}{result.killed + len(result.survivors):6}{result.score:7.1f}%"
            f"{result.equivalent:11}"
        )
        if module != "all":
            total.killed += result.killed
            total.equivalent += result.equivalent
            total.survivors += result.survivors
    low = [module for module, result in results.items() if result.score < GOAL]
    if low:
        raise SystemExit(f"below {GOAL:g} %: {', '.join(low)}")


if __name__ == "__main__":
    main()
