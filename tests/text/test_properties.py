"""What must hold for any text and any finding."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterscan.text import Extractor
from tests.text.hard import SENTENCES

READ = Extractor()
BARE = {
    "pleural effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "pulmonary edema": "Edema",
    "cardiomegaly": "Cardiomegaly",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "lung nodule": "Lung Lesion",
    "opacity": "Lung Opacity",
    "rib fracture": "Fracture",
    "pleural thickening": "Pleural Other",
    "mediastinal widening": "Enlarged Cardiomediastinum",
    "chest tube": "Support Devices",
}
NAMES = st.sampled_from(sorted(BARE))
SIDED = st.sampled_from([name for name in sorted(BARE) if name not in ("cardiomegaly", "pulmonary edema")])
DEGREES = st.sampled_from(["", "small ", "moderate ", "large ", "new ", "stable "])
PLACES = st.sampled_from(["", " at the {} base", " in the {} upper lobe", " on the {}"])
# One sentence per finding: whatever their order, each label is decided by its own sentence.
STATEMENTS = st.lists(
    st.tuples(NAMES, st.sampled_from(["{}.", "No {}.", "Possible {}.", "Small {}.", "{} is not seen."])),
    min_size=2,
    max_size=6,
    unique_by=lambda pair: pair[0],
)


def known(text: str) -> dict[str, float]:
    return {name: value for name, value in READ(text).labels.items() if not math.isnan(value)}


@given(NAMES, DEGREES)
def test_no_in_front_flips_to_absent(name, degree):
    assert known(f"{degree}{name}".capitalize() + ".")[BARE[name]] == 1
    if not degree.startswith("new"):
        assert known(f"No {degree}{name}.")[BARE[name]] == 0


@given(NAMES, DEGREES)
def test_possible_in_front_makes_uncertain(name, degree):
    assert known(f"Possible {degree}{name}.")[BARE[name]] == -1


@given(st.lists(NAMES, min_size=2, max_size=5, unique=True), st.sampled_from(["or", "and", "nor"]))
def test_a_list_is_negated_as_a_whole(names, last):
    text = f"No {', '.join(names[:-1])}{',' if len(names) > 2 else ''} {last} {names[-1]}."
    labels = known(text)
    assert {BARE[name]: 0.0 for name in names}.items() <= labels.items()


@given(SIDED, DEGREES, st.sampled_from(["left", "right"]), PLACES)
def test_swapping_sides_swaps_laterality(name, degree, side, place):
    other = {"left": "right", "right": "left"}[side]
    before = place.format(side) if place else ""
    text = f"{degree}{name}{before}." if place else f"{degree}{side} {name}."
    here = [f.laterality for f in READ(text).findings if f.name == BARE[name]]
    there = [f.laterality for f in READ(text.replace(side, other)).findings if f.name == BARE[name]]
    assert here == [side]
    assert there == [other]


@pytest.mark.parametrize("entry", SENTENCES["developed_on"], ids=lambda e: e["text"][:40])
def test_swapping_sides_in_any_sentence_keeps_the_labels(entry):
    pairs = [("left", "right"), ("Left", "Right"), ("LLL", "RLL"), ("L", "R")]
    swap = dict(pairs) | {b: a for a, b in pairs}
    text = entry["text"]
    marked = re.sub(r"\b(?:left|right|Left|Right|LLL|RLL|L|R)\b", lambda m: swap[m[0]], text)
    assert known(marked) == known(text)
    sides = [f.laterality for f in READ(text).findings]
    assert [f.laterality for f in READ(marked).findings] == [swap.get(side, side) for side in sides]


@given(STATEMENTS, st.randoms(use_true_random=False))
def test_order_of_sentences_does_not_matter(pairs, random):
    sentences = [form.format(name).capitalize() for name, form in pairs]
    shuffled = random.sample(sentences, len(sentences))
    assert known(" ".join(sentences)) == known(" ".join(shuffled))


@given(NAMES)
def test_only_the_impression_overrules(name):
    assert known(f"FINDINGS: {name}. IMPRESSION: No {name}.")[BARE[name]] == 0
    assert known(f"IMPRESSION: No {name}. FINDINGS: {name}.")[BARE[name]] == 0
    assert known(f"{name}. No {name}.")[BARE[name]] == 1


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_without_error(text):
    read = READ(text)
    assert read.vector().shape == (14,)
    read.explain()
    read.to_json()
    read.graph().to_dict()


WORDS = st.sampled_from(
    """no not without , . : / ? ( ) and or but with is are the left right small effusion nodule heart lungs clear
    normal enlarged possible likely cannot exclude seen resolved may represent in base 5 mm which stable 1.
    IMPRESSION:""".split()  # noqa: SIM905
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=25))
def test_any_order_of_known_words_is_read_without_error(words):
    text = " ".join(words).replace("1.", "\n1.")
    read = READ(text)
    assert set(read.vector()[~np.isnan(read.vector())]) <= {1.0, 0.0, -1.0}
    for finding in read.findings:
        assert text[finding.start : finding.end] == finding.text
    read.explain()
    read.graph()
