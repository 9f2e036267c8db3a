"""The campaign: every surface in turn, one table, exit code 1 if anything was found."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.harness import Tally, campaign
from tests.fuzz.surfaces import SURFACES


def main() -> int:
    """Parse, try, show."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="time for all surfaces together")
    parser.add_argument("--inputs", type=int, default=20_000, help="most inputs of all surfaces together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", action="append", choices=sorted(SURFACES), help="only this one; may be repeated")
    parser.add_argument("--index", type=int, help="repeat this one input of --surface, and keep its folder")
    parser.add_argument("--verbose", action="store_true", help="list the messages that were seen")
    arguments = parser.parse_args()
    names = arguments.surface or list(SURFACES)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if arguments.index is not None:
            return _repeat(names[0], arguments.seed, arguments.index, root)
        return _campaign(names, arguments, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _campaign(names: list[str], arguments: argparse.Namespace, root: Path) -> int:
    ends = time.monotonic() + 60 * arguments.minutes
    tallies: dict[str, Tally] = {}
    for number, name in enumerate(names):
        surface = SURFACES[name](root / name)
        surface.prepare()
        left = len(names) - number
        stop = time.monotonic() + max(ends - time.monotonic(), 0) / left
        most = (arguments.inputs - sum(tally.inputs for tally in tallies.values())) // left
        tallies[name] = campaign(surface, arguments.seed, _until(stop, most))
        shutil.rmtree(root / name, ignore_errors=True)
        _show(name, tallies[name], arguments)
    print(f"\nseed {arguments.seed}\n\n{_table(tallies)}")
    return int(any(tally.num_faults for tally in tallies.values()))


def _show(name: str, tally: Tally, arguments: argparse.Namespace) -> None:
    """Print what was found, and how to repeat it."""
    print(_row(name, tally))
    for (kind, where), outcomes in sorted(tally.faults.items(), key=lambda item: -len(item[1])):
        first = outcomes[0]
        print(f"  {kind}: {where} ({len(outcomes)} inputs)")
        print(f"    {first.mutation.what:.200} ({first.mutation.effect.value})")
        detail = first.fault.detail.strip() if first.fault else ""
        print(f"    {' | '.join(detail.splitlines())[:600]}")
        print(f"    python -m tests.fuzz --surface {name} --seed {arguments.seed} --index {first.index}")
    if arguments.verbose:
        for text, count in tally.messages.most_common(60):
            print(f"  {count:5} {text}")
    sys.stdout.flush()


def _until(stop: float, most: int) -> Iterator[int]:
    for index in itertools.count():
        if index >= most or time.monotonic() > stop:
            return
        yield index


def _repeat(name: str, seed: int, index: int, root: Path) -> int:
    surface = SURFACES[name](root / name)
    surface.prepare()
    kept = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-{index}-")) / "input"
    outcome = surface.attempt(seed, index, keep=kept)
    print(f"{outcome.mutation.what} ({outcome.mutation.effect.value})\n{outcome.ending}: {outcome.message}")
    print(f"fault: {outcome.fault}\nkept: {kept}")
    return int(outcome.fault is not None)


def _row(name: str, tally: Tally) -> str:
    each = 1000 * tally.seconds / max(tally.inputs, 1)
    endings = (f"{tally.endings[ending]:7}" for ending in ("right", "warned", "refused"))
    kinds: Counter[str] = Counter()
    for (kind, _), outcomes in tally.faults.items():
        kinds[kind] += len(outcomes)
    faults = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    return f"{name:20} {tally.inputs:7} {' '.join(endings)} {each:8.0f}  {faults}"


def _table(tallies: dict[str, Tally]) -> str:
    whole = Tally()
    for tally in tallies.values():
        whole.inputs += tally.inputs
        whole.seconds += tally.seconds
        whole.endings += tally.endings
        for (kind, where), outcomes in tally.faults.items():
            whole.faults.setdefault((kind, where), []).extend(outcomes)
    head = f"{'surface':20} {'inputs':>7} {'right':>7} {'warned':>7} {'refused':>7} {'ms each':>8}  faults"
    return "\n".join([head, *(_row(name, tally) for name, tally in tallies.items()), _row("all", whole)])


if __name__ == "__main__":
    sys.exit(main())
