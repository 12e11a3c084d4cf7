"""Image-level figures against scikit-learn and torchmetrics, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from counterscan.metrics import classification as cls

NAN = math.nan


def made_up(n=200, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, classes, generator=generator) < 0.3).float()
    scores = ((labels + torch.randn(n, classes, generator=generator)) * 4).round() / 4  # with ties
    labels[torch.rand(n, classes, generator=generator) < 0.1] = NAN
    labels[torch.rand(n, classes, generator=generator) < 0.1] = -1
    return scores, labels


@pytest.mark.parametrize(
    ("ours", "theirs"), [(cls.roc_auc, roc_auc_score), (cls.pr_auc, average_precision_score)], ids=["roc", "pr"]
)
def test_curves_per_class_skip_what_is_unknown(ours, theirs):
    scores, labels = made_up()
    got = ours(scores, labels)
    for c in range(3):
        known = ((labels[:, c] == 0) | (labels[:, c] == 1)).numpy()
        assert got[c].item() == pytest.approx(theirs(labels[known, c].numpy(), scores[known, c].numpy()), abs=1e-12)
    assert ours(scores[:, 0], labels[:, 0]).shape == ()
    assert ours(scores[:, 0], labels[:, 0]).item() == got[0].item()
    assert cls.mean_over_classes(got) == pytest.approx(got.mean().item())


def test_weights_repeat_rows():
    scores, labels = made_up(n=40)
    weights = torch.randint(0, 4, (5, 40), generator=torch.Generator().manual_seed(1))
    for curve in (cls.roc_auc, cls.pr_auc):
        got = curve(scores, labels, weights)
        assert got.shape == (5, 3)
        for b in range(5):
            rows = torch.arange(40).repeat_interleave(weights[b])
            torch.testing.assert_close(got[b], curve(scores[rows], labels[rows]))


def test_classes_that_cannot_be_judged_are_nan():
    scores = torch.rand(4, 3)
    labels = torch.tensor([[1, 0, NAN], [1, 0, NAN], [1, 0, -1], [1, 0, NAN]])
    assert cls.roc_auc(scores, labels).isnan().all()
    assert cls.pr_auc(scores, labels).isnan().tolist() == [False, True, True]
    assert cls.youden_threshold(scores, labels).isnan().all()
    assert cls.brier(scores, labels).isnan().tolist() == [False, False, True]
    assert cls.expected_calibration_error(scores, labels).isnan().tolist() == [False, False, True]
    assert math.isnan(cls.mean_over_classes(cls.roc_auc(scores, labels)))


def test_brier_equals_sklearn():
    scores, labels = made_up()
    p = scores.sigmoid()
    known = ((labels[:, 1] == 0) | (labels[:, 1] == 1)).numpy()
    expected = brier_score_loss(labels[known, 1].numpy(), p[known, 1].numpy())
    assert cls.brier(p, labels)[1].item() == pytest.approx(expected, abs=1e-7)


def test_calibration_error_equals_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(500, generator=generator)
    labels = (torch.rand(500, generator=generator) < p**2).long()
    expected = functional.binary_calibration_error(p, labels, n_bins=15, norm="l1")
    assert cls.expected_calibration_error(p, labels.float()).item() == pytest.approx(expected.item(), abs=1e-6)


def test_calibration_error_by_hand():
    p, y = torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([0.0, 0, 1, 0])
    assert cls.expected_calibration_error(p, y, bins=2).item() == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)
    assert cls.expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).item() == 0


def test_youden_equals_the_best_point_of_sklearns_curve():
    scores, labels = made_up()
    thresholds = cls.youden_threshold(scores, labels)
    for c in range(3):
        known = (labels[:, c] == 0) | (labels[:, c] == 1)
        y, s = labels[known, c].numpy(), scores[known, c].numpy()
        fpr, tpr, _ = roc_curve(y, s)
        called = s >= thresholds[c].item()
        reached = called[y == 1].mean() - called[y == 0].mean()
        assert reached == pytest.approx(np.max(tpr - fpr), abs=1e-12)
    assert cls.youden_threshold(
        torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0.0, 0, 1, 1])
    ).item() == pytest.approx(0.5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        cls.roc_auc(torch.rand(3), torch.rand(4))
    with pytest.raises(ValueError, match="labels must be"):
        cls.roc_auc(torch.rand(3), torch.tensor([0.0, 0.5, 1]))
    with pytest.raises(ValueError, match="sigmoid"):
        cls.brier(torch.tensor([2.0, 0.1]), torch.tensor([1.0, 0]))
