"""What things are called in pictures and tables for people."""

from __future__ import annotations

from collections.abc import Sequence

# Told apart by most color-blind readers; after Okabe and Ito (2008).
SPAN_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a800", "#777777")


def span_color(index: int) -> str:
    """The color of span number ``index`` in every picture."""
    return SPAN_COLOURS[index % len(SPAN_COLOURS)]


def span_name(order: int | str) -> str:
    """A span in words: ``whole`` for the whole picture, its window, such as ``3x3``, or its shape as set."""
    if isinstance(order, str):
        return order
    return "whole" if order == 0 else f"{2 * order + 1}x{2 * order + 1}"


def span_names(orders: Sequence[int | str]) -> list[str]:
    """The names of a model's spans, in their order; a number tells equal ones apart."""
    names = [span_name(order) for order in orders]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def type_name(name: str) -> str:
    """A type of question or answer as people write it: ``compare numbers``."""
    return name.replace("_", " ") or "none"
