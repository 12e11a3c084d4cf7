"""Degree, side, place, pattern, course, size and number: which words of a clause qualify which mention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from counterscan.text.clauses import LINKS, is_role, is_verb
from counterscan.text.scan import Hit

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Attributes:
    """What qualifies a mention; the fields are those of ``Finding``."""

    severity: float | None = None
    degree: str = ""
    laterality: str = ""
    anatomy: tuple[str, ...] = ()
    pattern: tuple[str, ...] = ()
    course: str = ""
    size_mm: tuple[float, ...] = ()
    count: int | None = None
    hits: tuple[Hit, ...] = field(default=(), compare=False)


def bind(
    clause: Sequence[Hit], heads: Sequence[int], places: Mapping[int, str], denied: set[int], text: str
) -> dict[int, list[Attributes]]:
    """Give every modifier of a clause to one mention.

    Args:
        clause: hits.
        heads: positions of the mentions.
        places: positions of structures that only say where, and what place that is.
        denied: heads that are absent; a course after them is not theirs.
        text: what the offsets of sizes refer to.

    Returns:
        Attributes per head: one, or two where one word names two sides ("small right and large left effusions").
    """
    words: dict[int, list[int]] = {head: [] for head in heads}
    if not heads:
        return {}
    for i, hit in enumerate(clause):
        if hit.rule.kind == "modifier" or i in places:
            words[_owner(clause, heads, i, denied)].append(i)
    shared = _shared(clause, heads, words)
    found: dict[int, list[Attributes]] = {}
    for head in heads:
        sides = _two_sides(clause, head, words[head])
        found[head] = [_collect(clause, part, places, text) for part in sides or [words[head] + shared[head]]]
    return found


def _owner(clause: Sequence[Hit], heads: Sequence[int], i: int, denied: set[int]) -> int:
    """The head that the word at i qualifies."""
    before = [head for head in heads if head < i]
    after = [head for head in heads if head > i]
    if not before:
        return after[0]
    if clause[i].rule.course and (affirmed := [head for head in before if head not in denied]):
        before = affirmed
    if not after:
        return before[-1]
    if any(_boundary(hit) for hit in clause[i + 1 : after[0]]):
        return before[-1]
    since = [j for j in range(before[-1] + 1, i) if _boundary(clause[j])]
    # "in the left lower lobe": a preposition since the last comma or "and" ties the words to what stands before.
    return before[-1] if since and is_role(clause[since[-1]], "place") else after[0]


def _boundary(hit: Hit) -> bool:
    return hit.rule.kind in ("grammar", "assertion")


def _shared(clause: Sequence[Hit], heads: Sequence[int], words: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """Words of a joined head that count for this one too.

    Side, place and course before a list hold for all of it ("stable bilateral effusions and atelectasis"), and so do
    those after it ("effusion and atelectasis at the left base"); a head with words of its own kind keeps to these.
    """
    shared: dict[int, list[int]] = {head: [] for head in heads}
    pairs = [pair for pair in pairwise(heads) if _joined(clause[pair[0] + 1 : pair[1]])]
    for first, second in pairs:
        leading = [i for i in words[first] + shared[first] if i < first]
        placed = any(is_role(hit, "place") for hit in clause[first + 1 : second])
        shared[second] += _lacking(clause, second, words[second], leading, sides=not placed)
    for first, second in reversed(pairs):
        trailing = [i for i in words[second] + shared[second] if i > second]
        shared[first] += _lacking(clause, first, words[first] + shared[first], trailing, sides=True)
    return shared


def _joined(between: Sequence[Hit]) -> bool:
    """Whether the words between two heads only join them."""
    parted = any(hit.rule.kind == "assertion" or is_verb(hit) or is_role(hit, "stop") for hit in between)
    return not parted and any(is_role(hit, *LINKS) for hit in between)


def _lacking(clause: Sequence[Hit], head: int, own: Sequence[int], offered: Sequence[int], *, sides: bool) -> list[int]:
    """Of the offered words, those of a kind that the head has none of."""
    found: list[int] = []
    if sides and not clause[head].rule.unsided and not any(_places(clause[i]) for i in own):
        found += [i for i in offered if _places(clause[i])]
    if not any(clause[i].rule.course for i in own):
        found += [i for i in offered if clause[i].rule.course and i not in found]
    return found


def _places(hit: Hit) -> bool:
    return bool(hit.rule.laterality or hit.rule.anatomy)


def _two_sides(clause: Sequence[Hit], head: int, words: Sequence[int]) -> list[list[int]] | None:
    """The words split in two where left and right stand before the head, each with a degree of its own."""
    leading = [i for i in words if i < head]
    sides = [i for i in leading if clause[i].rule.laterality in ("left", "right")]
    degrees = [i for i in leading if clause[i].rule.severity]
    if len(sides) != 2 or len(degrees) != 2 or clause[sides[0]].rule.laterality == clause[sides[1]].rule.laterality:
        return None
    cut = next((i for i in range(sides[0], sides[1]) if is_role(clause[i], "and", "comma")), None)
    if cut is None or not degrees[0] < cut < degrees[1]:
        return None
    rest = [i for i in words if i > head]
    return [[i for i in leading if i < cut] + rest, [i for i in leading if i > cut] + rest]


def _collect(clause: Sequence[Hit], words: Sequence[int], places: Mapping[int, str], text: str) -> Attributes:
    found = Attributes()
    degrees: list[tuple[float, str]] = []
    for i in sorted(set(words)):
        rule = clause[i].rule
        found = replace(found, hits=(*found.hits, clause[i]))
        if i in places:
            found = replace(found, anatomy=_with(found.anatomy, places[i]))
            continue
        if rule.laterality:
            both = found.laterality and found.laterality != rule.laterality
            found = replace(found, laterality="bilateral" if both else rule.laterality)
        if rule.anatomy:
            found = replace(found, anatomy=_with(found.anatomy, rule.anatomy))
        if rule.pattern:
            found = replace(found, pattern=_with(found.pattern, rule.pattern))
        if rule.course and not (found.course and rule.course in ("stable", "old")):
            found = replace(found, course=rule.course)
        if rule.count:
            found = replace(found, count=rule.count)
        if rule.size:
            found = replace(found, size_mm=found.size_mm + _millimetres(text[clause[i].start : clause[i].end]))
        if rule.severity:
            degrees.append((rule.severity, rule.degree))
    if degrees:
        # The last word is the head's own: "slight increase in the moderate effusion".
        found = replace(found, severity=degrees[-1][0], degree=degrees[-1][1])
    return found


def _with(known: tuple[str, ...], more: str) -> tuple[str, ...]:
    return known if more in known else (*known, more)


def _millimetres(text: str) -> tuple[float, ...]:
    factor = 10.0 if "cm" in text or "cent" in text else 1.0
    return tuple(round(float(number) * factor, 3) for number in _NUMBER.findall(text))
