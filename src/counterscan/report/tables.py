"""One table for the terminal, the page and the README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from counterscan.metrics.intervals import Interval

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | int | float | Interval | None


@dataclass(frozen=True)
class Table:
    """Methods as rows, figures as columns.

    Attributes:
        title: what the table is.
        columns: headings, the first that of the row names.
        rows: one cell per column; None prints as a dash.
        note: protocol in a sentence: images, patients, seeds, thresholds.
        better: whether "high" or "low" is better, per column; the best of such a column is set in bold.
        own: name of the row that is ours, set apart.
        chart: column drawn as dots with intervals beside the table.
        digits: decimals of floats and intervals.

    Raises:
        ValueError: a row has another length than the headings.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    better: Mapping[str, Literal["high", "low"]] = field(default_factory=dict)
    own: str | None = None
    chart: str | None = None
    digits: int = 2

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(self.columns)} columns but a row of {len(row)}: {row!r}")

    def text(self, cell: Cell) -> str:
        """A cell as people read it."""
        if isinstance(cell, (float, Interval)):
            value = cell if isinstance(cell, Interval) else Interval(cell, math.nan, math.nan)
            return format(value, f".{self.digits}f")
        return "–" if cell is None else str(cell)

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the best cells, by the figures as printed, so that equal prints are equally bold."""
        found: set[tuple[int, int]] = set()
        for name, direction in self.better.items():
            column = list(self.columns).index(name)
            figures = {r: number(row[column]) for r, row in enumerate(self.rows)}
            values = {r: round(v, self.digits) for r, v in figures.items() if v is not None}
            if values:
                target = max(values.values()) if direction == "high" else min(values.values())
                found |= {(r, column) for r, v in values.items() if v == target}
        return found

    def to_markdown(self) -> str:
        """A GitHub table, best cells bold, the note beneath."""
        best = self.best()
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        for r, row in enumerate(self.rows):
            cells = [f"**{self.text(c)}**" if (r, i) in best else self.text(c) for i, c in enumerate(row)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else [])])

    def to_rich(self) -> RichTable:
        """For ``rich.console.Console().print``."""
        from rich.table import Table as RichTable
        from rich.text import Text

        best = self.best()
        table = RichTable(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for i, name in enumerate(self.columns):
            # In a narrow terminal figures are cut before the names of the systems are.
            narrowest = min(22, max(map(len, (name, *(str(row[0]) for row in self.rows))))) if i == 0 else None
            table.add_column(Text(name), justify="left" if i == 0 else "right", no_wrap=i > 0, min_width=narrowest)
        for r, row in enumerate(self.rows):
            style = "cyan" if row[0] == self.own else ""
            cells = [Text(self.text(c), style="bold" if (r, i) in best else "") for i, c in enumerate(row)]
            table.add_row(*cells, style=style)
        return table


def number(cell: Cell) -> float | None:
    """The figure in a cell, or None when there is none."""
    value = cell.value if isinstance(cell, Interval) else cell
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
