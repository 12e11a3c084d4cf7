"""What is said of structures: "the heart and mediastinum are normal", "enlarged cardiac silhouette", "clear lungs"."""

from __future__ import annotations

from collections.abc import Sequence

from counterscan.text.clauses import LINKS, is_role
from counterscan.text.scan import Hit


def said_states(clause: Sequence[Hit]) -> dict[int, int]:
    """For each structure of a clause, the state that counts.

    A state directly before a structure ("normal heart size", "enlargement of the heart") belongs to it and to those
    joined to it by "and", "or" and commas that have none of their own; other states belong to the structures before
    them ("heart size and mediastinum are normal"), up to the next structure that is not so joined.

    Returns:
        Position of the structure -> position of the state. Structures of which nothing is said are left out.
    """
    structures = [i for i, hit in enumerate(clause) if hit.rule.kind == "structure"]
    before = {i: _state_before(clause, i) for i in structures}
    taken = {state for state in before.values() if state is not None}
    chosen: dict[int, int] = {}
    for i in structures:
        states = [state for state in (before[i],) if state is not None]
        states += _states_after(clause, i, taken)
        best = _first_listed(clause, i, states)
        if best is None and (shared := before.get(_joined_to(clause, i))) is not None:
            before[i] = shared
            best = _first_listed(clause, i, [shared])
        if best is not None:
            chosen[i] = best
    return chosen


def state_of(hit: Hit) -> str:
    """The state a hit names, "" if none."""
    return hit.rule.state


def _first_listed(clause: Sequence[Hit], structure: int, states: Sequence[int]) -> int | None:
    """Of several states, the one the structure lists first."""
    listed = list(clause[structure].rule.states)
    known = [i for i in states if state_of(clause[i]) in listed]
    return min(known, key=lambda i: listed.index(state_of(clause[i])), default=None)


def _state_before(clause: Sequence[Hit], i: int) -> int | None:
    for j in range(i - 1, -1, -1):
        hit = clause[j]
        if state_of(hit):
            return j
        nominal = hit.rule.kind == "grammar" and hit.rule.role == "place"
        if hit.rule.kind != "modifier" and not (nominal and j and state_of(clause[j - 1]) and hit.end - hit.start == 2):
            return None
    return None


def _states_after(clause: Sequence[Hit], i: int, taken: set[int]) -> list[int]:
    found: list[int] = []
    for j in range(i + 1, len(clause)):
        hit = clause[j]
        if state_of(hit):
            if j in taken or _qualifies_finding(clause, j):
                break
            found.append(j)
        elif hit.rule.kind == "structure":
            if found or not _linked(clause, i, j):
                break
        elif hit.rule.kind == "finding" or is_role(hit, "stop"):
            break
    return found


def _qualifies_finding(clause: Sequence[Hit], i: int) -> bool:
    """Whether a modifier stands before a finding: "heart size normal, increased opacity" says nothing of the heart."""
    if clause[i].rule.kind != "modifier":
        return False
    following = next((hit for hit in clause[i + 1 :] if hit.rule.kind != "modifier"), None)
    return following is not None and following.rule.kind == "finding"


def _linked(clause: Sequence[Hit], i: int, j: int) -> bool:
    """Whether two structures are joined by "and", "or" or a comma, or stand side by side."""
    between = [hit for hit in clause[i + 1 : j] if hit.rule.kind not in ("modifier", "structure")]
    return all(is_role(hit, *LINKS, "place") for hit in between)


def _joined_to(clause: Sequence[Hit], i: int) -> int:
    """The structure before this one, if both are joined; -1 otherwise."""
    for j in range(i - 1, -1, -1):
        if clause[j].rule.kind == "structure":
            return j if _linked(clause, j, i) else -1
    return -1
