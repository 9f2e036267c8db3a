"""Raw files to prepared data, and prepared data to batches, answers and figures."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(task, done, total)`` by long work; ``total`` is None while nobody knows it."""


def no_progress(task: str, done: int, total: int | None) -> None:
    """Report to nobody."""
