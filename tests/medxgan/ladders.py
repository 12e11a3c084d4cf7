"""The published networks at 16 px, untrained and trained, and classifiers for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterscan.care import Care
from counterscan.counterpart import Query
from counterscan.medxgan.published import PublishedExplain, PublishedMedXGAN
from counterscan.medxgan.published_training import LadderConfig, LadderGenerator
from tests.taggan.blobs import FINDINGS, BlobClassifier

SMALL = LadderConfig(anatomy=6, pathology=3, widths=(12, 8), critic_widths=(8, 8, 8, 8))  # 16 px
QUICK = PublishedExplain(steps=3, frames=3, fineness=2, draws=4, care=Care())
FINDING = FINDINGS[0]
REMOVE, ADD = Query(FINDING), Query(FINDING, "add")


class Blobs(BlobClassifier):
    """The same with a weight, so that it is somewhere."""

    def __init__(self, findings: int = 1, offset: float = 0.0) -> None:
        super().__init__(findings)
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


class Mean(nn.Module):
    """Logit 0 = gain * mean grey + offset, logit 1 is something else."""

    findings = FINDINGS

    def __init__(self, gain: float = 4.0, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, nn.Parameter(torch.tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([self.gain * mean + self.offset, 7 - 3 * mean], dim=1)


class Curved(nn.Module):
    """A smooth logit that bends."""

    findings = FINDINGS[:1]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 49, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.layers(x)


def lively(seed: int = 0) -> LadderGenerator:
    """Untrained, but its images use the whole range and differ."""
    torch.manual_seed(seed)
    generator = LadderGenerator(SMALL)
    for stage in generator.stages:
        if isinstance(stage, nn.ConvTranspose2d):
            nn.init.normal_(stage.weight, std=0.3)
        if isinstance(stage, nn.BatchNorm2d):
            assert stage.running_mean is not None
            assert stage.running_var is not None
            stage.running_mean.uniform_(-0.2, 0.2)
            stage.running_var.uniform_(0.5, 1.0)
    return generator


def explainer(classifier: nn.Module | None = None, config: PublishedExplain = QUICK, **given: Any) -> PublishedMedXGAN:
    return PublishedMedXGAN(lively(), classifier or Mean(), given.pop("finding", FINDING), config=config, **given)


def pictures(count: int = 3, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = (torch.randn(count, n, generator=generator) for n in (SMALL.anatomy, SMALL.pathology))
    with torch.no_grad():
        return lively(1).eval()(z1, z2)
