"""Does a map stay when the image barely changes, and does it go when the classifier does? And how concentrated is it?

``attribute`` is any callable from images (M, 1, H, W) to maps (M, 1, H, W). Maps are (N, 1, H, W) or (N, H, W);
``valid`` (same shape, bool) leaves out padding. Functions return one figure per image, (N,) float64, unless they say
otherwise. Draws come from ``generator``; None takes a new one with seed 0, so that a figure repeats.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.metrics.faithfulness import at_least_one, pixels, places, region, seeded
from counterscan.metrics.validity import ssim

Attribute = Callable[[Tensor], Tensor]
Network = TypeVar("Network", bound=nn.Module)

_SORTED_AT_ONCE = 2**22  # pixels


def max_sensitivity(
    attribute: Attribute,
    images: Tensor,
    *,
    radius: float = 0.05,
    draws: int = 10,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Tensor:
    """max over d of ||A(x + d) - A(x)||_F / ||A(x)||_F, d uniform in [-radius, radius] (Yeh 2019, definition 4.1).

    Lower is steadier. x + d is cut to [-1, 1], the range a classifier is made for, which keeps it in the same ball.

    Args:
        attribute: the method.
        images: (N, 1, H, W) in [-1, 1].
        radius: largest change of a pixel, in intensity units (the full range is 2).
        draws: disturbances tried; the figure grows with them, so compare equal numbers only.
        valid: pixels whose attributions count.
        generator: of the disturbances.
        batch_size: images per call of the method.

    Returns:
        NaN where the map of the undisturbed image is zero everywhere.

    Raises:
        InputError: the method returns another shape, or values that are not finite.
    """
    at_least_one(draws=draws)
    _positive("radius", radius)
    inside, generator = region(valid, images), seeded(generator)
    clean = _maps(attribute, images, inside, batch_size)
    worst = clean.new_zeros(len(images))
    for _ in range(draws):
        noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
        moved = _maps(attribute, (images + radius * (2 * noise - 1)).clamp(-1, 1), inside, batch_size)
        worst = torch.maximum(worst, (moved - clean).norm(dim=1))
    size = clean.norm(dim=1)
    return torch.where(size > 0, worst / size, torch.nan)


@dataclass(frozen=True)
class NoiseCurve:
    """How maps hold under growing noise.

    Attributes:
        sigmas: (S,) of the noise, in intensity units.
        spearman: (S, N) rank correlation with the undisturbed image's map.
        iou: (S, N) overlap of the highest pixels of both.
    """

    sigmas: Tensor
    spearman: Tensor
    iou: Tensor


def noise_curve(
    attribute: Attribute,
    images: Tensor,
    sigmas: Sequence[float] = (0.02, 0.05, 0.1),
    *,
    area: float = 0.05,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> NoiseCurve:
    """Compare the maps of noisy images, cut to [-1, 1], with those of the images themselves.

    Args:
        attribute: the method.
        images: (N, 1, H, W) in [-1, 1].
        sigmas: standard deviations of Gaussian noise, in intensity units (the full range is 2).
        area: share of the valid pixels that ``iou`` compares, the highest of each map. Equal values are shuffled apart
            for either map, so that what both leave at zero overlaps by chance only.
        valid: pixels that count.
        generator: of the noise.
        batch_size: images per call of the method.

    Returns:
        NaN for an image whose own map is constant; a map that noise makes constant scores a Spearman of 0.
    """
    if not 0 < area <= 1:
        raise InputError(f"{area} must be above 0 and at most 1", field="area")
    if not sigmas:
        raise InputError("at least one is needed", field="sigmas")
    for sigma in sigmas:
        _positive("sigmas", sigma)
    inside, generator = region(valid, images), seeded(generator)
    clean = _maps(attribute, images, inside, batch_size)
    flat = _constant(clean, inside)
    count = (area * inside.sum(1, keepdim=True)).round().clamp_min(1)
    correlations, overlaps = [], []
    for sigma in sigmas:
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
        noisy = _maps(attribute, (images + sigma * noise).clamp(-1, 1), inside, batch_size)
        correlations.append(_agreement(clean, noisy, inside))
        top, noisy_top = (places(maps, inside, generator) < count for maps in (clean, noisy))
        overlap = (top & noisy_top).sum(1).double() / (top | noisy_top).sum(1)
        overlaps.append(torch.where(flat, torch.nan, overlap))
    levels = torch.tensor(list(sigmas), dtype=torch.float64, device=clean.device)
    return NoiseCurve(levels, torch.stack(correlations), torch.stack(overlaps))


def spearman(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of each pair of maps over valid pixels, ties sharing their mean rank.

    Returns:
        (N,) in [-1, 1]; NaN where a map is constant, as in ``scipy.stats.spearmanr``.
    """
    inside = region(valid, a)
    return _spearman(pixels("a", a, inside=inside).double(), pixels("b", b, a, inside).double(), inside)


def gini(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Gini index of |A|: sum_i (2 i - N - 1) a_(i) / (N sum a), a_(i) rising (Chalasani 2020, sparseness).

    Returns:
        0 when all pixels are equal, 1 - 1/N when one holds everything; NaN for a map that is zero everywhere.
    """
    size, inside = _magnitudes(maps, valid)
    count = inside.sum(1, keepdim=True)
    # Pixels outside are zeros, which rise first and weigh nothing: rank 1 is the first after as many as they are.
    ranks = torch.arange(1, size.shape[1] + 1, device=size.device) - (size.shape[1] - count)
    return ((2 * ranks - count - 1) * size.sort(dim=1).values).sum(1) / (count[:, 0] * size.sum(1))


def entropy(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Entropy of |A| / sum |A| in nats (Bhatt 2020, complexity): 0 for one pixel, ln N for all alike.

    Returns:
        NaN for a map that is zero everywhere.
    """
    size, _ = _magnitudes(maps, valid)
    share = size / size.sum(1, keepdim=True)
    return -torch.xlogy(share, share).sum(1)


@dataclass(frozen=True)
class MapSimilarity:
    """What is left of a map; each (N,).

    Attributes:
        spearman: rank correlation of the values as they are (Adebayo 2018 reports signed and absolute maps: pass
            which). NaN where the original map is constant, 0 where only the other one is.
        ssim: structural similarity after each map is divided by its own max |A|.
    """

    spearman: Tensor
    ssim: Tensor


def map_similarity(original: Tensor, randomised: Tensor, valid: Tensor | None = None) -> MapSimilarity:
    """Model parameter randomisation test (MPRT, Adebayo 2018): a map that explains the classifier must not survive it.

    Args:
        original: maps of the trained classifier.
        randomised: maps of the same images from the same method on ``randomised(classifier)``. A generator that was
            trained with the classifier must be trained anew with the randomised one; a map that does not look at the
            classifier when it explains stays the same otherwise.
        valid: pixels that count.
    """
    inside = region(valid, original)
    before = pixels("original", original, inside=inside).double()
    after = pixels("randomised", randomised, original, inside).double()

    def scaled(values: Tensor) -> Tensor:
        kept = torch.where(inside, values, 0.0)
        return (kept / kept.abs().amax(1, keepdim=True).clamp_min(1e-300)).unflatten(1, original.shape[-2:])

    likeness = ssim(scaled(before), scaled(after), inside.unflatten(1, original.shape[-2:]))
    return MapSimilarity(_agreement(before, after, inside), likeness)


def parameter_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of the layers that hold parameters of their own, from the top (registered last) to the input."""
    return tuple(name for name, part in module.named_modules() if list(part.parameters(recurse=False)))[::-1]


def randomised(classifier: Network, *, seed: int = 0, depth: int | None = None) -> Network:
    """A copy of a classifier whose uppermost layers have lost what they learned (cascading randomisation).

    A layer starts again as its class starts (``reset_parameters``; batch norm also forgets its running statistics).
    Bare parameters of other modules are drawn from a normal distribution with mean 0 and their own root mean square.
    A layer gets the same weights at every depth that reaches it, so a cascade changes one layer at a time.

    Args:
        classifier: any module whose layers are registered from the input to the top; it is left as it is, and so is the
            global random state.
        seed: of the new weights, the same on every device.
        depth: how many of ``parameter_layers``, from the top; None for all.

    Raises:
        InputError: there are not as many layers, or none at all.
    """
    names = parameter_layers(classifier)
    depth = len(names) if depth is None else depth
    if not names:
        raise InputError("it has no parameters to randomise", field="classifier", remedy="Pass the network itself")
    if not 0 <= depth <= len(names):
        raise InputError(f"{depth} must lie in 0 to {len(names)}", field="depth")
    twin = copy.deepcopy(classifier)
    device = next(twin.parameters()).device
    twin.to("cpu")
    layers = dict(twin.named_modules())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.random.default_generator.manual_seed(seed)
        for name in names[:depth]:
            _start_again(layers[name])
    return twin.to(device)


def _start_again(layer: nn.Module) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in layer.parameters(recurse=False):
        spread = float(parameter.double().square().mean().sqrt())
        parameter.normal_(0.0, spread if spread > 0 else 1.0)


def _maps(attribute: Attribute, images: Tensor, inside: Tensor, batch_size: int) -> Tensor:
    """(N, P) float64 attributions, zero outside, checked."""
    at_least_one(batch_size=batch_size)
    parts = []
    for part, where in zip(images.split(batch_size), inside.split(batch_size), strict=True):
        values = pixels("attribute", attribute(part), part, where).double()
        parts.append(torch.where(where, values, 0.0))
    return torch.cat(parts) if parts else inside.double()


def _positive(field: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"{value} must be above 0", field=field)


def _magnitudes(maps: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, P) |A| in float64, zero outside, and where it counts."""
    inside = region(valid, maps)
    return torch.where(inside, pixels("maps", maps, inside=inside).double().abs(), 0.0), inside


def _constant(values: Tensor, inside: Tensor) -> Tensor:
    """(N,) whether all pixels inside are equal."""
    return values.masked_fill(~inside, -torch.inf).amax(1) <= values.masked_fill(~inside, torch.inf).amin(1)


def _agreement(reference: Tensor, other: Tensor, inside: Tensor) -> Tensor:
    """Spearman, with 0 where only the other map is constant: what has gone does not agree."""
    lost = _constant(other, inside) & ~_constant(reference, inside)
    return torch.where(lost, 0.0, _spearman(reference, other, inside))


def _spearman(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """(N,) for rows (N, P), a few rows at a time."""
    step = max(1, _SORTED_AT_ONCE // max(1, a.shape[1]))
    rows = zip(*(t.split(step) for t in (a, b, inside)), strict=True)
    parts = [_pearson(_ranks(x, i), _ranks(y, i), i) for x, y, i in rows]
    return torch.cat(parts) if parts else a.new_zeros(0)


def _ranks(values: Tensor, inside: Tensor) -> Tensor:
    """(N, P) rank inside each row from 0, ties at their mean; meaningless outside."""
    values = values.masked_fill(~inside, torch.inf)
    rising = values.sort(dim=1).values
    below, upto = (torch.searchsorted(rising, values, side=side) for side in ("left", "right"))
    return (below + upto - 1).double() / 2


def _pearson(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    count = inside.sum(1, keepdim=True)
    a, b = (torch.where(inside, x - torch.where(inside, x, 0.0).sum(1, keepdim=True) / count, 0.0) for x in (a, b))
    product, scale = (a * b).sum(1), (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > 0, product / scale, torch.nan)
