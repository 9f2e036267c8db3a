"""Prepare damaged variants of the golden sets and count what becomes of them.

Run from the repository: ``python -m benchmarks.fuzz_inputs --count 1000``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.data.damage import try_damage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="damaged variants to try")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every outcome")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.count):
            outcome = try_damage(seed, Path(folder) / "set")
            kind = "prepared" if outcome.result.startswith("prepared") else "refused"
            counts["FAILED" if outcome.failure else kind] += 1
            if outcome.failure or options.verbose:
                print(f"{seed}: {outcome.damage} -> {outcome.failure or outcome.result}")
    print(", ".join(f"{count:,} {kind}" for kind, count in counts.most_common()))
    sys.exit(counts["FAILED"] > 0)


if __name__ == "__main__":
    main()
