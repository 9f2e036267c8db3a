from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, Store, TCPStore

from trarctl.engine.meeting import fresh_store


@pytest.fixture
def store() -> Store:
    return TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10), wait_for_workers=False)


def meet(store: Store, size: int) -> list[PrefixStore]:
    """What each of the processes is given; each has a connection of its own, as in life."""
    assert isinstance(store, TCPStore)
    port = store.port

    def come(rank: int) -> PrefixStore:
        own = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
        return fresh_store(own, rank=rank, size=size, timeout_seconds=10)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(come, range(size)))


def test_nothing_of_an_earlier_attempt_is_seen(store: Store) -> None:
    first = meet(store, 3)
    first[1].set("address", "of the lost")
    assert first[2].get("address") == b"of the lost"
    for _ in range(5):
        again = meet(store, 3)
        assert not again[0].check(["address"])
        again[2].set("address", "new")
        assert again[0].get("address") == again[1].get("address") == b"new"
        assert first[0].get("address") == b"of the lost"


def test_a_process_that_does_not_come_is_named(store: Store) -> None:
    with pytest.raises(RuntimeError, match=r"process 1, 2 did not come within 0\.1 s"):
        fresh_store(store, rank=0, size=3, timeout_seconds=0.1)
