"""95 % intervals by resampling patients: images of one patient are not independent, so they are drawn together.

Percentile bootstrap over patients (cluster bootstrap). Where several seeds were run, each image's figure is first
averaged over seeds, so that the interval speaks of new patients for the average run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterscan.metrics.classification import pr_auc, roc_auc

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and its interval; prints as "0.78 [0.75, 0.81]", and any float format spec applies to all three."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        if not math.isfinite(self.value):
            return "n/a"
        value = format(self.value, spec)
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return value
        return f"{value} [{format(self.low, spec)}, {format(self.high, spec)}]"

    def __str__(self) -> str:
        return format(self, "")

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the interval leaves ``value`` out; False when there is no interval."""
        return self.low > value or self.high < value


def patient_draws(patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """How often each image occurs in each resample of patients.

    Args:
        patients: (N,) one name per image.
        resamples: B.
        seed: the same seed and patients give the same draws, whatever is measured.

    Returns:
        (B, N) float64 counts; images of one patient share theirs.
    """
    draws, place = _draws(patients, resamples, seed)
    return torch.from_numpy(draws[:, place])


def _draws(patients: Sequence[str], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, P) counts of patients, and (N,) which patient an image belongs to."""
    names, place = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    count = len(names)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws.astype(np.float64), place


def percentile_interval(value: float, resampled: Tensor, level: float = 0.95) -> Interval:
    """Percentiles of resampled figures around the figure itself.

    Resamples in which the figure does not exist (one class only) are left out; when they are most of them there is no
    interval, and both ends are NaN.
    """
    finite = resampled[torch.isfinite(resampled)].double()
    if not math.isfinite(value) or len(finite) < max(2, len(resampled) / 2):
        return Interval(value, math.nan, math.nan)
    low, high = torch.quantile(finite, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


def over_seeds(values: Tensor) -> Tensor:
    """(N,) figures as they are, or (S, N) averaged over seeds; an image that one seed could not judge is NaN."""
    if values.ndim not in (1, 2):
        raise ValueError(f"expected (N,) or (seeds, N), got {tuple(values.shape)}")
    return values.detach().cpu().double() if values.ndim == 1 else values.detach().cpu().double().mean(0)


def mean_interval(
    values: Tensor, patients: Sequence[str], *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean over images of a per-image figure, with a patient-bootstrap interval.

    Args:
        values: (N,) or (seeds, N); NaN (nothing to judge) is left out.
        patients: (N,).
        resamples: bootstrap draws.
        level: coverage.
        seed: of the draws.

    Returns:
        Both ends are NaN with fewer than two patients, all three when no image could be judged.

    Raises:
        ValueError: lengths disagree.
    """
    figures = over_seeds(values)
    if len(figures) != len(patients):
        raise ValueError(f"{len(figures)} figures but {len(patients)} patients")
    kept = torch.isfinite(figures).numpy()
    names = np.asarray(patients, dtype=object).astype(str)[kept]
    figures_kept = figures.numpy()[kept]
    if not len(figures_kept):
        return Interval(math.nan, math.nan, math.nan)
    value = float(figures_kept.mean())
    if len(set(names)) < 2:
        return Interval(value, math.nan, math.nan)
    draws, place = _draws(names, resamples, seed)
    totals, sizes = np.bincount(place, figures_kept), np.bincount(place)
    return percentile_interval(value, torch.from_numpy((draws @ totals) / (draws @ sizes)), level)


def paired_interval(
    ours: Tensor,
    theirs: Tensor,
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean difference ours - theirs on the same images, with a patient-bootstrap interval.

    Args:
        ours: (N,) or (seeds, N).
        theirs: (N,) or (seeds, N); images that either side could not judge are left out.
    """
    difference = over_seeds(ours) - over_seeds(theirs)
    return mean_interval(difference, patients, resamples=resamples, level=level, seed=seed)


def statistic_interval(
    statistic: Callable[[Tensor], float],
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of any figure of a set of images, such as a ratio of means or a difference of two AUCs.

    Args:
        statistic: takes row numbers (R,), with repeats, and returns the figure on those rows.
        patients: (N,).
    """
    value = float(statistic(torch.arange(len(patients))))
    if len(set(patients)) < 2:
        return Interval(value, math.nan, math.nan)
    draws = patient_draws(patients, resamples, seed).long()
    rows = torch.arange(len(patients))
    return percentile_interval(value, torch.tensor([float(statistic(rows.repeat_interleave(d))) for d in draws]), level)


def _curve_intervals(
    curve: Callable[..., Tensor],
    scores: Tensor,
    labels: Tensor,
    patients: Sequence[str],
    resamples: int,
    level: float,
    seed: int,
) -> list[Interval]:
    scores, labels = scores.detach().cpu().reshape(len(scores), -1), labels.cpu().reshape(len(labels), -1)
    values = curve(scores, labels)
    if len(set(patients)) < 2:
        return [Interval(float(v), math.nan, math.nan) for v in values]
    draws = patient_draws(patients, resamples, seed)
    parts = [curve(scores, labels, part) for part in draws.split(max(1, 2**22 // len(patients)))]
    resampled = torch.cat(parts)
    return [percentile_interval(float(v), resampled[:, c], level) for c, v in enumerate(values)]


def roc_auc_intervals(
    scores: Tensor,
    labels: Tensor,
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """ROC-AUC per class, (N,) or (N, C) scores and labels, with patient-bootstrap intervals; one Interval per class."""
    return _curve_intervals(roc_auc, scores, labels, patients, resamples, level, seed)


def pr_auc_intervals(
    scores: Tensor,
    labels: Tensor,
    patients: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Average precision per class, (N,) or (N, C) scores and labels, with patient-bootstrap intervals."""
    return _curve_intervals(pr_auc, scores, labels, patients, resamples, level, seed)
