from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterscan.data.findings import ALIASES, CANONICAL, CHEXPERT, NO_FINDING, canonical_name, is_known
from counterscan.data.importers.nih_cxr14 import NIH_FINDINGS


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Effusion", "Pleural Effusion"),
        ("pleural_effusion", "Pleural Effusion"),
        ("Nodule", "Lung Lesion"),
        ("MASS", "Lung Lesion"),
        ("Pleural_Thickening", "Pleural Thickening"),
        ("ObsoletePulmonaryTuberculosis", "Latent Tuberculosis"),
        ("ActiveTuberculosis", "Active Tuberculosis"),
        ("PulmonaryTuberculosis", "Tuberculosis"),
        ("covid-19", "COVID-19"),
        ("Infiltrate", "Infiltration"),
        ("oedema", "Edema"),
        ("Normal", NO_FINDING),
        ("  Sarcoidosis ", "Sarcoidosis"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert canonical_name(spelling) == name


def test_the_lists_hold_each_name_once_and_every_alias_leads_to_one() -> None:
    assert len(CHEXPERT) == 14
    assert len(set(CANONICAL)) == len(CANONICAL)
    assert set(ALIASES.values()) == set(CANONICAL)
    assert all(is_known(name) for name in NIH_FINDINGS)


def test_no_finding_and_strangers_are_no_findings() -> None:
    assert not is_known("No Finding")
    assert not is_known("age")
    assert not is_known("")


@given(st.text(max_size=20))
def test_naming_twice_changes_nothing(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)
