"""The acquisition: where the tube stands, how the patient stands, and the rays through each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from counterscan.data.phantom.projection import Array, Network, Segments, segments


@dataclass(frozen=True)
class Acquisition:
    """One exposure of one patient.

    Coordinates: x to the viewer's right (the patient's left), y down, z towards the patient's front; the origin lies in
    mid chest.

    Attributes:
        projection: "PA" (source behind the patient) or "AP" (source in front, nearer, so the heart looks larger).
        source_mm: source to detector.
        field_mm: width of the field of view at the mid plane.
        shift_mm: (x, y) position of the patient in the field.
        lean: sideways lean, radians.  turn: rotation about the long axis, radians.
        exposure: offset of the display centre, mm of water.  latitude: display width as a factor.
        dose: relative number of quanta.  scatter: scattered share of the unattenuated beam.
        heel: attenuation that the heel effect fakes from top to bottom, mm.
        toe: curvature of the display curve.  black: grey level of the unattenuated beam, 0 to 1.
        marker: whether a side marker lies on the film, unrelated to any finding.
        collimation: unexposed borders at left, top, right and bottom, shares of the side.
        noise_seed: seeds the quanta.
    """

    projection: str
    source_mm: float
    field_mm: float
    shift_mm: tuple[float, float]
    lean: float
    turn: float
    exposure: float
    latitude: float
    dose: float
    scatter: float
    heel: float
    toe: float
    black: float
    marker: bool
    collimation: tuple[float, float, float, float]
    noise_seed: int


def sample_acquisition(rng: np.random.Generator, body_scale: float, portable: float) -> Acquisition:
    """Draw an acquisition; ``portable`` is the share of AP films. Nothing here knows of findings."""
    u = rng.uniform(-1, 1, 8).tolist()
    n = rng.normal(size=6).tolist()
    ap = rng.random() < portable
    return Acquisition(
        projection="AP" if ap else "PA",
        source_mm=(1150 + 120 * u[0]) if ap else 1830.0,
        field_mm=(384 + 30 * u[1]) * body_scale,
        shift_mm=(13 * u[2], -6 + 15 * u[3]),
        lean=0.022 * n[0],
        turn=0.022 * n[1] * (1.6 if ap else 1.0),
        exposure=11.0 * n[2],
        latitude=float(np.exp(0.16 * n[3])),
        dose=float(np.exp(0.45 * n[4])) * (0.6 if ap else 1.0),
        scatter=(0.05 + 0.015 * u[4]) * (1.5 if ap else 1.0),
        heel=5.0 * u[5],
        toe=0.12 * u[6],
        black=0.035 + 0.03 * u[7],
        marker=bool(rng.random() < 0.7),
        collimation=_collimation(rng),
        noise_seed=int(rng.integers(2**62)),
    )


def _collimation(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Borders of a film whose field was narrowed, in a quarter of the films."""
    narrowed, left, top, right, bottom = rng.random(5)
    if narrowed > 0.25:
        return (0.0, 0.0, 0.0, 0.0)
    return (0.03 * left, 0.05 * top, 0.03 * right, 0.05 * bottom)


class Frame:
    """The pixel grid of one acquisition: ``x`` (H, W) and ``y`` (H, 1) are mid-plane positions of the rays, mm."""

    def __init__(self, acquisition: Acquisition, size: int) -> None:
        self.acquisition, self.size = acquisition, size
        self.pixel_mm = acquisition.field_mm / size
        steps = ((np.arange(size) + 0.5 - size / 2) * self.pixel_mm).astype(np.float32)
        self.y: Array = steps[:, None] - np.float32(acquisition.shift_mm[1])
        self.x: Array = steps[None, :] - np.float32(acquisition.shift_mm[0]) - np.float32(acquisition.lean) * self.y

    @cached_property
    def oblique(self) -> Array:
        """Lengthening of paths away from the central ray, (H, W) factors slightly above 1."""
        return np.sqrt(1 + (self.x**2 + self.y**2) / self.acquisition.source_mm**2)

    def magnification(self, z: Array | float) -> Array:
        """Magnification at depth z relative to the mid plane; the detector lies 130 mm from it."""
        gap = self.acquisition.source_mm - 130.0
        toward = np.asarray(z, np.float32) if self.acquisition.projection == "PA" else -np.asarray(z, np.float32)
        return (gap / (gap + toward)).astype(np.float32)

    def place(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Mid-plane position and magnification of a point of the body."""
        m = float(self.magnification(z))
        return (x + self.acquisition.turn * z) * m, y * m, m

    def pixels(self, nodes: Array) -> tuple[Array, Array]:
        """Project (3, M) points to (2, M) pixel (column, row) and their magnification (M,)."""
        x, y, z = nodes
        m = self.magnification(z)
        y = y * m
        x = (x + np.float32(self.acquisition.turn) * z) * m
        shift_x, shift_y = self.acquisition.shift_mm
        column = (x + self.acquisition.lean * y + shift_x) / self.pixel_mm + (self.size / 2 - 0.5)
        row = (y + shift_y) / self.pixel_mm + (self.size / 2 - 0.5)
        return np.stack([column, row]), m

    def cut(self, network: Network) -> Segments:
        """Project chains of tubes into segments ready to draw."""
        pixels, magnification = self.pixels(network.nodes)
        return segments(network, pixels, self.pixel_mm, magnification)
