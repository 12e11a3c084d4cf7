"""How good image-level scores are: discrimination, calibration, and a threshold to act on.

Scores and labels are (N,) for one finding or (N, C) for several. Labels follow the study table: 1 and 0 count; NaN
(unmentioned) and -1 (uncertain) are skipped, per class. Functions return a float64 tensor, () or (C,), and NaN for a
class that cannot be judged (nothing labelled, or one class only where two are needed). ``weights`` (N,) repeat or drop
rows; (B, N) gives B answers, (B,) or (B, C), for bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from counterscan.metrics.ranking import average_precision_rows, roc_auc_rows

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


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error of P(finding): equal-width bins (k/bins, (k+1)/bins], 0 in the first.

    Sum over bins of (share of rows) x |mean probability - share of positives|; 0 is perfect, at most 1.

    Raises:
        ValueError: a probability lies outside [0, 1].
    """
    results = []
    for p, y, known in _columns(_checked(probabilities, labels), labels):
        p, y = p[known].double(), y[known].double()
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
