"""How long work tells whoever watches where it stands."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called as ``progress(task, done, total)``; ``total`` is None while nobody knows it."""


def no_progress(task: str, done: int, total: int | None) -> None:
    """Tell nobody."""
