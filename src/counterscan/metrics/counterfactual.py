"""What a healthy counterpart is worth beyond localisation: does it heal, and does it leave the rest alone?

``delta`` is the signed map M = image - counterpart; images, counterparts and twins are in [-1, 1]. Shapes are (N, H,
W) or (N, 1, H, W); ``truth`` and ``valid`` are bool masks of that shape. Functions return one figure per image, (N,)
float64, unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.metrics.localisation import flatten

DATA_RANGE = 2.0  # images span [-1, 1]


def _mean_over(values: Tensor, region: Tensor) -> Tensor:
    """(N,) mean of (N, P) values over a region; NaN where the region is empty."""
    return torch.where(region, values.double(), 0.0).sum(1) / region.sum(1)


def mean_magnitude(delta: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean |M| of each image, in intensity units (the full range is 2)."""
    values, _, inside = flatten(delta, torch.zeros_like(delta, dtype=torch.bool), valid)
    return _mean_over(values.abs(), inside)


@dataclass(frozen=True)
class Magnitudes:
    """Mean |M| on healthy and on diseased images; ``ratio`` = diseased / healthy, inf when healthy maps are zero."""

    healthy: float
    diseased: float
    ratio: float


def healthy_and_diseased(magnitude: Tensor, diseased: Tensor) -> Magnitudes:
    """Compare how much is taken from healthy and from diseased images.

    Args:
        magnitude: (N,) from ``mean_magnitude``.
        diseased: (N,) bool.

    Returns:
        NaN where a group is empty or both are zero.
    """
    healthy, sick = magnitude[~diseased].double().mean(), magnitude[diseased].double().mean()
    return Magnitudes(float(healthy), float(sick), float(sick / healthy))


def healed(before: Tensor, after: Tensor, threshold: float) -> Tensor:
    """Whether an independent classifier that called an image diseased now calls its counterpart healthy.

    Args:
        before: (N,) the classifier's score of the image; it must not be the one the system was trained against.
        after: (N,) its score of the counterpart.
        threshold: positive means score >= threshold; choose it on validation images (``youden_threshold``).

    Returns:
        (N,) 1 or 0; NaN for an image that was never called diseased, which cannot be healed.
    """
    return torch.where(before >= threshold, (after < threshold).double(), torch.nan)


def healed_rate(before: Tensor, after: Tensor, threshold: float) -> float:
    """Share of the images called diseased that are called healthy after healing; NaN when none was. See ``healed``."""
    return float(healed(before, after, threshold).nanmean())


def change_outside(delta: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean |M| over the valid pixels outside the lesion; 0 is a counterpart that leaves the rest of the body alone.

    An empty truth makes the whole image outside. NaN when the lesion covers all.
    """
    values, lesion, inside = flatten(delta, truth, valid)
    return _mean_over(values.abs(), inside & ~lesion)


@dataclass(frozen=True)
class TwinError:
    """Distance of the counterpart y from the body's true healthy twin t; x is the diseased image. Each (N,).

    Attributes:
        inside: mean |y - t| in the lesion.
        outside: mean |y - t| elsewhere.
        inside_relative: ``inside`` / mean |x - t| in the lesion: 0 is perfect, 1 is no better than doing nothing.
        outside_relative: ``outside`` in the same unit, the lesion's own mean |x - t|; outside itself x and t are
            almost equal and give no unit.
        remaining: sum |y - t| / sum |x - t| over all valid pixels: the share of the disease that is left, damage
            included.
    """

    inside: Tensor
    outside: Tensor
    inside_relative: Tensor
    outside_relative: Tensor
    remaining: Tensor


def twin_error(
    counterpart: Tensor, twin: Tensor, image: Tensor, truth: Tensor, valid: Tensor | None = None
) -> TwinError:
    """Error of healed images against true healthy twins, as only a phantom can give.

    Returns:
        NaN where truth is empty, except ``outside`` and ``remaining`` (NaN or inf only if x equals its twin).
    """
    error, lesion, inside = flatten((counterpart - twin).abs(), truth, valid)
    disease, _, _ = flatten((image - twin).abs(), truth, valid)
    unit = _mean_over(disease, lesion)
    within, beyond = _mean_over(error, lesion), _mean_over(error, inside & ~lesion)
    whole = _mean_over(error, inside) / _mean_over(disease, inside)
    return TwinError(within, beyond, within / unit, beyond / unit, whole)


def psnr_outside(image: Tensor, counterpart: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio outside the lesion in dB, data range 2; inf where nothing changed there."""
    squared, lesion, inside = flatten((image.double() - counterpart.double()).square(), truth, valid)
    return 10 * torch.log10(DATA_RANGE**2 / _mean_over(squared, inside & ~lesion))


def ssim_outside(image: Tensor, counterpart: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Structural similarity outside the lesion, in [-1, 1] (Wang et al. 2004: Gaussian sigma 1.5, 11 px, K 0.01/0.03).

    Local means and variances use outside pixels only, so neither lesion nor padding nor the frame's border leaks in.
    With no lesion, and away from the border, it is plain SSIM.

    Returns:
        (N,); NaN when nothing lies outside.
    """
    _, lesion, inside = flatten(image, truth, valid)
    keep = (inside & ~lesion).reshape(len(image), 1, *image.shape[-2:])
    return _mean_over(ssim_map(image, counterpart, keep).flatten(1), keep.flatten(1))


def ssim_map(image: Tensor, other: Tensor, keep: Tensor) -> Tensor:
    """Structural similarity around each pixel, from the pixels in ``keep`` only.

    Args:
        image: (N, H, W) or (N, 1, H, W) in [-1, 1].
        other: like ``image``.
        keep: (N, 1, H, W) bool.

    Returns:
        (N, 1, H, W) float64; meaningless where ``keep`` is False.
    """
    mask = keep.double()
    x, y = (i.reshape(keep.shape).double() for i in (image, other))
    weight = _blur(mask).clamp_min(1e-12)
    mean_x, mean_y = _blur(x * mask) / weight, _blur(y * mask) / weight
    var_x = (_blur(x * x * mask) / weight - mean_x.square()).clamp_min(0)
    var_y = (_blur(y * y * mask) / weight - mean_y.square()).clamp_min(0)
    covariance = _blur(x * y * mask) / weight - mean_x * mean_y
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def _blur(x: Tensor, sigma: float = 1.5, radius: int = 5) -> Tensor:
    """Gaussian window sums of (N, 1, H, W), zeros beyond the border."""
    steps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    across = F.conv2d(x, kernel.view(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(radius, 0))
