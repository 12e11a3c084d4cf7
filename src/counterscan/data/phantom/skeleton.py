"""Ribs, clavicles, scapulae, humeri and spine as chains of tubes with a cortical wall."""

from __future__ import annotations

import numpy as np

from counterscan.data.phantom.projection import Array, Tubes, merge

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
        parts += chain.shell(1.1 * scale, CORTEX * strength, MARROW * strength)
    parts += _spine(rng, scale, apex, spacing, strength)
    return merge(parts)


def _wall(y: Array, half_width: float, apex: float, crest_to_floor: float) -> Array:
    """Half-width of the rib cage at height y, just outside the lung."""
    t = np.clip((y - apex + 4) / (crest_to_floor - apex), 0, 1)
    return 45 + (half_width + 1 - 45) * (1 - (1 - t) ** 2.9) ** 0.56


def _ribs(rng: np.random.Generator, scale: float, half_width: float, apex: float, spacing: float) -> list[Tubes]:
    """Posterior arcs from the spine to the lateral wall, anterior arcs from there down to the costal cartilage."""
    count = 11
    jitter = 1.6 * rng.normal(size=(2, count))
    droop = 1 + 0.12 * rng.normal()
    k = np.arange(count)
    posterior, anterior, thick_p, thick_a = [], [], [], []
    for side in (-1, 1):
        head = apex + 5 + spacing * k + jitter[0]  # height at the costovertebral joint
        drop = (13 + 4.6 * k) * scale * droop  # how far the lateral end lies below it
        lateral = head + drop
        wall = _wall(lateral, half_width, apex, apex + spacing * 11.2)
        wall[0] *= 0.93
        a = np.linspace(0, 1, 11)[None, :]  # along the posterior arc
        angle = a * np.pi / 2
        x = 16 * scale + (wall[:, None] - 16 * scale) * np.sin(angle) ** 0.9
        z = (
            -(28 + 58 * np.sin(np.pi * np.minimum(a * 0.9 + 0.08, 1)) * np.minimum(wall[:, None] / 120, 1))
            * scale
            * (1 - a**3)
        )
        y = (
            head[:, None]
            + drop[:, None] * (0.9 * a**2.1 + 0.1 * a**6)
            - 7 * scale * np.sin(np.pi * a) * (1 - k[:, None] / 13)
        )
        posterior.append(np.stack([side * x, y, z], -1))
        thick_p.append(np.broadcast_to((4.1 + 0.9 * np.sin(np.pi * a)) * scale + 0 * x, x.shape))
        m = 8  # ribs whose anterior arcs are calcified enough to be seen
        b = np.linspace(0, 1, 9)[None, :]
        reach = np.clip(0.30 + 0.075 * k[:m, None], 0.3, 0.78)
        xa = wall[:m, None] * (1 - (1 - reach) * (1 - np.cos(b * np.pi / 2) ** 1.1))
        ya = lateral[:m, None] + jitter[1, :m, None] + (20 + 5.5 * k[:m, None]) * scale * (0.75 * b**1.3 + 0.25 * b)
        za = 75 * np.sin(b * np.pi / 2) * scale + 0 * xa
        anterior.append(np.stack([side * xa, ya, za], -1))
        thick_a.append(np.broadcast_to((4.4 + 1.4 * b) * scale, xa.shape))
    ones = np.ones(2 * count)
    ones[[0, count]] = 0.7  # the first rib is thin and lies flat
    weights = ones[: 2 * m] * 0.6
    return [
        Tubes(*(np.concatenate(v).astype(np.float32) for v in (posterior, thick_p)), ones.astype(np.float32), 1.9),
        Tubes(*(np.concatenate(v).astype(np.float32) for v in (anterior, thick_a)), weights.astype(np.float32), 1.9),
    ]


def _mirror(nodes: list[list[tuple[float, float, float]]], scale: float) -> Array:
    """Both sides of chains given for the patient's left, as (2C, K, 3)."""
    left = np.asarray(nodes, np.float32) * scale
    return np.concatenate([left, left * np.asarray([-1, 1, 1], np.float32)])


def _girdle(rng: np.random.Generator, scale: float) -> list[Tubes]:
    """Clavicles, scapular borders and spine, humeri. Raised or lowered together with the shoulders."""
    lift = 9 * rng.normal()
    spread = 6 * rng.normal()
    s = spread
    clavicle = [[(14, -80, 62), (36, -88, 70), (66, -99, 62), (98, -112 + lift, 40), (130, -122 + lift, 14),
                 (158 + s, -124 + lift, 0)]]  # fmt: skip
    blade = [
        [(118 + s, -128 + lift, -70), (121 + s, -100, -76), (126 + s, -70, -82), (131 + s, -38, -84), (139 + s, -10, -84),
         (146 + s, 6, -82)],
        [(172 + s, -100 + lift, -40), (167 + s, -76, -54), (160 + s, -50, -66), (154 + s, -26, -74), (149 + s, -6, -80),
         (146 + s, 6, -82)],
        [(118 + s, -112 + lift, -72), (134 + s, -121 + lift, -66), (150 + s, -130 + lift, -50), (164 + s, -138 + lift, -30),
         (174 + s, -142 + lift, -12), (180 + s, -140 + lift, 0)],
    ]  # fmt: skip
    arm = [[(180 + s, -118 + lift, -8), (186 + s, -96 + lift, -8), (192 + s, -60, -8), (198 + s, -10, -8),
            (204 + s, 60, -8), (212 + s, 260, -8)]]  # fmt: skip
    radii = {
        "clavicle": np.asarray([[7.5, 6.2, 5.4, 5.2, 5.8, 6.2]]),
        "blade": np.asarray([[1.7] * 6, [4.6, 4.4, 4.0, 3.4, 2.6, 2.0], [2.6, 3.2, 4.2, 5.0, 5.6, 6.0]]),
        "arm": np.asarray([[21.0, 17, 11.5, 11, 11, 11]]),
    }
    weight = {"clavicle": 1.35, "blade": 1.2, "arm": 0.9}
    chains = []
    for name, nodes in (("clavicle", clavicle), ("blade", blade), ("arm", arm)):
        radius = np.tile(radii[name] * scale, (2, 1)).astype(np.float32)
        density = np.full(len(radius), weight[name], np.float32)
        chains.append(Tubes(_mirror(nodes, scale), radius, density))
    return chains


def _spine(rng: np.random.Generator, scale: float, apex: float, spacing: float, strength: float) -> list[Tubes]:
    """Vertebral bodies with end plates, pedicles and spinous processes; curved a little to one side."""
    bend, phase = 3.0 * rng.normal(), rng.uniform(0, 3)
    k = np.arange(-3, 14)
    y = apex - 8 + spacing * 0.98 * k + 0.12 * np.maximum(k - 8, 0) ** 2 * 3
    height = spacing * (0.80 + 0.01 * k)
    x = bend * np.sin(0.25 * k + phase)
    half = (14.5 + 0.35 * k) * scale
    z = np.full(len(k), -52.0) * scale

    def chain(dx0: Array, dy0: Array, dx1: Array, dy1: Array, radius: float, density: float, dz: float = 0) -> Tubes:
        nodes = np.stack([np.stack([x + dx0, y + dy0, z + dz], -1), np.stack([x + dx1, y + dy1, z + dz], -1)], 1)
        count = len(k)
        return Tubes(
            nodes.astype(np.float32),
            np.full((count, 2), radius * scale, np.float32),
            np.full(count, density * strength, np.float32),
            1.0,
        )

    zero = np.zeros(len(k))
    up, down = -height / 2, height / 2
    body = chain(zero, up, zero, down, 1.0, 0.3)
    body = Tubes(body.nodes, np.repeat(half[:, None], 2, 1).astype(np.float32), body.density, 1.0)
    parts = [body]
    parts += [chain(-half, e, half, e, 1.4, 3.2) for e in (up, down)]
    parts += [chain(s * half * 0.96, up, s * half * 0.96, down, 1.3, 2.0) for s in (-1, 1)]
    for s in (-1, 1):
        pedicle = chain(s * half * 0.62, up * 0.55, s * half * 0.62, down * 0.2, 4.0, 1.0, -18 * scale)
        parts += pedicle.shell(1.2 * scale, 1.3 * strength, 0.1 * strength)
        parts.append(chain(s * half * 0.9, up * 0.4, s * (half + 14 * scale), up * 0.75, 3.6, 0.5, -24 * scale))
    parts.append(chain(zero, down * 0.2, zero, down * 1.1, 2.6, 1.3, -55 * scale))
    return parts
