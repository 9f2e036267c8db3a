"""Many strings as one array of bytes: memory-mapped, without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class FlatText:
    """Strings, one behind the other.

    Args:
        content: UTF-8 bytes of all strings, [bytes] uint8.
        offsets: where each starts, and the end of the last, [strings + 1] int64.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Count the strings."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        """Give one string."""
        return self.content[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        """Give all strings in order."""
        step = 65_536
        for first in range(0, len(self), step):
            yield from self._slice(first, min(first + step, len(self)))

    def take(self, rows: Iterable[int]) -> list[str]:
        """Give the strings of ``rows``, in their order."""
        return [self[int(row)] for row in rows]

    def _slice(self, first: int, last: int) -> list[str]:
        offsets = (self.offsets[first : last + 1] - self.offsets[first]).tolist()
        content = self.content[self.offsets[first] : self.offsets[last]].tobytes()
        return [content[start:end].decode() for start, end in pairwise(offsets)]


class FlatTextBuilder:
    """Collects strings into a ``FlatText``, a few thousand at a time."""

    def __init__(self) -> None:
        self._contents: list[bytes] = []
        self._lengths: list[npt.NDArray[np.int64]] = []

    def extend(self, texts: Sequence[str]) -> None:
        """Append strings."""
        encoded = [text.encode() for text in texts]
        self._contents.append(b"".join(encoded))
        self._lengths.append(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))

    def build(self) -> FlatText:
        """Give all strings so far."""
        offsets = np.zeros(1 + sum(map(len, self._lengths)), dtype=np.int64)
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        return FlatText(np.frombuffer(b"".join(self._contents), dtype=np.uint8), offsets)


def flatten(texts: Sequence[str]) -> FlatText:
    """Turn strings into one array of bytes."""
    builder = FlatTextBuilder()
    builder.extend(texts)
    return builder.build()
