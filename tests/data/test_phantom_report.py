"""Reports say what is on the film: each present finding with its side, no absent finding as present."""

from __future__ import annotations

import re

import numpy as np
import pytest

from counterscan.data.phantom import FINDINGS, PhantomConfig, render
from counterscan.data.phantom.prose import NEGATED

WORDS = {
    "Cardiomegaly": r"cardiomegaly|cardiac silhouette|heart|cardiac size|cardiac enlargement",
    "Edema": r"edema",
    "Consolidation": r"consolidation",
    "Atelectasis": r"atelectasis",
    "Pneumothorax": r"pneumothorax",
    "Pleural Effusion": r"effusion",
    "Lung Lesion": r"nodule|mass",
}
DENIAL = re.compile(
    r"\b(no|without|negative for|not|normal|within normal limits|show no|clear|unremarkable)\b", re.IGNORECASE
)
CONFIG = PhantomConfig(size=32, prevalence=0.3)


def statements(report: str) -> list[str]:
    text = re.sub(r"\b\d\. ", "", report.replace("\n", " "))
    return [s for s in re.split(r"(?<=[a-z)])\.\s*|(?<=\d)\.\s+|:\s", text) if s]


@pytest.mark.parametrize("start", range(0, 120, 40))
def test_positives_are_stated_and_the_rest_denied(start):
    for index in range(start, start + 40):
        study = render(CONFIG, 11, index)
        present = {c.finding for c in study.cases}
        for name, words in WORDS.items():
            said = [s for s in statements(study.report) if re.search(words, s, re.IGNORECASE)]
            affirmed = [s for s in said if not DENIAL.search(s) or "cannot be excluded" in s]
            assert bool(affirmed) == (name in present), (name, study.report)


def test_sides_are_those_of_the_cases():
    for index in range(120):
        study = render(CONFIG, 12, index)
        for case in study.cases:
            if case.side not in ("left", "right"):
                continue
            other = "left" if case.side == "right" else "right"
            for s in statements(study.report):
                if re.search(WORDS[case.finding], s, re.IGNORECASE) and not DENIAL.search(s):
                    assert case.side in s.lower(), s
                    assert other not in s.lower(), s


def test_reports_vary_and_hedge_only_mild_findings():
    config = PhantomConfig(size=32, prevalence=0.5, hedge=1.0, uncertain_labels=True)
    reports = []
    for index in range(60):
        study = render(config, 1, index)
        reports.append(study.report)
        grades = {c.finding: c.grade for c in study.cases}
        doubtful = {name for name, value in study.labels.items() if value == -1}
        assert doubtful == {name for name, grade in grades.items() if grade == "mild"}
    assert len(set(reports)) > 55
    assert any(re.search("possible|suspected|may represent", r) for r in reports)


def test_no_hedging_when_not_asked():
    config = PhantomConfig(size=32, prevalence=0.5, hedge=0.0)
    assert not any(re.search("possible|suspected|questionable", render(config, 1, i).report) for i in range(30))


def test_every_negation_reads_as_one():
    assert set(NEGATED) == set(FINDINGS)
    assert all(DENIAL.search(text) for options in NEGATED.values() for text in options)


def test_quoted_size_is_the_drawn_one():
    config = PhantomConfig(size=256, findings=("Lung Lesion",), prevalence=1.0)
    for index in range(5):
        study = render(config, 5, index)
        width = np.nonzero(study.mask.any(0))[0]
        millimetres = (width[-1] - width[0] + 1) * study.acquisition.field_mm / 256
        assert millimetres == pytest.approx(study.cases[0].measures["diameter_mm"], rel=0.35)


def test_text_can_be_left_out():
    assert render(PhantomConfig(size=32, text=False), 0, 0).report == ""
