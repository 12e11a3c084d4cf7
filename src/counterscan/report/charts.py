"""Inline SVG: learning curves and dots with intervals. Colours come from the page, so that light and dark both read."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterscan.metrics.intervals import Interval
from counterscan.report.tables import Table, number

SPLITS = ("train", "val", "validation", "valid", "test")
LEFT_OUT = ("step", "images_per_second")
POINTS = 300


def series_from_lines(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Group the lines of a metrics.jsonl into charts.

    "train/loss" and "val/loss" share the chart "loss"; every other name has its own. Missing and non-finite values are
    skipped.

    Args:
        lines: dicts with "step", as ``counterscan.training.logging.read_metrics`` gives them.

    Returns:
        {chart: {series: [(step, value), ...]}} in order of first appearance.
    """
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in LEFT_OUT or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            head, _, tail = name.partition("/")
            chart, series = (tail, head) if head in SPLITS and tail else (name, "")
            charts.setdefault(chart, {}).setdefault(series, []).append((float(line["step"]), float(value)))
    return charts


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One small chart with its range on the axes and each line's last value beside its name."""
    width, height, left, right, top, bottom = 320, 170, 46, 10, 28, 22
    thinned = {name: _thinned(points) for name, points in series.items() if points}
    xs = [x for points in thinned.values() for x, _ in points]
    ys = [y for points in thinned.values() for _, y in points]
    if not xs:
        return ""
    (x0, x1), (y0, y1) = _span(xs), _span(ys)

    def place(point: tuple[float, float]) -> str:
        x = left + (point[0] - x0) / (x1 - x0) * (width - left - right)
        y = height - bottom - (point[1] - y0) / (y1 - y0) * (height - top - bottom)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{_safe(title)}">',
        f'<text class="name" x="{left}" y="14">{_safe(title)}</text>',
        f'<path class="axis" d="M{left} {top}V{height - bottom}H{width - right}"/>',
    ]
    for value, y in ((y1, top + 4), (y0, height - bottom)):
        parts.append(f'<text class="tick" x="{left - 5}" y="{y}" text-anchor="end">{_short(value)}</text>')
    for value, x, anchor in ((min(xs), left, "start"), (max(xs), width - right, "end")):
        parts.append(f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="{anchor}">{_short(value)}</text>')
    last = []
    for i, (name, points) in enumerate(thinned.items()):
        if len(points) == 1:
            across, down = place(points[0]).split(",")
            parts.append(f'<circle class="dot s{i % 4}" cx="{across}" cy="{down}" r="2.5"/>')
        parts.append(f'<polyline class="line s{i % 4}" points="{" ".join(place(p) for p in points)}"/>')
        last.append(f'<tspan class="s{i % 4}">{_safe(name)} {_short(series[name][-1][1])}</tspan>')
    parts.append(f'<text class="last" x="{width - right}" y="14" text-anchor="end">{" ".join(last)}</text>')
    return "".join([*parts, "</svg>"])


def interval_chart(table: Table) -> str:
    """The table's ``chart`` column as a dot with its interval per row, on one axis."""
    column = list(table.columns).index(table.chart or "")
    rows = [(str(row[0]), row[column]) for row in table.rows if number(row[column]) is not None]
    if not rows:
        return ""
    ticks = round_ticks([0.0, *(x for _, cell in rows for x in _ends(cell))])
    low, high, names, width, step, top = ticks[0], ticks[-1], 170, 560, 24, 24
    height = top + step * len(rows) + 20

    def place(value: float) -> float:
        return names + (value - low) / (high - low) * (width - names - 20)

    parts = [
        f'<svg class="chart wide" viewBox="0 0 {width} {height}" role="img" aria-label="{_safe(table.chart or "")}">',
        f'<text class="name" x="{names}" y="14">{_safe(table.chart or "")}</text>',
    ]
    for value in ticks:
        parts.append(f'<path class="grid" d="M{place(value):.1f} {top}V{height - 18}"/>')
        parts.append(
            f'<text class="tick" x="{place(value):.1f}" y="{height - 4}" text-anchor="middle">{value:g}</text>'
        )
    for i, (name, cell) in enumerate(rows):
        y, own = top + step * (i + 0.5), " own" if name == table.own else ""
        ends = _ends(cell)
        parts.append(f'<text class="row{own}" x="{names - 10}" y="{y + 4:.1f}" text-anchor="end">{_safe(name)}</text>')
        parts.append(f'<path class="whisker{own}" d="M{place(ends[0]):.1f} {y:.1f}H{place(ends[-1]):.1f}"/>')
        parts.append(f'<circle class="point{own}" cx="{place(number(cell) or 0.0):.1f}" cy="{y:.1f}" r="4.5"/>')
    return "".join([*parts, "</svg>"])


def _ends(cell: Any) -> list[float]:
    values = [cell.low, cell.value, cell.high] if isinstance(cell, Interval) else [float(cell)]
    return [v for v in values if math.isfinite(v)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal runs of points when there are more than a chart can show."""
    run = math.ceil(len(points) / POINTS)
    parts = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def round_ticks(values: Sequence[float]) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose the values in four to ten steps."""
    low, high = _span(values)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 4 * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(value: float) -> str:
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
