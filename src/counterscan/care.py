"""What is done to a map after it is computed, the same for our systems and for their rivals: averaging over views of
the image, smoothing, and spreading inside what looks alike."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Care:
    """What is done to a map after it is computed, the same for a peer as for our own systems.

    Attributes:
        flips: average with the map of the mirrored image, mirrored back.
        shifts: average over these (down, right) shifts in pixels too; (0, 0) is always among them.
        smoothing: sigma of a Gaussian over the evidence, as a share of the image's width; 0 for none.
        reach: how far evidence then spreads where the image is flat, sigma as a share of the width; 0 for none. See
            ``spread``.
        edge: differences of neighbouring pixels, in the image's [-1, 1], above which it hardly crosses.

    Fix all of it before the masks it is judged by are seen.
    """

    flips: bool = False
    shifts: tuple[tuple[int, int], ...] = ()
    smoothing: float = 0.0
    reach: float = 0.0
    edge: float = 0.04


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, and every submodule's own mode again after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def average_over_views(maps_of: Callable[[Tensor], Tensor], images: Tensor, care: Care) -> Tensor:
    """Mean map over mirrored and shifted views, each brought back to the image.

    Shifted views repeat the border; a pixel is averaged over the views that saw it.

    Args:
        maps_of: (N, 1, H, W) images to (N, 1, H, W) maps.
        images: (N, 1, H, W).
        care: which views.

    Returns:
        (N, 1, H, W).
    """
    height, width = images.shape[-2:]
    shifts = tuple(dict.fromkeys(((0, 0), *care.shifts)))
    margin = max(max(abs(down), abs(right)) for down, right in shifts)
    padded = F.pad(images, (margin,) * 4, mode="replicate")
    total = torch.zeros_like(padded)
    seen = torch.zeros_like(padded[:1])
    for down, right in shifts:
        window = (..., slice(margin - down, margin - down + height), slice(margin - right, margin - right + width))
        for mirrored in (False, True) if care.flips else (False,):
            view = padded[window].flip(-1) if mirrored else padded[window]
            maps = maps_of(view)
            total[window] += maps.flip(-1) if mirrored else maps
            seen[window] += 1
    inner = (..., slice(margin, margin + height), slice(margin, margin + width))
    return total[inner] / seen[inner]


def smooth(maps: Tensor, share: float) -> Tensor:
    """Gaussian blur of (N, 1, H, W) with sigma = ``share`` x W, border repeated; 0 returns the maps."""
    sigma = share * maps.shape[-1]
    if sigma <= 0 or not len(maps):
        return maps
    radius = min(math.ceil(3 * sigma), *(s - 1 for s in maps.shape[-2:]))
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-steps.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


# Half of the eight neighbours (down, right, relative weight); the others are their mirror images. Diagonal ones are
# further away and weigh less. Evidence on a flat image then takes a step of variance 0.62 along each axis.
_NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.7), (1, -1, 0.7))
_STEP_VARIANCE = 4.8 / 7.8
_STRIDE_AT = 64  # images of more pixels a side are walked in longer steps, so that the work grows with the area alone
_AT_ONCE = 16  # planes of that size, so that a step stays in the cache


@torch.no_grad()
def spread(evidence: Tensor, images: Tensor, reach: float, edge: float) -> Tensor:
    """Let evidence walk at random over the image, easily between pixels that look alike and hardly across edges.

    Maps mark what convinced a classifier, often a lesion's rim or its strongest part; lesions are mostly regions of
    like intensity with a border. Each step is e <- P e with P row-stochastic and weights exp(-(x_i - x_j)^2 / (2
    edge^2)) to the eight neighbours and 1 to the pixel itself: the random walk of Ahn and Kwak (CVPR 2018) with the
    affinity of the bilateral filter (Tomasi and Manduchi 1998) instead of a learned one.

    Args:
        evidence: (N, 1, H, W) >= 0.
        images: (N, 1, H, W) in [-1, 1].
        reach: see ``Care``; 0 returns the evidence.
        edge: see ``Care``, > 0.

    Returns:
        (N, 1, H, W), within the range that each image's evidence had; without gradients.
    """
    stride = max(1, round(images.shape[-1] / _STRIDE_AT))
    steps = round((reach * images.shape[-1] / stride) ** 2 / _STEP_VARIANCE)
    if steps <= 0 or not len(evidence):
        return evidence
    at_once = max(1, _AT_ONCE // stride**2)
    parts = zip(evidence.split(at_once), images.split(at_once), strict=True)
    return torch.cat([_walk(part, x, stride, steps, edge) for part, x in parts])


def _walk(evidence: Tensor, images: Tensor, stride: int, steps: int, edge: float) -> Tensor:
    """Steps of ``stride`` pixels never leave their sublattice: each walks on a plane of its own. Planes come last in
    memory (h, w, M), so that a shifted window is a few long runs instead of many short rows."""
    height, width = images.shape[-2:]
    margin = (0, -width % stride, 0, -height % stride)
    # An infinite difference: nothing walks out or in.
    planes = F.pixel_unshuffle(F.pad(images, margin, value=float("inf")), stride).flatten(0, 1).permute(1, 2, 0)
    walkers = F.pixel_unshuffle(F.pad(evidence, margin), stride)
    shape, start = walkers.shape, walkers.flatten(0, 1).permute(1, 2, 0)
    h, w, _ = start.shape
    border = (0, 0, 1, 1, 1, 1)
    padded, planes = F.pad(planes, border, value=float("inf")), planes.contiguous()
    windows, shares = [], []
    for down, right, weight in _NEIGHBOURS:
        there, back = ((slice(1 + d, 1 + d + h), slice(1 + r, 1 + r + w)) for d, r in ((down, right), (-down, -right)))
        likeness = (padded[there] - planes).div_(edge).square_().div_(-2).exp_().mul_(weight)
        likeness.nan_to_num_(0.0)  # beyond the image infinity meets infinity
        windows += [there, back]
        shares += [likeness, F.pad(likeness, border)[back].contiguous()]  # what p is to q, q is to p
    stay = 1 / (1 + torch.stack(shares).sum(dim=0))
    for share in shares:
        share *= stay
    # Two grids in turn, their views made once: a step allocates nothing.
    grids = [F.pad(start, border), torch.zeros_like(padded)]
    inner = [grid[1:-1, 1:-1] for grid in grids]
    around = [[grid[window] for window in windows] for grid in grids]
    for step in range(steps):
        now, then = step % 2, 1 - step % 2
        torch.mul(inner[now], stay, out=inner[then])
        for neighbour, share in zip(around[now], shares, strict=True):
            inner[then].addcmul_(neighbour, share)
    end = F.pixel_shuffle(inner[steps % 2].permute(2, 0, 1).reshape(shape), stride)
    return end[..., :height, :width]


def tidy(evidence: Tensor, images: Tensor, care: Care) -> Tensor:
    """Smooth evidence (N, 1, H, W) >= 0 and spread it over its images, as ``care`` says."""
    return spread(smooth(evidence, care.smoothing), images, care.reach, care.edge)
