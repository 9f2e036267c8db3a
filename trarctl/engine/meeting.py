"""A fresh start for processes that meet in a store which an earlier attempt has used.

PyTorch's elastic launcher keeps one store through restarts. What lost processes wrote there, their addresses above all,
would be taken for what the new ones write.
"""

from __future__ import annotations

import time
import uuid

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

POLL_SECONDS = 0.02


def fresh_store(store: Store, *, rank: int, size: int, timeout_seconds: float) -> PrefixStore:
    """A part of the store that only the processes of this attempt know.

    Each process calls out a name that nobody had before; process 0 answers to each name with that of the meeting, until
    every process has confirmed it. A name left over from a lost process is answered too, and nobody hears it.

    Args:
        store: reached by all processes.
        rank: of this process.
        size: number of processes.
        timeout_seconds: after which a process that waits for another gives up.

    Raises:
        RuntimeError: if a process did not come in time.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", name)
        store.wait([f"welcome/{name}"])
        meeting = store.get(f"welcome/{name}").decode()
        store.set(f"here/{meeting}/{rank}", "")
        return PrefixStore(meeting, store)
    missing = set(range(1, size))
    deadline = time.monotonic() + timeout_seconds
    while missing:
        for other in sorted(missing):
            if store.check([f"here/{name}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        if missing and time.monotonic() > deadline:
            listed = ", ".join(str(other) for other in sorted(missing))
            raise RuntimeError(f"process {listed} did not come within {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)
    return PrefixStore(name, store)
