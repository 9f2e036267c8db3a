"""How long the program takes to answer: ``trarctl --help`` against importing what it shows itself with.

    python -m benchmarks.startup [--quick]

Whole processes, taking turns; user and system time, which a busy machine disturbs less than the wall clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass

COMMANDS = {
    "help": [sys.executable, "-m", "trarctl", "--help"],
    "typer and rich": [sys.executable, "-c", "import typer, rich"],
    "torch": [sys.executable, "-c", "import torch"],
}


@dataclass(frozen=True)
class Result:
    """Medians in seconds of processor time."""

    help_seconds: float
    typer_and_rich_seconds: float
    torch_seconds: float
    help_to_typer_and_rich: float


def processor_seconds(command: list[str]) -> float:
    """User and system time of one run."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def measure_and_print(*, quick: bool) -> Result:
    """Measure and print a table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(6 if quick else 16):
        for name, command in COMMANDS.items():
            seconds = processor_seconds(command)
            if turn:
                times[name].append(seconds)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = Result(
        help_seconds=round(median["help"], 3),
        typer_and_rich_seconds=round(median["typer and rich"], 3),
        torch_seconds=round(median["torch"], 3),
        help_to_typer_and_rich=round(median["help"] / median["typer and rich"], 2),
    )
    for name, value in asdict(result).items():
        print(f"{name.replace('_', ' '):36} {value:>12,}")
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    measure_and_print(quick=parser.parse_args().quick)


if __name__ == "__main__":
    main()
