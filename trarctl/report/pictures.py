"""Pictures of what a model looked at, by matplotlib.

Axes: S cells along one side of the grid, N = S * S, L layers, K spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.engine.predictor import Prediction
from trarctl.errors import DataError
from trarctl.report.names import span_color, span_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_MOST_COLUMNS = 4
_INK = "#222222"
_SHADE = (0.06, 0.08, 0.1)
_BAR_ROOM = 0.12  # below each picture, in lengths of its longer side


def picture_of(asked: Prediction, image: Image, *, grid_size: int, spans: Sequence[int | str]) -> Figure:
    """Draw a question's answers, and the attention of each layer laid over the picture.

    Args:
        asked: what the model said.
        image: what it was asked about, of any size; the grid is stretched over it, as the backbone does.
        grid_size: S.
        spans: the order of each span.

    Raises:
        DataError: if matplotlib is not installed.
    """
    figure_type, extent = _figure_type(), _extent(image)
    columns = min(2 + len(asked.layer_attention), _MOST_COLUMNS)
    rows = -(-(2 + len(asked.layer_attention)) // columns)
    size = (3.1 * columns, (3.1 * (extent[1] + _BAR_ROOM) + 0.9) * rows + 0.6)
    figure = figure_type(figsize=size, dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(_plain(asked.question), fontsize=13, color=_INK, wrap=True)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    picture = np.asarray(image.convert("RGB")) / 255
    likeliest = "\n".join(f"{_plain(name)}  {100 * share:.1f} %" for name, share in asked.answers[:3])
    _panel(panels[0], likeliest, picture, extent)
    _panel(panels[1], "bright: what the\nanswer is read from", picture, extent)
    _overlay(panels[1], extent, asked.answer_attention, grid_size)
    for number, attention in enumerate(asked.layer_attention):
        panel = panels[2 + number]
        _panel(panel, f"bright: what layer {number + 1} looks at", picture, extent)
        _overlay(panel, extent, attention, grid_size)
        _route_bar(panel, extent, asked.routes[number])
    _legend(figure, spans)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture in the format that the file's name says.

    Raises:
        DataError: if it cannot be written, or the format is unknown.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot write {path}: {reason}", "--save FILE.png in a folder that can be written") from error


def _figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise DataError("pictures need matplotlib, which is not installed", 'pip install "trarctl[report]"') from None
    return Figure


def _extent(image: Image) -> tuple[float, float]:
    """Width and height of the picture, its longer side 1."""
    longest = max(image.size)
    return (image.width / longest, image.height / longest)


def _panel(axes: Any, title: str, picture: np.ndarray, extent: tuple[float, float]) -> None:
    """The picture with room below for a bar, so that all panels of a row line up."""
    width, height = extent
    axes.imshow(picture, extent=(0, width, height, 0))
    axes.set_ylim(height + _BAR_ROOM, 0)
    axes.set_title(title, fontsize=10, color=_INK)


def _overlay(axes: Any, extent: tuple[float, float], attention: Sequence[float], size: int) -> None:
    """A shade over each cell, the lighter the larger its share of the attention."""
    width, height = extent
    shares = np.asarray(attention, dtype=np.float64).reshape(size, size)
    darkness = 1 - shares / max(float(shares.max()), 1e-12)
    color = np.broadcast_to(np.array(_SHADE), (size, size, 3))
    axes.imshow(
        np.concatenate([color, 0.7 * darkness[..., None]], axis=2),
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    axes.set_ylim(height + _BAR_ROOM, 0)


def _route_bar(axes: Any, extent: tuple[float, float], weights: Sequence[float]) -> None:
    """The share of each span as one bar under the picture."""
    from matplotlib.patches import Rectangle

    width, height = extent
    top, left = height + 0.2 * _BAR_ROOM, 0.0
    for index, weight in enumerate(weights):
        part = weight * width
        axes.add_patch(Rectangle((left, top), part, 0.7 * _BAR_ROOM, color=span_color(index), linewidth=0))
        if weight >= 0.12:
            middle = (left + part / 2, top + 0.35 * _BAR_ROOM)
            axes.text(*middle, f"{100 * weight:.0f} %", ha="center", va="center", fontsize=8, color="white")
        left += part


def _legend(figure: Figure, spans: Sequence[int | str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color="none", label="share of each span:")]
    handles += [Patch(color=span_color(index), label=name) for index, name in enumerate(span_names(spans))]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
