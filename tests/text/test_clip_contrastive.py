from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.text.contrastive import (
    agreement_targets,
    info_nce,
    sigmoid_loss,
    similarity_targets,
    soft_cross_entropy,
)

NAN = math.nan
LOGITS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])


def test_info_nce_by_hand() -> None:
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    # The columns of this matrix are its rows.
    assert float(info_nce(LOGITS)) == pytest.approx(rows)
    assert float(info_nce(torch.zeros(4, 4))) == pytest.approx(math.log(4))


def test_soft_targets_of_the_identity_are_info_nce() -> None:
    logits = torch.randn(6, 6)
    torch.testing.assert_close(soft_cross_entropy(logits, torch.eye(6)), info_nce(logits))
    torch.testing.assert_close(soft_cross_entropy(logits, torch.ones(6, 6), own=1.0), info_nce(logits))


def test_soft_targets_by_hand() -> None:
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    a, b = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))  # -log of the diagonal shares
    by_image = ((a + (a + 1)) / 2 + b) / 2
    by_text = (a + (b + (b + 2)) / 2) / 2
    assert float(soft_cross_entropy(LOGITS, targets)) == pytest.approx((by_image + by_text) / 2)
    mixed = float(soft_cross_entropy(LOGITS, targets, own=0.5))
    assert mixed == pytest.approx(((by_image + by_text) / 2 + (a + b) / 2) / 2)


def test_right_texts_of_other_images_are_no_mistake() -> None:
    """Two images with the same text: InfoNCE cannot reach its floor, soft targets can."""
    logits = torch.tensor([[9.0, 9.0, -9.0], [9.0, 9.0, -9.0], [-9.0, -9.0, 9.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    leaning = logits.clone().requires_grad_()
    soft_cross_entropy(leaning, targets).backward()
    assert leaning.grad is not None
    assert leaning.grad.abs().max() < 1e-6
    torn = logits.clone().requires_grad_()
    info_nce(torn).backward()
    assert torn.grad is not None
    assert torn.grad.abs().max() > 0.1


def test_sigmoid_loss_by_hand() -> None:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    bias = torch.tensor(-1.0)
    pairs = softplus(-0.0) + softplus(-1.0) + 2 * softplus(-1.0)
    assert float(sigmoid_loss(LOGITS, bias)) == pytest.approx(pairs / 2)
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    pairs = softplus(-0.0) + softplus(-1.0) + softplus(1.0) + softplus(-1.0)
    assert float(sigmoid_loss(LOGITS, bias, targets)) == pytest.approx(pairs / 2)


def test_similarity_of_studies() -> None:
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, NAN], [-1.0, NAN]])
    alike = similarity_targets(labels)
    root = 1 / math.sqrt(2)
    expected = torch.tensor([1.0, 1.0, 0.0, root, 0.0])
    torch.testing.assert_close(alike[0], expected)
    assert alike.diagonal().tolist() == [1.0] * 5
    same = similarity_targets(labels, "equal")
    assert same[0].tolist() == [1, 1, 0, 0, 0]
    with pytest.raises(InputError, match="similarity"):
        similarity_targets(labels, "dot")  # type: ignore[arg-type]


def test_agreement_is_not_being_contradicted() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, NAN], [-1.0, 1.0]])
    texts = torch.tensor([[1.0, NAN], [NAN, 0.0], [1.0, 1.0], [NAN, NAN]])
    expected = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]]).float()
    torch.testing.assert_close(agreement_targets(images, texts), expected)
    with pytest.raises(InputError, match="columns of the images"):
        agreement_targets(images, texts[:, :1])


def test_losses_take_gradients_of_large_logits() -> None:
    logits = (50 * F.normalize(torch.randn(4, 8), dim=1) @ F.normalize(torch.randn(8, 4), dim=0)).requires_grad_()
    (soft_cross_entropy(logits, torch.eye(4)) + sigmoid_loss(logits, torch.tensor(0.0))).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
