"""Rule files: what a hospital can add, and what it is told when an entry is wrong."""

from __future__ import annotations

import math

import pytest

from counterscan.errors import InputError
from counterscan.text import Extractor
from counterscan.text.rules import load_rules, spaced
from counterscan.text.scan import Scanner, _alternatives


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "ours.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def test_a_hospital_adds_phrases_triggers_and_words_to_ignore(write):
    path = write(
        """
findings:
  - {id: our-whiteout, finding: Consolidation, phrases: ['white ?out']}
assertions:
  - {id: our-tbd, effect: uncertain, direction: backward, phrases: ['tbd']}
ignore:
  - {id: our-effusion-protocol, phrases: ['effusion protocol']}
"""
    )
    plain, ours = Extractor(), Extractor(path)
    assert math.isnan(plain("White-out of the left lung.").labels["Consolidation"])
    assert ours("White-out of the left lung.").labels["Consolidation"] == 1
    assert ours("Edema TBD.").labels["Edema"] == -1
    assert plain("Imaged by effusion protocol.").labels["Pleural Effusion"] == 1
    assert math.isnan(ours("Imaged by effusion protocol.").labels["Pleural Effusion"])
    assert Extractor([path])("Whiteout.").labels["Consolidation"] == 1


def test_entries_can_be_switched_off_and_written_anew(write):
    path = write("remove: [aspiration]\nfindings:\n  - {id: aspiration, finding: Pneumonia, phrases: ['aspiration']}")
    assert Extractor()("Aspiration.").labels["Pneumonia"] == -1
    assert Extractor(path)("Aspiration.").labels["Pneumonia"] == 1
    assert Extractor()("Aspiration.").labels["Pneumonia"] == -1  # the packaged rules are as they were


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("findings:\n  - {id: a, finding: Edema, phrases: ['(?:x']}", "findings entry 'a': '(?:x' is no regular"),
        ("findings:\n  - {id: a, finding: Edema, phrases: ['(x)']}", "captures a group. Write (?:...)"),
        ("findings:\n  - {id: a, finding: Edema, phrases: ['x*']}", "matches nothing at all"),
        ("findings:\n  - {id: a, finding: Edema, phrases: ['(?i)x']}", "is no regular expression"),
        ("findings:\n  - {id: a, finding: Edema, phrases: ['PTX']}", "'PTX' has capitals"),
        ("findings:\n  - {id: a, finding: Edema, phrases: []}", "has no phrases"),
        ("findings:\n  - {id: a, finding: Edema, phrases: 'x'}", "phrases is 'x'. It must be list"),
        (
            "findings:\n  - {id: a, finding: Oedemia, phrases: ['x']}",
            "unknown finding 'Oedemia'. Findings are Enlarged",
        ),
        ("findings:\n  - {id: a, phrases: ['x']}", "unknown finding None"),
        ("findings:\n  - {id: a, finding: No Finding, phrases: ['x']}", "unknown finding 'No Finding'"),
        ("findings:\n  - {finding: Edema, phrases: ['x']}", "findings entry 1: has no id"),
        ("findings:\n  - {id: effusion, finding: Edema, phrases: ['x']}", "used twice. Choose another id, or switch"),
        ("findings:\n  - {id: a, finding: Edema, phrases: ['x'], color: red}", "unknown key 'color'. Keys are id"),
        ("findings:\n  - {id: a, finding: Edema, status: maybe, phrases: ['x']}", "status is 'maybe'"),
        ("assertions:\n  - {id: a, effect: negated, phrases: ['x']}", "has no direction"),
        ("assertions:\n  - {id: a, effect: never, direction: forward, phrases: ['x']}", "effect is 'never'"),
        ("modifiers:\n  - {id: a, severity: true, phrases: ['x']}", "severity is True"),
        ("structures:\n  - {id: a, finding: Edema, states: {normal: fine}, phrases: ['x']}", "a state means 'fine'"),
        ("structures:\n  - {id: a, finding: Edema, states: {odd: absent}, phrases: ['x']}", "no state is called 'odd'"),
        ("mentions:\n  - {id: a}", "mentions: unknown section. Sections are findings"),
        ("findings: {id: a}", "findings: is not a list"),
        ("remove: [nothing-like-it]", "no rule 'nothing-like-it' to remove"),
        ("remove: 3", "remove: is not a list"),
        ("just text", "holds no sections"),
        ("", "holds no sections"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_mistakes_are_named_with_file_entry_and_remedy(write, text, said):
    path = write(text)
    with pytest.raises(InputError) as caught:
        Extractor(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml: rules: no such file"):
        Extractor(tmp_path / "gone.yaml")


def test_packaged_rules_are_unique():
    rules = load_rules()
    assert len({rule.id for rule in rules}) == len(rules)
    owners: dict[str, set[str]] = {}
    for rule in rules:
        for phrase in rule.phrases:
            for written in _alternatives(phrase):
                owners.setdefault(written, set()).add(rule.id)
    assert {phrase: ids for phrase, ids in owners.items() if len(ids) > 1} == {}  # the second would never be found
    assert {"finding", "ignore", "structure", "state", "assertion", "modifier", "grammar"} == {r.kind for r in rules}


def test_blanks_of_a_phrase():
    assert spaced("a b ?c *d") == "a[ -]+b[ -]?c *d"


def test_scanner_prefers_the_longer_phrase(write):
    path = write(
        """
findings:
  - {id: long-one, finding: Edema, phrases: ['alpha(?:beta)? gamma']}
  - {id: short-one, finding: Edema, phrases: ['alpha']}
"""
    )
    scanner = Scanner(load_rules([path]))
    assert [hit.rule.id for hit in scanner.scan("alpha gamma and alphabeta-gamma alpha")] == [
        "long-one",
        "and",
        "long-one",
        "short-one",
    ]
    assert [hit.rule.id for hit in scanner.scan("alphas")] == []
