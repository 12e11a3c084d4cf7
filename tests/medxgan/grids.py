"""Small medXGAN+ networks, and explainers whose answer can be worked out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from counterscan.medxgan import (
    Code,
    ExplainConfig,
    MedXGAN,
    MedXGANNetworks,
    NetworkConfig,
    PersuadeConfig,
    RefineConfig,
)
from tests.medxgan.ladders import Blobs
from tests.taggan.blobs import FINDINGS

SMALL = NetworkConfig(base=4, halvings=1, anatomy=3, pathology=2, critic_base=4, critic_stages=2)
QUICK = ExplainConfig(
    refine=RefineConfig(steps=2),
    persuade=PersuadeConfig(steps=0),
    insist=PersuadeConfig(steps=0),
    fade=None,
    masks=(0.35, 0.2, 0.1),
    sure=0.3,
    frames=5,
    evidence="difference",
    smoothing=0.0,
    reach=0.0,
)
SIZE = 16


def networks(findings: int = 1, seed: int = 0) -> MedXGANNetworks:
    """Untrained, but with every block at work."""
    torch.manual_seed(seed)
    made = MedXGANNetworks(SMALL, findings)
    for name, p in made.named_parameters():
        if name.endswith("second.weight"):
            torch.nn.init.normal_(p, std=0.1)
    return made


def explainer(findings: int = 1, offset: float = 0.0, config: ExplainConfig = QUICK) -> MedXGAN:
    classifier = Blobs(findings, offset)
    classifier.findings = FINDINGS[:findings]
    return MedXGAN(networks(findings), classifier, config=config, size=SIZE)


def images(n: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


class Split(MedXGANNetworks):
    """An exact pair: z1 holds the image without what is above 0.2, z2's one block what is above."""

    def __init__(self) -> None:
        super().__init__(NetworkConfig(base=4, halvings=1, anatomy=1, pathology=1), 1)

    def encode(self, x: Tensor) -> Code:
        excess = (x - 0.2).clamp_min(0)
        return Code(x - excess, excess[:, None])

    def generate(self, code: Code) -> Tensor:
        return code.z1 + code.z2[:, 0]


FINDING = FINDINGS[0]
EXACT = replace(QUICK, refine=RefineConfig(steps=0))


class Peak(nn.Module):
    """Logit: how much of the image is above 0.2."""

    findings = FINDINGS[:1]

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.offset + (x - 0.2).clamp_min(0).sum(dim=(1, 2, 3)))[:, None]


class Half(Split):
    """Shows half of the spot, so that taking it away leaves the other half in the image."""

    def generate(self, code):  # type: ignore[no-untyped-def]
        return code.z1 + 0.5 * code.z2[:, 0]


def spotted() -> Tensor:
    """Two images: a spot of nine pixels 0.5 above the rest, and none."""
    x = torch.zeros(2, 1, SIZE, SIZE)
    x[0, 0, 4:7, 4:7] = 0.7
    return x


def exact(config: ExplainConfig = EXACT) -> MedXGAN:
    return MedXGAN(Split(), Peak(), config=config, size=SIZE)
