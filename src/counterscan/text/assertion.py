"""Present, absent or uncertain: which words of a clause reach a mention, and which of them wins.

ConText's idea (Harkema et al. 2009: triggers with a direction and a scope) with the order of the CheXpert labeler
(Irvin et al. 2019): doubt about a negation ("cannot exclude") before negation, negation before uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from counterscan.text.clauses import LINKS, is_role, is_verb
from counterscan.text.scan import Hit

_ORDER = {"dropped": 0, "doubt": 1, "negated": 2, "uncertain": 3}
# Degrees and courses that start a statement of their own after a comma: "no pneumothorax, small effusion".
_OWN_COURSES = ("stable", "increased", "decreased", "new")


def reaches(clause: Sequence[Hit]) -> list[tuple[int, range]]:
    """(position of a trigger, positions it reaches) for every trigger of a clause."""
    return [
        (i, range(i + 1, _forward_end(clause, i)) if hit.rule.forward else range(_backward_start(clause, i), i))
        for i, hit in enumerate(clause)
        if hit.rule.kind == "assertion" and hit.rule.effect in _ORDER
    ]


def deciding(clause: Sequence[Hit], reach: Sequence[tuple[int, range]], position: int) -> Hit | None:
    """The trigger that decides about the hit at ``position``, None if none reaches it."""
    reaching = [clause[i] for i, positions in reach if position in positions]
    return min(reaching, key=lambda hit: _ORDER[hit.rule.effect], default=None)


def _forward_end(clause: Sequence[Hit], i: int) -> int:
    trigger = clause[i].rule
    for j in range(i + 1, len(clause)):
        hit = clause[j]
        if is_role(hit, "stop"):  # "no pneumothorax with the tube in place"
            return j
        if hit.rule.kind == "assertion" and hit.rule.forward and hit.rule.effect in _ORDER:
            own = hit.rule.effect in ("negated", "doubt", "dropped") or hit.rule.verbal
            if own and trigger.effect != "dropped" and not _inside(clause, i, j):
                return j
            if not own and trigger.effect in ("negated", "doubt") and is_role(clause[j - 1], *LINKS):
                return j
        if is_role(hit, "and", "comma") and _starts_own(clause, j):
            return j
    return len(clause)


def _inside(clause: Sequence[Hit], i: int, j: int) -> bool:
    """Whether the trigger at j only continues the one at i: "no ... to suggest", "may not be excluded"."""
    first, second = clause[i].rule, clause[j].rule
    return (
        first.effect in ("negated", "doubt")
        and second.effect == "uncertain"
        and not any(hit.rule.kind in ("finding", "structure") for hit in clause[i + 1 : j])
    )


def _starts_own(clause: Sequence[Hit], j: int) -> bool:
    """Whether a comma or "and" at j starts a statement that what stands before does not reach."""
    is_comma = is_role(clause[j], "comma")
    found = False
    for hit in clause[j + 1 :]:
        rule = hit.rule
        if is_role(hit, *LINKS, "verb", "stop") or rule.kind in ("finding", "structure", "assertion"):
            if rule.kind == "finding" and not found:
                return False
            break
        if rule.kind == "modifier" and (rule.severity or rule.course in _OWN_COURSES or (is_comma and rule.laterality)):
            found = True
    if not found or not any(hit.rule.kind in ("finding", "structure") for hit in clause[j + 1 :]):
        return False
    # A later "or" makes it one list: "no consolidation, large effusion, or pneumothorax".
    rest = clause[j + 1 :]
    return not any(is_role(hit, "or") or (hit.rule.id == "negated" and hit.rule.forward) for hit in rest)


def _backward_start(clause: Sequence[Hit], i: int) -> int:
    linked = False
    for j in range(i - 1, -1, -1):
        hit = clause[j]
        if is_role(hit, "and", "or"):
            linked = True
        if (
            is_verb(hit)
            and hit.rule.id != "colon"
            and any(h.rule.kind in ("finding", "structure") for h in clause[j:i])
        ):
            return j + 1
        if is_role(hit, "comma") and not linked and any(h.rule.kind == "finding" for h in clause[j:i]):
            return j + 1
    return 0


def alternatives(clause: Sequence[Hit]) -> set[int]:
    """Positions of mentions that are alternatives to another finding: "atelectasis or infiltrate", "A, B, versus C".

    Two words for the same finding ("nodule or mass") are no alternatives.
    """
    heads = [i for i, hit in enumerate(clause) if hit.rule.kind == "finding"]
    found: set[int] = set()
    for left, right in pairwise(heads):
        between = clause[left + 1 : right]
        if not any(is_role(hit, "or") for hit in between):
            continue
        if any(is_verb(hit) or is_role(hit, "stop") or hit.rule.kind == "assertion" for hit in between):
            continue
        group = [left, right]
        while any(is_role(hit, "comma") for hit in between) and left != heads[0]:
            earlier = heads[heads.index(left) - 1]
            between = clause[earlier + 1 : left]
            if any(is_verb(hit) or hit.rule.kind == "assertion" for hit in between):
                break
            if any(is_role(hit, "comma") for hit in between):
                group.append(earlier)
            left = earlier
        if len({clause[i].rule.findings for i in group}) > 1:
            found.update(group)
    return found
