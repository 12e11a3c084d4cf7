"""What a phantom data set holds: which findings, how often, how severe, and the shortcut planted in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from counterscan.errors import InputError

FINDINGS: tuple[str, ...] = (
    "Cardiomegaly",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Lung Lesion",
)


@dataclass(frozen=True)
class PhantomConfig:
    """Settings of a phantom data set.

    Attributes:
        size: image side in pixels, 32 to 1024. The anatomy of an index is the same at every size.
        findings: the findings that may occur, canonical names.
        prevalence: share of images with each finding: one number for all, or one per finding.
        severity: range (low, high) within [0, 1] from which severities are drawn.
        cooccurrence: strength 0 to 1 of the correlation between Edema, Pleural Effusion and Cardiomegaly (weaker with
            Atelectasis); the prevalences stay as they are.
        images_per_patient: consecutive indices that show the same body under other acquisitions and findings.
        portable: share of AP films.
        shortcut: finding that a corner tag goes with, or None for no tag.
        shortcut_rate: share of its positives that carry the tag.
        shortcut_leak: share of the other images that carry it.
        hedge: share of mild positives that the report states with uncertainty ("possible ...").
        uncertain_labels: label hedged positives -1 instead of 1 in the study table.
        text: write a report.

    Raises:
        InputError: a value is out of range or a finding is unknown.
    """

    size: int = 128
    findings: tuple[str, ...] = FINDINGS
    prevalence: float | Mapping[str, float] = 0.15
    severity: tuple[float, float] = (0.1, 1.0)
    cooccurrence: float = 0.5
    images_per_patient: int = 1
    portable: float = 0.2
    shortcut: str | None = None
    shortcut_rate: float = 0.9
    shortcut_leak: float = 0.05
    hedge: float = 0.2
    uncertain_labels: bool = False
    text: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(self.findings))
        known = f"Choose from {', '.join(FINDINGS)}"
        for name in self.findings:
            _require(name in FINDINGS, f"unknown finding {name!r}", "findings", known)
        _require(len(self.findings) > 0, "no finding chosen", "findings", known)
        _require(len(set(self.findings)) == len(self.findings), "a finding is named twice", "findings", known)
        if isinstance(self.prevalence, Mapping):
            missing = [name for name in self.findings if name not in self.prevalence]
            _require(not missing, f"no prevalence for {', '.join(missing)}", "prevalence", "Name every finding")
        for name in self.findings:
            _require(0 <= self.rate(name) <= 1, "a prevalence is outside [0, 1]", "prevalence", "Give a share")
        low, high = self.severity
        _require(0 <= low <= high <= 1, "severities must rise within [0, 1]", "severity", "For example 0.1 1.0")
        _require(32 <= self.size <= 1024, "the size must be 32 to 1024 pixels", "size", "64 to 512 is usual")
        _require(self.images_per_patient >= 1, "must be at least 1", "images_per_patient", "1 is the default")
        if self.shortcut is not None:
            _require(self.shortcut in self.findings, "the shortcut's finding is not rendered", "shortcut", known)
        for name in ("cooccurrence", "portable", "shortcut_rate", "shortcut_leak", "hedge"):
            _require(0 <= getattr(self, name) <= 1, "must lie within [0, 1]", name, "Give a share")

    def rate(self, finding: str) -> float:
        """Prevalence of one finding."""
        return float(self.prevalence[finding] if isinstance(self.prevalence, Mapping) else self.prevalence)


def _require(condition: bool, problem: str, name: str, remedy: str) -> None:
    if not condition:
        raise InputError(problem, field=name, remedy=remedy)
