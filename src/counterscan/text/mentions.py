"""From the hits of one sentence to its findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from counterscan.text.assertion import alternatives, deciding, reaches
from counterscan.text.attributes import Attributes, bind
from counterscan.text.clauses import split_clauses
from counterscan.text.scan import Hit
from counterscan.text.structures import said_states


class Use(NamedTuple):
    """A rule that took part in a finding.

    Attributes:
        id: the rule's.
        role: "mention", "status", "place" or "modifier".
        start, end: span of its phrase in the report.
    """

    id: str
    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement of a report about one finding.

    Attributes:
        name: canonical name, or "Other" for what is abnormal but none of the named findings (``subtype`` says what).
        status: "present", "absent" or "uncertain".
        subtype: narrower word ("nodule", "vascular congestion"), or "".
        severity: 1 mild, 2 moderate, 3 severe or large, halves between; None unstated.
        degree: the report's word for it, "small", "mild to moderate", or "".
        laterality: "left", "right", "bilateral" or "".
        anatomy: places ("lower lobe", "base").
        pattern: "patchy", "linear" ...
        course: "new", "increased", "decreased", "stable", "resolved", "removed", "old" or "".
        size_mm: measurements in millimetres, as they are given.
        count: how many, where a number is given.
        section: "findings", "impression" or "body".
        start, end: span of the mention in the report; ``text`` is what stands there.
        sentence: span of its sentence.
        rules: every rule that took part, first the mention's, then what decided its status, then attributes.
        weak: implied by a template ("no acute disease") or by "stable" alone, or a restricted negation ("no large
            effusion"); gives way to any other statement.
        suggested_by: span of the mention it is named as the reading of ("opacity, likely atelectasis"), or None.
    """

    name: str
    status: str
    start: int
    end: int
    text: str
    section: str
    sentence: tuple[int, int]
    rules: tuple[Use, ...]
    subtype: str = ""
    severity: float | None = None
    degree: str = ""
    laterality: str = ""
    anatomy: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()
    course: str = ""
    size_mm: tuple[float, ...] = ()
    count: int | None = None
    weak: bool = False
    suggested_by: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "subtype": self.subtype,
            "severity": self.severity,
            "degree": self.degree,
            "laterality": self.laterality,
            "anatomy": list(self.anatomy),
            "pattern": list(self.pattern),
            "course": self.course,
            "size_mm": list(self.size_mm),
            "count": self.count,
            "section": self.section,
            "span": [self.start, self.end],
            "text": self.text,
            "weak": self.weak,
            "suggested_by": None if self.suggested_by is None else list(self.suggested_by),
            "rules": [{"id": use.id, "role": use.role, "span": [use.start, use.end]} for use in self.rules],
        }


@dataclass(frozen=True, slots=True)
class Dropped:
    """A phrase that led to no statement, and why."""

    rule: str
    start: int
    end: int
    reason: str


@dataclass(slots=True)
class _Head:
    """A mention whose status is decided."""

    position: int
    status: str
    weak: bool
    because: tuple[Hit, ...]
    trigger: Hit | None = None
    attributes: list[Attributes] = field(default_factory=list)


def read_sentence(
    hits: Sequence[Hit], report: str, text: str, section: str, sentence: tuple[int, int]
) -> tuple[list[Finding], list[Dropped]]:
    """Findings of a sentence, and what was passed over.

    Args:
        hits: in order.
        report, text: the report as given, and normalised.
        section: name of the section.
        sentence: its span.
    """
    findings: list[Finding] = []
    dropped = [Dropped(h.rule.id, h.start, h.end, "read over") for h in hits if h.rule.kind == "ignore"]
    for clause in split_clauses([hit for hit in hits if hit.rule.kind != "ignore"]):
        if not any(hit.rule.kind in ("finding", "structure") for hit in clause):
            continue
        heads, places, passed = _decide(clause)
        dropped += passed
        denied = {head.position for head in heads if head.status == "absent"}
        attributes = bind(clause, [head.position for head in heads], places, denied, text)
        for head in heads:
            head.attributes = attributes[head.position]
        findings += _findings(clause, heads, report, section, sentence)
    return findings, dropped


def _decide(clause: Sequence[Hit]) -> tuple[list[_Head], dict[int, str], list[Dropped]]:
    """Mentions with a status, structures that only say where, and what asserts nothing."""
    reach = reaches(clause)
    unsure = alternatives(clause)
    states = said_states(clause)
    heads: list[_Head] = []
    places: dict[int, str] = {}
    dropped: list[Dropped] = []
    for i, hit in enumerate(clause):
        if hit.rule.kind == "finding":
            trigger = deciding(clause, reach, i)
            status = _mentioned(hit, trigger, i in unsure)
            weak = hit.rule.weak
            because: tuple[Hit, ...] = (trigger,) if trigger else ()
        elif hit.rule.kind == "structure" and i in states:
            state = clause[states[i]]
            trigger = deciding(clause, reach, states[i])
            meaning, weak = hit.rule.states[state.rule.state]
            status = _stated(meaning, weak, trigger)
            because = (state, trigger) if trigger else (state,)
        elif hit.rule.kind == "structure":
            if hit.rule.anatomy:
                places[i] = hit.rule.anatomy
            else:
                dropped.append(Dropped(hit.rule.id, hit.start, hit.end, "nothing is said of it"))
            continue
        else:
            continue
        if status:
            heads.append(_Head(i, status, weak, because, trigger))
        else:
            reason = f"not asserted: {trigger.rule.id}" if trigger else "says nothing when affirmed"
            dropped.append(Dropped(hit.rule.id, hit.start, hit.end, reason))
    for head in heads:
        rule = clause[head.position].rule
        named = [h for h in heads if clause[h.position].rule.findings == rule.findings]
        named = [h for h in named if not clause[h.position].rule.sign]
        if rule.sign and named and head.status != "absent":
            head.status, head.because = named[0].status, (*head.because, *named[0].because)
    return heads, places, dropped


def _mentioned(hit: Hit, trigger: Hit | None, alternative: bool) -> str:
    """Status of a mention, "" when nothing is asserted."""
    effect = trigger.rule.effect if trigger else ""
    if effect == "negated":
        return "absent"
    if effect == "dropped" or hit.rule.only_absent:
        return ""
    if effect in ("doubt", "uncertain") or alternative:
        return "uncertain"
    return hit.rule.status


def _stated(meaning: str, weak: bool, trigger: Hit | None) -> str:
    """Status of a structure from the meaning of its state, "" when nothing is asserted."""
    effect = trigger.rule.effect if trigger else ""
    if effect == "dropped":
        return ""
    if effect == "negated":
        return "absent" if meaning in ("present", "none") or (meaning == "uncertain" and not weak) else ""
    if meaning == "none":
        return ""
    if effect == "doubt":
        return "uncertain" if meaning != "absent" else ""
    return "uncertain" if effect == "uncertain" and meaning == "present" else meaning


def _findings(
    clause: Sequence[Hit], heads: Sequence[_Head], report: str, section: str, sentence: tuple[int, int]
) -> Iterator[Finding]:
    for number, head in enumerate(heads):
        hit = clause[head.position]
        suggested_by = _suggesting(clause, heads[number - 1], head) if number else None
        for attributes in head.attributes:
            used = [Use(hit.rule.id, "mention", hit.start, hit.end)]
            used += [Use(h.rule.id, "status", h.start, h.end) for h in head.because]
            for h in attributes.hits:
                used.append(Use(h.rule.id, "place" if h.rule.anatomy else "modifier", h.start, h.end))
            weak = head.weak or (head.status == "absent" and any(h.rule.restricts for h in attributes.hits))
            names = [(name, head.status, weak, hit.rule.subtype) for name in hit.rule.findings]
            if head.status != "absent":
                names += [(name, "uncertain", True, "") for name in hit.rule.also]
            for name, status, is_weak, subtype in names:
                yield Finding(
                    name=name,
                    status=status,
                    start=hit.start,
                    end=hit.end,
                    text=report[hit.start : hit.end],
                    section=section,
                    sentence=sentence,
                    rules=tuple(used),
                    subtype=subtype,
                    severity=attributes.severity,
                    degree=attributes.degree,
                    laterality=attributes.laterality,
                    anatomy=attributes.anatomy,
                    pattern=attributes.pattern,
                    course=(head.trigger.rule.course if head.trigger else "") or attributes.course,
                    size_mm=attributes.size_mm,
                    count=attributes.count,
                    weak=is_weak,
                    suggested_by=suggested_by,
                )


def _suggesting(clause: Sequence[Hit], earlier: _Head, head: _Head) -> tuple[int, int] | None:
    """The mention before, where words between both make this one its reading."""
    between = clause[earlier.position + 1 : head.position]
    linked = any(h.rule.kind == "assertion" and h.rule.effect in ("uncertain", "suggests") for h in between)
    if not linked or earlier.status == "absent" or clause[earlier.position].rule.kind != "finding":
        return None
    return clause[earlier.position].start, clause[earlier.position].end
