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
