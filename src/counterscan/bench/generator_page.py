"""What a generator adds to the page of its samples' quality card: tables, charts and sheets of images."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from counterscan.png import png
from counterscan.report.charts import line_chart
from counterscan.report.page import table_html
from counterscan.report.tables import Table

Charts = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
STYLE = ".sheet{max-width:none;margin:0 0 .9rem;overflow-x:auto}.sheet img{display:block}"
_FACTS = {"Synthetic": "true", "Description": "Synthetic images"}


def tables_and_charts(tables: Sequence[Table], charts: Charts | None = None) -> str:
    """Their HTML."""
    drawn = "".join(line_chart(name, series) for name, series in (charts or {}).items())
    return "".join(map(table_html, tables)) + (f'<div class="charts">{drawn}</div>' if drawn else "")


def sheet(name: str, words: str, picture: np.ndarray) -> str:
    """A heading, a sentence and a picture (H, W) of synthetic images, marked as such."""
    data = base64.b64encode(png(picture, _FACTS)).decode("ascii")
    height, width = picture.shape[:2]
    return (
        f'<h3>{html.escape(name)}</h3><p class="note">{html.escape(words)}</p><figure class="sheet"><div class="frame">'
        f'<img alt="{html.escape(name)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        '<b class="badge">synthetic</b></div></figure>'
    )
