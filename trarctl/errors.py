"""What can go wrong for a user: one message, one fix, one documented exit code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice


class TrarError(Exception):
    """A failure that the user can fix; rendered once, by ``trarctl.cli``, without a traceback.

    Args:
        what: what is wrong and where, one sentence without a final period.
        hint: the command or the change that fixes it.
    """

    exit_code: int = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class SettingsError(TrarError):
    """An unknown key, a value outside its limits, or settings that contradict each other."""

    exit_code = 3


class DataError(TrarError):
    """Raw files, features, vectors, prepared data or an output folder that cannot be used."""

    exit_code = 4


class CheckpointError(TrarError):
    """A checkpoint or run that is missing, damaged, or does not fit the data or the settings."""

    exit_code = 5


class DeviceError(TrarError):
    """A device that does not exist, ran out of memory, or whose process died."""

    exit_code = 6


class DivergenceError(TrarError):
    """A loss or gradient that is not finite; the state from before is saved."""

    exit_code = 7


class Stopped(TrarError):
    """Work that a signal ended, after its state was saved; the exit code is 128 + its number, as in shells."""

    def __init__(self, what: str, signal_number: int, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def listed(items: Iterable[object], count: int | None = None, *, most: int = 10) -> str:
    """Write out the first ``most`` things: ``1, 2, 3 and 4 more``; ``count`` is given where ``items`` are not all."""
    if count is None:
        items = list(items)
        count = len(items)
    shown = [str(item) for item in islice(items, most)]
    return ", ".join(shown) + (f" and {count - len(shown):,} more" if count > len(shown) else "")


def shortened(text: str, *, most: int = 80) -> str:
    """Cut a long text of a user's for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException) -> str:
    """Give the first line of what another program's error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def told_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what Python and libraries warn of while the block runs: each text once, and how often at the end."""
    counts: dict[str, int] = {}

    def show(message: Warning | str, *_where: object) -> None:
        text = " ".join(str(message).split())
        counts[text] = counts.get(text, 0) + 1
        if counts[text] == 1:
            tell(text)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        for category in () if sys.warnoptions else (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)  # to be counted
        yield
    for text, count in counts.items():
        if count > 1:
            tell(f"{count - 1:,} more times: {text}")
