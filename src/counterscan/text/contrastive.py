"""Losses that pull an image and its text together, and which pairs count as belonging together.

Logits are tau * cos, (N, M) images against texts. Plain InfoNCE takes every other text of the batch for wrong; in
radiology most of them are right, for most reports say the same about most findings. Targets made of labels say so.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from counterscan.errors import InputError

Similarity = Literal["cosine", "equal"]


def info_nce(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy with each image's own text as the only right one (Radford et al. 2021).

    Args:
        logits: (N, N).
    """
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def soft_cross_entropy(logits: Tensor, targets: Tensor, own: float = 0.0) -> Tensor:
    """Symmetric cross-entropy with several right answers, in shares.

    L = -1/2 (mean_i sum_j R_ij log softmax_j(logits_ij) + mean_j sum_i C_ij log softmax_i(logits_ij)), where R and C
    are the targets with their rows and their columns brought to sum 1 (MedCLIP, Wang et al. 2022, equations 3 to 6,
    whose targets are softmaxes of the similarities instead).

    Args:
        logits: (N, N).
        targets: (N, N) >= 0, how well text j suits image i; the diagonal must be positive.
        own: share of the target that is each image's own text whatever the labels say, in [0, 1]; keeps what the labels
            do not know of: side, place, degree. 1 is InfoNCE.
    """
    eye = torch.eye(len(logits), device=logits.device, dtype=logits.dtype)
    rows = own * eye + (1 - own) * targets / targets.sum(1, keepdim=True)
    columns = own * eye + (1 - own) * targets / targets.sum(0, keepdim=True)
    by_image = -(rows * logits.log_softmax(1)).sum(1).mean()
    by_text = -(columns * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def sigmoid_loss(logits: Tensor, bias: Tensor, targets: Tensor | None = None) -> Tensor:
    """Every pair is a yes-or-no question of its own (SigLIP, Zhai et al. 2023, algorithm 1); for small batches.

    Args:
        logits: (N, N).
        bias: () added to all of them.
        targets: (N, N) in [0, 1]; by default only an image's own text is right.

    Returns:
        Sum over pairs of the binary cross-entropy, over N.
    """
    wanted = torch.eye(len(logits), device=logits.device, dtype=logits.dtype) if targets is None else targets
    return F.binary_cross_entropy_with_logits(logits + bias, wanted, reduction="sum") / len(logits)


def similarity_targets(labels: Tensor, kind: Similarity = "cosine") -> Tensor:
    """How alike studies are by their labels; what a text says about its own study it then says about those too.

    Args:
        labels: (N, K), 1 present, 0 absent, NaN or -1 not known.
        kind: "cosine" is max(0, cos) of the vectors of 1, -1 and 0 (not known), "equal" 1 for the same vector, else 0.

    Returns:
        (N, N) in [0, 1] with 1 on the diagonal.
    """
    if kind not in ("cosine", "equal"):
        raise InputError(f"{kind!r} must be cosine or equal", field="similarity")
    signs = _signs(labels)
    if kind == "equal":
        alike = (signs[:, None] == signs[None]).all(-1).float()
    else:
        unit = F.normalize(signs, dim=1)
        alike = (unit @ unit.T).clamp(0, 1)
    return alike.fill_diagonal_(1.0)


def agreement_targets(images: Tensor, texts: Tensor) -> Tensor:
    """Which texts are true of which images, by labels: those of which no statement is contradicted.

    Args:
        images: (N, K), 1 present, 0 absent, NaN or -1 not known.
        texts: (M, K), what each text states; NaN or -1 where it does not say.

    Returns:
        (N, M) of 1 and 0. A text that states nothing of the K suits no image but its own: it is 0 throughout, and the
        caller sets the diagonal.
    """
    if images.shape[1] != texts.shape[1]:
        raise InputError(
            f"images have {images.shape[1]} labels and texts {texts.shape[1]}",
            field="text labels",
            remedy="Label texts with the columns of the images",
        )
    a, b = _signs(images), _signs(texts)
    contradicted = (-a).clamp_min(0) @ b.clamp_min(0).T + a.clamp_min(0) @ (-b).clamp_min(0).T
    speaks = (b != 0).any(1).float()
    return (contradicted == 0).float() * speaks


def _signs(labels: Tensor) -> Tensor:
    """1 present, -1 absent, 0 not known, float32."""
    known = (labels == 0) | (labels == 1)
    return torch.where(known, 2 * labels.float() - 1, 0.0)
