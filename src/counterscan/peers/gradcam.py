"""Grad-CAM (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from counterscan.care import Care
from counterscan.peers.base import AttributionPeer, Masker
from counterscan.peers.cam import features_and_gradients, layers_to_use, upsample


class GradCAM(AttributionPeer):
    """``ReLU(sum_k alpha_k A_k)`` with ``alpha_k`` the mean over space of dS/dA_k, upsampled bilinearly.

    Args:
        classifier: see ``counterscan.peers.base``.
        layer: whose feature maps are weighed; the last of ``classifier.cam_layers`` by default, as in the paper.
        care: averaging and smoothing.
        masker: see ``AttributionPeer``.

    Raises:
        InputError: no layer is given and the classifier shows none.

    Example::

        maps = GradCAM(classifier).attribute(images, target="Edema")  # (N, 1, H, W) >= 0
    """

    name = "Grad-CAM"

    def __init__(
        self,
        classifier: nn.Module,
        *,
        layer: nn.Module | None = None,
        care: Care | None = None,
        masker: Masker | None = None,
    ) -> None:
        super().__init__(classifier, care=care, masker=masker)
        self.layer = layers_to_use(self.cam_layers, "layer")[-1] if layer is None else layer

    def _attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        ((features, gradients),) = features_and_gradients(self.classifier, [self.layer], inputs, target)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        return upsample((weights * features).sum(1, keepdim=True).relu(), inputs)
