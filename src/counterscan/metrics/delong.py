"""Two ROC-AUCs on the same images, compared without resampling (DeLong, DeLong and Clarke-Pearson 1988).

The AUC is a mean over pairs of a positive and a negative. Its variance follows from placements: how many negatives a
positive outranks, and how many positives outrank a negative. Images of one patient are summed first (Obuchowski 1997);
with one image per patient that is DeLong's formula to the letter. For one trained pair of models: it knows nothing of
other seeds, for which see ``comparison``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.intervals import Interval


@dataclass(frozen=True)
class DeLong:
    """Result of ``delong``.

    Attributes:
        ours, theirs: ROC-AUCs with normal intervals, not cut at 1.
        difference: ours - theirs with its interval.
        standard_error: of the difference.
        p: two-sided, of equal AUCs; 1 when both rank alike.
    """

    ours: Interval
    theirs: Interval
    difference: Interval
    standard_error: float
    p: float


def delong(
    ours: Tensor, theirs: Tensor, labels: Tensor, patients: Sequence[str] | None = None, level: float = 0.95
) -> DeLong:
    """Compare the ROC-AUCs of two scores for one finding.

    Args:
        ours, theirs: (N,) scores of the same images.
        labels: (N,) of 1, 0, -1 and NaN; the last two are skipped.
        patients: (N,) names; None when every image is another patient.
        level: coverage of the intervals.

    Raises:
        InputError: lengths disagree, scores are not finite, or fewer than two patients with the finding or without it.
    """
    known = (labels == 0) | (labels == 1)
    names = [str(i) for i in range(len(labels))] if patients is None else list(map(str, patients))
    if not ours.shape == theirs.shape == labels.shape == (len(names),):
        raise InputError(
            f"scores {tuple(ours.shape)}, {tuple(theirs.shape)}, labels {tuple(labels.shape)} and "
            f"{len(names)} patients do not belong together",
            field="scores",
            remedy="Give one number of each per image",
        )
    scores = torch.stack([ours, theirs]).detach().cpu().double()[:, known.cpu()]
    if not bool(scores.isfinite().all()):
        raise InputError("scores hold NaN or infinite values", field="scores")
    positive = (labels == 1).cpu()[known.cpu()]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    place = torch.tensor([numbers[name] for name in names])[known.cpu()]
    if min(len(place[positive].unique()), len(place[~positive].unique())) < 2:
        raise InputError(
            "needs at least two patients with and two without the finding", field="labels", remedy="Test on more images"
        )
    areas, covariance = _covariance(scores, positive, place, len(numbers))
    z = float(ndtri((1 + level) / 2))
    errors = covariance.diagonal().clamp_min(0).sqrt().tolist()
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    difference = areas[0] - areas[1]

    def interval(value: float, se: float) -> Interval:
        return Interval(value, value - z * se, value + z * se)

    p = float(2 * ndtr(-abs(difference) / error)) if error > 1e-12 else (1.0 if abs(difference) < 1e-12 else 0.0)
    return DeLong(interval(areas[0], errors[0]), interval(areas[1], errors[1]), interval(difference, error), error, p)


def _covariance(scores: Tensor, positive: Tensor, place: Tensor, patients: int) -> tuple[list[float], Tensor]:
    """AUCs of two scores (2, N), and their (2, 2) covariance over patients.

    With X and Y the sums over a patient's positives and negatives of placement minus AUC, over m positives and n
    negatives: sum XX' I/(I - 1) / m^2 + sum YY' J/(J - 1) / n^2 + (sum XY' + YX') K/(K - 1) / (m n), where I, J and K
    are the patients with positives, with negatives and with either.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    negatives, positives = scores[:, ~positive].sort(1).values, scores[:, positive].sort(1).values
    # Share of the other class below, ties counting half.
    above = _below(negatives, scores[:, positive]) / n
    beneath = 1 - _below(positives, scores[:, ~positive]) / m
    areas = above.mean(1)
    sums = [
        torch.zeros(2, patients, dtype=torch.float64).index_add_(1, place[chosen], placed - areas[:, None])
        for chosen, placed in ((positive, above), (~positive, beneath))
    ]
    x, y = sums
    with_positive, with_negative, either = (
        len(place[chosen].unique()) for chosen in (positive, ~positive, torch.ones_like(positive))
    )
    cross = x @ y.T
    covariance = (
        x @ x.T * (with_positive / (with_positive - 1)) / m**2
        + y @ y.T * (with_negative / (with_negative - 1)) / n**2
        + (cross + cross.T) * (either / (either - 1)) / (m * n)
    )
    return areas.tolist(), covariance


def _below(ordered: Tensor, values: Tensor) -> Tensor:
    """How many of each row of ``ordered`` (2, P) lie below each of ``values`` (2, Q), equals counting half."""
    left, right = (torch.searchsorted(ordered, values.contiguous(), right=side) for side in (False, True))
    return (left + right).double() / 2
