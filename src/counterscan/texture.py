"""How much of an image's own texture stays where a generator's change is carried over to it.

A generator shows an image incompletely; what it misses, x - G(code), is the image's own texture. Carried over whole, it
also brings back what the change took away: the rim of a heart that has grown, the rest of a tumour that was healed.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

_WINDOW = 5 / 64  # of the width


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
