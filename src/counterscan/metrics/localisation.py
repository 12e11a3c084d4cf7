"""How well a map or a mask finds a lesion: one figure per image, so that intervals can be formed over patients.

Throughout, ``maps`` and ``masks`` are (N, H, W) or (N, 1, H, W), ``truth`` is a bool lesion mask of the same shape, and
``valid`` (same shape, bool) leaves out padding. Every function returns (N,) float64. **An image whose truth is empty
has nothing to find: its figure is NaN**, and means over images skip it. A prediction that is empty although there is a
lesion scores 0, never NaN, so silence cannot raise a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from counterscan.metrics.ranking import average_precision_rows, roc_auc_rows

_SORTED_AT_ONCE = 2**18  # pixels: fits the cache, which is 2-3 times faster than one great sort


def flatten(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring maps, truth and valid pixels to (N, P), checked.

    Raises:
        ValueError: shapes disagree, truth or valid are not bool, or a valid pixel is not finite.
    """
    shaped = [_planes(name, x) for name, x in (("map", maps), ("truth", truth), ("valid", valid)) if x is not None]
    if any(x.shape != shaped[0].shape for x in shaped):
        raise ValueError(f"map, truth and valid must share one shape, got {[tuple(x.shape) for x in shaped]}")
    if any(x.dtype != torch.bool for x in shaped[1:]):
        raise ValueError("truth and valid must be bool masks")
    inside = shaped[2] if valid is not None else torch.ones_like(shaped[1])
    values, lesion, inside = (x.flatten(1) for x in (shaped[0], shaped[1], inside))
    if not bool((torch.isfinite(values) | ~inside).all()):
        raise ValueError("a map or image holds NaN or infinite values")
    return values, lesion & inside, inside


def _planes(name: str, x: Tensor) -> Tensor:
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 3:
        raise ValueError(f"{name}: expected (N, H, W) or (N, 1, H, W), got {tuple(x.shape)}")
    return x


def _regions(masks: Tensor, truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) pixels predicted, true, and both."""
    predicted, lesion, inside = flatten(masks, truth, valid)
    if predicted.dtype != torch.bool:
        raise ValueError("a predicted mask must be bool; threshold the map first")
    predicted = predicted & inside
    return predicted.sum(1).double(), lesion.sum(1).double(), (predicted & lesion).sum(1).double()


def _nan_if_empty(value: Tensor, lesion: Tensor) -> Tensor:
    return torch.where(lesion > 0, value, torch.nan)


def pixel_recall(masks: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """|P ∩ G| / |G|: the paper's Percentage of Intersection (PoI), as a fraction.

    Painting everything scores 1: never report it without ``pixel_precision`` and ``area_fraction``.
    """
    _, lesion, both = _regions(masks, truth, valid)
    return _nan_if_empty(both / lesion, lesion)


def pixel_precision(masks: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """|P ∩ G| / |P|; 0 for an empty prediction."""
    predicted, lesion, both = _regions(masks, truth, valid)
    return _nan_if_empty(both / predicted.clamp_min(1), lesion)


def iou(masks: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """|P ∩ G| / |P ∪ G| (Jaccard)."""
    predicted, lesion, both = _regions(masks, truth, valid)
    return _nan_if_empty(both / (predicted + lesion - both), lesion)


def dice(masks: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """2 |P ∩ G| / (|P| + |G|)."""
    predicted, lesion, both = _regions(masks, truth, valid)
    return _nan_if_empty(2 * both / (predicted + lesion), lesion)


def area_fraction(masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share of the valid pixels that a mask paints; defined for every image, lesion or not."""
    predicted, _, inside = flatten(masks, masks, valid)
    return (predicted & inside).sum(1).double() / inside.sum(1)


def _by_rows(
    curve: Callable[[Tensor, Tensor, Tensor | None], Tensor], maps: Tensor, truth: Tensor, valid: Tensor | None
) -> Tensor:
    values, lesion, inside = flatten(maps, truth, valid)
    step = max(1, _SORTED_AT_ONCE // max(1, values.shape[1]))
    parts = [
        curve(values[i : i + step], lesion[i : i + step], None if valid is None else inside[i : i + step])
        for i in range(0, len(values), step)
    ]
    return torch.cat(parts) if parts else values.new_zeros(0, dtype=torch.float64)


def pixel_average_precision(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Area under the pixel precision-recall curve of each image, exact.

    Ties enter together, as in ``sklearn.metrics.average_precision_score``, so a constant map scores the lesion's share
    of the image.
    """
    return _by_rows(average_precision_rows, maps, truth, valid)


def pixel_auroc(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Chance that a lesion pixel outranks a healthy one, ties counting half; NaN also when all is lesion."""
    return _by_rows(roc_auc_rows, maps, truth, valid)


def ncc(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pearson correlation of map and mask over valid pixels (VA-GAN's normalised cross-correlation), in [-1, 1].

    A constant map has no correlation with anything and scores 0; NaN also when all is lesion.
    """
    values, lesion, inside = flatten(maps, truth, valid)
    values, target, weight = values.double(), lesion.double(), inside.double()
    count = weight.sum(1, keepdim=True)
    values = torch.where(inside, values - torch.where(inside, values, 0.0).sum(1, keepdim=True) / count, 0.0)
    target = (target - target.sum(1, keepdim=True) / count) * weight
    spread = values.square().sum(1).sqrt()
    product = (values * target).sum(1)
    # A constant map leaves only rounding behind after its mean is taken away.
    scale = torch.where(inside, maps.flatten(1).double().abs(), 0.0).amax(1) * count[:, 0].sqrt()
    flat = spread <= 1e-12 * scale
    value = torch.where(flat, 0.0, product / (spread * target.square().sum(1).sqrt()).clamp_min(1e-300))
    return torch.where((lesion.sum(1) > 0) & (lesion.sum(1) < inside.sum(1)), value, torch.nan)


def pointing_game(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 when the map's highest pixel lies in the lesion, else 0 (Zhang et al. 2018, without tolerance).

    When several pixels share the maximum the figure is the share of them inside the lesion, the expected value of a
    random pick. A constant map points nowhere and scores 0.
    """
    values, lesion, inside = flatten(maps, truth, valid)
    values = values.double()
    high = values.masked_fill(~inside, -torch.inf).amax(1, keepdim=True)
    low = values.masked_fill(~inside, torch.inf).amin(1, keepdim=True)
    top = (values == high) & inside
    share = (top & lesion).sum(1).double() / top.sum(1).clamp_min(1)
    share = torch.where((high > low)[:, 0], share, 0.0)
    return _nan_if_empty(share, lesion.sum(1))


def energy_in_region(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share of the map's total that falls inside the lesion; 0 for a map that is zero everywhere.

    Raises:
        ValueError: a map holds negative values, for which a share of energy means nothing.
    """
    values, lesion, inside = flatten(maps, truth, valid)
    values = torch.where(inside, values.double(), 0.0)
    if bool((values < 0).any()):
        raise ValueError("energy_in_region needs maps >= 0; take the absolute value or the positive part first")
    total = values.sum(1)
    return _nan_if_empty((values * lesion).sum(1) / total.clamp_min(1e-300), lesion.sum(1))


def area_matched_masks(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Masks of exactly the truth's area: each map's highest pixels, ties resolved in reading order.

    Reads the truth's area, so it compares the ranking of maps, not a system's own threshold.

    Returns:
        bool, shaped like ``maps``.
    """
    values, lesion, inside = flatten(maps, truth, valid)
    scores = values.double().masked_fill(~inside, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.zeros_like(lesion).scatter(1, order, place < lesion.sum(1, keepdim=True)).reshape(maps.shape)


def area_matched_iou(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """IoU after each map is cut to the truth's own area: threshold-free, and blind to how much a system paints."""
    return iou(area_matched_masks(maps, truth, valid), truth, valid)


def map_scores(maps: Tensor, truth: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """All threshold-free figures of evidence maps (>= 0), by short name; each (N,)."""
    return {
        "ap": pixel_average_precision(maps, truth, valid),
        "auroc": pixel_auroc(maps, truth, valid),
        "ncc": ncc(maps, truth, valid),
        "iou_area": area_matched_iou(maps, truth, valid),
        "energy": energy_in_region(maps, truth, valid),
        "pointing": pointing_game(maps, truth, valid),
    }


def mask_scores(masks: Tensor, truth: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """All figures of binary masks, by short name; each (N,). Recall, precision and area belong together."""
    return {
        "recall": pixel_recall(masks, truth, valid),
        "precision": pixel_precision(masks, truth, valid),
        "area": area_fraction(masks, valid),
        "iou": iou(masks, truth, valid),
        "dice": dice(masks, truth, valid),
    }


@dataclass(frozen=True)
class OracleDice:
    """The best that any one threshold could have done; it has seen the test masks and is for orientation only."""

    dice: float
    threshold: float


def oracle_dice(maps: Tensor, truth: Tensor, valid: Tensor | None = None, candidates: int = 1024) -> OracleDice:
    """Best mean per-image Dice that a single threshold for all images reaches (mask = map >= threshold). **An oracle.**

    Candidates are quantiles of the pooled values, half of them taken inside lesions, where the optimum lies; the
    search is exact when there are fewer distinct values than that.

    Returns:
        NaN for both when no image has a lesion.
    """
    values, lesion, inside = flatten(maps, truth, valid)
    chosen = lesion.any(1)
    values, lesion, inside = values[chosen], lesion[chosen], inside[chosen]
    if not len(values):
        return OracleDice(float("nan"), float("nan"))
    thresholds = _thresholds(values[inside], values[lesion], candidates)
    total = torch.zeros(len(thresholds), dtype=torch.float64)
    for row, region, area in zip(values, lesion, inside, strict=True):
        painted = _at_least(row[area], thresholds)
        hit = _at_least(row[region], thresholds)
        total += 2 * hit / (painted + region.sum().cpu())
    best = int(total.argmax())
    return OracleDice(float(total[best]) / len(values), float(thresholds[best]))


def _thresholds(everywhere: Tensor, inside: Tensor, candidates: int) -> Tensor:
    distinct = everywhere.cpu().unique()
    if len(distinct) <= candidates:
        return distinct
    picks = [torch.linspace(0, len(x) - 1, candidates // 2).long() for x in (everywhere, inside)]
    pooled = [x.cpu().sort().values[i] for x, i in zip((everywhere, inside), picks, strict=True)]
    return torch.cat(pooled).unique()


def _at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) how many values reach each threshold."""
    ordered = values.cpu().sort().values
    return (len(ordered) - torch.searchsorted(ordered, thresholds, side="left")).double()
