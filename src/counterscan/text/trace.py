"""Why a report was read as it was: every rule with its span, and how the labels came about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from counterscan.data.findings import CHEXPERT, NO_FINDING
from counterscan.text.aggregate import decisive
from counterscan.text.mentions import Finding

if TYPE_CHECKING:
    from counterscan.text.extract import Extraction

_WORD = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


def trace(extraction: Extraction) -> str:
    """Text to print, one block per sentence, then one line per label.

    Spans are offsets of characters in the report; rule ids are those of the rule files.
    """
    if extraction.refusal:
        return f"not read: {extraction.refusal}"
    report = extraction.report
    skipped = [section.name for section in extraction.sections if section.role == "other"]
    lines = [f"sections not read: {', '.join(skipped)}"] if skipped else []
    for start, end, section in extraction.sentences:
        lines.append(f"[{section}] {' '.join(report[start:end].split())}")
        for finding in extraction.findings:
            if finding.sentence == (start, end):
                lines += _finding_lines(finding, report)
        for passed in extraction.dropped:
            if start <= passed.start < end:
                lines.append(f"    - {_where(passed.start, passed.end, report)}  rule {passed.rule}: {passed.reason}")
    lines.append("labels")
    for name in CHEXPERT:
        value = extraction.labels[name]
        if not math.isnan(value):
            lines.append(f"    {name} = {value:.0f} ({_reason(extraction, name)})")
    return "\n".join(lines)


def _finding_lines(finding: Finding, report: str) -> list[str]:
    said = [finding.name, finding.status]
    if finding.weak:
        said.append("weak")
    said += [finding.degree, finding.laterality, *finding.anatomy, *finding.pattern, finding.course]
    said += [f"{size:g} mm" for size in finding.size_mm]
    lines = ["    " + ", ".join(filter(None, said))]
    for use in finding.rules:
        lines.append(f"        {use.role:<8} {_where(use.start, use.end, report)}  rule {use.id}")
    if not any(use.role == "status" for use in finding.rules):
        lines.append(f"        status   no word decides: the mention alone means {finding.status}")
    return lines


def _where(start: int, end: int, report: str) -> str:
    return f'{start}-{end} "{" ".join(report[start:end].split())}"'


def _reason(extraction: Extraction, name: str) -> str:
    if name == NO_FINDING:
        return "nothing else is present or uncertain" if extraction.labels[name] == 1 else "other findings are"
    about = [f for f in extraction.findings if f.name == name]
    chosen = decisive(extraction.findings, name, impression_wins=extraction.impression_wins)
    if not chosen or _WORD[extraction.labels[name]] != chosen[0].status:
        return "a finding that it includes is present"
    spans = ", ".join(f"{f.start}-{f.end}" for f in chosen)
    overruled = sorted({f"{f.status} at {f.start}-{f.end}" for f in about if f.status != chosen[0].status})
    return f"{chosen[0].status} at {spans}" + (f"; overrules {', '.join(overruled)}" if overruled else "")
