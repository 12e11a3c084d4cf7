"""One patient's healthy body: sizes and positions drawn from a seed, in millimetres.

Proportions follow adult frontal films: cardiothoracic ratio 0.40 to 0.49, right dome higher than left by about half an
interspace, domes at the tenth posterior rib, aortic knob near T4/T5, carina below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from counterscan.data.phantom.projection import Array, Network, Tubes
from counterscan.data.phantom.skeleton import skeleton
from counterscan.data.phantom.vessels import airways, pulmonary_tree

RIGHT, LEFT = -1, 1  # sign of x: the patient's right is at the viewer's left


@dataclass(frozen=True)
class Body:
    """A patient. Lengths in mm; ``knots`` arrays are random fields given by their values on a coarse grid."""

    scale: float
    female: bool
    apex: float  # y of the lung apices
    floor: float  # y of the costophrenic angles
    half_width: float  # widest inner half-width of the rib cage
    half_depth: float
    dome: tuple[float, float]  # y of the right and left diaphragm crests
    heart: float  # linear size of the heart, 1 = average
    heart_tilt: float  # radians below the horizontal
    knob: float  # size of the aortic arch, 1 = average
    mediastinum: tuple[float, float]  # half-widths of the upper mediastinum, right and left
    wall: float  # thickness of the chest wall
    shoulder: float  # how far the shoulders droop, mm
    breast: float  # thickness of breast tissue, or of the pectoral muscle in men
    breast_y: float
    bubble: tuple[float, float, float]  # half-width, half-height and half-depth of the gastric air bubble; 0 = none
    lung_density: float
    fixed: Network  # bones, trachea and main bronchi (carved out), the minor fissure where the beam grazes it
    vessels: Network
    bronchi_seed: int  # of the bronchi within the lungs, seen only where the lung is airless
    coarse: Array  # (9, 9) soft-tissue variation
    medium: Array  # (26, 26)
    fine: Array  # (90, 90) interstitial texture

    def profile(self, y: Array, apex_drop: float = 0.0, inset: float = 0.0) -> tuple[Array, Array, Array]:
        """The rib cage at height y: lateral wall, medial wall (distances from the midline) and half-depth, mm.

        Above the apex and below the costophrenic angles the half-depth is 0. ``apex_drop`` and ``inset`` shrink the
        outline, as a collapsing lung does.
        """
        top = self.apex + apex_drop
        t = np.clip((y - top) / (self.floor - top), 0, 1)
        open_ = (1 - (1 - t) ** 2.9) ** 0.56
        peak = 45.0 * self.scale
        lateral = peak + (self.half_width - peak) * open_ - inset * (1 - t) * np.minimum(8 * t, 1)
        medial = peak * (1 - np.sqrt(1 - (1 - t) ** 7))
        depth = self.half_depth * np.sqrt(1 - (1 - t) ** 2.6)
        end = np.clip((t - 0.86) / 0.14, 0, 1)  # the costophrenic recess closes
        return lateral, medial, depth * np.sqrt(1 - end * end)

    def wall_x(self, y: float) -> float:
        """Distance of the lateral lung edge from the midline at height y (mm)."""
        return float(self.profile(np.asarray(y, np.float32))[0])


def sample_body(rng: np.random.Generator) -> Body:
    """Draw a patient."""
    u = rng.uniform(-1, 1, 16).tolist()  # Python numbers keep the arrays they meet in float32
    n = rng.normal(size=8).tolist()
    female = bool(rng.random() < 0.48)
    scale = float(np.clip(1 + 0.045 * n[0] - (0.03 if female else -0.02), 0.86, 1.12))
    crest = (80 + 9 * n[1]) * scale
    dome = (crest, crest + (11 + 6 * u[0]) * scale)
    apex = (-138 + 6 * u[1]) * scale
    half_width = (139 + 10 * u[2]) * scale
    wall = (30 + 8 * u[3] + 8 * max(n[2], -0.9)) * scale
    size = 1.0 + 0.075 * u[4]
    has_bubble = rng.random() < 0.75
    bubble = (24 + 10 * u[5], 11 + 6 * u[6], 17 + 8 * u[7]) if has_bubble else (0.0, 0.0, 0.0)
    return Body(
        scale=scale,
        female=female,
        apex=apex,
        floor=crest + (49 + 6 * u[8]) * scale,
        half_width=half_width,
        half_depth=(87 + 8 * u[9]) * scale,
        dome=dome,
        heart=size * scale,
        heart_tilt=0.62 + 0.14 * u[10],
        knob=(1.0 + 0.2 * u[11]) * scale,
        mediastinum=((27 + 4 * u[12]) * scale, (23 + 4 * u[13]) * scale),
        wall=wall,
        shoulder=7 * n[5] * scale,
        breast=float((26 + 14 * max(n[3], -1.2)) if female else max(9 + 4 * n[3], 2)) * scale,
        breast_y=((48 + 14 * u[14]) if female else -48) * scale,
        bubble=bubble,
        lung_density=0.24 + 0.035 * u[15],
        fixed=Network.of(
            [*skeleton(rng, scale, half_width, apex, crest), airways(rng, scale), *_minor_fissure(rng, scale)]
        ),
        vessels=Network.of(pulmonary_tree(rng, scale, half_width, crest)),
        bronchi_seed=int(rng.integers(2**62)),
        coarse=rng.normal(size=(9, 9)).astype(np.float32),
        medium=rng.normal(size=(26, 26)).astype(np.float32),
        fine=rng.normal(size=(90, 90)).astype(np.float32),
    )


def _minor_fissure(rng: np.random.Generator, scale: float) -> list[Tubes]:
    """A hairline in the right mid zone, in half of the patients."""
    seen, bend, height = rng.random(), rng.uniform(-1, 1), rng.uniform(-8, 8)
    if seen > 0.5:
        return []
    x = np.linspace(-48, -118, 6) * scale
    y = height + 2 + 6 * bend * np.sin(np.linspace(0, 2.2, 6)) + 3 * np.linspace(0, 1, 6)
    nodes = np.stack([x, y * scale, 0 * x], -1)[None].astype(np.float32)
    return [Tubes(nodes, np.full((1, 6), 0.5, np.float32), np.full(1, 5.0, np.float32))]
