"""Losses as their equations. All are means over the batch, so that averages over processes are exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-E D(fake)."""
    return -fake.mean()


def logistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E softplus(-D(real)) + E softplus(D(fake)), the original GAN's loss on logits (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def logistic_generator(fake: Tensor) -> Tensor:
    """E softplus(-D(fake)), non-saturating."""
    return F.softplus(-fake).mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """E |dD/dx|^2 at real images (Mescheder et al. 2018); weigh it with gamma / 2.

    Args:
        critic: (N, 1, H, W) to (N,), in float32.
        real: (N, 1, H, W).
    """
    x = real.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def absence(logits: Tensor) -> Tensor:
    """-E log(1 - sigmoid(logits)): the classifier should not see the finding."""
    return F.softplus(logits).mean()


def unchanged(logits: Tensor, before: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of findings that should stay as they were.

    Args:
        logits: (N, C) of the edited image.
        before: (N, C) logits of the image itself; no gradient flows into them.
        weight: (N, C), 0 for the finding that is being edited.
    """
    losses = F.binary_cross_entropy_with_logits(logits, before.detach().sigmoid(), reduction="none")
    floor = F.binary_cross_entropy_with_logits(before.detach(), before.detach().sigmoid(), reduction="none")
    return ((losses - floor) * weight).sum() / weight.sum().clamp_min(1)


def magnitude(maps: Tensor) -> Tensor:
    """E |M|."""
    return maps.abs().mean()


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of (N, 1, H, W), both directions added."""
    down, right = (maps.diff(dim=d).abs().mean() for d in (-2, -1))
    return down + right


def gradient_difference(images: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference of the two images' finite differences, both directions added: edges should agree."""
    return total_variation(images - others)
