"""Text views: what a text-image model is shown of a report. Names follow the published tables of TB-SMGAN.

The paper names its strategies without defining them; the meanings here are the most plausible ones, and stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from counterscan.errors import InputError
from counterscan.text.extract import Extraction, Extractor
from counterscan.text.phrases import statements
from counterscan.text.summary import summarise

NO_FINDING_TEXT = "no finding"


@dataclass(frozen=True)
class View:
    """A strategy.

    Attributes:
        name: as in ``VIEWS``.
        meaning: one line.
        make: the text from a report that was read.
        shuffled: texts are then dealt out over the corpus.
    """

    name: str
    meaning: str
    make: Callable[[Extraction], str]
    shuffled: bool = False


def _section(extraction: Extraction, wanted: Sequence[str]) -> str:
    parts = [extraction.report[s.start : s.end] for s in extraction.sections if s.name in wanted]
    return " ".join(" ".join(parts).split())


def _impression(extraction: Extraction) -> str:
    """The Impression; the Findings of a report without one."""
    return _section(extraction, ("impression",)) or _section(extraction, ("findings", "body"))


def _findings(extraction: Extraction) -> str:
    """The Findings; the Impression of a report without them."""
    return _section(extraction, ("findings", "body")) or _section(extraction, ("impression",))


def _rules_v1(extraction: Extraction) -> str:
    if not extraction.findings:
        return ""
    found = statements(extraction.findings, impression_wins=extraction.impression_wins)
    return ", ".join(s.text for s in found if s.status == "present") or NO_FINDING_TEXT


def _rules_v2(extraction: Extraction) -> str:
    if not extraction.findings:
        return ""
    words = {"present": "{}", "uncertain": "possible {}", "absent": "no {}"}
    return _listed(extraction, words)


def _inverted(extraction: Extraction) -> str:
    if not extraction.findings:
        return ""
    found = statements(extraction.findings, impression_wins=extraction.impression_wins)
    texts = {"present": "no {0.noun}", "uncertain": "possible {0.text}", "absent": "{0.noun}"}
    swapped = dict.fromkeys(texts[s.status].format(s) for s in found)
    order = ("", "possible ", "no ")
    return ", ".join(sorted(swapped, key=lambda t: max(i for i, p in enumerate(order) if t.startswith(p))))


def _listed(extraction: Extraction, words: Mapping[str, str]) -> str:
    found = statements(extraction.findings, impression_wins=extraction.impression_wins)
    texts = [words[status].format(s.text) for status in words for s in found if s.status == status]
    return ", ".join(texts) or NO_FINDING_TEXT


def _nothing(extraction: Extraction) -> str:
    return ""


VIEWS: Mapping[str, View] = {
    view.name: view
    for view in (
        View("impression", "the Impression section word for word", _impression),
        View("findings", "the Findings section word for word", _findings),
        View("summary", "one to three sentences that hold most of the report's entities (PageRank)", summarise),
        View("rules-v1", "present findings with their modifiers, or 'no finding'", _rules_v1),
        View("rules-v2", "present, then possible, then denied findings, each in one fixed order", _rules_v2),
        View("shuffled", "control: the rules-v2 text of another report", _rules_v2, shuffled=True),
        View("inverted", "control: rules-v2 with present and denied exchanged", _inverted),
        View("none", "control: no text, the model stays untuned", _nothing),
    )
}


@cache
def _default() -> Extractor:
    return Extractor()


def _get(name: str) -> View:
    if name not in VIEWS:
        raise InputError(f"unknown text view {name!r}", field="view", remedy=f"There are: {', '.join(VIEWS)}")
    return VIEWS[name]


def view(name: str, report: str | Extraction | None, extractor: Extractor | None = None) -> str:
    """One report in one view.

    Args:
        name: one of ``VIEWS``, but "shuffled", which needs a corpus: see ``corpus_view``.
        report: text, or what was read of it.
        extractor: with a hospital's own rules; by default the packaged ones.

    Returns:
        The text; "" for an empty report, and from the rules for one that is not English or names nothing known.

    Raises:
        InputError: unknown view, or "shuffled".
    """
    strategy = _get(name)
    if strategy.shuffled:
        raise InputError("deals texts out over a corpus", field=f"view {name!r}", remedy="Use corpus_view")
    extraction = report if isinstance(report, Extraction) else (extractor or _default())(report)
    return strategy.make(extraction)


def corpus_view(
    name: str, reports: Sequence[str | Extraction | None], extractor: Extractor | None = None, *, seed: int = 0
) -> list[str]:
    """Many reports in one view.

    Args:
        name: one of ``VIEWS``; "shuffled" gives every report the text of another one, by a random cyclic permutation
            (Sattolo 1986), so that none keeps its own.
        reports: texts, or what was read of them.
        extractor: see ``view``.
        seed: of the permutation.

    Raises:
        InputError: unknown view.
    """
    strategy, read = _get(name), extractor or _default()
    texts = [strategy.make(r if isinstance(r, Extraction) else read(r)) for r in reports]
    if not strategy.shuffled:
        return texts
    generator = np.random.default_rng(seed)
    order = list(range(len(texts)))
    for i in range(len(order) - 1, 0, -1):
        j = int(generator.integers(i))
        order[i], order[j] = order[j], order[i]
    return [texts[i] for i in order]
