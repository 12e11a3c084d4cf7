"""What is done to a map after it is computed, the same for our systems and for their rivals: averaging over views of
the image, and smoothing."""

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
        smoothing: sigma of a Gaussian over the evidence, as a share of the image's width; 0 for none. Fix it before
            masks are seen.
    """

    flips: bool = False
    shifts: tuple[tuple[int, int], ...] = ()
    smoothing: float = 0.0


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
