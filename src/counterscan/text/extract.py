"""Reports to findings: the public face of the rule engine."""

from __future__ import annotations

import copy
import json
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterscan.data.findings import CHEXPERT
from counterscan.errors import InputError
from counterscan.text.aggregate import label
from counterscan.text.language import is_english
from counterscan.text.mentions import Dropped, Finding, read_sentence
from counterscan.text.normalise import normalise
from counterscan.text.rules import Rule, load_rules
from counterscan.text.scan import Hit, Scanner
from counterscan.text.sections import Section, find_sections
from counterscan.text.sentences import find_sentences, unwrap

if TYPE_CHECKING:
    from counterscan.text.graph import Graph

EMPTY = "empty"
NOT_ENGLISH = "not English"


@dataclass(frozen=True)
class Extraction:
    """What was read in a report.

    Attributes:
        report: the text as given, "" for None and NaN.
        findings: statements in the order of the text.
        dropped: phrases that led to none, and why.
        sections: as found.
        sentences: spans of the sentences that were read, with the section's name.
        refusal: "" or why nothing was read: "empty" or "not English".
        impression_wins, closure: how ``labels`` are made, see ``Extractor``.
    """

    report: str
    findings: tuple[Finding, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    sections: tuple[Section, ...] = ()
    sentences: tuple[tuple[int, int, str], ...] = ()
    refusal: str = ""
    impression_wins: bool = True
    closure: bool = False

    @cached_property
    def labels(self) -> dict[str, float]:
        """The 14 CheXpert observations: 1 present, 0 absent, -1 uncertain, NaN unmentioned (all NaN when refused)."""
        return label(self.findings, impression_wins=self.impression_wins, closure=self.closure)

    def vector(self) -> np.ndarray:
        """(14,) float32, the labels in CheXpert's order (``counterscan.data.findings.CHEXPERT``)."""
        return np.array([self.labels[name] for name in CHEXPERT], dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: refusal, labels (None for unmentioned), findings with spans and rule ids."""
        labels = {name: None if math.isnan(value) else int(value) for name, value in self.labels.items()}
        return {"refusal": self.refusal, "labels": labels, "findings": [f.to_dict() for f in self.findings]}

    def to_json(self, indent: int | None = None) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def graph(self) -> Graph:
        """Observations, places and modifiers with their relations; see :mod:`counterscan.text.graph`."""
        from counterscan.text.graph import build_graph

        return build_graph(self.findings, self.report)

    def explain(self) -> str:
        """Every decision as text to print: rules, spans, and how the labels came about."""
        from counterscan.text.trace import trace

        return trace(self)


class Extractor:
    """Labels reports by rules.

    Args:
        rules: further YAML files, which add to the packaged rules (:mod:`counterscan.text.rules`).
        impression_wins: what the Impression says of a finding overrules the Findings section.
        closure: a present Edema, Consolidation, Pneumonia, Atelectasis or Lung Lesion also sets Lung Opacity, and
            Cardiomegaly sets Enlarged Cardiomediastinum; off by default, as in CheXpert's labels.

    Raises:
        InputError: a rule file is wrong; it names file, entry and remedy.
    """

    def __init__(
        self,
        rules: str | Path | Sequence[str | Path] | None = None,
        *,
        impression_wins: bool = True,
        closure: bool = False,
    ) -> None:
        paths = [rules] if isinstance(rules, (str, Path)) else list(rules or ())
        self._rules = load_rules(paths)
        self._scanner = Scanner(self._rules)
        self.impression_wins = impression_wins
        self.closure = closure

    def with_names(self, names: Sequence[str]) -> Extractor:
        """The same, which also reads findings that no rule speaks of by their names; they are among ``findings`` of an
        ``Extraction``, and not among its ``labels``."""
        known = {finding for rule in self._rules for finding in rule.findings}
        new = [Rule("finding", f"named {name}", (_phrase(name),), (name,)) for name in names if name not in known]
        other = copy.copy(self)
        other._rules = (*self._rules, *new)
        other._scanner = Scanner(other._rules)
        return other

    def __call__(self, report: str | None) -> Extraction:
        """Read one report.

        Args:
            report: its text; None and NaN are empty reports.

        Returns:
            Findings and labels; with ``refusal`` set and nothing read when it is empty or not English.

        Raises:
            InputError: not a text.
        """
        if report is None or (isinstance(report, float) and math.isnan(report)):
            return Extraction("", refusal=EMPTY)
        if not isinstance(report, str):
            remedy = "Give a string, None or NaN"
            raise InputError(f"is {type(report).__name__}, not text", field="report", remedy=remedy)
        text = normalise(report)
        if not any(c.isalpha() for c in text):
            return Extraction(report, refusal=EMPTY)
        if not is_english(text):
            return Extraction(report, refusal=NOT_ENGLISH)
        sections = find_sections(text)
        text = unwrap(text)
        findings: list[Finding] = []
        dropped: list[Dropped] = []
        spans: list[tuple[int, int, str]] = []
        for section in sections:
            if section.role == "other":
                continue
            sentences = find_sentences(text, section.start, section.end)
            for sentence, hits in zip(sentences, self._by_sentence(text, sentences), strict=True):
                spans.append((*sentence, section.name))
                stated, passed = read_sentence(hits, report, text, section.name, sentence)
                findings += stated
                dropped += passed
        return Extraction(
            report,
            tuple(findings),
            tuple(dropped),
            tuple(sections),
            tuple(spans),
            impression_wins=self.impression_wins,
            closure=self.closure,
        )

    def _by_sentence(self, text: str, sentences: Sequence[tuple[int, int]]) -> list[list[Hit]]:
        """The hits of each sentence, from one pass over all of them."""
        parts: list[list[Hit]] = [[] for _ in sentences]
        if sentences:
            starts = [start for start, _ in sentences]
            for hit in self._scanner.scan(text, starts[0], sentences[-1][1]):
                parts[bisect_right(starts, hit.start) - 1].append(hit)
        return parts

    def vectors(self, reports: Sequence[str | None]) -> np.ndarray:
        """(N, 14) float32 labels of many reports, NaN where unmentioned or refused."""
        return (
            np.stack([self(report).vector() for report in reports]) if len(reports) else np.zeros((0, 14), np.float32)
        )


def _phrase(name: str) -> str:
    """A name as a phrase of a rule, in which a blank stands for a hyphen as well."""
    return " ".join(map(re.escape, re.split(r"[\s-]+", normalise(name).strip().lower())))
