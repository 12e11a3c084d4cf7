"""Ribs, clavicles, scapulae, humeri and spine as chains of tubes with a cortical wall."""

from __future__ import annotations

from typing import Any

import numpy as np

from counterscan.data.phantom.projection import Array, Tubes

CORTEX, MARROW = 1.9, 0.36  # attenuation beyond that of soft tissue, relative to water


def skeleton(rng: np.random.Generator, scale: float, half_width: float, apex: float, crest: float) -> list[Tubes]:
    """All bones of one patient.

    Args:
        rng: the patient's generator.
        scale: body size.
        half_width: widest inner half-width of the rib cage (mm).
        apex: y of the lung apices (mm).
        crest: y of the right dome (mm); it meets about the tenth posterior rib.
    """
    strength = 1.0 + 0.22 * rng.uniform(-1, 1)
    spacing = (crest - apex - 6) / 9.0
    parts: list[Tubes] = []
    for chain in (*_ribs(rng, scale, half_width, apex, spacing), *_girdle(rng, scale)):
        parts.append(chain.with_wall(1.1 * scale, CORTEX * strength, MARROW * strength))
    parts += _spine(rng, scale, apex, spacing, strength)
    return parts


def _wall(y: Array, half_width: float, apex: float, crest_to_floor: float) -> Array:
    """Half-width of the rib cage at height y, just outside the lung."""
    t = np.clip((y - apex + 4) / (crest_to_floor - apex), 0, 1)
    return 45 + (half_width + 1 - 45) * (1 - (1 - t) ** 2.9) ** 0.56


def _ribs(rng: np.random.Generator, scale: float, half_width: float, apex: float, spacing: float) -> list[Tubes]:
    """Posterior arcs from the spine to the lateral wall, anterior arcs from there down to the costal cartilage."""
    count, shown = 11, 8  # anterior arcs below the eighth are not calcified enough to be seen
    jitter = 1.6 * rng.normal(size=(2, count, 1))
    k = np.arange(count)[:, None]
    head = apex + 5 + spacing * k + jitter[0]  # height at the costovertebral joint
    drop = (13 + 4.6 * k) * scale * (1 + 0.12 * rng.normal())  # how far the lateral end lies below it
    wall = _wall(head + drop, half_width, apex, apex + spacing * 11.2)
    wall[0] *= 0.93
    a = np.linspace(0, 1, 9)[None, :]  # along the posterior arc
    x = 16 * scale + (wall - 16 * scale) * np.sin(a * np.pi / 2) ** 0.9
    y = head + drop * (0.9 * a**2.1 + 0.1 * a**6) - 7 * scale * np.sin(np.pi * a) * (1 - k / 13)
    bow = np.sin(np.pi * np.minimum(a * 0.9 + 0.08, 1)) * np.minimum(wall / 120, 1)
    posterior = np.stack([x, y, -(28 + 58 * bow) * scale * (1 - a**3)], -1)

    k, wall, b = k[:shown], wall[:shown], np.linspace(0, 1, 9)[None, :]
    reach = np.clip(0.26 + 0.06 * k, 0.26, 0.7)
    x = wall * (1 - (1 - reach) * (1 - np.cos(b * np.pi / 2) ** 1.1))
    y = (head + drop)[:shown] + jitter[1, :shown] + (20 + 5.5 * k) * scale * (0.75 * b**1.3 + 0.25 * b)
    anterior = np.stack([x, y, 75 * np.sin(b * np.pi / 2) * scale + 0 * x], -1)

    first = np.where(np.arange(count) == 0, 0.7, 1.0)  # the first rib is thin and lies flat
    thick = (4.1 + 0.9 * np.sin(np.pi * a)) * scale, (4.4 + 1.4 * b) * scale
    return [
        _both_sides(posterior, thick[0], np.tile(first, 2), 1.9),
        _both_sides(anterior, thick[1], 0.9 * np.tile(first[:shown], 2), 1.9),
    ]


def _both_sides(left: Array, radius: Array, weight: Array, limit: float) -> Tubes:
    """Chains given for the patient's left (C, K, 3), and their mirror images."""
    nodes = np.concatenate([left * np.asarray([-1, 1, 1]), left]).astype(np.float32)
    radii = np.broadcast_to(radius, (len(nodes) // len(radius), *radius.shape)).reshape(len(nodes), -1)
    return Tubes(nodes, radii.astype(np.float32), weight.astype(np.float32), limit)


def _girdle(rng: np.random.Generator, scale: float) -> list[Tubes]:
    """Clavicles, scapular borders and spine, humeri. Raised or lowered together with the shoulders."""
    lift = 9 * rng.normal()
    spread = 6 * rng.normal()
    s = spread
    clavicle = [[(14, -80, 62), (36, -88, 70), (66, -99, 62), (98, -112 + lift, 40), (130, -122 + lift, 14),
                 (158 + s, -124 + lift, 0)]]  # fmt: skip
    blade = [
        [(118 + s, -128 + lift, -70), (121 + s, -100, -76), (126 + s, -70, -82), (131 + s, -38, -84),
         (139 + s, -10, -84), (146 + s, 6, -82)],
        [(172 + s, -100 + lift, -40), (167 + s, -76, -54), (160 + s, -50, -66), (154 + s, -26, -74),
         (149 + s, -6, -80), (146 + s, 6, -82)],
        [(118 + s, -112 + lift, -72), (134 + s, -121 + lift, -66), (150 + s, -130 + lift, -50),
         (164 + s, -138 + lift, -30), (174 + s, -142 + lift, -12), (180 + s, -140 + lift, 0)],
    ]  # fmt: skip
    arm = [[(180 + s, -118 + lift, -8), (186 + s, -96 + lift, -8), (192 + s, -60, -8), (198 + s, -10, -8),
            (204 + s, 60, -8), (212 + s, 260, -8)]]  # fmt: skip
    radii = (
        [[7.5, 6.2, 5.4, 5.2, 5.8, 6.2]],
        [[1.7] * 6, [4.6, 4.4, 4.0, 3.4, 2.6, 2.0], [2.6, 3.2, 4.2, 5.0, 5.6, 6.0]],
        [[21.0, 17, 11.5, 11, 11, 11]],
    )
    return [
        _both_sides(np.asarray(nodes) * scale, np.asarray(radius) * scale, np.full(2 * len(nodes), weight), 2.5)
        for nodes, radius, weight in zip((clavicle, blade, arm), radii, (1.35, 1.2, 0.9), strict=True)
    ]


def _spine(rng: np.random.Generator, scale: float, apex: float, spacing: float, strength: float) -> list[Tubes]:
    """Vertebral bodies with end plates, pedicles and spinous processes; curved a little to one side."""
    bend, phase = 3.0 * rng.normal(), rng.uniform(0, 3)
    k = np.arange(-2, 16)
    y = apex - 8 + spacing * 0.98 * k + 0.12 * np.maximum(k - 8, 0) ** 2 * 3
    height = spacing * (0.80 + 0.01 * k)
    x = bend * np.sin(0.25 * k + phase)
    half = (14.5 + 0.35 * k) * scale

    zero, up, down = 0 * x, -height / 2, height / 2
    # Each row: offsets (x, y) of both ends, radius, density, depth behind the vertebral body.
    rows: list[tuple[Any, ...]] = [(zero, up, zero, down, half, 0.3, 0.0)]
    rows += [(-half, e, half, e, 1.4 * scale, 3.2, 0.0) for e in (up, down)]
    rows += [(s * half * 0.96, up, s * half * 0.96, down, 1.3 * scale, 2.0, 0.0) for s in (-1, 1)]
    rows += [(zero, down * 0.2, zero, down * 1.1, 2.6 * scale, 1.3, -55 * scale)]
    pedicles = [
        (s * half * 0.62, up * 0.55, s * half * 0.62, down * 0.2, 4.0 * scale, 1.0, -18 * scale) for s in (-1, 1)
    ]

    def tubes(table: list[tuple[Any, ...]]) -> Tubes:
        dx0, dy0, dx1, dy1, radius, density, dz = (np.concatenate([row[i] + zero for row in table]) for i in range(7))
        at = np.tile(np.stack([x, y, np.full_like(x, -52 * scale)], -1), (len(table), 1))
        nodes = np.stack([at + np.stack(d, -1) for d in ((dx0, dy0, dz), (dx1, dy1, dz))], 1)
        thick = np.stack([radius, radius], 1)
        weight = (density * strength).astype(np.float32)
        return Tubes(nodes.astype(np.float32), thick.astype(np.float32), weight, 1.0)

    return [tubes(rows), tubes(pedicles).with_wall(1.2 * scale, 1.3, 0.1)]
