"""Critics that can be asked about a condition: one spectrally normalised, one free, to be held by R1."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class Critic(nn.Module):
    """How real an image looks, given a condition: mean over patches, with a projection term (Miyato and Koyama 2018).

    No normalisation but that of the weights, so that the answer for one image does not depend on its batch; the mean
    over patches keeps the Lipschitz constant independent of the image's size.

    Args:
        base: channels of the first stage, doubled up to four times as many.
        stages: convolutions followed by a halving of the resolution.
        labels: length of the condition vector; 0 for none.
        lipschitz: about the largest slope of the answer. Averaging and normalised weights make it small, so that at 1 a
            hinge margin of 1 is out of reach; more makes the critic stronger and its gradient larger.
    """

    def __init__(self, base: int = 16, stages: int = 4, labels: int = 0, lipschitz: float = 1.0) -> None:
        super().__init__()
        self.lipschitz = lipschitz
        widths = [base * min(2**stage, 4) for stage in range(stages)]
        self.stages = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 3, padding=1)) for i, o in zip([1, *widths], widths, strict=False)
        )
        self.last = spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
        self.head = spectral_norm(nn.Conv2d(widths[-1], 1, 1))
        self.embed = spectral_norm(nn.Linear(labels, widths[-1], bias=False)) if labels else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, 1, H, W) and (N, labels) to (N,), unbounded; larger is more real."""
        for stage in self.stages:
            x = F.avg_pool2d(F.leaky_relu(stage(x), 0.2), 2)
        x = F.leaky_relu(self.last(x), 0.2)
        realness = self.head(x).mean(dim=(1, 2, 3))
        if self.embed is not None:
            realness = realness + (self.embed(condition) * x.mean(dim=(2, 3))).sum(dim=1)
        return self.lipschitz * realness


class ResidualCritic(nn.Module):
    """How real an image looks, given a condition; free weights, so train it with ``losses.r1_penalty``.

    Stages as in StyleGAN2's critic: x -> (lrelu(conv(x)) + skip(x)) / sqrt(2), then half the resolution; projection on
    the condition (Miyato and Koyama 2018). Nothing is normalised over the batch, so that images do not answer for each
    other.

    Args:
        base: channels of the first stage, doubled up to four times as many.
        stages: halvings of the resolution.
        labels: length of the condition vector; 0 for none.
    """

    def __init__(self, base: int = 24, stages: int = 4, labels: int = 0) -> None:
        super().__init__()
        widths = [base * min(2**stage, 4) for stage in range(stages)]
        pairs = list(zip([base, *widths], widths, strict=False))
        self.stem = nn.Conv2d(1, base, 3, padding=1)
        self.stages = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.skips = nn.ModuleList(nn.Conv2d(i, o, 1, bias=False) for i, o in pairs)
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.head = nn.Conv2d(widths[-1], 1, 1)
        self.embed = nn.Linear(labels, widths[-1], bias=False) if labels else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, 1, H, W) and (N, labels) to (N,), unbounded; larger is more real."""
        x = F.leaky_relu(self.stem(x), 0.2)
        for stage, skip in zip(self.stages, self.skips, strict=True):
            x = F.avg_pool2d((F.leaky_relu(stage(x), 0.2) + skip(x)) / math.sqrt(2), 2)
        x = F.leaky_relu(self.last(x), 0.2)
        realness = self.head(x).mean(dim=(1, 2, 3))
        if self.embed is not None:
            scale = math.sqrt(x.shape[1])
            realness = realness + (self.embed(condition) * x.mean(dim=(2, 3))).sum(dim=1) / scale
        return realness
