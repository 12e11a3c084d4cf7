"""The share of hard sentences read right, and a few of them in full."""

from __future__ import annotations

import pytest

from counterscan.text import Extractor
from tests.text.hard import SENTENCES, problems

READ = Extractor()


@pytest.mark.parametrize("part", ["developed_on", "held_out"])
def test_hard_sentences(part):
    wrong = [p for entry in SENTENCES[part] if (p := problems(entry, READ(entry["text"])))]
    assert len(wrong) <= 0.03 * len(SENTENCES[part]), wrong


def test_there_are_enough_and_none_twice():
    texts = [entry["text"] for entries in SENTENCES.values() for entry in entries]
    assert len(texts) >= 150
    assert len(set(texts)) == len(texts)
    assert len(SENTENCES["held_out"]) >= 60


def test_the_comparison_notices_a_wrong_reading():
    read = READ("Small left pleural effusion.")
    assert problems({"text": "", "want": "PE=1", "with": "PE laterality=left severity=1"}, read) == []
    assert problems({"text": "", "want": "PE=0"}, read)
    assert problems({"text": "", "want": "PE=1 PT=0"}, read)
    assert problems({"text": "", "want": "PE=1", "with": "PE laterality=right"}, read)


def test_attributes_in_full():
    (nodule,) = READ("Two new 8 x 5 mm nodules in the right upper lobe.").findings
    assert (nodule.name, nodule.status, nodule.subtype) == ("Lung Lesion", "present", "nodule")
    assert (nodule.laterality, nodule.anatomy, nodule.course) == ("right", ("upper lobe",), "new")
    assert (nodule.size_mm, nodule.count) == ((8.0, 5.0), 2)
    assert nodule.text == "nodules"


@pytest.mark.parametrize(
    ("words", "severity"),
    [("Trace", 1), ("Mild to moderate", 1.5), ("Moderate", 2), ("Moderate to large", 2.5), ("Large", 3), ("", None)],
)
def test_severity(words, severity):
    (effusion,) = READ(f"{words} effusion.").findings
    assert effusion.severity == severity


def test_sizes_in_centimetres_and_millimetres():
    assert READ("A 3.4 x 2.1 cm mass.").findings[0].size_mm == (34.0, 21.0)
    assert READ("A 7 mm nodule.").findings[0].size_mm == (7.0,)
