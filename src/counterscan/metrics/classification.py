"""How good image-level scores are: discrimination, calibration, and a threshold to act on.

Scores and labels are (N,) for one finding or (N, C) for several. Labels follow the study table: 1 and 0 count; NaN
(unmentioned) and -1 (uncertain) are skipped, per class. Functions return a float64 tensor, () or (C,), and NaN for a
class that cannot be judged (nothing labelled, or one class only where two are needed). ``weights`` (N,) repeat or drop
rows; (B, N) gives B answers, (B,) or (B, C), for bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from counterscan.errors import InputError
from counterscan.metrics.ranking import average_precision_rows, rank, roc_auc_rows

Curve = Callable[[Tensor, Tensor, Tensor], Tensor]


def _columns(scores: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per class: scores (N,), labels (N,) and which rows count."""
    if scores.shape != labels.shape or scores.ndim not in (1, 2):
        raise ValueError(
            f"expected scores and labels of one shape, (N,) or (N, C), got {tuple(scores.shape)}, {tuple(labels.shape)}"
        )
    known = (labels == 0) | (labels == 1)
    if bool((~known & ~torch.isnan(labels.double()) & (labels != -1)).any()):
        raise ValueError("labels must be 1, 0, -1 (uncertain) or NaN (unmentioned)")
    scores, labels, known = (x.reshape(len(x), -1) for x in (scores, labels, known))
    return [(scores[:, c], labels[:, c], known[:, c]) for c in range(scores.shape[1])]


def _per_class(curve: Curve, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    results = []
    for score, label, known in _columns(scores, labels):
        mass = torch.ones(1, int(known.sum())) if weights is None else weights.reshape(-1, len(score))[:, known]
        results.append(curve(score[known][None], (label[known] == 1)[None], mass.to(score.device)))
    stacked = torch.stack(results, dim=1)  # (B, C)
    stacked = stacked[:, 0] if scores.ndim == 1 else stacked
    return stacked if weights is not None and weights.ndim == 2 else stacked[0]


def _auc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    return roc_auc_rows(scores, positive, weights) if scores.numel() else weights.new_full((len(weights),), torch.nan)


def _precision(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    return (
        average_precision_rows(scores, positive, weights)
        if scores.numel()
        else weights.new_full((len(weights),), torch.nan)
    )


def roc_auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the ROC curve, ties counting half; any monotone score will do."""
    return _per_class(_auc, scores, labels, weights)


def pr_auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average precision (area under the precision-recall curve without interpolation); chance is the prevalence."""
    return _per_class(_precision, scores, labels, weights)


def mean_over_classes(values: Tensor) -> float:
    """Mean over the classes that could be judged; NaN when none could."""
    return float(values.double().nanmean())


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, bins: int = 15, *, equal_mass: bool = False
) -> Tensor:
    """Expected calibration error of P(finding): equal-width bins (k/bins, (k+1)/bins], 0 in the first.

    Sum over bins of (share of rows) x |mean probability - share of positives|; 0 is perfect, at most 1.

    Args:
        probabilities, labels: see the module.
        bins: their number.
        equal_mass: bins of equally many rows instead, by rising probability, which a rare finding's small probabilities
            do not crowd into one bin; rows of equal probability share the bin of the first of them.

    Raises:
        ValueError: a probability lies outside [0, 1].
    """
    results = []
    for p, y, known in _columns(_checked(probabilities, labels), labels):
        p, y = p[known].double(), y[known].double()
        if equal_mass:
            place = torch.searchsorted(p.sort().values, p) * bins // max(1, len(p))
        else:
            place = (p * bins).ceil().long().sub(1).clamp_(0, bins - 1)
        gap = torch.zeros(bins, dtype=torch.float64, device=p.device).index_add_(0, place, p - y)
        results.append(gap.abs().sum() / len(p))
    return torch.stack(results).reshape(probabilities.shape[1:])


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of P(finding), in [0, 1].

    Raises:
        ValueError: a probability lies outside [0, 1].
    """
    columns = _columns(_checked(probabilities, labels), labels)
    errors = [(p[known].double() - y[known].double()).square().mean() for p, y, known in columns]
    return torch.stack(errors).reshape(probabilities.shape[1:])


def _checked(probabilities: Tensor, labels: Tensor) -> Tensor:
    counted = probabilities[(labels == 0) | (labels == 1)]
    if not bool(((counted >= 0) & (counted <= 1)).all()):
        raise ValueError("probabilities must lie in [0, 1]; pass sigmoid(logits)")
    return probabilities


def youden_threshold(scores: Tensor, labels: Tensor) -> Tensor:
    """Threshold with the largest Youden index (sensitivity + specificity - 1); positive means score >= threshold.

    It lies halfway between the two neighbouring scores that it parts; among equals the highest wins (fewest false
    alarms). Choose it on validation images.

    Returns:
        () or (C,); NaN for a class without both outcomes.
    """
    return torch.stack([_youden(s[k].double(), y[k] == 1) for s, y, k in _columns(scores, labels)]).reshape(
        scores.shape[1:]
    )


def _youden(scores: Tensor, positive: Tensor) -> Tensor:
    if positive.all() or not positive.any():
        return torch.tensor(torch.nan, dtype=torch.float64, device=scores.device)
    levels, place = scores.unique(return_inverse=True)
    hits = torch.zeros(len(levels), dtype=torch.float64, device=scores.device).index_add_(0, place, positive.double())
    alarms = torch.zeros_like(hits).index_add_(0, place, (~positive).double())
    # Calling everything from level k upwards positive gives sensitivity[k] and false positive rate[k].
    index = (hits.flip(0).cumsum(0) / positive.sum() - alarms.flip(0).cumsum(0) / (~positive).sum()).flip(0)
    best = int((index >= index.max() - 1e-12).nonzero().max())
    return levels[best] if best == 0 else (levels[best] + levels[best - 1]) / 2


def average_precision_floor(prevalence: Tensor | float) -> Tensor:
    """Lowest average precision that any ranking reaches: 1 + (1 - p) ln(1 - p) / p at prevalence p.

    That of the perfectly inverted ranking of infinitely many images; finite sets stay above it (Boyd et al. 2012, "the
    unachievable region in precision-recall space"). 0 at p = 0, 1 at p = 1, about p / 2 between.

    Args:
        prevalence: share of positives, in [0, 1], any shape; NaN stays NaN.
    """
    p = torch.as_tensor(prevalence, dtype=torch.float64)
    floor = 1 + torch.xlogy(1 - p, 1 - p) / p
    # The terms cancel where p is small; there the series p / 2 + p^2 / 6 + p^3 / 12 is exact to double precision.
    series = p / 2 + p.square() / 6 + p.pow(3) / 12 + p.pow(4) / 20
    return torch.where(p < 1e-3, series, floor)


def check_average_precision(values: Tensor | float, prevalence: Tensor | float, tolerance: float = 1e-9) -> None:
    """Refuse average precisions that no ranking can have, which tell of another metric, other images or a mistake.

    Args:
        values: average precisions, any shape; NaN passes.
        prevalence: share of positives among the images they were measured on, same shape or one for all.
        tolerance: half a unit of the last digit for figures that were rounded, such as 5e-4 for three decimals.

    Raises:
        InputError: a value lies below the floor or above 1.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    floor = average_precision_floor(prevalence).to(values.device).expand_as(values)
    for value, least in zip(values.flatten().tolist(), floor.flatten().tolist(), strict=True):
        if value < least - tolerance or value > 1 + tolerance:
            raise InputError(
                f"{value:.4g} is impossible: at this prevalence every ranking gives {least:.4g} to 1",
                field="average precision",
                remedy="Check which images and which definition it was computed with; trapezoids and interpolation "
                "are not average precision",
            )


def normalised_average_precision(values: Tensor, prevalence: Tensor | float) -> Tensor:
    """(AP - p) / (1 - p): 0 for chance and 1 for perfect at any prevalence; negative below chance, NaN at p = 1."""
    p = torch.as_tensor(prevalence, dtype=torch.float64, device=values.device)
    return torch.where(p < 1, (values.double() - p) / (1 - p), torch.nan)


def prevalence(labels: Tensor) -> Tensor:
    """Share of positives among the known labels, () or (C,) for labels (N,) or (N, C); NaN where none is known."""
    known = (labels == 0) | (labels == 1)
    return (labels == 1).sum(0).double() / known.sum(0)


def sensitivity_at_specificity(
    scores: Tensor, labels: Tensor, specificity: float = 0.9, weights: Tensor | None = None
) -> Tensor:
    """Largest sensitivity among the thresholds whose specificity is at least the one asked for.

    Thresholds are the scores themselves, tied ones together, without interpolation between them.

    Raises:
        ValueError: the specificity lies outside (0, 1].
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"a specificity of {specificity} is not in (0, 1]")

    def curve(score: Tensor, positive: Tensor, mass: Tensor) -> Tensor:
        if not score.numel():
            return mass.new_full((len(mass),), torch.nan)
        ranking = rank(score, positive, mass)
        hits, alarms = ranking.positive.sum(1, keepdim=True), ranking.false_positives[:, -1:]
        allowed = ranking.false_positives <= (1 - specificity) * alarms + 1e-9
        reached = torch.where(allowed, ranking.true_positives / hits, 0.0).amax(1)
        return torch.where((hits[:, 0] > 0) & (alarms[:, 0] > 0), reached, torch.nan)

    return _per_class(curve, scores, labels, weights)


def calibration_line(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of calibration (Cox 1958; Van Calster et al. 2019): perfect ones are 1 and 0.

    The slope is that of the logistic regression of the labels on the logits; below 1 predictions are too extreme. The
    intercept is that of the regression whose slope is held at 1 (calibration in the large); below 0 predictions are too
    high on the whole.

    Args:
        logits: (N,) or (N, C) log odds ln(P / (1 - P)) of the probabilities that are judged.
        labels: as everywhere here.

    Returns:
        Two () or (C,); NaN for a class with one outcome only. The slope is also NaN where a threshold parts the classes
        perfectly or the logits do not vary: no finite slope, or any, is then the best.
    """
    slopes, intercepts = [], []
    for z, y, known in _columns(logits, labels):
        z, y = z[known].double(), (y[known] == 1).double()
        one_sided = not (bool((y == 1).any()) and bool((y == 0).any()))
        intercepts.append(math.nan if one_sided else float(logistic_regression(z, torch.ones_like(z)[:, None], y)[0]))
        parted = one_sided or bool(z[y == 1].min() >= z[y == 0].max()) or bool(z[y == 1].max() <= z[y == 0].min())
        design = torch.stack([torch.ones_like(z), z], dim=1)
        slopes.append(math.nan if parted else float(logistic_regression(torch.zeros_like(z), design, y)[1]))
    shape = logits.shape[1:]
    return tuple(torch.tensor(x, dtype=torch.float64).reshape(shape) for x in (slopes, intercepts))  # type: ignore[return-value]


def logistic_regression(offset: Tensor, design: Tensor, y: Tensor) -> Tensor:
    """Weights w of P(y) = sigmoid(offset + design w) with the most likelihood, by damped Newton steps.

    Args:
        offset: (N,) float64.
        design: (N, D) float64.
        y: (N,) float64 in [0, 1].

    Returns:
        (D,) float64.
    """
    w = torch.zeros(design.shape[1], dtype=torch.float64, device=design.device)

    def loss(at: Tensor) -> float:
        return float(binary_cross_entropy_with_logits(offset + design @ at, y))

    for _ in range(100):
        p = torch.sigmoid(offset + design @ w)
        gradient = design.T @ (p - y) / len(y)
        if float(gradient.abs().max()) < 1e-10:
            break
        curvature = (design * (p * (1 - p))[:, None]).T @ design / len(y)
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(len(w), dtype=torch.float64, device=w.device), gradient)
        size = 1.0
        while size > 1e-6 and loss(w - size * step) > loss(w):
            size /= 2
        w = w - size * step
    return w


def shift_prior(logits: Tensor, trained: Tensor | float, target: Tensor | float) -> Tensor:
    """Logits as they should be where a finding is as frequent as ``target``, from training where it was ``trained``.

    z + ln(t / (1 - t)) - ln(s / (1 - s)) with target t and training share s: Bayes' rule when only the frequency
    differs (Saerens et al. 2002). Rebalanced batches train at another frequency than the images have.

    Args:
        logits: (N, C).
        trained, target: share of positives in (0, 1), one for all or (C,).

    Raises:
        InputError: a share that is not between 0 and 1.
    """
    odds = []
    for name, share in (("trained", trained), ("target", target)):
        share = torch.as_tensor(share, dtype=torch.float64, device=logits.device)
        if not bool(((share > 0) & (share < 1)).all()):
            raise InputError("must lie between 0 and 1", field=name, remedy="Count positives among known labels")
        odds.append(torch.logit(share))
    return (logits.double() + odds[1] - odds[0]).to(logits.dtype)
