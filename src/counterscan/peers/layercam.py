"""LayerCAM (Jiang et al., TIP 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterscan.care import Care
from counterscan.errors import InputError
from counterscan.peers.base import AttributionPeer, Masker
from counterscan.peers.cam import features_and_gradients, layers_to_use, upsample


class LayerCAM(AttributionPeer):
    """``ReLU(sum_k ReLU(dS/dA_k) * A_k)`` pixel by pixel, fused over several stages.

    Weights per position let the method read early, high-resolution stages, which differ in magnitude: before fusing,
    each stage's map is scaled to a maximum of 1 per image. A single stage keeps its own scale, so that images stay
    comparable.

    Args:
        classifier: see ``counterscan.peers.base``.
        layers: stages to fuse; the last ``stages`` of ``classifier.cam_layers`` by default.
        stages: how many of the last stages.
        fusion: "sum" of the scaled maps m, or "max" of tanh(2 m), the paper's; the sum ranked lesion pixels better in
            our trials on brain MRI.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: no layers are given and the classifier shows none, or there is no such fusion.
    """

    name = "LayerCAM"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        layers: Sequence[nn.Module] | None = None,
        stages: int = 3,
        fusion: Literal["sum", "max"] = "sum",
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        if fusion not in ("sum", "max"):
            raise InputError(f"no fusion {fusion!r}", field="fusion", remedy="Use sum or max")
        self.layers = layers_to_use(self.cam_layers[-stages:] if layers is None else layers, "layers")
        self.fusion = fusion

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"stages": len(self.layers), "fusion": self.fusion}

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        pairs = features_and_gradients(self.classifier, self.layers, inputs, target)
        maps = [(gradients.relu() * features).sum(1, keepdim=True).relu() for features, gradients in pairs]
        if len(maps) == 1:
            return upsample(maps[0], inputs)
        scaled = [m / m.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12) for m in maps]
        if self.fusion == "max":
            return torch.stack([upsample((2 * m).tanh(), inputs) for m in scaled]).amax(0)
        return torch.stack([upsample(m, inputs) for m in scaled]).sum(0)
