"""Clauses: how far one statement reaches in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from counterscan.text.scan import Hit

LINKS = ("and", "or", "comma")


def is_role(hit: Hit, *roles: str) -> bool:
    """Whether a hit is a grammar word of one of these roles."""
    return hit.rule.kind == "grammar" and hit.rule.role in roles


def is_verb(hit: Hit) -> bool:
    """A finite verb other than "is seen": what it says is said of its own subject."""
    return is_role(hit, "verb") or hit.rule.verbal


def split_clauses(hits: Sequence[Hit]) -> list[list[Hit]]:
    """Cut the hits of a sentence into clauses.

    A clause ends before "but", "however", "there is" ..., and before the last "and" or comma that stands between two
    verbs: "the effusion is small and | the pneumothorax has resolved". A negation at the start counts as a verb:
    "no pneumothorax and | the effusion is unchanged". "Is seen" counts for a single item, "no effusion, | edema is
    seen", and not for a list: "no effusion or pneumothorax is seen", "no effusion, edema, nodule is seen".

    Returns:
        Clauses in order; the words that cut are left out.
    """
    clauses: list[list[Hit]] = [[]]
    verb_seen, link, links = False, -1, 0
    for hit in hits:
        clause = clauses[-1]
        if is_role(hit, "break"):
            clauses.append([])
            verb_seen, link, links = False, -1, 0
            continue
        if is_role(hit, "relative"):
            verb_seen, link, links = False, -1, 0
        elif is_role(hit, "and", "comma"):
            if verb_seen and link != len(clause) - 1:  # ", and" cuts at the comma
                link, links = len(clause), links + 1
        elif is_role(hit, "or"):
            link = -1
        elif is_verb(hit) or (is_role(hit, "shown") and links == 1 and _has_subject(clause[: max(link, 0)])):
            if verb_seen and link >= 0 and _has_subject(clause[link:]):
                clauses[-1], rest = clause[:link], clause[link:]
                while rest and is_role(rest[0], "and", "comma"):
                    rest.pop(0)
                clauses.append(rest)
                clause = rest
            verb_seen, link, links = True, -1, 0
        elif hit.rule.kind == "assertion" and hit.rule.effect in ("negated", "doubt") and hit.rule.forward:
            verb_seen = True
        clause.append(hit)
    return [clause for clause in clauses if clause]


def _has_subject(hits: Sequence[Hit]) -> bool:
    """A finding or structure, or a side that stands for one: "the right effusion is smaller and the left has gone"."""
    return any(hit.rule.kind in ("finding", "structure") or hit.rule.laterality for hit in hits)
