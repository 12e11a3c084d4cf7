"""Losses as their equations. All are means over the batch, so that averages over processes are exact."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-E D(fake)."""
    return -fake.mean()


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
