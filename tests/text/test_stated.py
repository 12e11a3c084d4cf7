"""What a sentence states, for soft targets."""

from __future__ import annotations

import math

import pytest

from counterscan.errors import InputError
from counterscan.text.stated import SentenceReader
from counterscan.text.views import NO_FINDING_TEXT

NAMES = ("Pneumothorax", "Pleural Effusion")


def test_present_absent_and_unsaid() -> None:
    present, absent = SentenceReader(NAMES)("Small left pleural effusion."), SentenceReader(NAMES)("No pneumothorax.")
    assert math.isnan(present[0])
    assert present[1] == 1
    assert absent[0] == 0
    assert math.isnan(absent[1])


def test_doubt_counts_as_unsaid() -> None:
    assert math.isnan(SentenceReader(NAMES)("Possible pleural effusion.")[1])


def test_no_finding_denies_all() -> None:
    assert SentenceReader(NAMES)(NO_FINDING_TEXT) == (0.0, 0.0)


def test_unknown_finding_is_refused() -> None:
    with pytest.raises(InputError, match="Brain Tumor"):
        SentenceReader(["Brain Tumor"])


@pytest.mark.parametrize(
    ("sentence", "tumor", "covid"),
    [
        ("Brain tumor.", 1, None),
        ("A brain tumor in the left frontal lobe.", 1, None),
        ("No brain tumor.", 0, None),
        ("There is no brain tumor.", 0, None),
        ("Possible brain tumor.", None, None),
        ("COVID-19 pneumonia.", None, 1),
        ("Lungs show no COVID-19 pneumonia.", None, 0),
        ("Findings are not typical for covid 19 pneumonia.", None, 0),
        ("Clear lungs.", None, None),
    ],
)
def test_findings_without_rules_are_read_by_name(sentence: str, tumor: int | None, covid: int | None) -> None:
    read = SentenceReader(["Brain Tumor", "COVID-19 Pneumonia"], by_name=True)(sentence)
    assert [None if math.isnan(value) else value for value in read] == [tumor, covid]


def test_names_leave_the_rules_own_findings_as_they_are() -> None:
    read = SentenceReader(["Pneumothorax", "Brain Tumor"], by_name=True)("No pneumothorax, small brain tumor.")
    assert read == (0.0, 1.0)
