from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from trarctl.report.charts import HEIGHT, WIDTH, Line, calibration_chart, line_chart, share_chart
from trarctl.report.pictures import span_color


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_a_curve_starts_and_ends_where_it_should() -> None:
    chart = line_chart("loss", [Line("loss", np.array([0.0, 1.0, 2.0]), np.array([4.0, 2.0, 0.0]))], x_label="epoch")
    root = ElementTree.fromstring(chart)  # noqa: S314 - our own text
    (curve,) = root.findall("polyline")
    x, y = numbers(curve.attrib["points"])[::2], numbers(curve.attrib["points"])[1::2]
    assert x == sorted(x)
    assert y == sorted(y)
    assert min(x + y) > 0
    assert max(x) < WIDTH
    assert max(y) < HEIGHT
    assert root.attrib["aria-label"] == "loss"


def test_names_in_charts_stay_text() -> None:
    chart = line_chart('"><script>', [Line("<b>", np.array([1.0]), np.array([1.0]))], x_label="<i>")
    root = ElementTree.fromstring(chart)  # noqa: S314 - our own text
    assert root.attrib["aria-label"] == '"><script>'
    assert [title.text for title in root.iter("title")] == ["<b>: 1", "<i> 1, <b>: 1"]


def test_each_position_says_the_values_of_all_curves_there() -> None:
    lines = [
        Line("color", np.array([1.0, 2.0, 4.0]), np.array([10.0, 20.0, 30.0])),
        Line("shape", np.array([1.0, 2.0]), np.array([5.0, float("nan")])),
    ]
    root = ElementTree.fromstring(line_chart("accuracy", lines, x_label="epoch"))  # noqa: S314 - our own text
    strips = [one for one in root.findall("rect") if one.attrib["class"] == "strip"]
    assert [one[0].text for one in strips] == [
        "epoch 1, color: 10, shape: 5",
        "epoch 2, color: 20",
        "epoch 4, color: 30",
    ]
    ends = [(float(one.attrib["x"]), float(one.attrib["x"]) + float(one.attrib["width"])) for one in strips]
    assert [ends[0][1], ends[1][1]] == pytest.approx([ends[1][0], ends[2][0]], abs=0.11)


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_nothing_to_draw_is_no_chart(values: list[float]) -> None:
    points = np.array(values, dtype=np.float64)
    assert line_chart("loss", [Line("loss", points, points)], x_label="epoch") == ""


@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 5e9])
def test_a_constant_has_a_chart(value: float) -> None:
    line = Line("rate", np.array([1.0, 2.0]), np.array([value, value]))
    chart = ElementTree.fromstring(line_chart("rate", [line], x_label="epoch"))  # noqa: S314 - our own text
    assert "nan" not in ElementTree.tostring(chart, encoding="unicode").lower()


def test_shares_fill_the_whole_height() -> None:
    shares = np.array([[0.25, 0.75], [0.5, 0.5]])
    chart = share_chart("routes", np.array([0.0, 1.0]), shares, ["whole", "3x3"], x_label="epoch")
    first, second = ElementTree.fromstring(chart).findall("polygon")  # noqa: S314 - our own text
    bottom, top = numbers(first.attrib["points"])[-1], numbers(second.attrib["points"])[1]
    assert numbers(first.attrib["points"])[1] == pytest.approx(bottom - 0.25 * (bottom - top), abs=0.11)
    assert second.attrib["fill"] == span_color(1)
    titles = [title.text for title in ElementTree.fromstring(chart).iter("title")]  # noqa: S314 - as above
    assert titles == ["epoch 0, whole: 25.0 %, 3x3: 75.0 %", "epoch 1, whole: 50.0 %, 3x3: 50.0 %"]


def test_calibration_says_how_many_and_how_good() -> None:
    chart = calibration_chart("calibration", [(0.9, 1234, 0.5)])
    assert "<title>1,234 questions, 50.0 % right</title>" in chart
