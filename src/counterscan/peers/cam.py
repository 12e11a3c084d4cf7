"""Feature maps and their gradients at chosen layers, from one forward and one partial backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError


def layers_to_use(layers: Sequence[nn.Module], field: str) -> list[nn.Module]:
    """The layers, if there are any.

    Raises:
        InputError: there is none; names ``field``.
    """
    if not layers:
        raise InputError(
            f"the classifier shows no convolutional {field}, as TorchScript and exported programs do not",
            field=field,
            remedy=f"Give the {field} or the model as a module, or use Integrated Gradients, which needs no layer",
        )
    return list(layers)


def features_and_gradients(
    classifier: nn.Module, layers: Sequence[nn.Module], inputs: Tensor, target: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Outputs A of each layer and dS/dA, S the logit of each image's target.

    The graph starts at the first of the layers, so nothing before it is kept or differentiated; no parameter's
    ``.grad`` is touched.

    Args:
        classifier: in eval mode.
        layers: submodules of it, each run once per pass.
        inputs: (N, 1, H, W).
        target: (N,) columns of the logits.

    Returns:
        One pair per layer, both (N, K, h, w).

    Raises:
        InputError: a layer does not take part in the forward pass, or gives no feature maps.
    """
    features: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise InputError(f"{type(layer).__name__} gives no feature maps (N, K, h, w)", field="layers")
        features[layer] = output if features else output.detach().requires_grad_()
        return features[layer].clone()  # an in-place ReLU behind the layer must not change what was kept

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        logits = classifier(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(features) != len(set(layers)):
        raise InputError("a chosen layer takes no part in the classifier's forward pass", field="layers")
    chosen = logits.gather(1, target[:, None]).sum()
    kept = [features[layer] for layer in layers]
    return [(a.detach(), g) for a, g in zip(kept, torch.autograd.grad(chosen, kept), strict=True)]


def upsample(maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear, pixel areas aligned, to the height and width of ``like``."""
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)
