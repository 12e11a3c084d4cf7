"""Small medXGAN+ networks, and explainers whose answer can be worked out."""

from __future__ import annotations

import torch
from torch import Tensor

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
