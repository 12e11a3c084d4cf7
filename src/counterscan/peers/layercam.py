"""LayerCAM (Jiang et al., TIP 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterscan.peers.base import AttributionPeer, Care, Masker
from counterscan.peers.cam import features_and_gradients, upsample


class LayerCAM(AttributionPeer):
    """``ReLU(sum_k ReLU(dS/dA_k) * A_k)`` pixel by pixel, fused over several stages.

    Weights per position let the method read early, high-resolution stages. Each stage's map is scaled to a maximum of
    1 per image before they are added, because stages differ in magnitude; the paper fuses by maximum after a tanh of
    the same scaling, which for ranking pixels differs little.

    Args:
        classifier: see ``counterscan.peers.base``.
        layers: stages to fuse; the last ``stages`` of ``classifier.cam_layers`` by default.
        stages: how many of the last stages.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.
    """

    name = "LayerCAM"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        layers: Sequence[nn.Module] | None = None,
        stages: int = 3,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        self.layers = self.cam_layers[-stages:] if layers is None else list(layers)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"stages": len(self.layers)}

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros_like(inputs)
        for features, gradients in features_and_gradients(self.classifier, self.layers, inputs, target):
            maps = (gradients.relu() * features).sum(1, keepdim=True).relu()
            # A single stage keeps its own scale, so that images stay comparable.
            scale = maps.amax(dim=(2, 3), keepdim=True) if len(self.layers) > 1 else torch.ones_like(maps[:, :, :1, :1])
            total += upsample(maps / scale.clamp_min(1e-12), inputs)
        return total
