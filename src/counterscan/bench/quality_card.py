"""The quality card of a set of synthetic images: what was judged, by which rule, with which figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from counterscan.files import write_json
from counterscan.metrics.intervals import Interval
from counterscan.report.tables import Cell, Table

Verdict = Literal["good", "doubtful", "poor", "not judged"]
SECTIONS = ("Fidelity", "Diversity", "Label truth", "Memorisation", "Usefulness")


@dataclass(frozen=True)
class QualityLimits:
    """Where verdicts change. Pairs are (good from here, poor from there); what lies between is doubtful.

    Attributes:
        fid: FID of the synthetic images over that of held-out real images, at most.
        precision: of the synthetic images over that of held-out real ones, at least; density is shown, not judged.
        coverage: the same for coverage and recall.
        diversity: mean distance within a finding over that of real images, at least.
        repeats: share of synthetic images that have another one as near as near copies are to training images, at most.
        auc: AUC on held-out real images minus that on synthetic ones, at most.
        known: AUC on held-out real images below which the judge does not know a finding, so that nothing follows.
        share: of held-out real images that count as near to training images.
        copy: an image whose distances in pixels are both at most this part of what counts as near is a copy; there may
            be none.
        p_value: of the tests for near copies, all together, below which they are no accident.
        excess: near copies over those to be expected, below which they are of no weight.
        fewest: images of a set, and of a finding's positives and negatives, below which a figure is left out.
    """

    fid: tuple[float, float] = (3.0, 10.0)
    precision: tuple[float, float] = (0.8, 0.5)
    coverage: tuple[float, float] = (0.8, 0.5)
    diversity: tuple[float, float] = (0.8, 0.5)
    repeats: tuple[float, float] = (0.05, 0.25)
    auc: tuple[float, float] = (0.05, 0.15)
    known: float = 0.7
    share: float = 0.01
    copy: float = 0.5
    p_value: float = 0.01
    excess: float = 2.0
    fewest: int = 20


def worse(*verdicts: Verdict) -> Verdict:
    """The worst of those that judge."""
    order: tuple[Verdict, ...] = ("poor", "doubtful", "good")
    return next((name for name in order if name in verdicts), "not judged")


def at_most(value: float, limits: tuple[float, float]) -> Verdict:
    """Verdict on a figure that should be low; NaN is not judged."""
    good, poor = limits
    return "not judged" if math.isnan(value) else "good" if value <= good else "poor" if value > poor else "doubtful"


def at_least(value: float, limits: tuple[float, float]) -> Verdict:
    """Verdict on a figure that should be high; NaN is not judged."""
    good, poor = limits
    return at_most(-value, (-good, -poor))


@dataclass(frozen=True)
class Section:
    """One question about the set.

    Attributes:
        name: one of ``SECTIONS``.
        verdict: the answer; "not judged" where figures are missing.
        said: it in words, with the figures that decide.
        rule: how it was reached, thresholds included.
        tables: all figures.
        left_out: what is missing, and why, one sentence each.
    """

    name: str
    verdict: Verdict
    said: str
    rule: str = ""
    tables: tuple[Table, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class QualityCard:
    """What ``bench.quality.audit_images`` found.

    Attributes:
        sections: in the order of ``SECTIONS``.
        counts: images of each set, and those that could not be read.
        limits: thresholds of the verdicts.
        settings: how it was measured, in plain values.
        notes: about the whole card.
        pairs: near copies by pseudonym: "synthetic", "training", "space", figures; the most suspicious first.
    """

    sections: tuple[Section, ...]
    counts: Mapping[str, int]
    limits: QualityLimits
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pairs: tuple[Mapping[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Section:
        """A section by name.

        Raises:
            KeyError: there is none.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(name)

    def headline(self) -> Table:
        """One row per section, for a terminal and the top of the page."""
        rows: list[list[Cell]] = [[section.name, section.verdict, section.said] for section in self.sections]
        return Table("Quality card", ("Question", "Verdict", "In words"), rows)

    def tables(self) -> list[Table]:
        """The headline and all figures."""
        return [self.headline(), *(table for section in self.sections for table in section.tables)]

    def to_json(self) -> dict[str, Any]:
        """Plain values; figures by table, row and column as numbers, text, or [value, low, high]; NaN is None."""
        sections = {
            section.name: {
                "verdict": section.verdict,
                "said": section.said,
                "rule": section.rule,
                "figures": {table.title: _figures(table) for table in section.tables},
                "left_out": list(section.left_out),
            }
            for section in self.sections
        }
        return {
            "counts": dict(self.counts),
            "sections": sections,
            "near_copies": [dict(pair) for pair in self.pairs],
            "limits": asdict(self.limits),
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``card.json``; returns its path."""
        path = Path(folder) / "card.json"
        write_json(path, self.to_json())
        return path


def _figures(table: Table) -> dict[str, dict[str, Any]]:
    return {
        str(row[0]): {name: _plain(cell) for name, cell in zip(table.columns[1:], row[1:], strict=True)}
        for row in table.rows
    }


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Interval):
        return [_plain(x) for x in (cell.value, cell.low, cell.high)]
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
