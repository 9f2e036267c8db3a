"""All benchmarks in one run: tables on the terminal, the same figures in ``benchmarks/latest.json``.

    python -m benchmarks.bench [--quick] [--threads N]

Compare ratios, not seconds: the machine is part of every second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

import trarctl
from benchmarks import attention, loader, startup, step

LATEST = Path(__file__).parent / "latest.json"


def machine(threads: int) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": step.cpu_info("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "extensions": step.cpu_extensions(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "trarctl": trarctl.__version__,
    }


def main() -> None:
    """Measure everything, print it, write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: at most five minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, object] = {"machine": machine(options.threads), "quick": options.quick}
    print(json.dumps(figures["machine"]))
    print("\nstart-up")
    figures["startup"] = asdict(startup.measure_and_print(quick=options.quick))
    print("\nloader")
    figures["loader"] = asdict(loader.measure_and_print(quick=options.quick))
    print("\nattention core of one layer")
    figures["attention"] = [asdict(row) for row in attention.measure_all(quick=options.quick, threads=options.threads)]
    print("\ntraining step")
    figures["step"] = [asdict(row) for row in step.measure_all(quick=options.quick, threads=options.threads)]
    LATEST.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {LATEST}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
