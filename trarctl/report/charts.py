"""Charts as inline SVG: they take the page's colors, light or dark, and print sharp.

Everything that is returned is markup: texts are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trarctl.report.pictures import span_color

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 50, 22, 10, 38

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One curve; ``color`` is any CSS color."""

    name: str
    x: Floats
    y: Floats
    color: str = "var(--accent)"
    has_dots: bool = False


@dataclass(frozen=True)
class _Frame:
    """Maps values to coordinates of the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)

    def points(self, x: Floats, y: Floats) -> str:
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        return " ".join(f"{self.x(one):.1f},{self.y(two):.1f}" for one, two in pairs)


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_from_zero: bool = True) -> str:
    """Draw curves over the same axis; values that are not finite are left out, no values are no chart."""
    kept = [_finite(line) for line in lines]
    kept = [line for line in kept if len(line.x)]
    if not kept:
        return ""
    highest, lowest = max(line.y.max() for line in kept), min(line.y.min() for line in kept)
    low = 0.0 if y_from_zero and lowest >= 0 else lowest
    high = highest + 0.05 * (highest - low) if highest > low else low + max(abs(low) * 0.1, 1e-12)
    frame = _Frame(0.0, max(line.x.max() for line in kept) or 1.0, low, high)
    body = [_axes(frame, x_label)]
    for line in kept:
        color, points = escape(line.color), frame.points(line.x, line.y)
        body.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.8" points="{points}"/>')
        if line.has_dots or len(line.x) == 1:
            body += [
                f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{color}">'
                f"<title>{escape(line.name)}: {y:.4g}</title></circle>"
                for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
            ]
    said: dict[float, list[str]] = {}
    for line in kept:
        for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True):
            said.setdefault(x, []).append(f"{line.name}: {y:.4g}")
    return _svg(title, [*body, *_strips(frame, x_label, said)])


def share_chart(title: str, x: Floats, shares: Floats, names: Sequence[str], *, x_label: str) -> str:
    """Draw shares [P, K] of K spans that sum to 1, stacked over positions ``x`` [P], at least two."""
    frame = _Frame(float(x.min()), float(x.max()) if x.max() > x.min() else float(x.min()) + 1, 0.0, 1.0)
    edges = np.concatenate([np.zeros((len(x), 1)), np.cumsum(shares, axis=1)], axis=1)
    body = []
    for index in range(len(names)):
        upper, lower = frame.points(x, edges[:, index + 1]), frame.points(x[::-1], edges[::-1, index])
        body.append(f'<polygon fill="{escape(span_color(index))}" points="{upper} {lower}"/>')
    said = {
        place: [f"{name}: {100 * share:.1f} %" for name, share in zip(names, row, strict=True)]
        for place, row in zip(x.tolist(), shares.tolist(), strict=True)
    }
    return _svg(title, [*body, _axes(frame, x_label, is_percent=True), *_strips(frame, x_label, said)])


def _strips(frame: _Frame, x_label: str, said: Mapping[float, Sequence[str]]) -> list[str]:
    """Lay a strip over each position, which says the values there to whoever points at it."""
    places = sorted(said)
    edges = [(one + two) / 2 for one, two in pairwise(places)]
    strips = []
    for place, left, right in zip(places, [frame.x_low, *edges], [*edges, frame.x_high], strict=True):
        start, width = frame.x(left), max(frame.x(right) - frame.x(left), 0.5)
        text = escape(", ".join([f"{x_label} {place:.4g}", *said[place]]))
        strips.append(
            f'<rect class="strip" x="{start:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}">'
            f"<title>{text}</title></rect>"
        )
    return strips


def calibration_chart(title: str, bins: Sequence[tuple[float, int, float]]) -> str:
    """Draw accuracy by confidence, beside the diagonal; ``bins`` are lower edge, number of questions and accuracy."""
    frame = _Frame(0.0, 1.0, 0.0, 1.0)
    most = max((count for _, count, _ in bins), default=1)
    width = frame.x(0.1) - frame.x(0.0) - 2
    body = [
        f'<rect x="{frame.x(low) + 1:.1f}" y="{frame.y(accuracy):.1f}" width="{width:.1f}"'
        f' height="{frame.y(0) - frame.y(accuracy):.1f}" fill="var(--accent)"'
        f' opacity="{0.35 + 0.65 * math.sqrt(count / most):.2f}">'
        f"<title>{count:,} questions, {100 * accuracy:.1f} % right</title></rect>"
        for low, count, accuracy in bins
    ]
    ends = f'x1="{frame.x(0):.1f}" y1="{frame.y(0):.1f}" x2="{frame.x(1):.1f}" y2="{frame.y(1):.1f}"'
    body.append(f'<line {ends} class="diagonal"/>')
    body.append(_axes(frame, "probability of the answer given", is_percent=True, x_is_percent=True))
    return _svg(title, body)


def _finite(line: Line) -> Line:
    is_finite = np.isfinite(line.y)
    return replace(line, x=line.x[is_finite], y=line.y[is_finite])


def _ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(frame: _Frame, x_label: str, *, is_percent: bool = False, x_is_percent: bool = False) -> str:
    def label(value: float, is_share: bool) -> str:
        return f"{100 * value:.0f} %" if is_share else f"{value:.4g}"

    parts = []
    for value in _ticks(frame.y_low, frame.y_high, 4):
        y, text = frame.y(value), label(value, is_percent)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    below = HEIGHT - BOTTOM + 16
    for value in _ticks(frame.x_low, frame.x_high, 6):
        text = label(value, x_is_percent)
        parts.append(f'<text x="{frame.x(value):.1f}" y="{below}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _svg(title: str, body: Sequence[str]) -> str:
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return "".join([opening, *body, "</svg>"])
