"""What one sentence states of each finding, for the soft targets of a text-image model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from counterscan.errors import InputError
from counterscan.text.extract import Extractor
from counterscan.text.views import NO_FINDING_TEXT


class SentenceReader:
    """A sentence to its labels, by the rules; see ``clip_training.fit``, argument ``label_sentence``.

    Args:
        findings: K names that the rules know.
        extractor: with a hospital's own rules; by default the packaged ones.
        by_name: take findings beyond CheXpert's observations too: as the rules read them or, where they have no words
            for one, by its name. Without it they are refused.

    Raises:
        InputError: a finding that is no observation of CheXpert.
    """

    def __init__(self, findings: Sequence[str], extractor: Extractor | None = None, *, by_name: bool = False) -> None:
        self.findings, self.extractor, self.by_name = tuple(findings), extractor or Extractor(), by_name
        self._seen: dict[str, tuple[float, ...]] = {}
        if by_name:
            self.extractor = self.extractor.with_names(self.findings)
            return
        known = self.extractor("").labels
        for name in self.findings:
            if name not in known:
                raise InputError(
                    f"the rules do not read {name!r}", field="findings", remedy=f"They read {', '.join(known)}"
                )

    def __call__(self, sentence: str) -> tuple[float, ...]:
        """K labels: 1 stated as present, 0 as absent, NaN not said or said with doubt."""
        if sentence not in self._seen:
            self._seen[sentence] = self._read(sentence)
        return self._seen[sentence]

    def _read(self, sentence: str) -> tuple[float, ...]:
        if sentence == NO_FINDING_TEXT:
            return (0.0,) * len(self.findings)
        read = self.extractor(sentence)
        labels = dict(read.labels)
        if self.by_name:
            for found in read.findings:
                labels.setdefault(found.name, {"present": 1.0, "absent": 0.0}.get(found.status, math.nan))
        return tuple(value if (value := labels.get(name, math.nan)) in (0, 1) else math.nan for name in self.findings)
