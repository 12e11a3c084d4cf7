"""What a generator adds to the page of its samples' quality card: tables, charts and sheets of images."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from counterscan.files import write_text
from counterscan.report.charts import line_chart
from counterscan.report.page import table_html
from counterscan.report.pictures import png
from counterscan.report.tables import Table

Charts = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
_STYLE = "<style>.sheet{max-width:none;margin:0 0 .9rem;overflow-x:auto}.sheet img{display:block}</style>"
_FACTS = {"Synthetic": "true", "Description": "Synthetic images"}
_LINKS, _LIMITS, _HEAD = '<a href="#limits">', '<section id="limits"><h2>Limits</h2><ul>', "</head>"


def extend_page(path: Path, sections: Mapping[str, str], notes: Sequence[str]) -> None:
    """Put sections, name to body, before the limits of a page by ``report.page``, and notes first among these.

    Sections without a body are left out.

    Raises:
        ValueError: the page has no limits.
    """
    page = path.read_text(encoding="utf-8")
    shown = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in shown)
    bodies = "".join(f'<section id="{name.lower()}"><h2>{name}</h2>{body}</section>' for name, body in shown.items())
    told = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    for mark, text in ((_LINKS, links + _LINKS), (_LIMITS, bodies + _LIMITS + told), (_HEAD, _STYLE + _HEAD)):
        if mark not in page:
            raise ValueError(f"the page has no {mark}")
        page = page.replace(mark, text, 1)
    write_text(path, page)


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
