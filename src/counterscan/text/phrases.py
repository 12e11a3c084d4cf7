"""Findings in words again: short phrases with their modifiers, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from counterscan.data.findings import CHEXPERT, NO_FINDING
from counterscan.text.aggregate import decisive
from counterscan.text.mentions import Finding

NOUNS = {
    "Enlarged Cardiomediastinum": "enlarged mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung lesion",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural abnormality",
    "Fracture": "fracture",
    "Support Devices": "support device",
}
_ORDER = [name for name in CHEXPERT if name != NO_FINDING]
# Subtypes that name the finding itself; others ("costophrenic blunting", "deformity") only hint at it.
_NAMING = ("nodule", "mass", "infiltrate", "airspace disease", "scarring", "pleural thickening", "pleural plaque")
_DEVICES = ("tube", "catheter", "pacemaker")
_ADJECTIVES = ("retrocardiac", "perihilar", "suprahilar")
_MIDLINE = ("superior vena cava", "carina", "stomach", "spine", "sternum")  # a side is then the device's own


@dataclass(frozen=True)
class Statement:
    """One phrase of a view.

    Attributes:
        status: of the finding.
        text: the phrase without any polarity ("small left pleural effusion").
        noun: the finding alone ("pleural effusion").
    """

    status: str
    text: str
    noun: str


def statements(findings: Sequence[Finding], *, impression_wins: bool = True) -> list[Statement]:
    """The deciding statements of a report as phrases, in CheXpert's order; findings beyond the 14 come after.

    The status is the one that the labels have; the words come from every statement with that status, in any section.
    Statements about one finding that do not contradict each other are merged; others ("small right", "large left")
    stay apart. "Other" findings are left out, and so is a structure of which only "stable" is said.
    """
    beyond = sorted({f.name for f in findings} - set(_ORDER) - {"Other"})
    found: list[Statement] = []
    for name in [*_ORDER, *beyond]:
        chosen = decisive(findings, name, impression_wins=impression_wins)
        if not chosen or (chosen[0].weak and chosen[0].status == "uncertain"):
            continue
        status, noun = chosen[0].status, NOUNS.get(name, name.lower())
        if status == "absent":
            found.append(Statement(status, noun, noun))
            continue
        agreeing = [f for f in findings if f.name == name and f.status == status and not f.weak]
        texts = dict.fromkeys(phrase(*part) for part in _merged(agreeing))
        found += [Statement(status, text, noun) for text in texts]
    return found


def _merged(findings: Sequence[Finding]) -> list[tuple[Finding, ...]]:
    """Groups of statements that can be said in one phrase."""
    groups: list[list[Finding]] = []
    for finding in sorted(findings, key=_detail, reverse=True):
        for group in groups:
            if all(_agree(finding, other) for other in group):
                group.append(finding)
                break
        else:
            groups.append([finding])
    sides = {finding.laterality for group in groups for finding in group}
    if {"left", "right", "bilateral"} <= sides:  # both sides are described; "bilateral" adds nothing
        groups = [group for group in groups if all(f.laterality != "bilateral" for f in group)]
    return [tuple(group) for group in groups]


def _detail(finding: Finding) -> int:
    """How much a statement says; what says most comes first, so that poorer ones join it."""
    said = (finding.laterality, finding.anatomy, finding.degree, finding.size_mm, finding.course, finding.subtype)
    return sum(map(bool, said))


def _agree(a: Finding, b: Finding) -> bool:
    pairs = [
        (a.laterality, b.laterality),
        (a.anatomy, b.anatomy),
        (a.degree, b.degree),
        (a.size_mm, b.size_mm),
        (a.subtype if _noun(a) != NOUNS.get(a.name) else "", b.subtype if _noun(b) != NOUNS.get(b.name) else ""),
    ]
    return all(not x or not y or x == y for x, y in pairs)


def _noun(finding: Finding) -> str:
    if finding.subtype in (*_NAMING, *_DEVICES):
        return finding.subtype
    return NOUNS.get(finding.name, finding.name.lower())


def phrase(*findings: Finding) -> str:
    """Words for statements that agree: "stable small left pleural effusion", "8 mm nodule in the right lower lobe"."""

    def first(values: Sequence[str]) -> str:
        return next((value for value in values if value), "")

    course = first([f.course for f in findings])
    size = next((f.size_mm for f in findings if f.size_mm), ())
    side = first([f.laterality for f in findings])
    places = next((f.anatomy for f in findings if f.anatomy), ())
    patterns = tuple(dict.fromkeys(p for f in findings for p in f.pattern))
    noun = first([_noun(f) for f in findings if _noun(f) != NOUNS.get(f.name)]) or _noun(findings[0])
    measure = " x ".join(f"{value:g}" for value in size) + " mm" if size else ""
    words = [course, first([f.degree for f in findings]), measure, *patterns]
    if places and places[0] in _ADJECTIVES:
        places, words = places[1:], [*words, places[0]]
    if places and places[0] in _MIDLINE:
        return " ".join(filter(None, (*words[:3], side, *words[3:], noun, "in the", " and ".join(places))))
    if places:
        where = " ".join(filter(None, (side, " and ".join(places))))
        return " ".join(filter(None, (*words, noun, "in the", where)))
    return " ".join(filter(None, (*words[:3], side, *words[3:], noun)))
