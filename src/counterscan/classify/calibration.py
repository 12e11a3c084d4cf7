"""Logits to probabilities that mean what they say, and a threshold to act on; both from validation images.

Temperature scaling (Guo et al. 2017) with an offset, per finding: P = sigmoid(z / T + b). The offset (Platt 1999) is
needed because training shows each finding as often as not, which moves its logits away from its true frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from counterscan.metrics.classification import logistic_regression, youden_threshold

# Validation logits that say nothing, or the contrary, are flattened this much and no further.
_LARGEST_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Calibration:
    """One value per finding each.

    Attributes:
        temperature, offset: P = sigmoid(z / temperature + offset).
        threshold: probability with the largest Youden index on the validation images.
        checkpoint: digest of the weights that were calibrated.
    """

    temperature: tuple[float, ...]
    offset: tuple[float, ...]
    threshold: tuple[float, ...]
    checkpoint: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The reverse of ``to_dict``."""
        numbers = {name: tuple(float(x) for x in values[name]) for name in ("temperature", "offset", "threshold")}
        return cls(**numbers, checkpoint=str(values.get("checkpoint", "")))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}


def calibrate(logits: Tensor, targets: Tensor, checkpoint: str = "") -> Calibration:
    """Fit every finding.

    A finding that the images show only with, or only without, keeps T = 1, b = 0 and the threshold one half.

    Args:
        logits: (N, C).
        targets: (N, C) of 0, 1 and NaN (skipped).
        checkpoint: digest of the weights behind the logits.
    """
    fits: list[tuple[float, float, float]] = []
    for z, y in zip(logits.double().T, targets.double().T, strict=True):
        known = ~y.isnan()
        z, y = z[known], y[known]
        if not bool((y == 1).any() and (y == 0).any()):
            fits.append((1.0, 0.0, 0.5))
            continue
        temperature, offset = fit_sigmoid(z, y)
        fits.append((temperature, offset, float(youden_threshold(torch.sigmoid(z / temperature + offset), y))))
    temperatures, offsets, thresholds = zip(*fits, strict=True)
    return Calibration(temperatures, offsets, thresholds, checkpoint)


def fit_sigmoid(logits: Sequence[float] | Tensor, labels: Sequence[float] | Tensor) -> tuple[float, float]:
    """T in (0, 20] and b of sigmoid(z / T + b) with the least cross-entropy.

    Targets are Platt's: (P + 1) / (P + 2) for the P positives and 1 / (Q + 2) for the Q negatives, so that perfectly
    parted images still give a finite T. Convex in (1 / T, b); damped Newton steps.

    Args:
        logits, labels: (N,); labels are 0 or 1, both present.
    """
    z, y = (torch.as_tensor(x, dtype=torch.float64) for x in (logits, labels))
    positives = y.sum()
    wanted = torch.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    offset, slope = logistic_regression(
        torch.zeros_like(z), torch.stack([torch.ones_like(z), z], dim=1), wanted
    ).tolist()
    if slope < 1 / _LARGEST_TEMPERATURE:
        slope = 1 / _LARGEST_TEMPERATURE
        offset = float(logistic_regression(z * slope, torch.ones_like(z)[:, None], wanted))
    return 1 / slope, offset
