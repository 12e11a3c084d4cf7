"""How a set of synthetic images fills the space of the real ones: fidelity and variety as figures with intervals.

Features are (N, D) of any extractor, one row per image (``metrics.realism.features_of``). All figures are read beside
those of unseen real images: precision, recall, density and coverage are not 1 for these either, and depend on how many
images there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterscan.errors import InputError
from counterscan.metrics.faithfulness import at_least_one, seeded
from counterscan.metrics.intervals import RESAMPLES, Interval, mean_interval, patient_draws, percentile_interval
from counterscan.metrics.realism import precision_recall_density_coverage


@dataclass(frozen=True)
class ManifoldFigures:
    """Means over images with patient-bootstrap intervals; the balls themselves are taken as they are.

    Attributes:
        precision: share of the fakes within the balls of real images (Kynkäänniemi et al. 2019).
        recall: share of the real images within the balls of fakes.
        density: mean number of balls of real images around a fake, / k; can exceed 1 (Naeem et al. 2020).
        coverage: share of the real images whose ball holds a fake.
        size: fakes that recall and coverage were measured with.
    """

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval
    size: int


def manifold_figures(
    real: Tensor,
    fake: Tensor,
    real_patients: Sequence[str],
    fake_patients: Sequence[str],
    *,
    k: int = 5,
    size: int | None = None,
    subsets: int = 5,
    resamples: int = RESAMPLES,
    generator: torch.Generator | None = None,
) -> ManifoldFigures:
    """Precision, recall, density and coverage.

    Recall and coverage grow with the number of fakes; ``size`` makes them comparable between sets.

    Args:
        real: (N, D), N > k.
        fake: (M, D), M > k.
        real_patients: (N,) what is drawn together.
        fake_patients: (M,); a name of its own for each synthetic image that nothing ties to another.
        k: neighbours that a ball reaches to.
        size: fakes for recall and coverage, more than k; None takes all.
        subsets: random subsets of that size, over which recall and coverage of each real image are averaged.
        resamples: of the patient bootstrap.
        generator: of the subsets; None takes a new one with seed 0.

    Raises:
        InputError: widths disagree, a feature is not finite, a set has not more than k images, or ``size`` does not
            fit.
    """
    at_least_one(subsets=subsets)
    size = len(fake) if size is None else size
    if not k < size <= len(fake):
        raise InputError(f"{size} must be more than k, {k}, and at most {len(fake)}", field="size")
    whole = precision_recall_density_coverage(real, fake, k)
    recall, coverage, generator = [whole.recall], [whole.coverage], seeded(generator)
    if size < len(fake):
        chosen = [torch.randperm(len(fake), generator=generator)[:size].to(fake.device) for _ in range(subsets)]
        parts = [precision_recall_density_coverage(real, fake[rows], k) for rows in chosen]
        recall, coverage = [p.recall for p in parts], [p.coverage for p in parts]

    def mean(values: list[Tensor], patients: Sequence[str]) -> Interval:
        return mean_interval(torch.stack(values), patients, resamples=resamples)

    return ManifoldFigures(
        precision=mean([whole.precision], fake_patients),
        recall=mean(recall, real_patients),
        density=mean([whole.density], fake_patients),
        coverage=mean(coverage, real_patients),
        size=size,
    )


def mean_pairwise_distance(features: Tensor, patients: Sequence[str] | None = None) -> float:
    """Mean Euclidean distance of two images of different patients: how varied a set is.

    Args:
        features: (N, D).
        patients: (N,); None takes every image as its own.

    Raises:
        InputError: fewer than two patients, or features that are not finite (N, D).
    """
    sums, counts = _pairs(features, patients)
    return float(sums.sum() / counts.sum())


def diversity_ratio(
    real: Tensor,
    fake: Tensor,
    real_patients: Sequence[str] | None = None,
    fake_patients: Sequence[str] | None = None,
    *,
    most: int = 2000,
    resamples: int = RESAMPLES,
    generator: torch.Generator | None = None,
) -> Interval:
    """Mean pairwise distance of the fakes over that of the real images, with an interval over patients of both.

    1 is as varied as the real images, 0 one image over and over. Give the images of one finding for its intra-class
    diversity, and real images that the extractor has not seen: those it was trained on may lie further apart. It does
    not depend on the sizes of the sets. Being a mean it misses a few lost modes; coverage sees these.

    Args:
        real: (N, D).
        fake: (M, D).
        real_patients, fake_patients: (N,) and (M,); None takes every image as its own.
        most: images of a set that are compared; of a larger one as many are drawn.
        resamples: of the patient bootstrap.
        generator: of that draw; None takes a new one with seed 0.

    Raises:
        InputError: a set has fewer than two patients, widths disagree, or features are not finite.
    """
    at_least_one(most=most - 1)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        problem = f"expected features of one width, (N, D), got {tuple(real.shape)} and {tuple(fake.shape)}"
        raise InputError(problem, field="features")
    generator, spreads = seeded(generator), []
    for seed, (features, patients) in enumerate(((real, real_patients), (fake, fake_patients))):
        rows = torch.arange(len(features))
        if len(features) > most:
            rows = torch.randperm(len(features), generator=generator)[:most].sort().values
        names = None if patients is None else [patients[i] for i in rows.tolist()]
        sums, counts = _pairs(features[rows.to(features.device)], names)
        draws = patient_draws([str(i) for i in range(len(sums))], resamples, seed)
        value = sums.sum() / counts.sum()
        # A patient that is drawn twice is not compared with itself: both diagonals are 0.
        spreads.append((value, ((draws @ sums) * draws).sum(1) / ((draws @ counts) * draws).sum(1)))
    (own, own_drawn), (other, other_drawn) = spreads
    if not float(own) > 0:
        return Interval(math.nan, math.nan, math.nan)
    return percentile_interval(float(other / own), other_drawn / own_drawn)


def _pairs(features: Tensor, patients: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """(P, P) sums of distances between the images of two patients, and numbers of such pairs; 0 on the diagonals."""
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise InputError("expected finite features (N, D)", field="features")
    place = np.arange(len(features))
    if patients is not None:
        if len(patients) != len(features):
            raise InputError(f"{len(patients)} for {len(features)} images", field="patients")
        _, place = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    count = len(set(place.tolist()))
    if count < 2:
        raise InputError(f"{count} patients, but 2 are needed", field="patients")
    x = features.detach().double().cpu()
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    where = torch.from_numpy(place)
    sums = torch.zeros(count, len(x), dtype=torch.float64).index_add_(0, where, distances)
    sums = torch.zeros(count, count, dtype=torch.float64).index_add_(0, where, sums.T.contiguous())
    sizes = torch.bincount(where, minlength=count).double()
    return sums.fill_diagonal_(0), torch.outer(sizes, sizes).fill_diagonal_(0)
