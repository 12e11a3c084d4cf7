"""The AUC-margin loss by hand, against its pairwise form, and against LibAUC where that is installed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterscan.classify.auc_margin import AUCMargin
from counterscan.errors import InputError

NAN = math.nan


def data(n: int = 40, labels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, labels, generator=generator) < 0.3).float()
    scores = (targets + torch.randn(n, labels, generator=generator)).sigmoid()
    return scores, targets


def at(loss: AUCMargin, a: float, b: float, alpha: float) -> AUCMargin:
    for parameter, value in zip((loss.a, loss.b, loss.alpha), (a, b, alpha), strict=True):
        parameter.data.fill_(value)
    return loss


def test_second_version_by_hand() -> None:
    scores, labels = torch.tensor([[0.9], [0.5], [0.2], [0.0], [0.4]]), torch.tensor([[1.0], [1], [0], [0], [0]])
    # Positives .9 and .5 about a = .6, negatives .2, 0 and .4 about b = .1; their means are .7 and .2.
    expected = (0.09 + 0.01) / 2 + (0.01 + 0.01 + 0.09) / 3 + 2 * 0.5 * (1 + 0.2 - 0.7) - 0.25
    assert at(AUCMargin(1), 0.6, 0.1, 0.5)(scores, labels).item() == pytest.approx(expected, rel=1e-6)


def test_first_version_by_hand() -> None:
    scores, labels = torch.tensor([[0.9], [0.2], [0.4]]), torch.tensor([[1.0], [0], [0]])
    p, a, b, alpha, m = 1 / 3, 0.6, 0.1, 0.5, 2.0  # p is the batch's share
    terms = [
        (1 - p) * (0.9 - a) ** 2 + 2 * alpha * (p * (1 - p) * m - (1 - p) * 0.9) - p * (1 - p) * alpha**2,
        p * (0.2 - b) ** 2 + 2 * alpha * (p * (1 - p) * m + p * 0.2) - p * (1 - p) * alpha**2,
        p * (0.4 - b) ** 2 + 2 * alpha * (p * (1 - p) * m + p * 0.4) - p * (1 - p) * alpha**2,
    ]
    loss = at(AUCMargin(1, margin=m, version="v1"), a, b, alpha)
    assert loss(scores, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_versions_differ_by_the_batchs_own_prior() -> None:
    scores, labels = data()
    p = labels.mean(0)
    first, second = (at(AUCMargin(3, version=v), 0.5, 0.2, 0.3).per_label(scores, labels) for v in ("v1", "v2"))
    torch.testing.assert_close(first, p * (1 - p) * second)


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_saddle_is_the_pairwise_squared_loss(margin: float) -> None:
    scores, labels = data()
    value = AUCMargin(3, margin=margin).saddle(scores, labels)
    for k in range(3):
        pairs = margin - scores[labels[:, k] == 1, k][:, None] + scores[labels[:, k] == 0, k][None]
        if margin == 1.0:  # no pair of scores in [0, 1] is further apart: squared hinge and square are the same
            assert value[k].item() == pytest.approx(pairs.clamp_min(0).square().mean().item(), rel=1e-5)
        assert value[k].item() == pytest.approx(
            (pairs.square().mean() - pairs.mean().clamp(max=0).square()).item(), rel=1e-5
        )


def test_alpha_stops_at_zero_when_the_means_are_far_enough_apart() -> None:
    scores, labels = torch.tensor([[3.0], [4.0], [0.0], [1.0]]), torch.tensor([[1.0], [1], [0], [0]])
    loss = AUCMargin(1)
    loss.settle(scores, labels)
    assert (loss.a.item(), loss.b.item(), loss.alpha.item()) == (3.5, 0.5, 0.0)
    assert loss.saddle(scores, labels).item() == pytest.approx(0.25 + 0.25)
    assert loss.settle(scores[:2], labels[:2]) is None
    assert loss.a.item() == 3.5  # nothing to rank, nothing moved


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_settled_is_stationary_and_a_saddle(version: str) -> None:
    scores, labels = data(seed=3)
    loss = AUCMargin(3, version=version)
    loss.settle(scores, labels)
    value = loss(scores, labels)
    value.backward()
    for parameter in (loss.a, loss.b, loss.alpha):
        assert parameter.grad.abs().max() < 1e-6
    torch.testing.assert_close(loss.per_label(scores, labels), loss.saddle(scores, labels))
    for name, direction in (("a", 1), ("b", 1), ("alpha", -1)):
        moved = AUCMargin(3, version=version)
        moved.load_state_dict(loss.state_dict())
        getattr(moved, name).data += 0.1
        assert direction * (moved(scores, labels) - value).item() > 0


def test_gradient_of_the_scores_is_that_of_the_pairs() -> None:
    scores, labels = data(labels=1)
    scores.requires_grad_()
    loss = AUCMargin(1)
    loss.settle(scores.detach(), labels)
    (ours,) = torch.autograd.grad(loss(scores, labels), scores)
    pairs = 1 - scores[labels == 1][:, None] + scores[labels == 0][None]
    (theirs,) = torch.autograd.grad(pairs.clamp_min(0).square().mean(), scores)
    torch.testing.assert_close(ours, theirs)


def test_unknown_labels_neither_count_nor_send_gradients() -> None:
    scores, labels = data()
    hidden = labels.clone()
    hidden[::3] = NAN
    rest = torch.arange(len(labels)) % 3 != 0
    loss = at(AUCMargin(3), 0.5, 0.2, 0.3)
    torch.testing.assert_close(loss(scores, hidden), loss(scores[rest], labels[rest]))
    scores.requires_grad_()
    loss(scores, hidden).backward()
    assert (scores.grad[::3] == 0).all()
    assert (scores.grad[rest] != 0).all()


def test_a_label_of_one_class_is_left_out_without_nan() -> None:
    scores, labels = data()
    labels[:, 1], labels[:, 2] = 1.0, NAN
    scores.requires_grad_()
    loss = at(AUCMargin(3), 0.5, 0.2, 0.3)
    value = loss(scores, labels)
    value.backward()
    assert value.item() == pytest.approx(at(AUCMargin(1), 0.5, 0.2, 0.3)(scores[:, :1], labels[:, :1]).item())
    assert (scores.grad[:, 1:] == 0).all()
    assert loss.a.grad[1:].tolist() == [0, 0]
    assert loss.per_label(scores, labels).isnan().tolist() == [False, True, True]
    assert loss(scores, torch.ones_like(labels)).item() == 0.0


def test_soft_labels_are_split_between_the_classes() -> None:
    scores, labels = torch.tensor([[0.9], [0.6], [0.1]]), torch.tensor([[1.0], [0.25], [0.0]])
    loss = at(AUCMargin(1), 0.5, 0.2, 0.3)
    # Four copies, one of them positive, are the same.
    copies = torch.tensor([[0.9]] * 4 + [[0.6]] * 4 + [[0.1]] * 4)
    hard = torch.tensor([[1.0]] * 4 + [[1.0]] + [[0.0]] * 7)
    torch.testing.assert_close(loss(scores, labels), loss(copies, hard))


def test_exact_zeros_count() -> None:
    scores, labels = torch.tensor([[1.0], [0.0], [0.0], [0.6]]), torch.tensor([[1.0], [0], [0], [0]])
    loss = at(AUCMargin(1), 1.0, 0.0, 1.0)
    assert loss(scores, labels).item() == pytest.approx(0 + 0.36 / 3 + 2 * (1 + 0.2 - 1) - 1)


def test_bad_input_is_named() -> None:
    for options, field in (
        ({"labels": 0}, "labels"),
        ({"labels": 2, "margin": 0.0}, "margin"),
        ({"labels": 2, "version": "v3"}, "version"),
    ):
        with pytest.raises(InputError) as caught:
            AUCMargin(**options)
        assert caught.value.field == field
    for scores, labels in ((torch.rand(4, 3), torch.zeros(4, 2)), (torch.rand(4, 2), torch.full((4, 2), -1.0))):
        with pytest.raises(InputError, match="labels"):
            AUCMargin(2)(scores, labels)


def test_libauc_agrees_up_to_its_faults() -> None:
    libauc = pytest.importorskip("libauc.losses.auc", reason="LibAUC is not installed")
    scores, labels = data(labels=1)
    p, negatives = labels.mean().item(), scores[labels == 0].mean().item()
    for version, excess in (("v1", 0.0), ("v2", -2 * 0.3 * p * negatives)):
        theirs = libauc.AUCMLoss(version=version, device="cpu")
        for parameter, value in ((theirs.a, 0.5), (theirs.b, 0.2), (theirs.alpha, 0.3)):
            parameter.data.fill_(value)
        ours = at(AUCMargin(1, version=version), 0.5, 0.2, 0.3)(scores, labels)
        assert theirs(scores, labels).item() == pytest.approx(ours.item() + excess, rel=1e-5)
    both = libauc.MultiLabelAUCMLoss(version="v1", num_labels=3, device="cpu")
    scores, labels = data()
    ours = AUCMargin(3, version="v1")(scores, labels)
    assert both(scores, labels).item() == pytest.approx(ours.item(), rel=1e-5)
