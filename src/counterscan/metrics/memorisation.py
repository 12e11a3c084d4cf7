"""Are synthetic images copies of training images? Distances to the nearest one, against those of unseen real images.

Any image is near to some training image, and the nearer the more of these there are, so a distance says nothing by
itself. Held-out real images show how near is usual. Two distances are told apart: how near the nearest training image
is, and how much nearer it is than the next ones (Carlini et al. 2023). Smooth or typical images have all training
images near, a copy has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.metrics.faithfulness import at_least_one
from counterscan.metrics.intervals import (
    RESAMPLES,
    Interval,
    patient_draws,
    percentile_interval,
    roc_auc_intervals,
)
from counterscan.metrics.realism import nearest_neighbours

SIDE = 16  # of the small pictures that are compared
NEIGHBOURS = 50
FEWEST = 20  # held-out patients that a threshold can be set on
_RESAMPLED = 5000


def thumbnails(images: Tensor, side: int = SIDE) -> Tensor:
    """Small pictures as directions: brightness, contrast, noise and blur no longer count.

    Args:
        images: (N, 1, H, W).
        side: pixels that each side is averaged to; images that are smaller keep their size.

    Returns:
        (N, P) float32 with mean 0 and length 1; the distance of two is sqrt(2 - 2 NCC). 0 where an image is flat.

    Raises:
        InputError: not (N, 1, H, W).
    """
    at_least_one(side=side)
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(f"expected images (N, 1, H, W), got {tuple(images.shape)}", field="images")
    height, width = (min(side, n) for n in images.shape[-2:])
    rows = F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-4, rows / length.clamp_min(1e-12), 0.0)


def correlation(distance: Tensor) -> Tensor:
    """Normalised cross-correlation of two ``thumbnails`` from their distance."""
    return 1 - distance.square() / 2


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of each image.

    Attributes:
        distance: (M,) to it.
        relative: (M,) that distance over the mean distance to the nearest 50 training images (Carlini et al. 2023), in
            [0, 1]; near 0 for a copy of one image, 0 where all of these are copies.
        index: (M,) its row.
    """

    distance: Tensor
    relative: Tensor
    index: Tensor

    def nearer_of(self, other: Nearest) -> Nearest:
        """Per image the nearer of two, such as of an image and its mirror image."""
        own = self.distance <= other.distance
        return Nearest(
            torch.where(own, self.distance, other.distance),
            torch.where(own, self.relative, other.relative),
            torch.where(own, self.index, other.index),
        )


def nearest_training(images: Tensor, training: Tensor, neighbours: int = NEIGHBOURS) -> Nearest:
    """Nearest training image of each image.

    Args:
        images: (M, D) features or ``thumbnails``.
        training: (N, D) of all training images.
        neighbours: how many the relative distance compares with; fewer where there are fewer.

    Raises:
        InputError: widths disagree, a value is not finite, or there is no training image.
    """
    at_least_one(neighbours=neighbours, training=len(training))
    if not len(images):
        nothing = torch.zeros(0, dtype=torch.float64)
        return Nearest(nothing, nothing, torch.zeros(0, dtype=torch.int64))
    found = nearest_neighbours(images, training, min(neighbours, len(training)))
    first, usual = found.distances[:, 0], found.distances.mean(1)
    relative = torch.where(usual > 0, first / usual.clamp_min(1e-300), 0.0)
    return Nearest(first.cpu(), relative.cpu(), found.indices[:, 0].cpu())


@dataclass(frozen=True)
class NearCopies:
    """How one distance of synthetic images to training images compares with that of held-out real images.

    Attributes:
        threshold: distance that the nearest ``share`` of the held-out images do not exceed.
        near: (M,) bool, synthetic images that do not exceed it either.
        rate: their share, with the exact binomial interval (Clopper and Pearson) for this threshold.
        expected: the share to be expected if synthetic images were as far as held-out ones: rank / (held-out + 1).
        p_value: how often so many or more would be near if they were. Exact for any distribution: the threshold is an
            order statistic of the held-out distances, so the count is beta-binomial.
        nearer: probability that a synthetic image is nearer than a held-out one, with a patient-bootstrap interval;
            0.5 where they are alike (Mann and Whitney). Of more than 5000 synthetic images so many are taken.
        ratio: median distance of the same synthetic images over that of the held-out ones, with such an interval.
    """

    threshold: float
    near: Tensor
    rate: Interval
    expected: float
    p_value: float
    nearer: Interval
    ratio: Interval

    @property
    def count(self) -> int:
        """Synthetic images that are near."""
        return int(self.near.sum())


def near_copies(
    synthetic: Tensor,
    held_out: Tensor,
    held_patients: Sequence[str],
    synthetic_patients: Sequence[str] | None = None,
    *,
    share: float = 0.01,
    resamples: int = RESAMPLES,
) -> NearCopies:
    """Compare distances to the nearest training image.

    Images of one patient are alike, so the threshold takes the first image of each held-out patient.

    Args:
        synthetic: (M,) distances, M > 0.
        held_out: (H,) those of real images of other patients than the training images'.
        held_patients: (H,).
        synthetic_patients: (M,) what belongs together; None takes every image as its own.
        share: of the held-out images that count as near; of fewer than 1 / share patients it is the nearest one.
        resamples: of the patient bootstrap.

    Raises:
        InputError: fewer than 20 held-out patients, distances that are not finite, or a share outside of (0, 0.5].
    """
    at_least_one(synthetic=len(synthetic))
    if not 0 < share <= 0.5:
        raise InputError(f"{share} must lie in (0, 0.5]", field="share")
    if len(held_patients) != len(held_out):
        raise InputError(f"{len(held_patients)} for {len(held_out)} images", field="held_patients")
    own, other = synthetic.detach().double().cpu(), held_out.detach().double().cpu()
    if not bool(torch.isfinite(own).all() and torch.isfinite(other).all()):
        raise InputError("a distance is NaN or infinite", field="distances")
    _, firsts = np.unique(np.asarray(held_patients, dtype=object).astype(str), return_index=True)
    count, patients = len(own), len(firsts)
    if patients < FEWEST:
        remedy = "Hold out more patients (splits val and test)"
        raise InputError(f"{patients} held-out patients, but {FEWEST} are needed", field="held_out", remedy=remedy)
    rank = max(1, math.floor(share * (patients + 1)))
    threshold = float(other[torch.from_numpy(firsts)].sort().values[rank - 1])
    near = own <= threshold
    found = int(near.sum())
    low, high = stats.binomtest(found, count).proportion_ci(method="exact")
    names = _names(count, synthetic_patients)
    held = [f"held {name}" for name in held_patients]
    if count > _RESAMPLED:  # evenly spaced ones: 2000 resamples of all would fill the memory
        at = np.linspace(0, count - 1, _RESAMPLED).round().astype(int)
        own, names = own[torch.from_numpy(at)], [names[i] for i in at]
    nearness, label = -torch.cat([own, other]), torch.cat([torch.ones(len(own)), torch.zeros(len(other))])
    return NearCopies(
        threshold=threshold,
        near=near,
        rate=Interval(found / count, float(low), float(high)),
        expected=rank / (patients + 1),
        p_value=float(stats.betabinom.sf(found - 1, count, rank, patients + 1 - rank)),
        nearer=roc_auc_intervals(nearness, label, names + held, resamples=resamples)[0],
        ratio=_ratio_of_medians(own, other, names, held, resamples),
    )


def _names(count: int, patients: Sequence[str] | None) -> list[str]:
    if patients is None:
        return [f"synthetic {i}" for i in range(count)]
    if len(patients) != count:
        raise InputError(f"{len(patients)} for {count} images", field="synthetic_patients")
    return [f"synthetic {name}" for name in patients]


def _ratio_of_medians(
    own: Tensor, other: Tensor, names: Sequence[str], held: Sequence[str], resamples: int
) -> Interval:
    value = float(own.median() / other.median()) if float(other.median()) > 0 else math.nan
    drawn = [
        _medians(own, patient_draws(names, resamples, 0)),
        _medians(other, patient_draws(held, resamples, 1)),
    ]
    return percentile_interval(value, drawn[0] / drawn[1])


def _medians(values: Tensor, draws: Tensor) -> Tensor:
    """(B,) lower medians of values (N,) that occur as often as draws (B, N) say."""
    order = values.argsort()
    so_far = draws[:, order].cumsum(1)
    place = (so_far < so_far[:, -1:] / 2).sum(1)
    return values[order][place]
