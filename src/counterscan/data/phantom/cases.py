"""Which findings a study has, and their side, zone and severity."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri

from counterscan.data.phantom.config import FINDINGS, PhantomConfig

# Loadings on a shared "failing heart" factor; they set the co-occurrence.
LOADING = {"Edema": 0.75, "Pleural Effusion": 0.7, "Cardiomegaly": 0.7, "Atelectasis": 0.4, "Consolidation": 0.15}
ZONES = ("upper", "mid", "lower")


@dataclass(frozen=True)
class Case:
    """One finding of one study.

    Attributes:
        finding: canonical name.
        side: "right", "left", "bilateral" (patient's sides) or "" where it has none.
        zone: "upper", "mid", "lower", "perihilar", "apical", "basal" or "".
        severity: 0 to 1.
        seed: seeds the shape.
        measures: what a report may quote: "diameter_mm", "ctr", "lobar", ...
    """

    finding: str
    side: str
    zone: str
    severity: float
    seed: int
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def grade(self) -> str:
        """ "mild", "moderate" or "severe"."""
        return "mild" if self.severity < 0.4 else "moderate" if self.severity < 0.72 else "severe"

    @property
    def signs(self) -> tuple[int, ...]:
        """Signs of x of the sides involved: -1 for the patient's right, which is the viewer's left."""
        return {"right": (-1,), "left": (1,), "bilateral": (-1, 1), "": ()}[self.side]


def sample_cases(rng: np.random.Generator, config: PhantomConfig) -> list[Case]:
    """Draw the findings of one study.

    A Gaussian copula makes Edema, Pleural Effusion and Cardiomegaly go together without changing how common each is.
    Every finding has its own draws, so that restricting ``config.findings`` leaves the others as they were.
    """
    common, own = rng.normal(), rng.normal(size=len(FINDINGS))
    children = rng.integers(2**62, size=len(FINDINGS))
    strength = np.sqrt(config.cooccurrence)
    cases: list[Case] = []
    for name, noise, child in zip(FINDINGS, own, children, strict=True):
        loading = LOADING.get(name, 0.0) * strength
        rate = config.rate(name) if name in config.findings else 0.0
        if rate > 0 and loading * common + np.sqrt(1 - loading**2) * noise < ndtri(rate):
            cases.append(_sample_case(np.random.default_rng(int(child)), name, config))
    return _separate(cases)


def _sample_case(rng: np.random.Generator, name: str, config: PhantomConfig) -> Case:
    """Side, zone and severity of one finding."""
    severity = float(rng.uniform(*config.severity))
    side = "right" if rng.random() < 0.5 else "left"
    both, pick, seed = rng.random(), rng.random(), int(rng.integers(2**62))
    zone = ""
    if name == "Cardiomegaly":
        side = ""
    elif name == "Edema":
        side, zone = "bilateral", "perihilar" if pick < 0.6 else "basal"
    elif name == "Pleural Effusion":
        side, zone = ("bilateral" if both < 0.25 else side), "basal"
    elif name == "Pneumothorax":
        zone = "apical"
    elif name == "Atelectasis":
        zone = "lower" if pick < 0.75 or severity > 0.72 else "mid"  # a severe one takes the whole lower lobe
    else:
        zone = ZONES[int(pick * 3)]
    return Case(name, side, zone, severity, seed)


def _separate(cases: list[Case]) -> list[Case]:
    """No pneumothorax over fluid: it takes the other side, or the fluid gives way."""
    fluid = next((c for c in cases if c.finding == "Pleural Effusion"), None)
    air = next((c for c in cases if c.finding == "Pneumothorax"), None)
    if not fluid or not air or (fluid.side != "bilateral" and fluid.side != air.side):
        return cases
    side = "left" if air.side == "right" else "right"
    return [Case(c.finding, side, c.zone, c.severity, c.seed) if c is fluid else c for c in cases]
