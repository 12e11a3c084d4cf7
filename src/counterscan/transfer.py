"""Carrying a generator's change over to the image itself: where, and how much of the image's own texture stays.

A generator shows an image incompletely; what it misses, x - G(code), is the image's own texture. Carried over whole, it
also brings back what the change took away: the rim of a heart that has grown, the rest of a tumour that was healed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDES = ("left", "right")

_WINDOW = 5 / 64  # of the width
_MIDDLE = 0.1  # of the width, over which one side goes over into the other


def kept_texture(change: Tensor, replaced: float) -> Tensor:
    """The share of an image's own texture that stays.

    Args:
        change: (N, 1, H, W), the generator's image of the edit minus its image of the original.
        replaced: mean |change| around a pixel from which nothing of the own texture is left.

    Returns:
        (N, 1, H, W) in [0, 1]; exactly 1 where nothing changes nearby.
    """
    radius = max(1, round(_WINDOW * change.shape[-1] / 2 - 0.5))
    around = F.avg_pool2d(change.abs(), 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return 1 - (around / replaced).clamp(max=1)


def transfer_mask(difference: Tensor, *, threshold: float = 0.1, reach: float = 0.05, floor: float = 0.02) -> Tensor:
    """Where residual transfer may change the image: around the strongest differences, with a soft border.

    Args:
        difference: (N, 1, H, W), the generator's image of the edit minus its image of the original.
        threshold: share of each image's largest |difference| that counts.
        reach: how far beyond it the mask extends, as a share of the width.
        floor: |difference| that counts at least, so that a negative image's rest is not blown up.

    Returns:
        (N, 1, H, W) in [0, 1], exactly 0 away from the differences: there the image's own pixels stay bit for bit.
    """
    size = difference.abs()
    level = (threshold * size.flatten(1).amax(dim=1)).clamp_min(floor).view(-1, 1, 1, 1)
    inside = (size > level).to(difference.dtype)
    radius = max(1, round(reach * difference.shape[-1]))
    kernel = 2 * radius + 1
    grown = F.max_pool2d(inside, kernel, stride=1, padding=radius)
    soft = F.avg_pool2d(grown, 3, stride=1, padding=1, count_include_pad=False)
    return soft


def side_mask(side: str, width: int) -> Tensor:
    """The patient's side as images are displayed, where the patient faces who looks: the left one on the right.

    Args:
        side: the patient's, of ``SIDES``.
        width: of the image in pixels.

    Returns:
        (1, 1, 1, width) in [0, 1]: 1 on that side, falling to 0 across the middle.
    """
    across = (torch.arange(width) + 0.5) / width - 0.5  # -0.5 at the display's left
    left = (0.5 + across / _MIDDLE).clamp(0, 1).view(1, 1, 1, width)
    return left if side == "left" else 1 - left
