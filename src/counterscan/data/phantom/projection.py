"""Closed-form line integrals: how far a ray runs through spheres, ellipsoids and chains of tubes.

Lengths are millimetres. Rays run along z; the divergence of the beam is carried by projecting every structure with the
magnification of its own depth (see ``view.py``). Intervals are pairs of arrays ``(low, high)`` of z along each ray; an
empty one has ``low > high``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Number = float | np.floating[Any]
Interval = tuple[Array, Array]
WINDOWS = np.asarray([7, 10, 15, 24, 40, 75, 150, 300, 600, 1100])  # sides of the patches tubes are drawn in, px
EMPTY = np.float32(-1e4)  # half-length of a ray that misses: low and high end up far on the wrong sides


def half_chord(q: Array, depth: Array | Number) -> Array:
    """Half the chord of an ellipsoid.

    Args:
        q: squared normalised distance of the ray from the centre, ``(x/rx)^2 + (y/ry)^2``.
        depth: semi-axis along the ray (mm).

    Returns:
        ``depth * sqrt(1 - q)`` where the ray hits, ``EMPTY`` where it misses.
    """
    half = np.subtract(1, q, dtype=np.float32)
    missed = half <= 0
    np.sqrt(np.maximum(half, 0, out=half), out=half)
    half *= np.asarray(depth, np.float32)
    half[missed] = EMPTY
    return half


def around(centre: Array | Number, half: Array) -> Interval:
    """The interval of half-length ``half`` around ``centre``."""
    return centre - half, centre + half


def length(interval: Interval) -> Array:
    """Length of an interval, 0 when empty (mm)."""
    return np.maximum(interval[1] - interval[0], 0)


def meet(a: Interval, b: Interval) -> Interval:
    """Intersection of two intervals."""
    return np.maximum(a[0], b[0]), np.minimum(a[1], b[1])


def hull(a: Interval, b: Interval) -> Interval:
    """Smallest interval that holds both; an empty one adds nothing."""
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def length_outside(interval: Interval, a: Interval, b: Interval) -> Array:
    """Length of ``interval`` minus the union of ``a`` and ``b`` (inclusion and exclusion, exact)."""
    in_a, in_b = meet(interval, a), meet(interval, b)
    return length(interval) - length(in_a) - length(in_b) + length(meet(in_a, b))


@dataclass(frozen=True)
class Tubes:
    """Chains of tubes of equal node count.

    Attributes:
        nodes: (C, K, 3) centre lines, mm.
        radius: (C, K) mm.
        density: (C,) attenuation relative to water; negative carves air out of tissue.
        limit: the most a tube that runs along the ray may lengthen its chord, as a factor.
    """

    nodes: Array
    radius: Array
    density: Array
    limit: float = 2.5

    core: Array | None = None  # (C, K) radius of a core of other density, mm
    core_density: Array | None = None  # (C,)

    def scaled(self, factor: float) -> Tubes:
        """The same solid tubes, thicker or thinner."""
        return Tubes(self.nodes, self.radius * np.float32(factor), self.density, self.limit)

    def with_wall(self, wall: float, dense: float, core: float) -> Tubes:
        """Bones: a cortical wall (mm) of density ``dense`` times the tubes' own around a core of density ``core``."""
        inner = np.maximum(self.radius - np.float32(wall), 0.05 * self.radius).astype(np.float32)
        weight = self.density.astype(np.float32)
        return Tubes(self.nodes, self.radius, weight * np.float32(dense), self.limit, inner, weight * np.float32(core))


@dataclass(frozen=True)
class Segments:
    """Projected straight pieces in pixels, each bounded by the mitre lines it shares with its neighbours."""

    start: Array  # (S, 2)
    end: Array  # (S, 2)
    start_normal: Array  # (S, 2) unit, along the chain
    end_normal: Array  # (S, 2)
    radius: Array  # (S, 2) drawn radius at both ends, px
    peak: Array  # (S, 2) chord on the axis times density at both ends, mm
    core: Array  # (S, 2) radius of the core, px; 0 for solid tubes
    core_peak: Array  # (S, 2) what the core adds on the axis


def merge(parts: list[Tubes]) -> list[Tubes]:
    """Put chains of equal node count and limit together, so that they are projected in one go."""
    groups: dict[tuple[int, float, bool], list[Tubes]] = {}
    for part in parts:
        groups.setdefault((part.nodes.shape[1], part.limit, part.core is None), []).append(part)
    merged = []
    for (_, limit, solid), group in groups.items():
        nodes, radius, density = (np.concatenate([getattr(t, n) for t in group]) for n in ("nodes", "radius", "density"))
        core, weight = (None if solid else np.concatenate([getattr(t, n) for t in group]) for n in ("core", "core_density"))
        merged.append(Tubes(nodes, radius, density, limit, core, weight))
    return merged


def segments(tubes: Tubes, pixels: Array, pixel_mm: float, magnification: Array) -> Segments:
    """Cut projected chains into mitred segments.

    Tubes thinner than a pixel are drawn wider and fainter with the same cross-section, so that a vessel weighs the same
    at every image size.

    Args:
        tubes: the chains.
        pixels: (C, K, 2) their nodes projected to (column, row) in pixels.
        pixel_mm: pixel pitch.
        magnification: (C, K) of the nodes.
    """
    step = np.diff(pixels, axis=1)  # (C, K-1, 2)
    run = np.sqrt((step**2).sum(-1)) + 1e-6
    along = step / run[..., None]
    normal = np.empty_like(pixels)
    normal[:, 0], normal[:, -1] = along[:, 0], along[:, -1]
    if pixels.shape[1] > 2:
        joint = along[:, :-1] + along[:, 1:]
        normal[:, 1:-1] = joint / (np.sqrt((joint**2).sum(-1, keepdims=True)) + 1e-6)
    real = np.sqrt((np.diff(tubes.nodes, axis=1) ** 2).sum(-1)) + 1e-6
    flat = np.sqrt((np.diff(tubes.nodes[..., :2], axis=1) ** 2).sum(-1)) + 1e-6
    slant = np.minimum(real / flat, tubes.limit)  # 1 / sin of the angle between tube and ray
    slant = slant.reshape(-1, 1)

    def profile(radius: Array, density: Array) -> tuple[Array, Array]:
        """Drawn radius (px) and chord on the axis times density (mm) at both ends of each segment."""
        true = radius * magnification / np.float32(pixel_mm)
        drawn = np.sqrt(true**2 + np.float32(0.36))
        peak = density[:, None] * (2.0 * radius * true / drawn)
        wide, high = (np.stack([v[:, :-1], v[:, 1:]], -1).reshape(-1, 2).astype(np.float32) for v in (drawn, peak))
        return wide, high * slant

    outer = profile(tubes.radius, tubes.density)
    if tubes.core is None or tubes.core_density is None:
        inner = (np.zeros_like(outer[0]), np.zeros_like(outer[1]))
    else:
        inner = profile(tubes.core, tubes.core_density - tubes.density)
    ends = (pixels[:, :-1], pixels[:, 1:], normal[:, :-1], normal[:, 1:])
    a, b, na, nb = (v.reshape(-1, 2).astype(np.float32) for v in ends)
    return Segments(a, b, na, nb, *outer, *inner)


def join(parts: list[Segments]) -> Segments:
    """All segments of several chains in one list."""
    return Segments(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Segments)))


def draw(pieces: Segments, size: int) -> Array:
    """Sum of chord times density of all segments on a size x size grid (mm of water).

    A ray at distance d from the axis of a tube of radius r crosses ``2 sqrt(r^2 - d^2)`` of it, lengthened by
    the slant. Segments are drawn in small windows, grouped by window size.
    """
    indices, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    reach = pieces.radius.max(1)[:, None]
    low = np.floor(np.minimum(pieces.start, pieces.end) - reach)
    high = np.ceil(np.maximum(pieces.start, pieces.end) + reach)
    seen = ((high >= 0) & (low < size)).all(1)
    low = np.maximum(low, 0)
    group = np.searchsorted(WINDOWS, (np.minimum(high, size - 1) - low).max(1) + 1)
    group[~seen] = -1
    for g in np.unique(group[seen]):
        chosen = np.flatnonzero(group == g)
        window = min(int(WINDOWS[g]), size)
        block = max(1, 400_000 // window**2)
        for first in range(0, len(chosen), block):
            index, value = _draw_windows(pieces, chosen[first : first + block], low, window, size)
            indices.append(index)
            values.append(value)
    total = np.bincount(np.concatenate(indices), np.concatenate(values), minlength=size * size)
    return total.reshape(size, size).astype(np.float32)


def _draw_windows(
    pieces: Segments, which: NDArray[np.intp], low: Array, window: int, size: int
) -> tuple[NDArray[np.int64], Array]:
    """Flat pixel indices and values of one group of equally large windows, moved to lie inside the image."""
    offset = np.arange(window, dtype=np.float32)
    corner = np.minimum(low[which], np.float32(size - window))
    a, b = pieces.start[which] - corner, pieces.end[which] - corner
    step = b - a
    run2 = (step**2).sum(1) + np.float32(1e-6)
    radius, peak = pieces.radius[which], pieces.peak[which]

    def plane(n: Array, p: Array) -> Array:
        """n . (pixel - p) for every pixel of every window, (S, rows, columns)."""
        return (n[:, :1] * offset - (n * p).sum(1)[:, None])[:, None, :] + (n[:, 1:] * offset)[:, :, None]

    across = plane(step[:, ::-1] * np.asarray([-1, 1], np.float32) / np.sqrt(run2)[:, None], a)
    hit = np.abs(across) < radius.max(1)[:, None, None]
    hit &= plane(pieces.start_normal[which], a) >= 0
    hit &= plane(pieces.end_normal[which], b) < 0
    flat = (len(which), window * window)
    seg, pixel = np.nonzero(hit.reshape(flat))
    share = plane(step / run2[:, None], a).reshape(flat)[seg, pixel]
    np.clip(share, 0, 1, out=share)
    distance2 = across.reshape(flat)[seg, pixel] ** 2

    def chord(ends: Array, heights: Array) -> Array:
        e, h = ends[seg], heights[seg]
        wide = e[:, 0] + share * (e[:, 1] - e[:, 0])
        left = 1 - distance2 / (wide * wide + np.float32(1e-12))
        return np.sqrt(np.maximum(left, 0)) * (h[:, 0] + share * (h[:, 1] - h[:, 0]))

    value = chord(radius, peak)
    core = pieces.core[which]
    if core.any():
        value += chord(core, pieces.core_peak[which])
    inside = (np.arange(window)[:, None] * size + np.arange(window)).ravel()
    index = (corner[:, 1] * size + corner[:, 0]).astype(np.int64)[seg] + inside[pixel]
    return index, value


@lru_cache(maxsize=64)
def _spread(size: int, grid: int) -> Array:
    """(size, grid) matrix of a cubic B-spline through ``grid`` knots that span the image, edges included."""
    at = (np.arange(size) + 0.5) / size * (grid - 3) + 1.0
    distance = np.abs(at[:, None] - np.arange(grid)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def smooth_field(values: Array, size: int) -> Array:
    """A smooth field on the image from random knots: (g, g) -> (size, size), the same shape at every size."""
    spread = _spread(size, values.shape[0])
    return spread @ values @ spread.T


@lru_cache(maxsize=16)
def _blur(size: int, sigma: float) -> tuple[Array, Array]:
    """Reduce to 32 knots with a Gaussian of ``sigma`` (a fraction of the image side), and spread back."""
    grid = 32
    at = (np.arange(size) + 0.5) / size
    knots = (np.arange(grid) - 1.0) / (grid - 3)
    weight = np.exp(-0.5 * ((knots[:, None] - at[None, :]) / sigma) ** 2)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32), _spread(size, grid)


def wide_blur(image: Array, sigma: float) -> Array:
    """Gaussian blur much wider than a pixel; ``sigma`` is a fraction of the image side."""
    down, up = _blur(image.shape[-1], sigma)
    return up @ (down @ image @ down.T) @ up.T
