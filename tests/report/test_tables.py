from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from counterscan.metrics.intervals import Interval
from counterscan.report.tables import Table


@pytest.fixture
def table():
    rows = [
        ["TagGAN", Interval(0.781, 0.75, 0.81), 0.1, 3],
        ["Grad-CAM", Interval(0.404, 0.3, 0.5), 0.2, 5],
        ["Twin|peer", Interval(0.779, 0.7, 0.8), math.nan, None],
    ]
    better = {"AP": "high", "Area": "low"}
    return Table("T", ["Method", "AP", "Area", "n"], rows, note="Note.", better=better, own="TagGAN")


def test_equal_prints_are_equally_bold(table):
    assert table.best() == {(0, 1), (2, 1), (0, 2)}


def test_markdown(table):
    assert table.to_markdown().splitlines() == [
        "| Method | AP | Area | n |",
        "|---|---|---|---|",
        "| TagGAN | **0.78 [0.75, 0.81]** | **0.10** | 3 |",
        "| Grad-CAM | 0.40 [0.30, 0.50] | 0.20 | 5 |",
        "| Twin\\|peer | **0.78 [0.70, 0.80]** | n/a | – |",
        "",
        "Note.",
    ]


def test_terminal_shows_brackets_as_they_are(table):
    out = io.StringIO()
    Console(file=out, width=120).print(table.to_rich())
    assert "0.78 [0.75, 0.81]" in out.getvalue()
    assert "Note." in out.getvalue()


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("T", ["a", "b"], [["x"]])
