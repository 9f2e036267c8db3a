"""``trarctl serve`` as a process of its own, for tests that ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.small_runs import SmallRun

SECONDS = 120  # until it has started, and until it has ended, on a busy machine


@contextmanager
def serving(run: SmallRun, temporary: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start it on a free port, with its temporary files in a folder; give its address and its process."""
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "trarctl", "serve", "--ckpt", run.name, *run.folder_option]
    process = subprocess.Popen(
        [*command, "--images", str(run.raw), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=(temporary.parent / "stderr.txt").open("w"),
        text=True,
        env=os.environ | {"TMPDIR": str(temporary), "MPLCONFIGDIR": str(temporary.parent)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.match(r"asking at (http://\S+?),", line)
        assert address, (line, (temporary.parent / "stderr.txt").read_text())
        yield address.group(1), process
    finally:
        process.kill()
        process.wait(SECONDS)
