"""Classifiers and an autoencoder small enough to work out by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.peers.base import AttributionPeer

FINDINGS = ("Edema", "Lung Lesion")
IMAGE = torch.tensor([[[[0.5, -0.5], [1.0, 0.0]]]])
W = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


class TwoStages(nn.Module):
    """Two strided convolutions, global average pooling, linear head; the ReLUs work in place, as they often do."""

    findings = FINDINGS

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.early = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.late = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.relu, self.drop, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, len(FINDINGS))
        self.cam_layers = [self.early, self.late]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.late(self.relu(self.early(x))).mean((2, 3))))


class ByHand(nn.Module):
    """Feature maps are the image and its negative; logit 0 = 2 mean(x), logit 1 = 2 mean(-x) - mean(x)."""

    findings = FINDINGS

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.stage.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.head.weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 2.0]]))
        self.cam_layers = [self.stage]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(x).mean((2, 3)))


class Squares(nn.Module):
    """Logit 0 = sum(w x^2), logit 1 its negative; keeps the sizes of its batches."""

    findings, cam_layers = FINDINGS, ()

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.register_buffer("w", w)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logit = (self.w * x.square()).sum((1, 2, 3))
        return torch.stack([logit, -logit], dim=1)


class Plane(nn.Module):
    """Logit 0 = w . x + offset, logit 1 its negative."""

    findings, cam_layers = FINDINGS, ()

    def __init__(self, w: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("w", w)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        logit = (self.w * x).sum((1, 2, 3)) + self.offset
        return torch.stack([logit, -logit], dim=1)


class Steep(TwoStages):
    """A nonlinear classifier whose logits reach both sides of 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 2000 * (super().forward(x) + torch.tensor([0.18, 0.325]))


class Blocks(nn.Module):
    """Keeps the mean of every 2 x 2 block; has a weight and a dropout to be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def encode(self, x: Tensor) -> Tensor:
        return self.drop(F.avg_pool2d(x, 2) * self.weight)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(z, scale_factor=2, mode="nearest")


def own_settings(method: AttributionPeer) -> dict[str, Any]:
    """Settings beyond those of the care that all peers are given."""
    settings, care = method.settings(), asdict(method.care) | {"shifts": list(method.care.shifts)}
    assert {name: settings.pop(name) for name in care} == care
    return settings
