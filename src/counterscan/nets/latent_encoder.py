"""E: an image to the ws that a StyleGAN would make it from, as offsets from the mean w.

One vector for all layers and a small change of it for each further layer (e4e, Tov et al. 2021): w_0 = m + s b(x),
w_i = w_0 + s d_i(x), with m and s mean and standard deviation of w. A network whose last layer is small starts at m.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.nets.latent import ResBlock

_COARSEST = 4  # pixels of a side where places become entries of one vector
_SMALL = 0.05  # of the last layer's weights at the start, as a share of the usual
_LEAST_SPREAD = 1e-3  # a direction that w never moves along still moves a little


@dataclass(frozen=True)
class LatentEncoderConfig:
    """Sizes of the encoder.

    Attributes:
        base: channels at half the resolution, where it starts; they double with each halving.
        most: channels at most.

    Raises:
        InputError: a width below 1, or ``most`` below ``base``.
    """

    base: int = 24
    most: int = 96

    def __post_init__(self) -> None:
        if self.base < 1:
            raise InputError("must be at least 1", field="base")
        if self.most < self.base:
            raise InputError("must not be below base", field="most")


class LatentEncoder(nn.Module):
    """(N, 1, S, S) in [-1, 1] to ws (N, num_ws, w_dim).

    Args:
        config: its sizes.
        size: S, a power of two, at least 16.
        num_ws, w_dim: of the generator.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, config: LatentEncoderConfig, size: int, num_ws: int, w_dim: int) -> None:
        super().__init__()
        if size < 16 or size & (size - 1):
            raise InputError(f"{size} must be a power of two, at least 16", field="size")
        self.config, self.size, self.num_ws, self.w_dim = config, size, num_ws, w_dim
        halvings = (size // _COARSEST).bit_length() - 1
        widths = [min(config.base * 2**k, config.most) for k in range(halvings)]
        # What full resolution has beyond half is mostly noise, which no w describes, and most of the cost.
        self.stem = nn.Conv2d(1, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(ResBlock(i, o) for i, o in zip([widths[0], *widths], widths, strict=False))
        self.norm = nn.LayerNorm(widths[-1] * _COARSEST**2)
        self.head = nn.Linear(widths[-1] * _COARSEST**2, num_ws * w_dim)
        with torch.no_grad():
            self.head.weight.mul_(_SMALL)
            self.head.bias.zero_()
        self.register_buffer("centre", torch.zeros(w_dim))
        self.register_buffer("spread", torch.ones(w_dim))

    @torch.no_grad()
    def set_latents(self, mean: Tensor, sd: Tensor) -> None:
        """Take over mean and standard deviation of w, (w_dim,) each, from the generator."""
        self.centre.copy_(mean)
        self.spread.copy_(sd.clamp_min(_LEAST_SPREAD))

    def forward(self, x: Tensor) -> Tensor:
        """Images to ws.

        Raises:
            InputError: images of another shape.
        """
        if x.ndim != 4 or x.shape[1:] != (1, self.size, self.size):
            raise InputError(f"expected images (N, 1, {self.size}, {self.size}), got {tuple(x.shape)}", field="images")
        x = self.stem(x)
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
        offsets = self.head(self.norm(F.silu(x).flatten(1))).view(-1, self.num_ws, self.w_dim).float()
        # The first entry is all layers', the others are what a layer differs by.
        offsets = torch.cat([offsets[:, :1], offsets[:, :1] + offsets[:, 1:]], dim=1)
        return self.centre + self.spread * offsets

    def standardised(self, ws: Tensor) -> Tensor:
        """(N, num_ws, w_dim) as offsets from the mean w in standard deviations of w."""
        return (ws - self.centre) / self.spread
