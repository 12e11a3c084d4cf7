"""Closed-form line integrals: how far a ray runs through spheres, ellipsoids and chains of tubes.

Lengths are millimetres. Rays run along z; the divergence of the beam is carried by projecting every structure with the
magnification of its own depth (see ``view.py``). Intervals are pairs of arrays ``(low, high)`` of z along each ray; an
empty one has ``low > high``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Interval = tuple[Array, Array]
EMPTY = np.float32(-1e4)  # half-length of a ray that misses: low and high end up far on the wrong sides


def half_chord(q: Array, depth: Array | float) -> Array:
    """Half the chord of an ellipsoid.

    Args:
        q: squared normalised distance of the ray from the centre, ``(x/rx)^2 + (y/ry)^2``.
        depth: semi-axis along the ray (mm).

    Returns:
        ``depth * sqrt(1 - q)`` where the ray hits, ``EMPTY`` where it misses.
    """
    inside = 1.0 - q
    return np.where(inside > 0, depth * np.sqrt(np.maximum(inside, 0)), EMPTY).astype(np.float32, copy=False)


def around(centre: Array | float, half: Array) -> Interval:
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

    def scaled(self, radius: float | Array) -> Tubes:
        """The same tubes with other radii (a factor)."""
        return Tubes(self.nodes, (self.radius * radius).astype(np.float32), self.density, self.limit)

    def shell(self, wall: float, dense: float, core: float) -> list[Tubes]:
        """A bone: a cortical wall (mm) of density ``dense`` around a core, as a tube and a carved inner tube."""
        ones = np.ones(len(self.nodes), np.float32)
        inner = np.maximum(self.radius - wall, 0.05 * self.radius)
        return [
            Tubes(self.nodes, self.radius, dense * ones, self.limit),
            Tubes(self.nodes, inner, (core - dense) * ones, self.limit),
        ]


@dataclass(frozen=True)
class Segments:
    """Projected straight pieces in pixels, each bounded by the mitre lines it shares with its neighbours."""

    start: Array  # (S, 2)
    end: Array  # (S, 2)
    start_normal: Array  # (S, 2) unit, along the chain
    end_normal: Array  # (S, 2)
    radius: Array  # (S, 2) drawn radius at both ends, px
    peak: Array  # (S, 2) chord on the axis times density at both ends, mm


def merge(parts: list[Tubes]) -> list[Tubes]:
    """Put chains of equal node count and limit together, so that they are projected in one go."""
    groups: dict[tuple[int, float], list[Tubes]] = {}
    for part in parts:
        groups.setdefault((part.nodes.shape[1], part.limit), []).append(part)
    merged = []
    for (_, limit), group in groups.items():
        nodes, radius, density = (
            np.concatenate([getattr(t, n) for t in group]) for n in ("nodes", "radius", "density")
        )
        merged.append(Tubes(nodes, radius, density, limit))
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
    true = tubes.radius * magnification / pixel_mm
    drawn = np.sqrt(true**2 + 0.36)
    peak = tubes.density[:, None] * 2.0 * tubes.radius * true / drawn
    ends = (np.stack([v[:, :-1], v[:, 1:]], -1) for v in (drawn, peak))
    radius, height = (v.reshape(-1, 2) for v in ends)
    height = height * slant.reshape(-1, 1)
    flatten = (pixels[:, :-1], pixels[:, 1:], normal[:, :-1], normal[:, 1:])
    a, b, na, nb = (v.reshape(-1, 2).astype(np.float32) for v in flatten)
    return Segments(a, b, na, nb, radius.astype(np.float32), height.astype(np.float32))


def join(parts: list[Segments]) -> Segments:
    """All segments of several chains in one list."""
    names = Segments.__dataclass_fields__
    return Segments(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def draw(pieces: Segments, size: int) -> Array:
    """Sum of chord times density of all segments on a size x size grid (mm of water).

    A ray at distance d from the axis of a tube of radius r crosses ``2 sqrt(r^2 - d^2)`` of it, lengthened by the slant.
    Segments are drawn in small windows, grouped by window size.
    """
    canvas = np.zeros(size * size, np.float64)
    reach = pieces.radius.max(1)
    low = np.floor(np.minimum(pieces.start, pieces.end) - reach[:, None])
    high = np.ceil(np.maximum(pieces.start, pieces.end) + reach[:, None])
    seen = ((high >= 0) & (low < size)).all(1)
    low = np.maximum(low, -1.0)
    extent = (np.minimum(high, size) - low).max(1) + 1
    patches = np.asarray([5, 7, 10, 15, 24, 40, 70, 120, 220, 420, 800, 1200])
    group = np.searchsorted(patches, extent)
    for g in np.unique(group[seen]):
        chosen = np.flatnonzero(seen & (group == g))
        patch = int(patches[g])
        block = max(1, 400_000 // patch**2)
        for first in range(0, len(chosen), block):
            _draw_windows(canvas, pieces, chosen[first : first + block], low, patch, size)
    return canvas.reshape(size, size).astype(np.float32)


def _draw_windows(
    canvas: NDArray[np.float64], pieces: Segments, which: NDArray[np.intp], low: Array, patch: int, size: int
) -> None:
    """Add one group of equally large windows to the flat canvas, in place."""
    offset = np.arange(patch, dtype=np.float32)
    corner = low[which]
    a, b = pieces.start[which] - corner, pieces.end[which] - corner
    step = b - a
    run2 = (step**2).sum(1) + 1e-6
    run = np.sqrt(run2)
    radius, peak = pieces.radius[which], pieces.peak[which]

    def plane(n: Array, p: Array) -> Array:
        """n . (pixel - p) for every pixel of every window, (S, patch, patch)."""
        columns = n[:, :1] * offset - (n * p).sum(1)[:, None]
        return columns[:, None, :] + (n[:, 1:] * offset)[:, :, None]

    share = plane(step / run2[:, None], a)
    np.clip(share, 0, 1, out=share)
    value = plane(np.stack([-step[:, 1], step[:, 0]], 1) / run[:, None], a)
    value /= share * (radius[:, 1] - radius[:, 0])[:, None, None] + radius[:, :1, None]
    value *= value
    np.subtract(1, value, out=value)
    x, y = (corner[:, i : i + 1] + offset for i in (0, 1))
    seen_x, seen_y = ((v >= 0) & (v < size) for v in (x, y))
    hit = (value > 0) & seen_x[:, None, :] & seen_y[:, :, None]
    hit &= plane(pieces.start_normal[which], a) >= 0
    hit &= plane(pieces.end_normal[which], b) < 0
    where = np.flatnonzero(hit)
    height = share * (peak[:, 1] - peak[:, 0])[:, None, None] + peak[:, :1, None]
    chord = np.sqrt(value.ravel()[where]) * height.ravel()[where]
    index = (y[:, :, None] * size + x[:, None, :]).astype(np.int64).ravel()[where]
    canvas += np.bincount(index, chord, minlength=size * size)


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
