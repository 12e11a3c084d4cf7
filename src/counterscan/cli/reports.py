"""``counterscan augment reports``: label a table of reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from counterscan.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from counterscan.text import Extraction, Extractor


@dataclass
class Reports:
    """Label a table's reports by rules: 14 CheXpert observations, with findings and text views on request."""

    table: tyro.conf.Positional[Path]
    """CSV or Parquet with a column of reports; a study table or any other."""
    out: Path | None = None
    """The table with one column per observation: 1 present, 0 absent, -1 uncertain, blank unmentioned."""
    text_column: tuple[str, ...] = ("report",)
    """The column of the text; several, as in --text-column findings impression, are the sections of those names."""
    rules: tuple[Path, ...] = ()
    """YAML files with further rules of your own."""
    explain: int | None = None
    """Print how this row was read, and write nothing; the header is row 1, the first report row 2."""
    replace: bool = False
    """Replace label columns that the table has already."""
    view: tuple[str, ...] = ()
    """Add text views as columns view:<name>: impression, findings, summary, rules-v1, rules-v2, shuffled, inverted."""
    json: Path | None = field(default=None)
    """Also write every finding with its attributes, spans and rules, one JSON object a row."""
    closure: bool = False
    """A present Edema, Consolidation, Pneumonia, Atelectasis or Lung Lesion also sets Lung Opacity (and so on)."""
    findings_win: bool = False
    """Do not let the Impression overrule the Findings."""
    seed: int = 0
    """Of the view shuffled."""

    def run(self) -> None:
        from counterscan.data.table import read_frame
        from counterscan.text import Extractor
        from counterscan.text.views import VIEWS

        for name in self.view:
            if name not in VIEWS:
                raise InputError(f"unknown text view {name!r}", field="--view", remedy=f"There are: {', '.join(VIEWS)}")
        if self.out is None and self.explain is None:
            raise InputError("is missing", field="--out", remedy="Say where to write, or which row to --explain")
        extractor = Extractor(self.rules, impression_wins=not self.findings_win, closure=self.closure)
        frame = read_frame(self.table)
        texts = _texts(frame, self.text_column, self.table)
        if self.explain is not None:
            if not 2 <= self.explain <= len(texts) + 1:
                remedy = f"Rows are 2 to {len(texts) + 1}; the header is row 1"
                raise InputError(f"there is no row {self.explain}", path=self.table, field="--explain", remedy=remedy)
            print(extractor(texts[self.explain - 2]).explain())
            return
        self._write(frame, texts, extractor)

    def _write(self, frame: pd.DataFrame, texts: Sequence[str], extractor: Extractor) -> None:
        from rich.console import Console
        from rich.progress import track

        from counterscan.data.findings import CHEXPERT, canonical_name, is_known
        from counterscan.data.table import write_frame
        from counterscan.text.views import corpus_view

        assert self.out is not None
        added = {*CHEXPERT, "report_status", *(f"view:{name}" for name in self.view)}
        there = [n for n in frame.columns if n in added or (is_known(n) and canonical_name(n) in CHEXPERT)]
        if there and not self.replace:
            raise InputError(
                f"the table has the column {there[0]!r} already" + (f" and {len(there) - 1} more" * (len(there) > 1)),
                path=self.table,
                field="--out",
                remedy="Give --replace to write the reports' labels in their place",
            )
        console = Console(stderr=True)
        read = [extractor(text) for text in track(texts, "reading", transient=True, console=console)]
        frame = frame.drop(columns=there)
        for name in CHEXPERT:
            frame[name] = [_cell(extraction.labels[name]) for extraction in read]
        frame["report_status"] = [extraction.refusal or "read" for extraction in read]
        for name in self.view:
            frame[f"view:{name}"] = corpus_view(name, read, extractor, seed=self.seed)
        write_frame(frame, self.out)
        if self.json is not None:
            from counterscan.files import write_text

            write_text(self.json, "".join(_lines(read)))
        _show(read, self.out)


def _texts(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> list[str]:
    """The text of each row; several columns become sections.

    Raises:
        InputError: no such column, or no rows.
    """
    for name in columns:
        if name not in frame.columns:
            remedy = f"Give --text-column; the table has {', '.join(map(str, frame.columns))}"
            raise InputError("no such column", path=path, field=f"column {name!r}", remedy=remedy)
    if not columns or not len(frame):
        raise InputError("has no reports", path=path, field="--text-column", remedy="Check the table")
    parts = [frame[name].where(frame[name].notna(), "").astype(str).tolist() for name in columns]
    if len(parts) == 1:
        return parts[0]
    names = [name.strip().upper() for name in columns]
    return [
        "\n".join(f"{name}: {text}" for name, text in zip(names, row, strict=True) if text.strip())
        for row in zip(*parts, strict=True)
    ]


def _cell(value: float) -> str:
    return "" if value != value else str(int(value))


def _lines(read: Sequence[Extraction]) -> Iterator[str]:
    import json

    for number, extraction in enumerate(read, 2):
        line: dict[str, Any] = {"row": number, **extraction.to_dict()}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _show(read: Sequence[Extraction], out: Path) -> None:
    """Counts per observation, and what could not be read."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from counterscan.cli.tables import say
    from counterscan.data.findings import CHEXPERT
    from counterscan.text.extract import NOT_ENGLISH
    from counterscan.text.language import RULE

    refused = Counter(extraction.refusal for extraction in read if extraction.refusal)
    silent = sum(not e.refusal and not e.findings for e in read)
    say(f"{out}: {len(read) - refused.total():,} of {len(read):,} reports read")
    for reason, count in refused.items():
        say(f"  {count:,} not labelled: {reason}" + (f" ({RULE})" if reason == NOT_ENGLISH else ""))
    if silent:
        say(f"  {silent:,} read, but nothing in them is known to the rules")
    shown = Table()
    shown.add_column("observation")
    for name in ("1", "0", "-1", "blank"):
        shown.add_column(name, justify="right")
    for name in CHEXPERT:
        counts = Counter(_cell(extraction.labels[name]) for extraction in read)
        shown.add_row(name, *(f"{counts[key]:,}" for key in ("1", "0", "-1", "")))
    Console().print(shown)
