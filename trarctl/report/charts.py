"""Charts as inline SVG: they take the page's colors, light or dark, and print sharp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

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
    """Maps values to places in the drawing."""

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


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_from_zero: bool = True) -> Markup:
    """Curves over the same axis; values that are not finite are left out."""
    kept = [_finite(line) for line in lines]
    kept = [line for line in kept if len(line.x)]
    if not kept:
        return Markup("")
    highest, lowest = max(line.y.max() for line in kept), min(line.y.min() for line in kept)
    low = 0.0 if y_from_zero and lowest >= 0 else lowest
    frame = _Frame(0.0, max(line.x.max() for line in kept) or 1.0, *_room(low, highest))
    body = [_axes(frame, x_label)]
    for line in kept:
        body.append(
            Markup('<polyline fill="none" stroke="{}" stroke-width="1.8" points="{}"/>').format(
                line.color, frame.points(line.x, line.y)
            )
        )
        if line.has_dots or len(line.x) == 1:
            body += [
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"><title>{}: {:.4g}</title></circle>').format(
                    frame.x(x), frame.y(y), line.color, line.name, y
                )
                for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
            ]
    return _svg(title, body)


def share_chart(title: str, x: Floats, shares: Floats, colors: Sequence[str], *, x_label: str) -> Markup:
    """Shares that sum to 1, stacked over an axis.

    Args:
        title: what the chart shows.
        x: places, [P], at least two.
        shares: [P, K].
        colors: one for each of the K.
        x_label: below the axis.
    """
    frame = _Frame(float(x.min()), float(x.max()) if x.max() > x.min() else float(x.min()) + 1, 0.0, 1.0)
    edges = np.concatenate([np.zeros((len(x), 1)), np.cumsum(shares, axis=1)], axis=1)
    body = []
    for index, color in enumerate(colors):
        upper, lower = frame.points(x, edges[:, index + 1]), frame.points(x[::-1], edges[::-1, index])
        body.append(Markup('<polygon fill="{}" points="{} {}"/>').format(color, upper, lower))
    return _svg(title, [*body, _axes(frame, x_label, is_percent=True)])


def calibration_chart(title: str, bins: Sequence[tuple[float, int, float]]) -> Markup:
    """Accuracy by confidence, in tenths, beside the diagonal of a perfectly calibrated model.

    Args:
        title: what the chart shows.
        bins: lower edge, number of questions and accuracy of each.
    """
    frame = _Frame(0.0, 1.0, 0.0, 1.0)
    most = max((count for _, count, _ in bins), default=1)
    body = []
    for low, count, accuracy in bins:
        left, width = frame.x(low), frame.x(0.1) - frame.x(0.0) - 2
        opacity = 0.35 + 0.65 * math.sqrt(count / most)
        body.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="var(--accent)" opacity="{:.2f}">'
                "<title>{:,} questions, {:.1f} % right</title></rect>"
            ).format(left + 1, frame.y(accuracy), width, frame.y(0) - frame.y(accuracy), opacity, count, 100 * accuracy)
        )
    body.append(
        Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="diagonal"/>').format(
            frame.x(0), frame.y(0), frame.x(1), frame.y(1)
        )
    )
    body.append(_axes(frame, "probability of the answer given", is_percent=True, x_is_percent=True))
    return _svg(title, body)


def _finite(line: Line) -> Line:
    is_finite = np.isfinite(line.y)
    return Line(line.name, line.x[is_finite], line.y[is_finite], line.color, line.has_dots)


def _room(low: float, high: float) -> tuple[float, float]:
    return low, high + 0.05 * (high - low) if high > low else low + max(abs(low) * 0.1, 1e-12)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round values within a range, about ``count`` of them."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _label(value: float, *, is_percent: bool) -> str:
    return f"{100 * value:.0f} %" if is_percent else f"{value:.4g}"


def _axes(frame: _Frame, x_label: str, *, is_percent: bool = False, x_is_percent: bool = False) -> Markup:
    parts = []
    for value in _ticks(frame.y_low, frame.y_high, 4):
        y = frame.y(value)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 6, y + 4, _label(value, is_percent=is_percent)
            )
        )
    for value in _ticks(frame.x_low, frame.x_high, 6):
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                frame.x(value), HEIGHT - BOTTOM + 16, _label(value, is_percent=x_is_percent)
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 6, x_label))
    return Markup("").join(parts)


def _svg(title: str, body: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, escape(title))
    return Markup("").join([opening, *body, Markup("</svg>")])
