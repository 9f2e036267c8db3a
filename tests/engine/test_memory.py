from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from trarctl.engine.distributed import reuse_freed_memory
if sys.argv[1] == "reuse" and not reuse_freed_memory():
    sys.exit(9)
def turn():
    block = np.ones(6_000_000)
    del block
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int | None:
    """Pages that the system had to provide while the same block was taken and freed; None without glibc."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=False)
    return None if ended.returncode == 9 else int(ended.stdout)


def test_a_freed_block_is_used_again() -> None:
    reused, plain = faults("reuse"), faults("plain")
    assert plain is not None
    assert reused is None or reused < 100
    assert reused is None or reused <= plain
