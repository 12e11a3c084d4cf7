"""Areas under ROC and precision-recall curves of many rankings at once: one sort, no loop over thresholds.

Pixels of an image, images of a test set and bootstrap resamples of either are all rows of one (N, P) table here.
Weights carry what is left out (0) and what was drawn several times (2, 3, ...).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Rows sorted by falling score, with tied scores as one step.

    Attributes:
        positive: (N, P) float64, weight of positives at each rank.
        true_positives: (N, P) weight of positives down to the end of the rank's tie.
        false_positives: (N, P) weight of negatives down to the end of the rank's tie.
        false_before: (N, P) weight of negatives above the rank's tie.
    """

    positive: Tensor
    true_positives: Tensor
    false_positives: Tensor
    false_before: Tensor


def rank(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Ranking:
    """Sort each row by falling score and accumulate.

    Args:
        scores: (N, P), any finite real numbers.
        positive: (N, P) or (1, P) bool.
        weights: (N, P) or (1, P) >= 0; an item of weight 0 does not exist. None means 1.

    Raises:
        ValueError: shapes disagree, or a score of an existing item is not finite.
    """
    if scores.ndim != 2 or positive.shape[-1] != scores.shape[-1]:
        raise ValueError(
            f"expected scores (N, P) and as many labels, got {tuple(scores.shape)}, {tuple(positive.shape)}"
        )
    mass = torch.ones(1, 1, dtype=torch.float64, device=scores.device) if weights is None else weights.double()
    if not bool((torch.isfinite(scores) | (mass <= 0)).all()):
        raise ValueError("scores hold NaN or infinite values")
    ordered, order = torch.sort(scores.detach().nan_to_num(), dim=1, descending=True)
    rows = max(len(scores), len(positive), len(mass))
    order, ordered = order.expand(rows, -1), ordered.expand(rows, -1)
    labels = positive.expand(rows, -1).gather(1, order).double()
    mass = mass.expand(rows, order.shape[1]).gather(1, order)
    hits, misses = labels * mass, (1 - labels) * mass
    first, last = _tie_ends(ordered)
    false_positives = misses.cumsum(1)
    return Ranking(
        positive=hits,
        true_positives=hits.cumsum(1).gather(1, last),
        false_positives=false_positives.gather(1, last),
        false_before=(false_positives - misses).gather(1, first),
    )


def _tie_ends(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """(N, P) index of the first and the last member of each item's tie, in sorted rows."""
    rows, length = ordered.shape
    place = torch.arange(length, device=ordered.device).expand(rows, -1)
    change = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones(rows, 1, dtype=torch.bool, device=ordered.device)
    starts, ends = torch.cat([edge, change], 1), torch.cat([change, edge], 1)
    first = torch.where(starts, place, 0).cummax(1).values
    last = torch.where(ends, place, length - 1).flip(1).cummin(1).values.flip(1)
    return first, last


def average_precision_rows(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average precision of each row: sum over thresholds of (recall gained) x (precision there).

    The definition of ``sklearn.metrics.average_precision_score``: no interpolation, tied scores enter together.

    Args: see ``rank``.

    Returns:
        (N,) float64 in [0, 1]; NaN for a row without positives.
    """
    ranking = rank(scores, positive, weights)
    shown = ranking.true_positives + ranking.false_positives
    precision = torch.where(shown > 0, ranking.true_positives / shown.clamp_min(1e-300), 0.0)
    return (ranking.positive * precision).sum(1) / ranking.positive.sum(1)  # 0/0 is the NaN promised


def roc_auc_rows(scores: Tensor, positive: Tensor, weights: Tensor | None = None) -> Tensor:
    """ROC-AUC of each row: chance that a positive outranks a negative, a tie counting one half (Mann-Whitney).

    Args: see ``rank``.

    Returns:
        (N,) float64 in [0, 1]; NaN for a row with one class only.
    """
    ranking = rank(scores, positive, weights)
    negatives = ranking.false_positives[:, -1:]
    beaten = negatives - (ranking.false_positives + ranking.false_before) / 2
    return (ranking.positive * beaten).sum(1) / (ranking.positive.sum(1) * negatives[:, 0])
