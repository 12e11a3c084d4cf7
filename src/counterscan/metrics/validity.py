"""Does a counterfactual convince the classifier, how little did it change, and is the way there orderly?

Scores are (N,), probabilities or margins as each function says; images are (N, 1, H, W) in [-1, 1]. ``delta`` is the
signed map M = image - counterpart. Functions return one figure per image, (N,) float64. **An explanation that is
missing (its score after is NaN) has not flipped anything**: it counts as 0, so silence cannot raise a rate. What the
change does outside the lesion is in ``counterscan.metrics.counterfactual``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from counterscan.counterpart import Direction
from counterscan.errors import InputError
from counterscan.metrics.counterfactual import healed, mean_magnitude, psnr_outside, ssim_outside
from counterscan.metrics.faithfulness import Score, pixels, region, replacement_curve


def flipped(before: Tensor, after: Tensor, threshold: float = 0.5, direction: Direction = "remove") -> Tensor:
    """Whether the counterfactual lies on the other side of the classifier's threshold.

    Its mean is the flip rate; with an independently trained classifier it is the oracle's, the guard against
    counterfactuals that are only adversarial.

    Args:
        before: (N,) scores of the images.
        after: (N,) scores of their counterfactuals.
        threshold: positive means score >= threshold.
        direction: "remove" goes from positive to negative, "add" from negative to positive.

    Returns:
        (N,) 1 or 0; NaN for an image that was not on the starting side.
    """
    _pair(before, after)
    if _falls(direction):
        return healed(before, after, threshold)
    return torch.where(before < threshold, (after >= threshold).double(), torch.nan)


def counterfactual_validity(before: Tensor, after: Tensor, tau: float = 0.8) -> Tensor:
    """CV@tau: whether the probability moved by more than tau, over images the classifier was sure of (Singla 2022).

    Returns:
        (N,) 1 or 0; NaN for 1 - tau <= p <= tau, from where p can hardly move so far.

    Raises:
        InputError: scores are not probabilities, or tau does not lie in [0.5, 1).
    """
    _pair(before, after)
    if not 0.5 <= tau < 1:
        raise InputError(f"{tau} must be at least 0.5 and below 1", field="tau")
    for field, p in (("before", before), ("after", after)):
        _probabilities(field, p)
    return torch.where((before < 1 - tau) | (before > tau), ((before - after).abs() > tau).double(), torch.nan)


def target_error(after: Tensor, target: float | Tensor) -> Tensor:
    """|f(x') - t|: how far the counterfactual's score is from what was asked for; t is one number or (N,)."""
    wanted = torch.as_tensor(target, device=after.device)
    if after.ndim != 1 or wanted.shape not in ((), after.shape):
        got = f"{tuple(after.shape)} and {tuple(wanted.shape)}"
        raise InputError(f"expected scores (N,) and one target or (N,), got {got}", field="after, target")
    return (after.detach().double() - wanted.double()).abs()


def l1(delta: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean |M| over the valid pixels, in intensity units (the full range is 2); ``mean_magnitude`` under the name that
    tables of counterfactuals use."""
    pixels("delta", delta, inside=region(valid, delta))
    return mean_magnitude(delta, valid)


def l0(delta: Tensor, threshold: float = 0.1, valid: Tensor | None = None) -> Tensor:
    """Share of the valid pixels that changed by more than ``threshold`` (intensity units, the full range is 2)."""
    inside = region(valid, delta)
    changed = pixels("delta", delta, inside=inside).abs() > threshold
    return (changed & inside).sum(1).double() / inside.sum(1)


def ssim(image: Tensor, counterpart: Tensor, valid: Tensor | None = None) -> Tensor:
    """Structural similarity over all valid pixels, in [-1, 1]; see ``counterfactual.ssim_map`` for its constants."""
    _images(image, counterpart, valid)
    return ssim_outside(image, counterpart, torch.zeros_like(image, dtype=torch.bool), valid)


def psnr(image: Tensor, other: Tensor, valid: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio over all valid pixels in dB, data range 2; inf where nothing changed."""
    _images(image, other, valid)
    return psnr_outside(image, other, torch.zeros_like(image, dtype=torch.bool), valid)


def monotonicity(outputs: Tensor, direction: Direction = "add") -> Tensor:
    """Share of the steps along a path that go the right way.

    Args:
        outputs: (N, K) scores along the path; better margins, as a probability that has arrived at 1 stands still.
        direction: "add" should rise, "remove" fall; a step that stands still does neither.

    Returns:
        (N,) in [0, 1]; NaN where a score is.

    Raises:
        InputError: there is no step (K < 2).
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise InputError(f"expected (N, K) with K >= 2, got {tuple(outputs.shape)}", field="outputs")
    steps = outputs.detach().double().diff(dim=1)
    right = (steps < 0 if _falls(direction) else steps > 0).double().mean(1)
    return torch.where(outputs.isnan().any(1), torch.nan, right)


def calibration_along_path(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean |f(x_k) - t_k| along a path: whether a step of the asked size changes the classifier by that size.

    Args:
        outputs: (N, K) probabilities along the path.
        targets: (K,) or (N, K), what was asked for at each step.
    """
    if outputs.ndim != 2 or targets.shape not in (outputs.shape, outputs.shape[1:]):
        got = f"{tuple(outputs.shape)} and {tuple(targets.shape)}"
        raise InputError(f"expected outputs (N, K) and targets (K,) or (N, K), got {got}", field="outputs, targets")
    return (outputs.detach().double() - targets.detach().double()).abs().mean(1)


def cout(
    probability: Score,
    image: Tensor,
    counterpart: Tensor,
    direction: Direction = "remove",
    *,
    steps: int = 50,
    batch_size: int = 256,
) -> Tensor:
    """Counterfactual transition score (Khorram and Fuxin 2022): does the smallest edit already do the work?

    Pixels move from the image to the counterfactual in the order of |x - x'|; COUT = AUC of P(target class) - AUC of
    P(source class) on the way. Of the two classes the source is the finding for "remove" and its absence for "add".

    Args:
        probability: P(finding), (M, 1, H, W) to (M,) in [0, 1].
        image: x.
        counterpart: x'.
        direction: as for ``flipped``.
        steps: equal parts of the image.
        batch_size: images per call of the classifier.

    Returns:
        (N,) in [-1, 1], higher is better.

    Raises:
        InputError: the classifier does not return probabilities.
    """
    _images(image, counterpart, None)
    change = (image - counterpart).abs()
    curve = replacement_curve(probability, image, counterpart, change, steps=steps, batch_size=batch_size)
    _probabilities("probability", curve.outputs)
    lead = 2 * curve.auc - 1  # P(finding) - P(no finding), on average
    return -lead if _falls(direction) else lead


def _falls(direction: Direction) -> bool:
    if direction not in ("remove", "add"):
        raise InputError(f"{direction!r} must be remove or add", field="direction")
    return direction == "remove"


def _pair(before: Tensor, after: Tensor) -> None:
    if before.ndim != 1 or before.shape != after.shape:
        got = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise InputError(f"expected scores (N,) of one length, got {got}", field="before, after")


def _probabilities(field: str, p: Tensor) -> None:
    if bool(((p < 0) | (p > 1)).any()):
        raise InputError("probabilities must lie in [0, 1]", field=field, remedy="Pass sigmoid(logits)")


def _images(image: Tensor, other: Tensor, valid: Tensor | None) -> None:
    region(valid, image)
    pixels("image", image)
    pixels("counterpart", other, image)
