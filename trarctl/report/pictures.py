"""What a model looked at: names and colors of its spans, thumbnails and overlays for pages, pictures by matplotlib.

Axes: S cells along one side of the grid, N = S * S, L layers, K spans, height and width of a drawing.
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
_INK = "#222222"
_SHADE = (16, 20, 26, 175)  # red, green, blue and opacity over a cell that nothing is taken from
_MOST_DRAWN = 1024  # pixels of the longer side, several times a panel's
_SAVE_HINT = "--save FILE.png in a folder that can be written"
LONGEST_SIDE = 320  # pixels of a thumbnail
_BAR_ROOM = 0.12  # below each picture, in lengths of its longer side
# Told apart by most color-blind readers; after Okabe and Ito (2008).
SPAN_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a800", "#777777")


def span_color(index: int) -> str:
    """Give the color of span number ``index`` in every picture."""
    return SPAN_COLORS[index % len(SPAN_COLORS)]


def span_names(spans: Sequence[int | str]) -> list[str]:
    """Name a model's spans: ``whole``, ``3x3``, or what the settings say; a number tells equal ones apart."""
    names = [_span_name(span) for span in spans]
    numbers = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [f"{name} ({n})" if names.count(name) > 1 else name for name, n in zip(names, numbers, strict=True)]


def _span_name(span: int | str) -> str:
    if isinstance(span, str):
        return span
    return "whole" if span == 0 else f"{2 * span + 1}x{2 * span + 1}"


def type_name(name: str) -> str:
    """Write a type of question or answer as people do: ``compare numbers``."""
    return name.replace("_", " ") or "none"


class Thumbnail(NamedTuple):
    """A small picture for a page, and width and height of the upright picture that it was made of, in pixels."""

    uri: str
    size: tuple[int, int]


def thumbnail(path: Path) -> Thumbnail:
    """Shrink an image file, upright as the model saw it, to a data URI; DataError if it cannot be read."""
    return thumbnail_of(read_image(path))


def thumbnail_of(image: Image) -> Thumbnail:
    """Shrink an upright RGB picture, in place, to a data URI."""
    size = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return Thumbnail(_data_uri(image, "PNG" if max(image.size) <= 96 else "JPEG"), size)


def overlay(attention: Sequence[float] | NDArray[np.floating], geometry: Geometry | None = None) -> str:
    """Make a data URI of the shade over a picture, clear where the most is looked at; arguments as for ``_shade``."""
    from PIL import Image

    image = Image.fromarray(_shade(attention, geometry), "RGBA")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.NEAREST)
    return _data_uri(image, "PNG")


def _shade(attention: Sequence[float] | NDArray[np.floating], geometry: Geometry | None = None) -> NDArray[np.uint8]:
    """Make a color over each place of a picture, the lighter the larger its cell's share.

    Args:
        attention: share of each cell, [N] in row-major order.
        geometry: where the cells lie on the picture; None: they cover it.

    Returns:
        Red, green, blue and opacity, [height, width, 4], to be stretched over the picture.
    """
    geometry = geometry or Geometry.whole(round(len(attention) ** 0.5))
    shares = geometry.on_picture(np.asarray(attention))
    pixels = np.empty((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _SHADE[:3]
    strength = shares / max(float(shares.max()), 1e-12)
    pixels[..., 3] = np.round(_SHADE[3] * (1 - strength)).astype(np.uint8)
    return pixels


def _data_uri(image: Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 80} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_of(asked: Prediction, image: Image, *, spans: Sequence[int | str]) -> Figure:
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
    likeliest = "\n".join(f"{_plain(name)}  {100 * share:.1f} %" for name, share in asked.answers[:3])
    _panel(panels[0], likeliest, picture, extent)
    shade = _shade(asked.answer_attention, asked.geometry)
    _panel(panels[1], "bright: what the\nanswer is read from", picture, extent, shade)
    for number, attention in enumerate(asked.layer_attention):
        panel = panels[2 + number]
        shade = _shade(attention, asked.geometry)
        _panel(panel, f"bright: what layer {number + 1} looks at", picture, extent, shade)
        _route_bar(panel, extent, asked.routes[number])
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
    axes: Any, title: str, picture: Any, extent: tuple[float, float], shade: NDArray[np.uint8] | None = None
) -> None:
    """The picture under a shade, with room below for a bar, so that all panels of a row line up."""
    width, height = extent
    axes.imshow(picture, extent=(0, width, height, 0))
    if shade is not None:
        axes.imshow(shade, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_ylim(height + _BAR_ROOM, 0)
    axes.set_title(title, fontsize=10, color=_INK)


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
