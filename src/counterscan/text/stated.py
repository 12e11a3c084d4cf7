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

    Raises:
        InputError: a finding that the rules do not know.
    """

    def __init__(self, findings: Sequence[str], extractor: Extractor | None = None) -> None:
        self.findings, self.extractor = tuple(findings), extractor or Extractor()
        known = self.extractor("").labels
        for name in self.findings:
            if name not in known:
                raise InputError(
                    f"the rules do not read {name!r}", field="findings", remedy=f"They read {', '.join(known)}"
                )
        self._seen: dict[str, tuple[float, ...]] = {}

    def __call__(self, sentence: str) -> tuple[float, ...]:
        """K labels: 1 stated as present, 0 as absent, NaN not said or said with doubt."""
        if sentence not in self._seen:
            self._seen[sentence] = self._read(sentence)
        return self._seen[sentence]

    def _read(self, sentence: str) -> tuple[float, ...]:
        if sentence == NO_FINDING_TEXT:
            return (0.0,) * len(self.findings)
        labels = self.extractor(sentence).labels
        return tuple(labels[name] if labels[name] >= 0 else math.nan for name in self.findings)
