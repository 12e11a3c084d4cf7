"""Pulmonary vessels and airways: three generations of branching from each hilum."""

from __future__ import annotations

import numpy as np

from counterscan.data.phantom.projection import Array, Tubes

NODES = 5
# Angle from lateral (degrees, down positive), length (mm), radius at the hilum (mm) of each side's stems.
STEMS = np.asarray(
    [
        [-78, 92, 3.4], [-60, 84, 3.0], [-38, 78, 2.9], [-16, 74, 2.6], [6, 74, 2.6], [24, 88, 2.8],
        [42, 112, 3.4], [56, 128, 4.2], [68, 132, 4.6], [79, 120, 3.6],
    ]
)  # fmt: skip


def _grow(rng: np.random.Generator, start: Array, angle: Array, span: Array, dive: Array, wander: float) -> Array:
    """Curved centre lines (C, NODES, 3) from ``start`` (C, 3) at ``angle`` (C,), ``span`` mm long, drifting in depth."""
    count = len(start)
    bend = wander * rng.normal(size=(count, 1)) + 0.5 * wander * rng.normal(size=(count, NODES - 1))
    heading = angle[:, None] + np.cumsum(bend, 1)
    step = span[:, None] / (NODES - 1)
    moves = np.stack([np.cos(heading) * step, np.sin(heading) * step, dive[:, None] * step * np.ones_like(heading)], -1)
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(moves, 1)], 1)


def _branch(
    rng: np.random.Generator, lines: Array, radius: Array, angle: Array, span: Array, count: int, shrink: float
) -> tuple[Array, Array, Array, Array]:
    """Children of every line: ``count`` each, leaving at random points to alternate sides."""
    parents = np.repeat(np.arange(len(lines)), count)
    share = np.tile(np.linspace(0.22, 0.9, count), len(lines)) + 0.08 * rng.uniform(-1, 1, len(parents))
    at = np.clip(share, 0.1, 0.98) * (NODES - 1)
    low = np.minimum(at.astype(int), NODES - 2)
    f = (at - low)[:, None]
    start = lines[parents, low] * (1 - f) + lines[parents, low + 1] * f
    thick = radius[parents, low] * (1 - f[:, 0]) + radius[parents, low + 1] * f[:, 0]
    turn = np.tile(np.where(np.arange(count) % 2, 1, -1), len(lines)) * rng.uniform(0.35, 0.95, len(parents))
    heading = angle[parents] + turn
    length = span[parents] * (0.62 - 0.25 * share) * rng.uniform(0.7, 1.3, len(parents))
    child = _grow(rng, start, heading, length, rng.uniform(-0.8, 0.8, len(parents)), 0.13)
    taper = np.linspace(shrink, 0.32, NODES)[None] * thick[:, None]
    return child, taper, heading, length


def pulmonary_tree(rng: np.random.Generator, scale: float) -> list[Tubes]:
    """Arteries and veins of both lungs: stems, branches, twigs. Densities are 1, as water."""
    lines, radii, twigs, thin = [], [], [], []
    for side in (-1, 1):
        stems = STEMS.copy()
        stems[:, 0] += 5 * rng.normal(size=len(stems))
        stems[:, 1] *= 1 + 0.1 * rng.normal(size=len(stems))
        stems[:, 2] *= 1.25 + 0.14 * rng.normal(size=len(stems))
        angle, span = np.deg2rad(stems[:, 0]), stems[:, 1]
        hilum = np.asarray([31.0, -26 if side < 0 else -34, 0])
        start = hilum + rng.normal(size=(len(stems), 3)) * [3.5, 8, 8]
        stem = _grow(rng, start, angle, span, rng.uniform(-0.45, 0.45, len(stems)), 0.09)
        thick = stems[:, 2:] * np.linspace(1, 0.3, NODES)[None]
        first = _branch(rng, stem, thick, angle, span, 5, 0.72)
        second = _branch(rng, *first, 3, 0.8)
        trunk = np.asarray(
            [[[24, -38, 8], [33, -33, 6], [42, -20, 0], [47, 2, -6], [50, 26, -12]],
             [[26, -26, 4], [35, -38, 0], [42, -50, 0], [46, -64, 0], [49, -78, 0]]], np.float64
        )  # fmt: skip
        trunk += rng.normal(size=(2, 1, 3)) * 2.5
        bulk = np.asarray([[8.5, 8.5, 8.0, 6.6, 4.6], [7.5, 7.0, 5.6, 4.2, 2.8]]) * (1 + 0.1 * rng.normal())
        mirror = np.asarray([side, 1, 1]) * scale
        lines.append(np.concatenate([trunk, stem, first[0]]) * mirror)
        radii.append(np.concatenate([bulk, thick, first[1]]) * scale)
        twigs.append(second[0][:, ::2] * mirror)  # short enough to need no more nodes
        thin.append(second[1][:, ::2] * scale)
    return [_vessels(lines, radii), _vessels(twigs, thin)]


def _vessels(lines: list[Array], radii: list[Array]) -> Tubes:
    nodes, radius = np.concatenate(lines), np.maximum(np.concatenate(radii), 0.45)
    ones = np.ones(len(nodes), np.float32)
    return Tubes(nodes.astype(np.float32), radius.astype(np.float32), ones, 2.0)


def airways(rng: np.random.Generator, scale: float, *, inside: bool = False) -> Tubes:
    """Trachea and main bronchi, or (``inside``) the bronchi within the lungs; their density is that of missing tissue."""
    if not inside:
        sway = 2.0 * rng.normal()
        trachea = [[0, -215, 15], [sway, -170, 2], [sway + 1, -130, -6], [sway + 2, -92, -12], [2, -58, -15]]
        right = [[2, -62, -15], [-8, -52, -15], [-18, -41, -14], [-27, -31, -14], [-33, -20, -14]]
        left = [[2, -62, -15], [13, -53, -15], [24, -44, -16], [34, -36, -18], [41, -29, -20]]
        nodes = np.asarray([trachea, right, left], np.float32) * scale
        radius = np.asarray([[8.8] * 5, [6.6, 6.6, 6.2, 5.6, 4.0], [5.8, 5.8, 5.4, 4.8, 3.4]], np.float32) * scale
        return Tubes(nodes, radius, np.asarray([-0.95, -0.8, -0.8], np.float32))
    lines, radii = [], []
    for side in (-1, 1):
        angle = np.deg2rad(np.asarray([-70, -35, 5, 40, 62, 78]) + 6 * rng.normal(size=6))
        start = np.tile([34.0, -26.0, -8.0], (6, 1))
        span = np.full(6, 95.0)
        stem = _grow(rng, start, angle, span, rng.uniform(-0.2, 0.2, 6), 0.07)
        thick = np.full((6, 1), 3.8) * np.linspace(1, 0.45, NODES)[None]
        first = _branch(rng, stem, thick, angle, span, 5, 0.75)
        chains = np.concatenate([stem, first[0]])
        chains[..., 0] *= side
        lines.append(chains * scale)
        radii.append(np.concatenate([thick, first[1]]) * scale)
    nodes, radius = np.concatenate(lines).astype(np.float32), np.concatenate(radii).astype(np.float32)
    return Tubes(nodes, radius, np.full(len(nodes), -1.0, np.float32))
