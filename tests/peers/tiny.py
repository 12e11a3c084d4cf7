"""Classifiers small enough to work out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FINDINGS = ("Edema", "Lung Lesion")


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
