"""The rows that a training leaves behind on the screen, one an epoch, each column where it stood in the row before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trarctl.commands.progress import duration
from trarctl.engine.callbacks import EpochDone, Validated

_GAP = "  "
# Which columns a narrow terminal loses, first to last; the types of questions go before all of them.
_DISPENSABLE = ("time", "loss")


@dataclass(frozen=True)
class _Column:
    name: str
    width: int


class EpochTable:
    """Lays out a row for each epoch.

    Args:
        epochs: of the run.
        width: columns that the terminal has now; None where nothing is cut, as in a log.
    """

    def __init__(self, epochs: int, width: Callable[[], int] | None) -> None:
        self._epochs = epochs
        self._width = width
        self._columns: list[_Column] = []
        self._earlier: float | None = None

    def rows(self, ended: EpochDone, validated: Validated | None) -> list[str]:
        """The row of an epoch, with the heading above it where the columns changed."""
        cells = self._cells(ended, validated)
        columns = [_Column(name, max(len(name), len(text), _WIDTHS.get(name, 6))) for name, text in cells.items()]
        columns = self._fitting(columns)
        lines = []
        if [column.name for column in columns] != [column.name for column in self._columns]:
            lines.append(_line(columns, {column.name: column.name for column in columns}))
            self._columns = columns
        lines.append(_line(self._columns, cells))
        return lines

    def _cells(self, ended: EpochDone, validated: Validated | None) -> dict[str, str]:
        number = len(str(self._epochs))
        cells = {"epoch": f"{ended.epoch:>{number}}/{self._epochs}", "loss": f"{ended.loss:.4f}"}
        seconds = ended.seconds
        if validated is not None:
            change = None if self._earlier is None else validated.overall - self._earlier
            self._earlier = validated.overall
            cells |= {"val, %": f"{validated.overall:.2f}", "change": "" if change is None else f"{change:+.2f}"}
            cells |= {name.replace("_", " "): f"{value:.2f}" for name, value in sorted(validated.per_type.items())}
            seconds += validated.seconds
        cells["time"] = duration(seconds)
        cells[_BEST] = "best" if validated is not None and validated.is_best else ""
        return cells

    def _fitting(self, columns: list[_Column]) -> list[_Column]:
        if self._width is None:
            return columns
        width = self._width()
        fixed = {"epoch", "loss", "val, %", "change", "time", _BEST}
        for unwanted in (
            [column.name for column in columns if column.name not in fixed],
            *([name] for name in _DISPENSABLE),
        ):
            if _total(columns) <= width:
                break
            columns = [column for column in columns if column.name not in unwanted]
        return columns


_BEST = ""
_WIDTHS = {"epoch": 5, "loss": 7, "val, %": 6, "change": 6, "time": 12, _BEST: 4}


def _total(columns: list[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _line(columns: list[_Column], cells: dict[str, str]) -> str:
    texts = [
        f"{cells.get(column.name, ''):<{column.width}}"
        if column.name == _BEST
        else f"{cells.get(column.name, ''):>{column.width}}"
        for column in columns
    ]
    return _GAP.join(texts).rstrip()
