"""One self-contained HTML page per run: figures with intervals, cases by rank, curves, settings, limits."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import counterscan
from counterscan.files import write_text
from counterscan.png import DISCLAIMER, png
from counterscan.report import pictures
from counterscan.report.cases import Case
from counterscan.report.charts import interval_chart, line_chart, series_from_lines
from counterscan.report.style import CSS
from counterscan.report.tables import Cell, Table

SIDE = 320  # pixels of a picture's longer side in the page
_STRIPS = ".strip{max-width:none;margin:0 0 .8rem;overflow-x:auto}.strip img{display:block;border-radius:.35rem}"


def write_report(
    path: str | Path,
    *,
    title: str,
    intro: str = "",
    summary: Sequence[tuple[str, Cell]] = (),
    tables: Sequence[Table] = (),
    cases: Sequence[Case] = (),
    selection: str = "",
    curves: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    limits: Sequence[str] = (),
    sections: Mapping[str, tuple[str, str]] | None = None,
    style: str = "",
) -> Path:
    """Write the page, atomically. It loads nothing from anywhere; all text is escaped.

    Args:
        path: the HTML file.
        title: of the page.
        intro: what was run on what, in a sentence or two.
        summary: the few figures that matter, shown large: (name, figure).
        tables: methods as rows.
        cases: rows of pictures, shown under their groups' headings in the order given. Labels must be pseudonyms.
        selection: how the cases were chosen (``Picks.rule``).
        curves: lines of metrics.jsonl.
        settings: plain values, mappings or dataclasses; nested ones are flattened with dots.
        limits: what the figures do not show, one sentence each.
        sections: further ones, shown before the limits: heading to (anchor, HTML). Their text must be escaped; those
            without a body are left out.
        style: CSS for them.

    Returns:
        ``path``.

    Raises:
        InputError: the file cannot be written.
    """
    parts = [
        ("Results", "results", _summary(summary) + "".join(table_html(table) for table in tables)),
        ("Cases", "cases", _cases(cases, selection) if cases else ""),
        ("Learning curves", "curves", _curves(curves)),
        *((name, anchor, body) for name, (anchor, body) in (sections or {}).items()),
        ("Limits", "limits", _list(limits)),
        ("Settings", "settings", _settings(settings or {})),
    ]
    shown = [(name, anchor, body) for name, anchor, body in parts if body]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor, _ in shown)
    bodies = "".join(f'<section id="{anchor}"><h2>{name}</h2>{body}</section>' for name, anchor, body in shown)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    write_text(
        path,
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_safe(title)}</title><style>{CSS}{_strips(cases)}{style}</style></head><body>"
        f'<p class="banner">{DISCLAIMER}</p>'
        f"<header><h1>{_safe(title)}</h1>{_paragraph(intro, 'intro')}<nav>{links}</nav></header>"
        f"<main>{bodies}</main>"
        f"<footer>counterscan {counterscan.__version__} · {DISCLAIMER} "
        "Healthy counterparts are synthetic images.</footer></body></html>\n",
    )
    return Path(path)


def _safe(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{_safe(text)}</p>' if text else ""


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_safe(item)}</li>' for item in items)}</ul>" if items else ""


def _summary(summary: Sequence[tuple[str, Cell]]) -> str:
    if not summary:
        return ""
    formatter = Table("", ("",), ())
    tiles = []
    for name, cell in summary:
        figure, _, rest = formatter.text(cell).partition(" [")
        spread = f"<small>[{_safe(rest)}</small>" if rest else ""
        tiles.append(f"<div><dt>{_safe(name)}</dt><dd>{_safe(figure)}{spread}</dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def table_html(table: Table) -> str:
    """A heading, the table, its note and its chart."""
    best = table.best()
    arrows = {"high": " ↑", "low": " ↓"}
    heads = "".join(
        f'<th scope="col">{_safe(name)}{arrows.get(table.better.get(name, ""), "")}</th>' for name in table.columns
    )
    rows = []
    for r, row in enumerate(table.rows):
        kind = ' class="own"' if table.own is not None and row[0] == table.own else ""
        cells = "".join(
            f"<td{' class=best' if (r, i) in best else ''}>{_figure(table.text(cell))}</td>"
            for i, cell in enumerate(row)
            if i
        )
        rows.append(f'<tr{kind}><th scope="row">{_safe(table.text(row[0]))}</th>{cells}</tr>')
    chart = interval_chart(table) if table.chart else ""
    return (
        f'<h3>{_safe(table.title)}</h3><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_paragraph(table.note, 'note')}{chart}"
    )


def _figure(text: str) -> str:
    value, bracket, rest = text.partition(" [")
    return f"{_safe(value)} <span>[{_safe(rest)}</span>" if bracket else _safe(text)


def _cases(cases: Sequence[Case], selection: str) -> str:
    answers = [answer for case in cases for answer in (case.counterpart, *case.others)]
    systems = dict.fromkeys(answer.made_by.system for answer in answers)
    scales = {s: pictures.colour_scale([a.evidence for a in answers if a.made_by.system == s]) for s in systems}
    parts = [_paragraph(selection, "note"), _legend(cases, scales)]
    for group, members in groupby(cases, key=lambda case: case.group):
        parts.append(f"<h3>{_safe(group)}</h3>")
        parts.extend(_case(case, scales) for case in members)
    return "".join(parts)


def _strips(cases: Sequence[Case]) -> str:
    return _STRIPS if any(case.strip is not None for case in cases) else ""


def _strip(case: Case) -> str:
    """At its own size, so that its lettering stays legible; narrow windows scroll it."""
    if case.strip is None:
        return ""
    height, width = case.strip.shape[:2]
    data = base64.b64encode(png(case.strip, pictures.synthetic_facts(case.counterpart))).decode("ascii")
    alt = _safe(f"{case.label}, way from the image to its counterpart")
    return (
        f'<figure class="strip"><img alt="{alt}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _legend(cases: Sequence[Case], scales: Mapping[str, float]) -> str:
    own = [case.counterpart for case in cases if case.counterpart.counterpart is not None]
    signed = ""
    if own:
        full = scales[own[0].made_by.system]
        signed = (
            '<span><i class="ramp"></i>blue: the finding darkened the body; orange to red: it brightened it; '
            f"full colour where |M| ≥ {full:.2g} (the grey range is 2)</span>"
        )
    return (
        f'<p class="legend">{signed}<span><i class="solid"></i>predicted mask</span>'
        '<span><i class="dash"></i>true mask</span>'
        "<span>Each method has one colour scale for all cases; "
        "maps without a counterpart have no sign and no unit.</span></p>"
    )


def _case(case: Case, scales: Mapping[str, float]) -> str:
    answer = case.counterpart
    tiles = [_tile("Original", pictures.grey(answer.image), f"{case.label}, original image")]
    if answer.counterpart is not None:
        verb = "With" if answer.query.direction == "add" else "Without"
        tiles.append(
            _tile(
                f"{verb} {answer.query.finding}",
                pictures.grey(answer.counterpart),
                f"{case.label}, synthetic counterpart",
                facts=pictures.synthetic_facts(answer),
            )
        )
    for shown in (answer, *case.others):
        laid = pictures.overlay(answer.image, pictures.signed_map(shown), scales[shown.made_by.system])
        tiles.append(_tile(f"Map: {shown.made_by.system}", laid, f"{case.label}, map of {shown.made_by.system}"))
        if shown is answer and (answer.mask is not None or case.truth is not None):
            tiles.append(_outlines(case))
    scores = [
        f"{n} {s:.2f}" for n, s in (("score", answer.score_before), ("after", answer.score_after)) if s is not None
    ]
    verdict = f"<em>{_safe(answer.verdict)}</em>" if answer.verdict != "ok" else ""
    words = " · ".join([answer.query.finding, *scores, *([case.caption] if case.caption else [])])
    return (
        f'<article><p class="caption"><b>{_safe(case.label)}</b><span>{_safe(words)}</span>{verdict}</p>'
        f'{_strip(case)}<div class="tiles-row">{"".join(tiles)}</div></article>'
    )


def _outlines(case: Case) -> str:
    picture: np.ndarray = pictures.resized(pictures.grey(case.counterpart.image), SIDE)
    names = []
    lines: list[tuple[str, Tensor | None, tuple[int, int, int], bool]] = [
        ("mask", case.counterpart.mask, pictures.MASK_COLOUR, False),
        ("truth", case.truth, pictures.TRUTH_COLOUR, True),
    ]
    for name, mask, colour, dashed in lines:
        if mask is not None:
            picture = pictures.outline(picture, mask, colour, dashed=dashed)
            names.append(name if bool(mask.any()) else f"{name} (empty)")
    return _tile(" and ".join(names).capitalize(), picture, f"{case.label}, {' and '.join(names)}")


def _tile(caption: str, picture: np.ndarray, alt: str, facts: Mapping[str, str] | None = None) -> str:
    shown = pictures.resized(picture, SIDE)
    data = base64.b64encode(png(shown, facts)).decode("ascii")
    badge = '<b class="badge">synthetic</b>' if facts and facts.get("Synthetic") == "true" else ""
    height, width = shown.shape[:2]
    return (
        f'<figure><div class="frame"><img alt="{_safe(alt)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">{badge}</div><figcaption>{_safe(caption)}</figcaption></figure>'
    )


def _curves(lines: Sequence[Mapping[str, Any]]) -> str:
    charts = "".join(line_chart(name, series) for name, series in series_from_lines(lines).items())
    return f'<div class="charts">{charts}</div>' if charts else ""


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{_safe(key)}</code></th><td>{_safe(value)}</td></tr>'
        for key, value in _flat(settings)
    )
    return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>' if rows else ""


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        return [pair for key, item in items for pair in _flat(item, key)]
    return [(prefix, value)]
