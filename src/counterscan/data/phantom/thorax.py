"""The thorax along every ray: soft tissue, aerated lung, bone, vessels, in millimetres of water."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from counterscan.data.phantom.anatomy import Body
from counterscan.data.phantom.projection import (
    EMPTY,
    Array,
    Interval,
    Network,
    around,
    draw,
    half_chord,
    hull,
    length_outside,
    smooth_field,
)
from counterscan.data.phantom.vessels import lobar_bronchi
from counterscan.data.phantom.view import Frame


@dataclass(frozen=True)
class Shape:
    """What a finding may move. Lengths in mm.

    Attributes:
        heart: factor on the size of the heart.
        lift: how far the right and left diaphragm stand above their healthy place.
        shift: displacement of the mediastinum towards the patient's left.
    """

    heart: float = 1.0
    lift: tuple[float, float] = (0.0, 0.0)
    shift: float = 0.0


@dataclass
class Change:
    """What findings add to the body, as (H, W) arrays in mm of water unless said otherwise.

    Attributes:
        water: length of aerated lung filled with fluid or cells (mm of path).
        tissue: attenuation added as such; negative removes.
        gas: length of lung replaced by free air (mm of path).
        vessels: share of the vessels that still stand out, 0 to 1.
        engorged: factor on vessel radii, 1 = healthy.
        bronchogram: share of the bronchi that shows, 0 to 1.
    """

    water: Array | float = 0.0
    tissue: Array | float = 0.0
    gas: Array | float = 0.0
    vessels: Array | float = 1.0
    engorged: float = 1.0
    bronchogram: Array | float = 0.0
    shape: Shape = field(default_factory=Shape)

    def plus(self, other: Change) -> Change:
        """Both changes in one body."""
        lift = (self.shape.lift[0] + other.shape.lift[0], self.shape.lift[1] + other.shape.lift[1])
        shape = Shape(self.shape.heart * other.shape.heart, lift, self.shape.shift + other.shape.shift)
        return Change(
            self.water + other.water,
            self.tissue + other.tissue,
            self.gas + other.gas,
            self.vessels * other.vessels,
            max(self.engorged, other.engorged),
            np.maximum(self.bronchogram, other.bronchogram),
            shape,
        )


class Thorax:
    """One body on one frame. ``attenuation(change)`` is the line integral of the body with findings."""

    def __init__(self, body: Body, frame: Frame) -> None:
        self.body, self.frame = body, frame
        self.x, self.y = frame.x, frame.y
        self.left = self.x > 0
        self.cage_z = np.float32(-5 * body.scale)
        self.cage = around(self.cage_z, self.cage_half())
        self._lungs: dict[Shape, tuple[Interval, Interval]] = {}

    def cage_half(self, apex_drop: float = 0.0, inset: float = 0.0, side: int = 0) -> Array:
        """Half-depth of the rib cage (or of a lung that has shrunk inside it) along each ray, ``EMPTY`` outside."""
        lateral, medial, depth = self.body.profile(self.y, apex_drop, inset)
        middle, half = (lateral + medial) / 2, (lateral - medial) / 2 + 1e-3
        u = (np.abs(self.x) - middle) / half
        u *= u
        result = half_chord(u * u, depth)
        if side:
            result = np.where(self.left == (side > 0), result, EMPTY)
        return result

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], tilt: float = 0
    ) -> Interval:
        """Interval of an ellipsoid, its first axis turned by ``tilt`` below the horizontal."""
        x, y, m = self.frame.place(*centre)
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        if tilt:
            c, s = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
            dx, dy = dx * c + dy * s, dy * c - dx * s
        q = (dx * np.float32(1 / (radii[0] * m))) ** 2 + (dy * np.float32(1 / (radii[1] * m))) ** 2
        return around(np.float32(centre[2]), half_chord(q, radii[2]))

    def heart_parts(self, shape: Shape) -> list[tuple[tuple[float, ...], tuple[float, ...], float]]:
        """Centre, semi-axes and tilt of the left ventricle with apex, and of the right atrium with cavae."""
        b = self.body
        grow, s, size = shape.heart, b.scale, b.heart
        base = b.dome[1] - 45 * size * grow**0.45  # the apex sinks little; the heart widens more than it rises
        left = (
            (23 * size * grow**1.25 + shape.shift, base, 22 * s),
            (62 * size * grow, 46 * size * grow**0.65, 58 * size * grow**0.5),
            b.heart_tilt / grow**0.8,
        )
        right = (
            (-13 * size * grow**0.7 + shape.shift, base - 6 * s, 12 * s),
            (31 * size * grow**0.7, 50 * size * grow**0.35, 52 * size * grow**0.5),
            0.0,
        )
        return [left, right]

    def lungs(self, shape: Shape) -> tuple[Interval, Interval]:
        """Intervals of the diaphragm domes (with all below them) and of the mediastinum."""
        if shape not in self._lungs:
            self._lungs[shape] = (self._domes(shape), self._mediastinum(shape))
        return self._lungs[shape]

    def _domes(self, shape: Shape) -> Interval:
        b, s = self.body, self.body.scale
        ax = np.abs(self.x)
        high = 64 * s
        crest = np.where(self.left, np.float32(b.dome[1] - shape.lift[1]), np.float32(b.dome[0] - shape.lift[0]))
        dx = ax - np.float32(66 * s)
        dx = np.where(dx > 0, dx / np.float32(b.half_width - 60 * s), dx / np.float32(165 * s))
        dy = np.minimum((self.y - crest - high) / high, 0)
        return around(np.float32(9 * s), half_chord(dx * dx + dy * dy, b.half_depth * 1.16))

    def _mediastinum(self, shape: Shape) -> Interval:
        b, s = self.body, self.body.scale
        k, sx = b.knob, shape.shift
        x = self.x - np.float32(sx)
        right, left = b.mediastinum
        y = self.y
        # Brachiocephalic vessels and cava: wide at the inlet, a waist at the hila, spine and aorta below.
        waist = (
            1
            - 0.12 * np.exp(-(((y + 15 * s) / 45) ** 2))
            + 0.05 * np.sin(y / 17 + b.coarse[0, 0])
            + 0.03 * np.sin(y / 8 + b.coarse[0, 1])
        )
        w = np.where(x > 0, np.float32(1.15 * left), np.float32(1.15 * right)) * waist
        deep = s * (40 + 30 * np.clip((y + 130 * s) / (130 * s), 0, 1))
        q = (x / w) ** 2
        soft = np.where(q < 1, deep * (1 - q), EMPTY)  # no hard edge: pleura, fat and vessels of all sizes
        result = around(np.float32(-14 * s), soft.astype(np.float32, copy=False))
        parts = [
            ((12 * k + sx, -72 * s, -20 * s), (24 * k, 23 * k, 32 * k), 0.0),
            ((13 * s + sx, -38 * s, 6 * s), (27 * s, 30 * s, 24 * s), 0.5),
            ((20 * s + sx, -8 * s, 10 * s), (27 * s, 46 * s, 30 * s), -0.35),
            *self.heart_parts(shape),
        ]
        for centre, radii, tilt in parts:
            result = hull(result, self.ellipsoid(centre, radii, tilt))  # type: ignore[arg-type]
        return result

    def air(self, interval: Interval, shape: Shape) -> Array:
        """How much of ``interval`` (inside the cage) is lung (mm)."""
        return length_outside(interval, *self.lungs(shape))

    @cached_property
    def healthy_air(self) -> Array:
        """Path through lung in the healthy body (mm)."""
        return self.air(self.cage, Shape())

    @cached_property
    def soft(self) -> Array:
        """The body without its lungs: trunk, shoulders, arms, breasts or pectorals, stomach air, trachea (mm)."""
        b, s, y = self.body, self.body.scale, self.y[:, 0]
        rows = np.asarray([-260, -190, -168, -150, -132, -112, -80, -45, -10, 30, 100, 260], np.float32) * s
        rows[1:6] += b.shoulder
        wall = b.half_width + b.wall
        width = np.asarray([54, 58, 74, 118, 172, 202, 206, 190, 0, 0, 0, 0], np.float32) * s
        width[8:] = wall + np.asarray([16, 8, 5, 8]) * s
        depth = np.asarray([52, 55, 60, 66, 74, 84, 98, 106, 110, 112, 112, 112], np.float32) * s
        depth += b.wall - 25 * s
        w, d = (np.interp(y, rows, v).astype(np.float32)[:, None] for v in (width, depth))
        u = (self.x / w) ** 2
        chord = 2 * np.maximum(half_chord(u * np.sqrt(u), d), 0)
        arm = np.abs(self.x) - np.float32(198 * s) - 0.1 * np.maximum(self.y + 60 * s, 0)
        limb = (
            2 * np.maximum(half_chord((arm / (42 * s)) ** 2, 42 * s), 0) * np.clip((self.y + 110 * s) / (40 * s), 0, 1)
        )
        chord = np.maximum(chord, limb)
        chord += self._breasts() + self._texture(chord)
        if b.bubble[0]:
            gas = self.ellipsoid((56 * s, b.dome[1] + (14 + b.bubble[1]) * s, 5.0), b.bubble, 0.12)
            chord -= np.maximum(gas[1] - gas[0], 0)
        return chord * self.frame.oblique

    def _breasts(self) -> Array:
        """Breasts with their lower fold, or the pectoral muscles."""
        b, s = self.body, self.body.scale
        ax = np.abs(self.x)
        if b.female:
            q = ((ax - 78 * s) / (64 * s)) ** 2 + ((self.y - b.breast_y) / (58 * s)) ** 2
            below = np.clip((self.y - b.breast_y) / (58 * s), 0, 1)
            return np.maximum(half_chord(q, b.breast), 0) * (0.75 + 0.6 * below)
        q = ((ax - 92 * s) / (64 * s)) ** 2 + ((self.y - b.breast_y) / (44 * s)) ** 2
        return np.maximum(half_chord(q, b.breast), 0)

    def _texture(self, chord: Array) -> Array:
        """Fat planes and muscle: low-frequency variation of the wall, a few mm."""
        b, size = self.body, self.frame.size
        cover = np.minimum(chord, 60) * np.float32(1 / 60)
        return cover * (4.0 * smooth_field(b.coarse, size) + 1.7 * smooth_field(b.medium, size))

    @cached_property
    def skeleton(self) -> Array:
        """Bone beyond soft tissue, trachea and main bronchi (negative), minor fissure (mm of water)."""
        return draw(self.frame.cut(self.body.fixed), self.frame.size)

    @cached_property
    def interstitium(self) -> Array:
        """Texture of the parenchyma, about unit variance."""
        return 1.1 * smooth_field(self.body.fine, self.frame.size) + 0.7 * smooth_field(
            self.body.medium, self.frame.size
        )

    def vessels(self, engorged: float) -> Array:
        """Chord of the pulmonary vessels (mm)."""
        network = self.body.vessels if engorged == 1 else self.body.vessels.scaled(engorged)
        return draw(self.frame.cut(network), self.frame.size)

    @cached_property
    def healthy_vessels(self) -> Array:
        return self.vessels(1.0)

    @cached_property
    def bronchi(self) -> Array:
        """Chord of the bronchi inside the lungs (mm, negative)."""
        tubes = lobar_bronchi(np.random.default_rng(self.body.bronchi_seed), self.body.scale)
        return draw(self.frame.cut(Network.of([tubes])), self.frame.size)

    def density(self) -> Array:
        """Density of healthy parenchyma: more at the bases, (H, 1)."""
        return np.float32(self.body.lung_density) * (1 + 0.22 * self.y / np.float32(140 * self.body.scale))

    def attenuation(self, change: Change | None = None) -> Array:
        """Line integral of the body in mm of water, (H, W) float32."""
        change = change or Change()
        air = self.healthy_air if change.shape == Shape() else self.air(self.cage, change.shape)
        rho = self.density()
        aerated = np.clip(air * np.float32(1 / 30), 0, 1)
        water = np.minimum(change.water, air)
        vessels = self.healthy_vessels if change.engorged == 1 else self.vessels(change.engorged)
        texture = 0.026 * self.interstitium * (air - water)
        result = self.soft + self.skeleton - (1 - rho) * (air - water) + texture
        result += aerated * vessels * change.vessels
        if not np.isscalar(change.gas):
            result -= rho * change.gas
        if not np.isscalar(change.bronchogram):
            result += self.bronchi * change.bronchogram
        return (result + change.tissue).astype(np.float32, copy=False)
