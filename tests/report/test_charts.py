from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from counterscan.metrics.intervals import Interval
from counterscan.report.charts import interval_chart, line_chart, round_ticks, series_from_lines
from counterscan.report.tables import Table


def test_lines_become_charts():
    lines = [
        {"step": 1, "train/loss": 2.0, "loss/critic": 1.0, "images_per_second": 9.0},
        {"step": 2, "train/loss": 1.0, "val/loss": 3.0, "loss/critic": None, "note": "x", "bad": float("nan")},
    ]
    assert series_from_lines(lines) == {
        "loss": {"train": [(1, 2), (2, 1)], "val": [(2, 3)]},
        "loss/critic": {"": [(1, 1)]},
    }


def test_line_chart_is_sound_and_thinned():
    svg = line_chart("a<b", {"train": [(i, i % 7) for i in range(5000)], "val": [(5, 1.0)]})
    root = ET.fromstring(svg)
    lines = root.findall("polyline")
    assert 100 < len(lines[0].get("points").split()) <= 300
    assert root.find("text").text == "a<b"
    assert root.find("circle") is not None  # one point is no line
    for point in lines[0].get("points").split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 320
        assert 0 <= y <= 170
    assert line_chart("flat", {"": [(0, 1.0), (1, 1.0)]})
    assert line_chart("none", {"": []}) == ""


def test_interval_chart():
    rows = [["Ours & co", Interval(0.8, 0.7, 0.9)], ["Peer", 0.3], ["None", None]]
    svg = interval_chart(Table("T", ["Method", "AP"], rows, own="Ours & co", chart="AP"))
    root = ET.fromstring(svg)
    assert [c.get("class") for c in root.findall("circle")] == ["point own", "point"]
    assert interval_chart(Table("T", ["Method", "AP"], [["x", None]], chart="AP")) == ""


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 0.77], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        ([0, 1], [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([-0.03, 0.12], [-0.04, -0.02, 0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12]),
    ],
)
def test_ticks_are_round(values, ticks):
    assert round_ticks(values) == pytest.approx(ticks)
