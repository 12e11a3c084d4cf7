"""Does a map say what the classifier does? Curves under replacement of pixels, infidelity, completeness, stray pixels.

Images are (N, 1, H, W) in [-1, 1]; maps are (N, 1, H, W) or (N, H, W); ``valid`` (same shape, bool) leaves out padding,
which is neither replaced nor counted. A score is any callable from (M, 1, H, W) to (M,), such as the probability or the
margin of one finding; set its network to eval mode first. Functions return one figure per image, (N,) float64, unless
they say otherwise. Draws come from ``generator``; None takes a new one with seed 0, so that a figure repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.care import smooth
from counterscan.errors import InputError
from counterscan.metrics.localisation import energy_in_region

Score = Callable[[Tensor], Tensor]


def pixels(field: str, x: Tensor, like: Tensor | None = None, inside: Tensor | None = None) -> Tensor:
    """Images or maps, (N, 1, H, W) or (N, H, W), as (N, H x W).

    Args:
        field: what ``x`` is called in an error.
        x: the tensor.
        like: what it must have as many rows and pixels of.
        inside: (N, H x W) bool, where it must be finite; None is everywhere.

    Raises:
        InputError: it has another shape, or is not finite.
    """
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[1] != 1):
        raise InputError(f"expected (N, 1, H, W) or (N, H, W), got {tuple(x.shape)}", field=field)
    if like is not None and (len(x), *x.shape[-2:]) != (len(like), *like.shape[-2:]):
        remedy = f"Give one per image, of {tuple(like.shape[-2:])} pixels"
        raise InputError(f"got {tuple(x.shape)} beside images {tuple(like.shape)}", field=field, remedy=remedy)
    flat = x.detach().flatten(1)
    finite = torch.isfinite(flat)
    if not bool((finite if inside is None else finite | ~inside).all()):
        raise InputError("holds NaN or infinite values", field=field, remedy="Set such pixels or leave them out")
    return flat


def region(valid: Tensor | None, like: Tensor, field: str = "valid") -> Tensor:
    """(N, H x W) bool; everywhere when ``valid`` is None.

    Raises:
        InputError: it is not a bool mask of the images' size.
    """
    if valid is None:
        return torch.ones_like(like, dtype=torch.bool).flatten(1)
    if valid.dtype != torch.bool:
        raise InputError(f"expected a bool mask, got {valid.dtype}", field=field, remedy="Compare it with a threshold")
    return pixels(field, valid, like)


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one with seed 0."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def at_least_one(**counts: int) -> None:
    """Raises InputError, naming it, for a count below 1."""
    for field, count in counts.items():
        if count < 1:
            raise InputError(f"{count} must be at least 1", field=field)


def scores_of(score: Score, frames: Callable[[Tensor], Tensor], count: int, batch_size: int) -> Tensor:
    """Scores of images that are made batch by batch.

    Args:
        score: the classifier.
        frames: row numbers (M,) to images (M, 1, H, W).
        count: how many rows.
        batch_size: rows at once.

    Returns:
        (count,) float64.

    Raises:
        InputError: the classifier does not return one finite number per image.
    """
    at_least_one(batch_size=batch_size)
    outputs = []
    with torch.no_grad():
        for rows in torch.arange(count).split(batch_size):
            output = score(frames(rows))
            if output.shape != (len(rows),):
                remedy = "Pick one finding: lambda x: classifier(x)[:, column]"
                raise InputError(f"expected ({len(rows)},), got {tuple(output.shape)}", field="score", remedy=remedy)
            outputs.append(output.double())
    together = torch.cat(outputs) if outputs else torch.zeros(0, dtype=torch.float64)
    if not bool(torch.isfinite(together).all()):
        raise InputError("the classifier returned NaN or infinite values", field="score")
    return together


def mean_substrate(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """(N, 1, H, W): each image's own mean grey, over its valid pixels."""
    inside = region(valid, images)
    total = torch.where(inside, pixels("images", images, inside=inside), 0.0).sum(1)
    return (total / inside.sum(1)).to(images.dtype).view(-1, 1, 1, 1).expand_as(images).contiguous()


def blur_substrate(images: Tensor, sigma: float = 0.1) -> Tensor:
    """(N, 1, H, W): the image under a Gaussian blur, ``sigma`` as a share of the width.

    RISE blurs with 5 px of 224, which leaves a lesion of a small image visible; 10 % does not.
    """
    return smooth(images, sigma)


def places(values: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """(N, P) place of every pixel when each row falls, from 0; pixels outside come last.

    Equal values are shuffled, alike in every row: in reading order a map that is zero over most of the image would be
    credited or blamed for the image's upper edge.
    """
    count = values.shape[1]
    shuffle = torch.randperm(count, generator=generator, device=generator.device).to(values.device)
    falling = values.double().masked_fill(~inside, -torch.inf)[:, shuffle].argsort(dim=1, descending=True, stable=True)
    order = shuffle[falling]
    return torch.empty_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand_as(order))


@dataclass(frozen=True)
class ReplacementCurve:
    """Scores while pixels are replaced.

    Attributes:
        shares: (N, K + 1) share of the valid pixels replaced so far, from 0 to 1.
        outputs: (N, K + 1) the classifier's score there.
    """

    shares: Tensor
    outputs: Tensor

    @property
    def auc(self) -> Tensor:
        """(N,) area under the curve (trapezoid): the mean score over shares."""
        return torch.trapezoid(self.outputs, self.shares, dim=1)


def replacement_curve(
    score: Score,
    start: Tensor,
    end: Tensor,
    maps: Tensor,
    *,
    steps: int = 50,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> ReplacementCurve:
    """Turn ``start`` into ``end``, the highest pixels of the map first, equal ones in random order.

    Args:
        score: the classifier.
        start: (N, 1, H, W) images at share 0.
        end: (N, 1, H, W) images at share 1.
        maps: the order, by value: give evidence, or the magnitude of a signed map.
        steps: K; each replaces the same number of pixels, up to rounding.
        valid: pixels that are replaced.
        generator: of the order among equals.
        batch_size: images per call of the classifier.

    Raises:
        InputError: shapes disagree, a value is not finite, or the classifier does not return (M,).
    """
    at_least_one(steps=steps)
    pixels("start", start)
    pixels("end", end, start)
    inside = region(valid, start)
    place = places(pixels("maps", maps, start, inside), inside, seeded(generator))
    size = inside.sum(1, keepdim=True)
    due = (torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=size.device) * size).round()

    def frames(rows: Tensor) -> Tensor:
        image, step = rows // (steps + 1), rows % (steps + 1)
        replaced = place[image] < due[image, step, None]
        return torch.where(replaced.reshape(-1, 1, *start.shape[-2:]), end[image], start[image])

    outputs = scores_of(score, frames, due.numel(), batch_size)
    return ReplacementCurve(due / size, outputs.view(due.shape))


def deletion(
    probability: Score,
    images: Tensor,
    maps: Tensor,
    substrate: Tensor,
    *,
    steps: int = 50,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> ReplacementCurve:
    """Probability of the finding while the map's highest pixels give way to the substrate (RISE, Petsiuk 2018).

    The lower the area, the better. Methods rank differently on different substrates: report ``mean_substrate``,
    ``blur_substrate`` and the negative counterpart.

    Args:
        substrate: (N, 1, H, W), what replaces the pixels.
        others: see ``replacement_curve``.
    """
    return replacement_curve(
        probability, images, substrate, maps, steps=steps, valid=valid, generator=generator, batch_size=batch_size
    )


def insertion(
    probability: Score,
    images: Tensor,
    maps: Tensor,
    substrate: Tensor,
    *,
    steps: int = 50,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> ReplacementCurve:
    """Probability of the finding while the map's highest pixels come back into the substrate; see ``deletion``.

    The higher the area, the better.
    """
    return replacement_curve(
        probability, substrate, images, maps, steps=steps, valid=valid, generator=generator, batch_size=batch_size
    )


def infidelity(
    score: Score,
    images: Tensor,
    attributions: Tensor,
    substrate: Tensor,
    *,
    patch: int = 4,
    draws: int = 100,
    kind: Literal["contribution", "gradient"] = "contribution",
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Tensor:
    """E[(b c - (f(x) - f(x')))^2] over images x' with one square patch of the substrate (Yeh 2019, definition 2.1).

    c is what the map says the patch is worth. The scalar b >= 0 is the best one for each image, so that the map's unit
    does not matter; it may not be negative, or a map with the wrong sign would pass. 0 is perfect; a map that says
    nothing gets E[(f(x) - f(x'))^2].

    Args:
        score: the classifier's margin.
        attributions: signed maps.
        substrate: (N, 1, H, W), what the patch is filled with.
        patch: side in pixels.
        draws: patches, uniform over the positions inside the frame, the same for all images.
        kind: "contribution": a pixel's value is what it adds to f beside the substrate (integrated gradients,
            occlusion, heat maps), so c is its sum over the patch; "gradient": it is df/dx, so c sums A (x - substrate).

    Raises:
        InputError: shapes disagree, the patch does not fit, or the classifier does not return (M,).
    """
    at_least_one(patch=patch, draws=draws)
    if kind not in ("contribution", "gradient"):
        raise InputError(f"{kind!r} must be contribution or gradient", field="kind")
    height, width = images.shape[-2:]
    if patch > min(height, width):
        raise InputError(f"{patch} px do not fit into {height} x {width}", field="patch", remedy="Choose a smaller one")
    inside = region(valid, images)
    shape = (len(images), 1, height, width)
    pixels("images", images)
    pixels("substrate", substrate, images)
    worth = torch.where(inside, pixels("attributions", attributions, images, inside).double(), 0.0).view(shape)
    if kind == "gradient":
        worth = worth * (images - substrate).double()
    across = width - patch + 1
    generator = seeded(generator)
    spots = torch.randint((height - patch + 1) * across, (draws,), generator=generator, device=generator.device)
    spots = spots.to(images.device)
    claimed = (F.avg_pool2d(worth, patch, stride=1) * patch**2).flatten(1)[:, spots]
    rows, columns = (torch.arange(n, device=images.device) for n in (height, width))

    def frames(numbers: Tensor) -> Tensor:
        image, spot = numbers // draws, spots[numbers % draws]
        top, left = spot // across, spot % across
        down, right = rows - top[:, None], columns - left[:, None]
        square = ((down >= 0) & (down < patch))[:, :, None] & ((right >= 0) & (right < patch))[:, None, :]
        return torch.where(square[:, None] & inside.view(shape)[image], substrate[image], images[image])

    before = scores_of(score, lambda chosen: images[chosen], len(images), batch_size)
    change = before[:, None] - scores_of(score, frames, claimed.numel(), batch_size).view(claimed.shape)
    power = claimed.square().sum(1)
    scale = torch.where(power > 0, (claimed * change).sum(1) / power.clamp_min(1e-300), 0.0).clamp_min(0)
    return (scale[:, None] * claimed - change).square().mean(1)


def completeness_gap(attributions: Tensor, f_x: Tensor, f_baseline: Tensor, tolerance: float = 1e-3) -> Tensor:
    """|sum A - (f(x) - f(x0))| / |f(x) - f(x0)|: the share of the classifier's change that a map does not account for.

    Args:
        attributions: signed maps, unsmoothed and over the whole image, as the axiom (Sundararajan 2017) has them.
        f_x: (N,) score of the image at the end of the path.
        f_baseline: (N,) score of the baseline, by the same function as was attributed.
        tolerance: smallest |f(x) - f(x0)| to speak of.

    Returns:
        NaN where the two scores differ by less than the tolerance.
    """
    total = pixels("attributions", attributions).double().sum(1)
    if f_x.shape != total.shape or f_baseline.shape != total.shape:
        got = f"{tuple(f_x.shape)} and {tuple(f_baseline.shape)}"
        raise InputError(f"expected ({len(total)},) scores, got {got}", field="f_x, f_baseline")
    change = f_x.detach().double() - f_baseline.detach().double()
    return torch.where(change.abs() < tolerance, torch.nan, (total - change).abs() / change.abs())


def attribution_energy_outside(attributions: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share of sum |A| that falls outside the lesion; NaN for an empty truth, 1 for a map that is zero everywhere."""
    pixels("attributions", attributions, truth, region(valid, truth))
    region(truth, attributions, "truth")
    return 1 - energy_in_region(attributions.detach().abs(), truth, valid)


def stray_pixels(
    attributions: Tensor, *, level: float = 0.1, truth: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """How many pixels reach ``level`` of the map's largest magnitude: medXGAN's statistic of scatter.

    Args:
        attributions: signed maps or evidence.
        level: share of max |A| over the valid pixels.
        truth: lesion whose pixels are not counted; an empty one leaves the whole image to count.

    Returns:
        (N,) counts; 0 for a map that is zero everywhere. Divide by the area for a share.
    """
    if not 0 < level <= 1:
        raise InputError(f"{level} must be above 0 and at most 1", field="level")
    inside = region(valid, attributions)
    size = torch.where(inside, pixels("attributions", attributions, inside=inside).abs().double(), 0.0)
    peak = size.amax(1, keepdim=True)
    counted = inside if truth is None else inside & ~region(truth, attributions, "truth")
    return ((size >= level * peak) & (peak > 0) & counted).sum(1).double()
