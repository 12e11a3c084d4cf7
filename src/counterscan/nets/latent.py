"""Encoder and generator whose codes keep their places: a grid of features instead of one vector."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(channels: int, normalised: bool) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, channels), channels) if normalised else nn.Identity()


class ResBlock(nn.Module):
    """x -> skip(x) + conv(silu(norm(conv(silu(norm(x)))))), the second convolution starting at zero.

    Args:
        channels_in, channels: before and after.
        normalised: with group norm, whose statistics tie all places of an image together; without, what happens at one
            place changes only its surroundings.
        doubled: give twice the sides, as of an x in which each pixel comes four times; what works on single pixels is
            done before they do.
    """

    def __init__(self, channels_in: int, channels: int, normalised: bool = True, doubled: bool = False) -> None:
        super().__init__()
        self.doubled = doubled
        self.first_norm = _norm(channels_in, normalised)
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second_norm = _norm(channels, normalised)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1, bias=False) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        h, skip = F.silu(self.first_norm(x)), self.skip(x)
        if self.doubled:
            h, skip = (F.interpolate(part, scale_factor=2, mode="nearest") for part in (h, skip))
        return skip + self.second(F.silu(self.second_norm(self.first(h))))


def _widths(base: int, halvings: int) -> list[int]:
    """Channels from full resolution to the coarsest, at most four times the first."""
    return [base * min(2**level, 4) for level in range(halvings + 1)]


class GridEncoder(nn.Module):
    """(N, 1, H, W) to (N, codes, H / 2^halvings, W / 2^halvings).

    One level below the grid it looks at a coarser one and comes back, so that each place's code knows the whole image.

    Args:
        codes: channels of the code.
        base: channels at full resolution.
        halvings: how often the sides are halved.
    """

    def __init__(self, codes: int, base: int, halvings: int) -> None:
        super().__init__()
        widths = _widths(base, halvings)
        self.stem = nn.Conv2d(1, base, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(i, o) for i, o in zip([base, *widths], widths, strict=False))
        last = widths[-1]
        self.below = nn.ModuleList([ResBlock(last, last), ResBlock(last, last)])
        self.join = ResBlock(2 * last, last)
        self.norm, self.head = _norm(last, True), nn.Conv2d(last, codes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
        coarse = F.avg_pool2d(F.avg_pool2d(x, 2), 2)
        for block in self.below:
            coarse = block(coarse)
        coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.join(torch.cat([x, coarse], dim=1))
        return self.head(F.silu(self.norm(x)))


class GridGenerator(nn.Module):
    """(N, codes, h, w) to (N, 1, h 2^halvings, w 2^halvings), unbounded; the mirror of ``GridEncoder``.

    Nothing is normalised, so that a change of the code in one place changes the image there and nowhere else.
    """

    def __init__(self, codes: int, base: int, halvings: int) -> None:
        super().__init__()
        widths = _widths(base, halvings)[::-1]
        self.stem = nn.Conv2d(codes, widths[0], 3, padding=1)
        self.start = nn.ModuleList([ResBlock(widths[0], widths[0], False), ResBlock(widths[0], widths[0], False)])
        self.up = nn.ModuleList(ResBlock(i, o, False, doubled=True) for i, o in itertools.pairwise(widths))
        self.head = nn.Conv2d(base, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.stem(z)
        for block in self.start:
            x = block(x)
        for block in self.up:
            x = block(x)
        return self.head(F.silu(x))
