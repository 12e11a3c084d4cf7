"""Are synthetic images distributed like real ones, and are they new? Distances between sets of features.

Features are (N, D) of any extractor, one row per image. Say which one: with weights from photographs, or with those of
a classifier in the same domain (``InDomainFeatures``), figures differ and so can the order of systems. Everything is
computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterscan.care import evaluating
from counterscan.errors import InputError
from counterscan.metrics.faithfulness import at_least_one, seeded
from counterscan.metrics.intervals import Interval, percentile_interval

_ROWS_AT_ONCE = 512
_NUMBERS_AT_ONCE = 2**24  # of a table of distances, so that memory does not grow with the sets
_SPARE = 8  # neighbours that are looked at more closely than asked for, should rounding have changed their order


class InDomainFeatures(nn.Module):
    """Penultimate features of a classifier: the mean over space of its last stage.

    Take one that neither the explanations nor the generator were made with, or they are judged by what they aimed at.

    Args:
        classifier: has ``features``, (M, 1, H, W) to (M, D, h, w), as ``counterscan.nets.cnn.Classifier`` does.

    Raises:
        InputError: it has not.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(classifier, "features", None)):
            remedy = "Pass a counterscan Classifier, or any callable from images to (M, D) instead"
            raise InputError("it has no method features", field="classifier", remedy=remedy)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """(M, 1, H, W) in [-1, 1] to (M, D), float32."""
        features: Tensor = self.classifier.features(x)  # type: ignore[operator]
        return features.float().mean((2, 3))


def features_of(extractor: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 64) -> Tensor:
    """Features of images, in batches, without gradients; a module runs in eval mode and gets its mode back.

    Args:
        extractor: (M, 1, H, W) to (M, D).
        images: (N, 1, H, W) in [-1, 1], at least one, on the extractor's device.
        batch_size: images at once.

    Returns:
        (N, D), as the extractor made them.

    Raises:
        InputError: the extractor returns another shape, or there is no image.
    """
    at_least_one(batch_size=batch_size, images=len(images))
    parts = []
    with torch.no_grad(), evaluating(extractor) if isinstance(extractor, nn.Module) else nullcontext():
        for batch in images.split(batch_size):
            features = extractor(batch)
            if features.ndim != 2 or len(features) != len(batch):
                problem = f"expected ({len(batch)}, D), got {tuple(features.shape)}"
                raise InputError(problem, field="extractor", remedy="Take the mean over space: features.mean((2, 3))")
            parts.append(features)
    return torch.cat(parts)


@dataclass(frozen=True)
class KernelDistance:
    """Kernel inception distance.

    Attributes:
        value: mean over random subsets, the figure that papers report.
        sd: standard deviation over the subsets.
        interval: ``value`` with the 2.5th and 97.5th percentile of the subsets. It tells how far one subset of that
            size can be off; it is not a confidence interval over patients.
        full: the estimate from all images at once, which wastes none of them.
    """

    value: float
    sd: float
    interval: Interval
    full: float


def kid(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    generator: torch.Generator | None = None,
) -> KernelDistance:
    """Unbiased MMD^2 under k(x, y) = (x . y / D + 1)^3 (Bińkowski et al. 2018).

    Being unbiased it can be compared between sets of different size, serves where images are few (FID does not), and
    scatters around 0, below it too, for equal distributions.

    Args:
        real: (N, D).
        fake: (M, D).
        subsets: how many random pairs of subsets, drawn without replacement.
        subset_size: images in each; None takes half of the smaller set, at most 1000.
        generator: of the subsets; None takes a new one with seed 0.

    Raises:
        InputError: widths disagree, a feature is not finite, or the sets are too small.
    """
    real, fake = _checked(real, fake, at_least=2)
    fewest = min(len(real), len(fake))
    size = min(1000, max(2, fewest // 2)) if subset_size is None else subset_size
    at_least_one(subsets=subsets)
    if not 2 <= size <= fewest:
        raise InputError(f"{size} must lie in 2 to {fewest}, the smaller set", field="subset_size")
    generator = seeded(generator)

    def drawn(features: Tensor) -> Tensor:
        chosen = torch.randperm(len(features), generator=generator, device=generator.device)[:size]
        return features[chosen.to(features.device)]

    estimates = torch.stack([_mmd2(drawn(real), drawn(fake)) for _ in range(subsets)]).cpu()
    value = float(estimates.mean())
    return KernelDistance(
        value=value,
        sd=float(estimates.std(correction=0)),
        interval=percentile_interval(value, estimates),
        full=float(_mmd2(real, fake)),
    )


def kid_of_all(real: Tensor, fake: Tensor) -> float:
    """``KernelDistance.full`` alone: the estimate from all images, without subsets.

    Args:
        real: (N, D).
        fake: (M, D).

    Raises:
        InputError: see ``kid``.
    """
    return float(_mmd2(*_checked(real, fake, at_least=2)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([_kernel(rows, y).sum() for rows in x.split(_rows_at_once(len(y)))]).sum()


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate: an image is not compared with itself."""
    n, m = len(x), len(y)

    def among(features: Tensor) -> Tensor:
        itself = ((features.square().sum(1) / features.shape[1] + 1) ** 3).sum()
        return (_kernel_sum(features, features) - itself) / (len(features) * (len(features) - 1))

    return among(x) + among(y) - 2 * _kernel_sum(x, y) / (n * m)


def fid(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)) between Gaussians fitted to features (Heusel 2017).

    **Biased**: with few images it is too large, the more so the wider the features, by an amount that differs between
    systems. Below some thousand images, or fewer than D, trust ``kid`` and compare FID only at equal N and M.
    Covariances are the plain unbiased ones, without shrinkage.

    With S = R^T R and S' = R'^T R' (R from a QR decomposition of the centred features), tr (S S')^(1/2) is the sum of
    the singular values of R R'^T: nothing is squared that must be rooted again, no part is ever imaginary, and singular
    covariances (fewer images than features) do no harm.

    Raises:
        InputError: widths disagree, a feature is not finite, or a set holds fewer than 2 images.
    """
    real, fake = _checked(real, fake, at_least=2)
    root, root_fake = (torch.linalg.qr(x - x.mean(0), mode="r").R / math.sqrt(len(x) - 1) for x in (real, fake))
    overlap = torch.linalg.svdvals(root @ root_fake.T).sum()
    apart = (real.mean(0) - fake.mean(0)).square().sum()
    return float(apart + root.square().sum() + root_fake.square().sum() - 2 * overlap)


@dataclass(frozen=True)
class Manifolds:
    """How two sets cover each other, per image, so that intervals over patients can be formed; report the means.

    Attributes:
        precision: (M,) 1 where a fake lies in the ball of some real image.
        recall: (N,) 1 where a real image lies in the ball of some fake.
        density: (M,) how many balls of real images hold a fake, / k; can exceed 1.
        coverage: (N,) 1 where a real image's ball holds some fake.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> Manifolds:
    """Fidelity and variety apart: precision and recall (Kynkäänniemi 2019), density and coverage (Naeem 2020).

    A ball is centred on an image and reaches to its k-th nearest neighbour in its own set, boundary included.

    Args:
        real: (N, D), N > k.
        fake: (M, D), M > k.
        k: neighbours; 3 in the first paper, 5 in the second.

    Raises:
        InputError: widths disagree, a feature is not finite, or a set has not more than k images.
    """
    at_least_one(k=k)
    real, fake = _checked(real, fake, at_least=k + 1)
    reach_real, reach_fake = (nearest_neighbours(x, x, k + 1).distances[:, k] for x in (real, fake))
    precision, density = fake.new_zeros(len(fake)), fake.new_zeros(len(fake))
    recall, coverage, count = [], [], _rows_at_once(len(fake))
    for rows, reach in zip(real.split(count), reach_real.split(count), strict=True):
        distance = _distances(rows, fake)
        held = distance <= reach[:, None]
        precision = torch.maximum(precision, held.any(0).double())
        density += held.sum(0) / k
        coverage.append(held.any(1))
        recall.append((distance <= reach_fake).any(1))
    return Manifolds(precision, torch.cat(recall).double(), density, torch.cat(coverage).double())


@dataclass(frozen=True)
class Neighbours:
    """The k nearest references of each query.

    Attributes:
        distances: (M, k) Euclidean, rising.
        indices: (M, k) rows of the reference.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbours(query: Tensor, reference: Tensor, k: int = 1) -> Neighbours:
    """Nearest references of each query, for memorisation checks: is a synthetic image a copy of a training image?

    Compare with the distances of unseen real images to the same reference: copies lie closer than those do. An exact
    copy has distance 0.

    Args:
        query: (M, D) features, or images (M, 1, H, W), whose pixels are then compared.
        reference: (N, D) or (N, 1, H, W).
        k: how many.

    Raises:
        InputError: widths disagree, a value is not finite, or there are fewer references than k.
    """
    at_least_one(k=k)
    query, reference = _checked(query.flatten(1), reference.flatten(1), at_least=1, names=("query", "reference"))
    if k > len(reference):
        raise InputError(f"{k} neighbours of {len(reference)} references", field="k", remedy="Choose a smaller k")
    seen, distances, indices = min(k + _SPARE, len(reference)), [], []
    centre = reference.mean(0)  # products of features far from the origin would lose digits
    around = reference - centre
    lengths = around.square().sum(1)
    for rows in query.split(_rows_at_once(max(len(reference), seen * reference.shape[1]))):
        # The product form is fast but leaves 1e-8 between equal rows, where a copy must show as 0.
        near = torch.addmm(lengths, rows - centre, around.T, alpha=-2).topk(seen, largest=False).indices
        exact = _distances(rows[:, None], reference[near])[:, 0]  # as elsewhere to the last digit: boundaries count
        found = exact.topk(k, largest=False)
        distances.append(found.values)
        indices.append(near.gather(1, found.indices))
    return Neighbours(torch.cat(distances), torch.cat(indices))


def _rows_at_once(numbers: int) -> int:
    """How many rows of so many numbers each are held at a time."""
    return max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(numbers, 1)))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode is not exact


def _checked(
    first: Tensor, second: Tensor, at_least: int, names: tuple[str, str] = ("real", "fake")
) -> tuple[Tensor, Tensor]:
    """Both in float64, (N, D) and (M, D), finite and large enough."""
    for field, x in zip(names, (first, second), strict=True):
        if x.ndim != 2 or x.shape[1] != first.shape[1] or not x.shape[1]:
            problem = f"expected features of one width, (N, D), got {tuple(first.shape)} and {tuple(second.shape)}"
            raise InputError(problem, field=field)
        if len(x) < at_least:
            raise InputError(f"{len(x)} images, but {at_least} are needed", field=field)
        if not bool(torch.isfinite(x).all()):
            raise InputError("holds NaN or infinite values", field=field)
    return first.detach().double(), second.detach().double()
