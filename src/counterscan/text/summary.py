"""An extractive summary: a graph of what a report talks about, PageRank on it, and the sentences that hold most of it.

In the spirit of WGSum (Hu et al. 2021), whose word graph joins radiological entities and their modifiers, with
TextRank (Mihalcea and Tarau 2004) in place of the trained encoder: nothing is learnt and nothing is worded anew.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np

from counterscan.text.extract import Extraction
from counterscan.text.mentions import Finding

_WEIGHT = {"present": 1.0, "uncertain": 0.7, "absent": 0.25}


def summarise(extraction: Extraction, sentences: int = 3) -> str:
    """One to three sentences of the report, in its order.

    Nodes are findings, places, degrees and other modifiers; those of one statement are joined by weight 2 (present
    statements count most), findings of one sentence by weight 1. A sentence scores the PageRank of its nodes that no
    chosen sentence has yet; sentences are taken while they add at least a third of what the best one had.

    Args:
        extraction: of a report; its Findings are summarised, or all of it where there is no such section.
        sentences: at most so many.

    Returns:
        The sentences joined by blanks, "" when nothing was read.
    """
    chosen = [s for s in extraction.sentences if s[2] != "impression"] or list(extraction.sentences)
    spans = [(start, end) for start, end, _ in chosen]
    about: dict[tuple[int, int], list[Finding]] = {span: [] for span in spans}
    for finding in extraction.findings:
        if finding.sentence in about:
            about[finding.sentence].append(finding)
    rank = _page_rank(_edges(list(about.values())))
    if not rank:
        return " ".join(" ".join(extraction.report[start:end].split()) for start, end in spans[:1])
    worth = {
        span: {node: rank[node] * _WEIGHT[f.status] for f in found for node in _nodes(f)}
        for span, found in about.items()
    }
    picked: list[tuple[int, int]] = []
    covered: set[str] = set()
    first = 0.0
    for _ in range(sentences):
        gains = {s: sum(v for n, v in worth[s].items() if n not in covered) for s in spans if s not in picked}
        if not gains:
            break
        best = max(gains, key=lambda s: (gains[s], -s[0]))
        if gains[best] <= first / 3:
            break
        first = first or gains[best]
        picked.append(best)
        covered |= set(worth[best])
    texts = [" ".join(extraction.report[start:end].split()) for start, end in sorted(picked)]
    return " ".join(f"{text}." for text in texts)


def _nodes(finding: Finding) -> list[str]:
    words = [finding.degree, finding.laterality, *finding.anatomy, *finding.pattern, finding.course]
    return [finding.subtype or finding.name, *filter(None, words)]


def _edges(sentences: list[list[Finding]]) -> dict[tuple[str, str], float]:
    edges: dict[tuple[str, str], float] = defaultdict(float)
    for found in sentences:
        for finding in found:
            nodes = _nodes(finding)
            edges[nodes[0], nodes[0]] += _WEIGHT[finding.status]
            for a, b in combinations(nodes, 2):
                edges[min(a, b), max(a, b)] += 2 * _WEIGHT[finding.status]
        heads = sorted({_nodes(finding)[0] for finding in found})
        for a, b in combinations(heads, 2):
            edges[a, b] += 1.0
    return edges


def _page_rank(edges: dict[tuple[str, str], float], damping: float = 0.85, steps: int = 50) -> dict[str, float]:
    """Weighted PageRank of an undirected graph (Page et al. 1999), by power iteration; sums to 1."""
    names = sorted({name for edge in edges for name in edge})
    if not names:
        return {}
    index = {name: i for i, name in enumerate(names)}
    weights = np.zeros((len(names), len(names)))
    for (a, b), weight in edges.items():
        weights[index[a], index[b]] += weight
        if a != b:
            weights[index[b], index[a]] += weight
    walk = weights / weights.sum(1, keepdims=True)
    rank = np.full(len(names), 1 / len(names))
    for _ in range(steps):
        rank = (1 - damping) / len(names) + damping * rank @ walk
    return dict(zip(names, rank.tolist(), strict=True))
