"""A U-Net whose features are steered by a label vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions; the label scales and shifts the second one's features (FiLM)."""

    def __init__(self, channels_in: int, channels: int, labels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.first_norm = nn.GroupNorm(min(8, channels), channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(min(8, channels), channels)
        self.film = nn.Linear(labels, 2 * channels) if labels else None
        if self.film is not None:
            nn.init.normal_(self.film.weight, std=0.3)  # labels must differ from the first step on
            nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        x = F.silu(self.first_norm(self.first(x)))
        x = self.second_norm(self.second(x))
        if self.film is not None:
            scale, shift = self.film(label)[:, :, None, None].chunk(2, dim=1)  # (N, channels, 1, 1) each
            x = x * (1 + scale) + shift
        return F.silu(x)


class UNet(nn.Module):
    """Encoder, decoder, skip connections; the head starts at zero, so that training starts from "nothing changes".

    Args:
        inputs: channels in.
        base: channels at full resolution, doubled at every level.
        levels: resolutions; the image's sides must be multiples of 2^(levels - 1).
        labels: length of the label vector; 0 for none.
    """

    def __init__(self, inputs: int = 1, base: int = 16, levels: int = 4, labels: int = 0) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(levels)]
        self.down = nn.ModuleList(Block(i, o, labels) for i, o in zip([inputs, *widths], widths, strict=False))
        self.up = nn.ModuleList(Block(widths[k] + widths[k + 1], widths[k], labels) for k in range(levels - 1))
        self.head = nn.Conv2d(base, 1, 1)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """(N, inputs, H, W) and (N, labels) to (N, 1, H, W), unbounded."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2), label)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat([x, skips[level]], dim=1), label)
        return self.head(x)
