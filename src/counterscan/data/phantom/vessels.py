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

# The main arteries of the hila: right and left, one down, one up.
_DOWN = [[24, -38, 8], [33, -33, 6], [42, -20, 0], [47, 2, -6], [50, 26, -12]]
_UP = [[26, -26, 4], [35, -38, 0], [42, -50, 0], [46, -64, 0], [49, -78, 0]]
TRUNKS = np.asarray([_DOWN, _UP, _DOWN, _UP], np.float64)
TRUNK_RADII = np.asarray([[8.5, 8.5, 8.0, 6.6, 4.6], [7.5, 7.0, 5.6, 4.2, 2.8]] * 2)


def _grow(rng: np.random.Generator, start: Array, angle: Array, span: Array, dive: Array, wander: float) -> Array:
    """Curved centre lines (C, NODES, 3) from ``start`` (C, 3) at ``angle`` (C,), ``span`` mm long, diving in depth."""
    count = len(start)
    bend = wander * rng.normal(size=(count, 1)) + 0.5 * wander * rng.normal(size=(count, NODES - 1))
    heading = angle[:, None] + np.cumsum(bend, 1)
    step = span[:, None] / (NODES - 1)
    moves = np.stack([np.cos(heading) * step, np.sin(heading) * step, dive[:, None] * step * np.ones_like(heading)], -1)
    return start[:, None] + np.concatenate([np.zeros((count, 1, 3)), np.cumsum(moves, 1)], 1)


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


def pulmonary_tree(rng: np.random.Generator, scale: float, half_width: float, crest: float) -> list[Tubes]:
    """Arteries and veins of both lungs: stems, branches, twigs. Densities are 1, as water."""
    stems = np.concatenate([STEMS, STEMS])  # right, then left; mirrored at the end
    count = len(STEMS)
    stems[:, 0] += 5 * rng.normal(size=2 * count)
    stems[:, 1] *= 1 + 0.1 * rng.normal(size=2 * count)
    stems[:, 2] *= 1.25 + 0.14 * rng.normal(size=2 * count)
    angle, span = np.deg2rad(stems[:, 0]), stems[:, 1]
    start = np.asarray([31.0, -26, 0]) + rng.normal(size=(2 * count, 3)) * [3.5, 8, 8]
    start[count:, 1] -= 8  # the left hilum stands higher
    stem = _grow(rng, start, angle, span, rng.uniform(-0.45, 0.45, 2 * count), 0.09)
    thick = stems[:, 2:] * np.linspace(1, 0.3, NODES)[None]
    first = _branch(rng, stem, thick, angle, span, 5, 0.72)
    second = _branch(rng, *first, 2, 0.85)
    trunk = TRUNKS + rng.normal(size=(4, 1, 3)) * 2.5
    bulk = TRUNK_RADII * (1 + 0.1 * rng.normal())
    branches = np.concatenate([trunk, stem, first[0]])
    side = np.concatenate([_sides(2), _sides(count), _sides(5 * count)])
    twigs = second[0][:, ::2]  # short enough to need no more nodes
    x, y = twigs[:, 1, 0] * scale, twigs[:, 1, 1] * scale
    inside = (x > 16 * scale) & (x < half_width) & (y < crest + 14 * scale)  # others never meet air
    return [
        _vessels(branches, side * scale, np.concatenate([bulk, thick, first[1]]) * scale),
        _vessels(twigs[inside], _sides(10 * count)[inside] * scale, second[1][inside, ::2] * scale),
    ]


def _sides(count: int) -> Array:
    """-1 for ``count`` chains of the right lung, then 1 for as many of the left."""
    return np.repeat(np.asarray([-1.0, 1.0]), count)


def _vessels(nodes: Array, side: Array, radius: Array) -> Tubes:
    """Tubes of density 1; ``side`` (C,) carries sign and scale."""
    nodes = nodes * np.stack([side, np.abs(side), np.abs(side)], -1)[:, None]
    thick = np.maximum(radius, 0.45).astype(np.float32)
    return Tubes(nodes.astype(np.float32), thick, np.ones(len(nodes), np.float32), 2.0)


def airways(rng: np.random.Generator, scale: float) -> Tubes:
    """Trachea and main bronchi; their density is that of the tissue missing there."""
    sway = 2.0 * rng.normal()
    trachea = [[0, -215, 15], [sway, -170, 2], [sway + 1, -130, -6], [sway + 2, -92, -12], [2, -58, -15]]
    right = [[2, -62, -15], [-8, -52, -15], [-18, -41, -14], [-27, -31, -14], [-33, -20, -14]]
    left = [[2, -62, -15], [13, -53, -15], [24, -44, -16], [34, -36, -18], [41, -29, -20]]
    nodes = np.asarray([trachea, right, left], np.float32) * np.float32(scale)
    radius = np.asarray([[8.8] * 5, [6.6, 6.6, 6.2, 5.6, 4.0], [5.8, 5.8, 5.4, 4.8, 3.4]], np.float32)
    return Tubes(nodes, radius * np.float32(scale), np.asarray([-0.95, -0.8, -0.8], np.float32))


def lobar_bronchi(rng: np.random.Generator, scale: float) -> Tubes:
    """Bronchi within the lungs, density -1: seen only where the lung around them is airless."""
    angle = np.deg2rad(np.tile([-70.0, -35, 5, 40, 62, 78], 2) + 6 * rng.normal(size=12))
    start = np.tile([34.0, -26.0, -8.0], (12, 1))
    span = np.full(12, 95.0)
    stem = _grow(rng, start, angle, span, rng.uniform(-0.2, 0.2, 12), 0.07)
    thick = np.full((12, 1), 3.8) * np.linspace(1, 0.45, NODES)[None]
    first = _branch(rng, stem, thick, angle, span, 5, 0.75)
    side = np.concatenate([_sides(6), _sides(30)])
    tubes = _vessels(np.concatenate([stem, first[0]]), side * scale, np.concatenate([thick, first[1]]) * scale)
    return Tubes(tubes.nodes, tubes.radius, -tubes.density, tubes.limit)
