"""Findings as a graph of observations, places and modifiers, in the manner of RadGraph (Jain et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from counterscan.text.mentions import Finding

_STATUS = {"present": "OBS-DP", "uncertain": "OBS-U", "absent": "OBS-DA"}


@dataclass(frozen=True)
class Node:
    """An entity.

    Attributes:
        label: RadGraph's: "OBS-DP", "OBS-U", "OBS-DA" (observation present, uncertain, absent), "ANAT-DP" (place) or
            "MOD" (degree, side, pattern, course, size).
        name: canonical finding of an observation, the rule's id of the others.
        start, end: span in the report; ``text`` is what stands there.
    """

    label: str
    name: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Edge:
    """A relation from node ``source`` to node ``target``: "located_at", "modify" or "suggestive_of"."""

    source: int
    target: int
    relation: str


@dataclass(frozen=True)
class Graph:
    """Nodes, and edges between their indices."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def to_dict(self) -> dict[str, Any]:
        """RadGraph's JSON form: entities with spans of characters, and relations to other entities."""
        return {
            "entities": {
                str(i): {
                    "tokens": node.text,
                    "label": node.label,
                    "name": node.name,
                    "span": [node.start, node.end],
                    "relations": [[e.relation, str(e.target)] for e in self.edges if e.source == i],
                }
                for i, node in enumerate(self.nodes)
            }
        }


def build_graph(findings: Sequence[Finding], report: str) -> Graph:
    """The entity graph of a report.

    An observation is located_at its places; sides modify the place if there is one and the observation otherwise, as
    do the other modifiers; an observation is suggestive_of the reading the report gives it ("opacity, likely edema").
    Structures of which something is said ("the heart is enlarged") are observations.

    Args:
        findings: of one report.
        report: its text.
    """
    nodes: list[Node] = []
    known: dict[tuple[str, str, int, int], int] = {}
    edges: dict[Edge, None] = {}

    def node(label: str, name: str, start: int, end: int) -> int:
        key = (label, name, start, end)
        if key not in known:
            known[key] = len(nodes)
            nodes.append(Node(label, name, start, end, report[start:end]))
        return known[key]

    observed: dict[tuple[int, int], list[int]] = {}
    for finding in findings:
        own = node(_STATUS[finding.status], finding.name, finding.start, finding.end)
        observed.setdefault((finding.start, finding.end), []).append(own)
        places = [node("ANAT-DP", use.id, use.start, use.end) for use in finding.rules if use.role == "place"]
        for place in places:
            edges[Edge(own, place, "located_at")] = None
        for use in finding.rules:
            if use.role == "modifier":
                is_side = use.id in ("left", "right", "bilateral")
                target = places[0] if is_side and places else own
                edges[Edge(node("MOD", use.id, use.start, use.end), target, "modify")] = None
        for origin in observed.get(finding.suggested_by or (-1, -1), ()):
            if nodes[origin].name != finding.name:
                edges[Edge(origin, own, "suggestive_of")] = None
    return Graph(tuple(nodes), tuple(edges))
