"""Closed-form line integrals: how far a ray runs through spheres, ellipsoids and chains of tubes.

Lengths are millimetres. Rays run along z; the divergence of the beam is carried by projecting every structure with the
magnification of its own depth (see ``view.py``). Intervals are pairs of arrays ``(low, high)`` of z along each ray; an
empty one has ``low > high``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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

    def with_wall(self, wall: float, dense: float, core: float) -> Tubes:
        """Bones: a cortical wall (mm) of density ``dense`` times the tubes' own around a core of density ``core``."""
        inner = np.maximum(self.radius - np.float32(wall), 0.05 * self.radius).astype(np.float32)
        weight = self.density.astype(np.float32)
        return Tubes(self.nodes, self.radius, weight * np.float32(dense), self.limit, inner, weight * np.float32(core))


@dataclass(frozen=True)
class Network:
    """All chains of a structure as one list of M nodes and S straight pieces, so that they are projected in one go."""

    nodes: Array  # (3, M) mm
    radius: Array  # (M,) mm
    core: Array  # (M,) mm, 0 where solid
    first: NDArray[np.intp]  # (S,) node a piece starts from; it ends at the next one
    density: Array  # (S,)
    core_extra: Array  # (S,) density of the core minus that around it
    slant: Array  # (S,) 1 / sin of the angle between tube and ray

    @classmethod
    def of(cls, parts: Sequence[Tubes]) -> Network:
        """Flatten chains."""
        columns: list[list[NDArray[Any]]] = [[] for _ in fields(cls)]
        count = 0
        for part in parts:
            chains, nodes = part.radius.shape
            move = np.diff(part.nodes, axis=1).reshape(-1, 3) ** 2
            flat = move[:, 0] + move[:, 1]
            first = (np.arange(chains)[:, None] * nodes + np.arange(nodes - 1)).ravel() + count
            core, extra = np.zeros_like(part.radius), np.zeros_like(part.density)
            if part.core is not None and part.core_density is not None:
                core, extra = part.core, part.core_density - part.density
            values = (
                part.nodes.reshape(-1, 3).T,
                part.radius.ravel(),
                core.ravel(),
                first,
                np.repeat(part.density, nodes - 1),
                np.repeat(extra, nodes - 1),
                np.minimum(np.sqrt((flat + move[:, 2]) / (flat + 1e-9)), part.limit),
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            count += chains * nodes
        whole: list[NDArray[Any]] = [np.concatenate(column, axis=-1) for column in columns]
        cast: list[Any] = [v if v.dtype.kind == "i" else v.astype(np.float32) for v in whole]
        return cls(*cast)

    def scaled(self, factor: float) -> Network:
        """The same with thicker or thinner tubes."""
        return replace(self, radius=self.radius * np.float32(factor))


@dataclass(frozen=True)
class Segments:
    """Projected straight pieces in pixels, each bounded by the mitre lines it shares with its neighbours.

    Positions and directions are (2, S): column, row. Radii (px) and peaks, the chord on the axis times density (mm),
    are (2, S): at start and end.
    """

    start: Array
    end: Array
    start_normal: Array
    end_normal: Array
    radius: Array
    peak: Array
    core: Array
    core_peak: Array


def segments(network: Network, pixels: Array, pixel_mm: float, magnification: Array) -> Segments:
    """Cut projected chains into mitred segments.

    Tubes thinner than a pixel are drawn wider and fainter with the same cross-section, so that a vessel weighs the
    same at every image size.

    Args:
        network: the chains.
        pixels: (2, M) their nodes projected to (column, row) in pixels.
        pixel_mm: pixel pitch.
        magnification: (M,) of the nodes.
    """
    here, there = network.first, network.first + 1
    start, end = pixels[:, here], pixels[:, there]
    step = end - start
    along = step / (np.sqrt(_dot(step, step)) + np.float32(1e-6))
    normal = np.zeros_like(pixels)
    normal[:, here] += along  # a joint looks along the mean of its two pieces; a free end along its one
    normal[:, there] += along
    normal /= np.sqrt(_dot(normal, normal)) + np.float32(1e-6)

    def profile(radius: Array, density: Array) -> tuple[Array, Array]:
        true = radius * magnification * np.float32(1 / pixel_mm)
        drawn = np.sqrt(true * true + np.float32(0.36))
        height = 2 * radius * true / drawn
        weight = density * network.slant
        return np.stack([drawn[here], drawn[there]]), np.stack([height[here] * weight, height[there] * weight])

    outer, inner = profile(network.radius, network.density), profile(network.core, network.core_extra)
    return Segments(start, end, normal[:, here], normal[:, there], *outer, *inner)


def _dot(a: Array, b: Array) -> Array:
    """Scalar products of (2, S) vectors."""
    return a[0] * b[0] + a[1] * b[1]


def draw(pieces: Segments, size: int) -> Array:
    """Sum of chord times density of all segments on a size x size grid (mm of water).

    A ray at distance d from the axis of a tube of radius r crosses ``2 sqrt(r^2 - d^2)`` of it, lengthened by
    the slant. Segments are drawn in small windows, grouped by window size.
    """
    indices, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    reach = np.maximum(pieces.radius[0], pieces.radius[1])
    low = np.floor(np.minimum(pieces.start, pieces.end) - reach)
    high = np.ceil(np.maximum(pieces.start, pieces.end) + reach)
    seen = (high[0] >= 0) & (high[1] >= 0) & (low[0] < size) & (low[1] < size)
    low = np.maximum(low, 0)
    extent = np.minimum(high, size - 1) - low
    group = np.searchsorted(WINDOWS, np.maximum(extent[0], extent[1]) + 1)
    group[~seen] = -1
    for g in np.unique(group[seen]):
        chosen = np.flatnonzero(group == g)
        window = min(int(WINDOWS[g]), size)
        block = max(1, 60_000 // window**2)  # blocks that stay in cache
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
    corner = np.minimum(low[:, which], np.float32(size - window))
    a, b = pieces.start[:, which] - corner, pieces.end[:, which] - corner
    step = b - a
    run2 = _dot(step, step) + np.float32(1e-6)
    radius, peak = pieces.radius[:, which], pieces.peak[:, which]

    def plane(n: Array, p: Array) -> Array:
        """n . (pixel - p) for every pixel of every window, (S, rows, columns)."""
        columns = n[0][:, None] * offset - _dot(n, p)[:, None]
        return columns[:, None, :] + (n[1][:, None] * offset)[:, :, None]

    across = plane(np.stack([-step[1], step[0]]) / np.sqrt(run2), a)
    hit = np.abs(across) < np.maximum(radius[0], radius[1])[:, None, None]
    hit &= plane(pieces.start_normal[:, which], a) >= 0
    hit &= plane(pieces.end_normal[:, which], b) < 0
    item = np.flatnonzero(hit)
    seg = np.repeat(np.arange(len(which)), np.count_nonzero(hit.reshape(len(which), -1), axis=1))
    pixel = item - seg * window**2
    share = plane(step / run2, a).ravel()[item]
    np.clip(share, 0, 1, out=share)
    distance2 = across.ravel()[item]
    distance2 *= distance2

    def chord(ends: Array, heights: Array) -> Array:
        wide = ends[0][seg] + share * (ends[1] - ends[0])[seg]
        left = 1 - distance2 / (wide * wide + np.float32(1e-12))
        return np.sqrt(np.maximum(left, 0)) * (heights[0][seg] + share * (heights[1] - heights[0])[seg])

    value = chord(radius, peak)
    core_peak = pieces.core_peak[:, which]
    if core_peak.any():
        value += chord(pieces.core[:, which], core_peak)
    inside = (np.arange(window)[:, None] * size + np.arange(window)).ravel()
    index = (corner[1] * size + corner[0]).astype(np.int64)[seg] + inside[pixel]
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
