"""What a model looked at: names and colors of its spans, thumbnails and overlays for pages, pictures by matplotlib.

Axes: S cells along one side of the grid, N = S * S, L layers, K spans, G of them that differ on the grid, height and
width of a drawing.
"""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trarctl.data.features.reading import read_image, to_rgb
from trarctl.data.features.sizes import Geometry
from trarctl.errors import DataError, shortened
from trarctl.files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from trarctl.engine.predictor import Prediction

_MOST_COLUMNS = 4
_LEAST_SHARE = 0.001  # of an answer that is listed below the first
_INK = "#222222"
_OPACITY = 0.6  # of the colors over a picture
# From a cell that nothing is taken from to the one that the most is: viridis, by van der Walt and Smith (2015), which
# grows evenly lighter to every eye, color-blind ones included.
HEAT_COLORS = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)
_MOST_DRAWN = 1024  # pixels of the longer side, several times a panel's
_SAVE_HINT = "--save FILE.png in a folder that can be written"
LONGEST_SIDE = 320  # pixels of a thumbnail
_BAR_ROOM = 0.12  # below each picture, in lengths of its longer side
# Told apart by most color-blind readers; after Okabe and Ito (2008).
SPAN_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a800", "#777777")


def span_color(index: int) -> str:
    """Give the color of span number ``index`` in every picture."""
    return SPAN_COLORS[index % len(SPAN_COLORS)]


def _span_name(span: int | str) -> str:
    """Name a span: ``whole``, ``3x3``, or what the settings say."""
    if isinstance(span, str):
        return span
    return "whole" if span == 0 else f"{2 * span + 1}x{2 * span + 1}"


class ShownSpans:
    """A model's spans as people see them: those that hold the same cells of its grid are one.

    Attributes:
        names: of G groups of spans, each that of its first.
    """

    def __init__(self, spans: Sequence[int | str], grid_size: int) -> None:
        from trarctl.model.spans import coinciding  # loads torch, which other pages do without

        self._groups = coinciding(spans, grid_size)
        self.names = [_span_name(spans[group[0]]) for group in self._groups]

    def merged(self, shares: Any) -> NDArray[np.float64]:
        """Add up the shares of spans that are one: [..., K] to [..., G]."""
        shares = np.asarray(shares, dtype=np.float64)
        return np.stack([shares[..., group].sum(axis=-1) for group in self._groups], axis=-1)


def type_name(name: str) -> str:
    """Write a type of question or answer as people do: ``compare numbers``."""
    return name.replace("_", " ") or "none"


def worth_showing(answers: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """List answers with their probabilities, likeliest first, as people want them: no others below 0.1 %."""
    return [*answers[:1], *(one for one in answers[1:] if one[1] >= _LEAST_SHARE)]


class Thumbnail(NamedTuple):
    """A small picture for a page, and width and height of the upright picture that it was made of, in pixels."""

    uri: str
    size: tuple[int, int]


def thumbnail(path: Path) -> Thumbnail:
    """Shrink an image file, upright as the model saw it, to a data URI; DataError if it cannot be read."""
    image = read_image(path)
    size = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Thumbnail(_data_uri(image, "PNG" if max(image.size) <= 96 else "JPEG"), size)


def overlay(attention: Sequence[float] | NDArray[np.floating], geometry: Geometry | None = None) -> str:
    """Make a data URI of the colors over a picture, the lighter the more is looked at; arguments as for ``heat``."""
    from PIL import Image

    image = Image.fromarray(heat(attention, geometry), "RGBA")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.NEAREST)
    return _data_uri(image, "PNG")


def heat(attention: Sequence[float] | NDArray[np.floating], geometry: Geometry | None = None) -> NDArray[np.uint8]:
    """Make a color over each place of a picture: of ``HEAT_COLORS``, by its cell's share of the largest.

    Args:
        attention: share of each cell, [N] in row-major order.
        geometry: where the cells lie on the picture; None: they cover it.

    Returns:
        Red, green, blue and opacity, [height, width, 4], to be stretched over the picture.
    """
    geometry = geometry or Geometry.whole(round(len(attention) ** 0.5))
    shares = geometry.on_picture(np.asarray(attention))
    table = np.array([[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in HEAT_COLORS])
    place = shares / max(float(shares.max()), 1e-12) * (len(table) - 1)
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    for channel in range(3):
        pixels[..., channel] = np.round(np.interp(place, np.arange(len(table)), table[:, channel]))
    pixels[..., 3] = round(255 * _OPACITY)
    return pixels


def _data_uri(image: Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 80} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_of(asked: Prediction, image: Image, *, spans: ShownSpans) -> Figure:
    """Draw a question's answers, and the attention of each layer over the picture, which may be of any size."""
    figure_type, image = require_matplotlib(), to_rgb(image)
    image.thumbnail((_MOST_DRAWN, _MOST_DRAWN))
    extent = _extent(image)
    columns = min(2 + len(asked.layer_attention), _MOST_COLUMNS)
    rows = -(-(2 + len(asked.layer_attention)) // columns)
    size = (3.1 * columns, (3.1 * (extent[1] + _BAR_ROOM) + 0.9) * rows + 0.6)
    figure = figure_type(figsize=size, dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(_plain(shortened(asked.question, most=300)), fontsize=13, color=_INK, wrap=True)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    picture = np.asarray(image)
    likeliest = "\n".join(f"{_plain(name)}  {100 * share:.1f} %" for name, share in worth_showing(asked.answers[:3]))
    _panel(panels[0], likeliest, picture, extent)
    _panel(panels[1], "what the answer is read from", picture, extent, asked.answer_attention, asked.geometry)
    for number, attention in enumerate(asked.layer_attention):
        panel = panels[2 + number]
        _panel(panel, f"what layer {number + 1} looks at", picture, extent, attention, asked.geometry)
        _route_bar(panel, extent, spans.merged(asked.routes[number]).tolist())
    _scale(figure, panels)
    _legend(figure, spans)
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write a picture in the format that the file's name says, whole or not at all; DataError if that fails."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # of questions in other scripts than the font's
        figure.savefig(buffer, format=picture_format(path))
    write_output(path, buffer.getvalue(), _SAVE_HINT)


def picture_format(path: Path) -> str:
    """Give the format that a file's name says; DataError if matplotlib does not write it."""
    known = require_matplotlib()().canvas.get_supported_filetypes()
    name = path.suffix.removeprefix(".").lower()
    if name not in known:
        raise DataError(f"cannot write {path}: the format {name!r} is not one of {', '.join(known)}", _SAVE_HINT)
    return name


def require_matplotlib() -> type[Figure]:
    """Give matplotlib's figure; DataError if it is not installed."""
    # What it has to say about its caches is nothing to act on.
    logging.getLogger("matplotlib").addHandler(logging.NullHandler())
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise DataError("pictures need matplotlib, which is not installed", 'pip install "trarctl[report]"') from None
    return Figure


def _extent(image: Image) -> tuple[float, float]:
    """Width and height of the picture, its longer side 1."""
    longest = max(image.size)
    return (image.width / longest, image.height / longest)


def _panel(
    axes: Any,
    title: str,
    picture: Any,
    extent: tuple[float, float],
    attention: Sequence[float] | None = None,
    geometry: Geometry | None = None,
) -> None:
    """The picture below its attention, with room for a bar, so that all panels of a row line up."""
    width, height = extent
    axes.imshow(picture, extent=(0, width, height, 0))
    if attention is not None:
        axes.imshow(heat(attention, geometry), extent=(0, width, height, 0), interpolation="nearest")
        title = f"{title}\nat most {100 * max(attention):.0f} % on a cell"
    axes.set_ylim(height + _BAR_ROOM, 0)
    axes.set_title(title, fontsize=10, color=_INK)


def _scale(figure: Figure, panels: Sequence[Any]) -> None:
    """The colors and what they stand for, beside the panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    colors = ScalarMappable(cmap=LinearSegmentedColormap.from_list("attention", HEAT_COLORS))
    bar = figure.colorbar(colors, ax=list(panels), ticks=[0, 1], alpha=_OPACITY, shrink=0.6, aspect=30, pad=0.01)
    bar.ax.set_yticklabels(["0", "most"], fontsize=8, color=_INK)
    bar.set_label("share of a cell", fontsize=8, color=_INK)


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


def _legend(figure: Figure, spans: ShownSpans) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color="none", label="share of each span:")]
    handles += [Patch(color=span_color(index), label=name) for index, name in enumerate(spans.names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
