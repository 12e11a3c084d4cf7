"""The seven findings as changes of the body, in three dimensions.

Each function takes the thorax and a case and returns the change, with the measures that the report quotes written into
the case. Nothing is painted on the image: water replaces aerated lung along the part of each ray that runs through the
finding, air leaves it, the heart grows, the diaphragm rises.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from counterscan.data.phantom.cases import Case
from counterscan.data.phantom.projection import (
    EMPTY,
    Array,
    Network,
    Tubes,
    around,
    draw,
    half_chord,
    length,
    smooth_field,
)
from counterscan.data.phantom.thorax import Change, Shape, Thorax

HEALTHY = Shape()
ZONE_Y = {"upper": 0.27, "mid": 0.53, "lower": 0.78}  # share of the way from the apex to the dome


def change_of(thorax: Thorax, case: Case) -> Change:
    """The change that one case makes to a healthy body."""
    return EFFECTS[case.finding](thorax, case, np.random.default_rng(case.seed))


def _height(thorax: Thorax, zone: str, sign: int, spread: float) -> float:
    crest = thorax.body.dome[0 if sign < 0 else 1]
    return thorax.body.apex + (ZONE_Y[zone] + spread) * (crest - thorax.body.apex)


def _mottle(rng: np.random.Generator, size: int, *grids: int) -> Array:
    """Random texture of about unit variance from coarse to fine."""
    layers = [smooth_field(rng.normal(size=(g, g)).astype(np.float32), size) for g in grids]
    return np.sum(layers, axis=0) * np.float32(1.5 / len(grids) ** 0.5)


def consolidation(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """Alveoli filled in part of a lobe: an irregular region, its vessels drowned, its bronchi still full of air."""
    s, b = case.severity, thorax.body
    sign = case.signs[0]
    y = _height(thorax, case.zone, sign, 0.05 * rng.uniform(-1, 1))
    wall = b.wall_x(y)
    x = sign * wall * rng.uniform(0.5, 0.72)
    size = (36 + 30 * s) * b.scale
    radii = (size * rng.uniform(0.85, 1.25), size * rng.uniform(0.75, 1.05), size * 1.2)
    lobar = case.zone == "upper" and sign < 0 and s > 0.45
    warp = 0.45 * _mottle(rng, thorax.frame.size, 8, 15, 30)
    px, py, m = thorax.frame.place(x, y, 10.0 * rng.uniform(-1, 1) * b.scale)
    q = ((thorax.x - px) / (radii[0] * m)) ** 2 + ((thorax.y - py) / (radii[1] * m)) ** 2
    q = q * np.exp(warp)
    region = around(np.float32(rng.uniform(-25, 20)), half_chord(q, radii[2]))
    inside = thorax.air(region, HEALTHY)
    inside = np.where(thorax.left == (sign > 0), inside, 0)
    patchy = np.clip(0.34 + 0.36 * s + 0.17 * _mottle(rng, thorax.frame.size, 20, 36, 64), 0.05, 0.95)
    water = inside * patchy * np.clip(1.5 * (1 - q), 0, 1)  # alveoli fill less and less towards the edge
    if lobar:  # the minor fissure holds it back
        fissure = np.float32((4 + 6 * rng.uniform(-1, 1)) * b.scale)
        water = water * np.clip((fissure - thorax.y) / 3, 0, 1)
        case.measures["lobar"] = 1.0
    share = water / np.maximum(thorax.healthy_air, 20)
    shows = np.clip(2.2 * share, 0, 1) * min(0.4 + s, 1.0)
    return Change(water=water, vessels=1 - np.clip(0.9 * share, 0, 1), bronchogram=shows)


def pleural_effusion(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """Fluid around the base of the lung; its upper surface climbs the chest wall all round: the meniscus."""
    b = thorax.body
    water: Array | float = 0.0
    fade: Array | float = 1.0
    for i, sign in enumerate(case.signs):
        severity = float(np.clip(case.severity * (1.0 if i == 0 else rng.uniform(0.55, 1.0)), 0.03, 1))
        rise = (42 + 30 * severity) * b.scale
        rim = b.floor - (20 + 125 * severity**1.25) * b.scale  # where the fluid ends at the wall
        lateral, _, depth = b.profile(thorax.y)
        ux = (np.abs(thorax.x) - 0.42 * lateral) / (0.60 * lateral + 1e-3)
        ux = np.where(ux < 0, 0.35 * ux, ux)
        # Lung stays where y < level - rise (ux^2 + uz^2); uz is depth over the half-depth of the cage.
        level = np.float32(rim) + rise
        room = (level - thorax.y) / rise - ux * ux
        dry = np.where(room > 0, depth * np.sqrt(np.maximum(room, 0)), EMPTY)
        fluid = thorax.healthy_air - thorax.air(
            (np.maximum(thorax.cage[0], thorax.cage_z - dry), np.minimum(thorax.cage[1], thorax.cage_z + dry)), HEALTHY
        )
        fluid = np.where(thorax.left == (sign > 0), fluid, 0).astype(np.float32)
        water = water + fluid
        fade = fade * (1 - 0.9 * fluid / np.maximum(thorax.healthy_air, 15))
    return Change(water=water, vessels=np.clip(fade, 0, 1))


def cardiomegaly(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """A larger heart, mostly towards the left; the ratio of its width to that of the chest goes into the report."""
    healthy = cardiothoracic_ratio(thorax, 1.0)
    target = max(0.535 + 0.14 * case.severity, healthy + 0.045)
    low, high = 1.0, 2.0
    for _ in range(12):  # the ratio rises with the heart: bisect
        grow = (low + high) / 2
        low, high = (grow, high) if cardiothoracic_ratio(thorax, grow) < target else (low, grow)
    case.measures["ctr"] = round(cardiothoracic_ratio(thorax, grow), 2)
    case.measures["ctr_healthy"] = round(healthy, 2)
    return Change(shape=Shape(heart=float(grow)))


def cardiothoracic_ratio(thorax: Thorax, grow: float) -> float:
    """Greatest width of the projected heart over the greatest inner width of the chest."""
    edges = []
    for centre, radii, tilt in thorax.heart_parts(Shape(heart=grow)):
        x, _, m = thorax.frame.place(*centre)
        reach = m * np.hypot(radii[0] * np.cos(tilt), radii[1] * np.sin(tilt))
        edges += [x - reach, x + reach]
    return float((max(edges) - min(edges)) / (2 * thorax.body.half_width))


def edema(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """Hazy water around the hila or in the bases, engorged and blurred vessels, septal lines from moderate on."""
    s, b, size = case.severity, thorax.body, thorax.frame.size
    perihilar = case.zone == "perihilar"
    y0 = ((-12 if perihilar else 34) + 16 * rng.uniform(-1, 1)) * b.scale
    tilt = 1 + 0.35 * rng.uniform(-1, 1) * np.sign(thorax.x)  # one side has more of it
    reach = (0.68 + 0.55 * s) * rng.uniform(0.85, 1.15) * b.scale
    centre = (56 if perihilar else 70) * b.scale
    q = ((np.abs(thorax.x) - centre) / (56 * reach)) ** 2 + ((thorax.y - y0) / (74 * reach)) ** 2
    haze = np.exp(-1.1 * q) * tilt * (0.12 + 0.34 * s)
    grain = np.clip(1 + 0.30 * _mottle(rng, size, 14, 40) + 0.22 * s * thorax.interstitium, 0.1, 3)
    air = thorax.healthy_air
    water = air * np.clip(haze * grain, 0, 0.85)
    tissue: Array | float = 0.0
    if s > 0.35:
        tissue = draw(thorax.frame.cut(Network.of([_septa(thorax, rng, int(4 + 6 * s))])), size) * np.clip(
            air / 30, 0, 1
        )
        case.measures["septal_lines"] = 1.0
    return Change(water=water, vessels=1 - 0.35 * s * np.exp(-q), engorged=1.12 + 0.34 * s, tissue=tissue)


def _septa(thorax: Thorax, rng: np.random.Generator, count: int) -> Tubes:
    """Kerley B lines: short, thin, horizontal, reaching the pleura above both costophrenic angles."""
    b, nodes = thorax.body, []
    for sign in (-1, 1):
        for step in range(count):
            y = b.floor - (32 + 6.5 * step + rng.uniform(-2, 2)) * b.scale
            wall = b.wall_x(y) - 3
            inner = wall - rng.uniform(10, 19) * b.scale
            nodes.append([[sign * wall, y, 0], [sign * inner, y - rng.uniform(-1.5, 2.5), 0]])
    points = np.asarray(nodes, np.float32)
    return Tubes(points, np.full(points.shape[:2], 0.55, np.float32), np.full(len(points), 7.0, np.float32))


def atelectasis(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """Plates of collapsed lung, the diaphragm drawn up; when severe a whole lower lobe, and the mediastinum follows."""
    s, b = case.severity, thorax.body
    sign = case.signs[0]
    lift = (1.5 + 11 * s) * b.scale
    crest = b.dome[0 if sign < 0 else 1] - lift
    count = 1 + int(2.6 * s)
    nodes, radius, density = [], [], []
    base = crest - 16 * b.scale if case.zone == "lower" else _height(thorax, "mid", sign, 0.06)
    for step in range(count):
        y = base - (14 * step + 5 * rng.uniform(-1, 1)) * b.scale
        start, span = rng.uniform(46, 62), rng.uniform(38, 58 + 14 * s)
        t = np.linspace(0, 1, 5)
        xs = np.minimum(start * b.scale + span * b.scale * t, b.wall_x(y) - 5)
        ys = y + rng.uniform(-0.32, 0.22) * span * t + 3 * np.sin(np.pi * t)
        nodes.append(np.stack([sign * xs, ys, 0 * t - 10], -1))
        thick = (1.6 + 2.2 * s * rng.uniform(0.7, 1.2)) * b.scale
        radius.append(thick * np.asarray([0.5, 1, 1, 0.9, 0.6]))
        density.append((20 + 16 * s) / (2 * thick) * 0.62)  # a plate 20 to 36 mm deep seen on edge
    plates = Tubes(np.asarray(nodes, np.float32), np.asarray(radius, np.float32), np.asarray(density, np.float32))
    air = thorax.healthy_air
    tissue = draw(thorax.frame.cut(Network.of([plates])), thorax.frame.size) * np.clip(air / 25, 0, 1)
    change = Change(tissue=tissue, shape=Shape(lift=(lift, 0.0) if sign < 0 else (0.0, lift)))
    if s > 0.72:
        shift = sign * (2.5 + 10 * (s - 0.72)) * b.scale
        case.measures["shift_mm"] = round(abs(shift), 1)
        change = change.plus(Change(water=_collapsed_lobe(thorax, sign, crest, s), shape=Shape(shift=shift)))
    return change


def _collapsed_lobe(thorax: Thorax, sign: int, crest: float, severity: float) -> Array:
    """A wedge of airless lower lobe against the spine, its outer border running obliquely down and out (mm of path)."""
    b = thorax.body
    top = crest - 78 * b.scale
    border = (30 + (thorax.y - top) * 0.55) * b.scale  # distance of the lateral border from the midline
    inside = np.clip((border - np.abs(thorax.x)) / 6, 0, 1) * np.clip((thorax.y - top) / 20, 0, 1)
    back = thorax.air((thorax.cage[0], np.full_like(thorax.cage[0], -5 * b.scale)), HEALTHY)
    return np.where(thorax.left == (sign > 0), inside * back * (0.45 + 0.4 * severity), 0).astype(np.float32)


def lung_lesion(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """A nodule or mass: a slightly lobulated ball of tissue in the lung."""
    s, b = case.severity, thorax.body
    sign = case.signs[0]
    radius = (7 + 13 * s**1.3) * b.scale
    y = _height(thorax, case.zone, sign, 0.09 * rng.uniform(-1, 1))
    wall = b.wall_x(y)
    inner = 62 * b.scale if case.zone != "lower" or sign < 0 else 92 * b.scale  # clear of the hila and the heart
    x = sign * rng.uniform(min(inner, 0.6 * wall), max(wall - radius - 8, 0.62 * wall))
    px, py, m = thorax.frame.place(x, y, rng.uniform(-40, 35))
    dx, dy = thorax.x - np.float32(px), thorax.y - np.float32(py)
    angle = np.arctan2(dy, dx)
    waves = sum(rng.uniform(0.02, 0.09) * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    outline = (radius * m * (1 + waves)) ** 2
    ball = 2 * np.maximum(half_chord((dx * dx + dy * dy) / outline, radius), 0)
    case.measures["diameter_mm"] = round(2 * radius)
    return Change(tissue=(1 - b.lung_density) * ball)


def pneumothorax(thorax: Thorax, case: Case, rng: np.random.Generator) -> Change:
    """Air between chest wall and a lung that has shrunk from apex and side; its pleura is seen edge on as a line."""
    s, b = case.severity, thorax.body
    sign = case.signs[0]
    drop, inset = (13 + 62 * s) * b.scale, (5 + 34 * s) * b.scale
    lung = around(thorax.cage_z, thorax.cage_half(drop, inset, sign))
    skin = around(thorax.cage_z, thorax.cage_half(drop - 1.3, inset - 1.3, sign))
    here = thorax.left == (sign > 0)
    whole = thorax.healthy_air
    left_over = thorax.air(lung, HEALTHY)
    gas = np.where(here, np.maximum(whole - left_over, 0), 0)
    line = np.where(here, length(skin) - length(lung), 0)
    line = np.minimum(line, 14) * np.clip(gas / 12, 0, 1) * np.clip(whole / 20, 0, 1)
    denser = np.where(here, thorax.density() * 0.12 * s * left_over, 0)
    keep = np.where(here, left_over / np.maximum(whole, 1), 1)
    case.measures["gap_mm"] = round(float(drop))
    return Change(
        gas=gas.astype(np.float32), vessels=np.clip(keep, 0, 1), tissue=(0.55 * line + denser).astype(np.float32)
    )


EFFECTS: dict[str, Callable[[Thorax, Case, np.random.Generator], Change]] = {
    "Consolidation": consolidation,
    "Pleural Effusion": pleural_effusion,
    "Cardiomegaly": cardiomegaly,
    "Edema": edema,
    "Atelectasis": atelectasis,
    "Lung Lesion": lung_lesion,
    "Pneumothorax": pneumothorax,
}
