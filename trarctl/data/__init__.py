"""Raw files to prepared data, and prepared data to batches, answers and figures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(task, done, total)`` by long work; ``total`` is None while nobody knows it."""


def no_progress(task: str, done: int, total: int | None) -> None:
    """Report to nobody."""


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int, *, num_ahead: int | None = None
) -> Iterator[Result]:
    """Do work on each item in threads, and give the results in order.

    ``num_ahead`` are begun, or wait for a thread, before their turn; None: twice as many as there are threads.
    """
    pool, begun = ThreadPoolExecutor(num_threads), deque[Future[Result]]()
    num_ahead = 2 * num_threads if num_ahead is None else num_ahead
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > num_ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Cut a sequence into batches, of which the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]
