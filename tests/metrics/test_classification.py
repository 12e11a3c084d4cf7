"""Image-level figures against scikit-learn and torchmetrics, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from counterscan.errors import InputError
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


def test_floor_of_average_precision_is_the_inverted_rankings():
    assert cls.average_precision_floor(0.3).item() == pytest.approx(1 + 0.7 * math.log(0.7) / 0.3)
    assert cls.average_precision_floor(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    n, positives = 20000, 6000
    labels = torch.cat([torch.zeros(n - positives), torch.ones(positives)])
    worst = cls.pr_auc(torch.arange(n, 0, -1.0), labels).item()
    assert worst == pytest.approx(cls.average_precision_floor(0.3).item(), abs=1e-4)
    assert worst > cls.average_precision_floor(0.3).item()
    small = torch.logspace(-8, -1, 40, dtype=torch.float64)
    floors = cls.average_precision_floor(small)
    assert (floors.diff() > 0).all()  # no cancellation at small prevalences
    assert floors[0].item() == pytest.approx(small[0].item() / 2, rel=1e-6)


def test_impossible_average_precisions_are_refused():
    scores, labels = made_up()
    shares = cls.prevalence(labels)
    cls.check_average_precision(cls.pr_auc(scores, labels), shares)
    cls.check_average_precision(torch.tensor([NAN, 0.5]), torch.tensor([NAN, 0.5]))
    # Where 29.1 % have the finding, the floor is .162.
    with pytest.raises(InputError, match=r"0\.147 is impossible.*0\.1621 to 1"):
        cls.check_average_precision(torch.tensor([0.9, 0.147]), torch.tensor([0.2, 0.291]))
    with pytest.raises(InputError, match="impossible"):
        cls.check_average_precision(1.01, 0.2)
    floor = cls.average_precision_floor(0.291).item()
    cls.check_average_precision(round(floor - 4e-4, 4), 0.291, tolerance=5e-4)
    with pytest.raises(InputError, match="average precision"):
        cls.check_average_precision(floor - 1e-3, 0.291, tolerance=5e-4)


def test_prevalence_and_normalised_average_precision():
    labels = torch.tensor([[1.0, NAN, NAN], [0, 1, -1], [0, 1, NAN], [-1, 1, NAN]])
    assert cls.prevalence(labels).tolist()[:2] == [pytest.approx(1 / 3), 1.0]
    assert cls.prevalence(labels)[2].isnan()
    got = cls.normalised_average_precision(torch.tensor([0.25, 1.0, 0.1, 0.5]), torch.tensor([0.25, 0.25, 0.25, 1.0]))
    assert got[:3].tolist() == pytest.approx([0.0, 1.0, -0.2])
    assert got[3].isnan()


def test_sensitivity_at_specificity_is_on_sklearns_curve():
    scores, labels = made_up()
    got = cls.sensitivity_at_specificity(scores, labels, 0.9)
    for c in range(3):
        known = ((labels[:, c] == 0) | (labels[:, c] == 1)).numpy()
        fpr, tpr, _ = roc_curve(labels[known, c].numpy(), scores[known, c].numpy(), drop_intermediate=False)
        assert got[c].item() == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max())
    by_hand = torch.tensor([5.0, 4, 3, 2, 1, 0]), torch.tensor([1.0, 0, 1, 0, 0, 1])
    assert cls.sensitivity_at_specificity(*by_hand, 0.6).item() == pytest.approx(2 / 3)
    assert cls.sensitivity_at_specificity(*by_hand, 1.0).item() == pytest.approx(1 / 3)
    assert cls.sensitivity_at_specificity(-by_hand[0], by_hand[1], 1.0).item() == pytest.approx(1 / 3)
    assert cls.sensitivity_at_specificity(torch.tensor([1.0, 2]), torch.tensor([1.0, 0]), 0.9).item() == 0.0
    assert cls.sensitivity_at_specificity(torch.rand(3), torch.ones(3)).isnan()
    weights = torch.randint(0, 3, (4, len(scores)), generator=torch.Generator().manual_seed(2))
    drawn = cls.sensitivity_at_specificity(scores, labels, 0.8, weights)
    rows = torch.arange(len(scores)).repeat_interleave(weights[1])
    torch.testing.assert_close(drawn[1], cls.sensitivity_at_specificity(scores[rows], labels[rows], 0.8))
    with pytest.raises(ValueError, match="specificity"):
        cls.sensitivity_at_specificity(scores, labels, 0.0)


def test_calibration_line_is_logistic_regression():
    generator = torch.Generator().manual_seed(4)
    true = torch.randn(400, 2, generator=generator)
    labels = (torch.rand(400, 2, generator=generator) < true.sigmoid()).float()
    labels[::9, 0] = NAN
    logits = torch.stack([2 * true[:, 0] + 1, true[:, 1]], dim=1)
    slope, intercept = cls.calibration_line(logits, labels)
    for c in range(2):
        known = ~labels[:, c].isnan()
        z, y = logits[known, c].double().numpy(), labels[known, c].numpy()
        fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(z[:, None], y)
        assert slope[c].item() == pytest.approx(fitted.coef_[0, 0], rel=1e-4)
        # With slope 1 the best intercept makes the mean probability the share of positives.
        assert (1 / (1 + np.exp(-z - intercept[c].item()))).mean() == pytest.approx(y.mean(), abs=1e-8)
    assert slope[0].item() == pytest.approx(0.5, abs=0.12)  # twice too extreme, and too high
    assert intercept[0].item() < -0.3
    assert slope[1].item() == pytest.approx(1, abs=0.25)


def test_calibration_line_that_does_not_exist_is_nan():
    parted = cls.calibration_line(torch.tensor([-1.0, 0, 1, 2]), torch.tensor([0.0, 0, 1, 1]))
    assert parted[0].isnan()
    assert parted[1].isfinite()
    assert cls.calibration_line(torch.ones(4), torch.tensor([0.0, 1, 0, 1]))[0].isnan()
    assert all(x.isnan() for x in cls.calibration_line(torch.randn(4), torch.ones(4)))
    assert all(x.isnan() for x in cls.calibration_line(torch.randn(4), torch.full((4,), NAN)))


def test_shifted_prior_is_bayes_rule():
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(200_000, generator=generator) < 0.1).double()
    x = torch.randn(200_000, generator=generator).double() + 2 * labels
    balanced = 2 * x - 2  # log odds of N(2, 1) against N(0, 1), one half each
    shifted = cls.shift_prior(balanced, 0.5, 0.1)
    assert cls.calibration_line(shifted, labels)[1].item() == pytest.approx(0, abs=0.05)
    assert cls.calibration_line(balanced, labels)[1].item() < -1.5
    p = torch.tensor([[0.5, 0.2]])
    back = cls.shift_prior(torch.logit(p), torch.tensor([0.5, 0.2]), torch.tensor([0.3, 0.6])).sigmoid()
    torch.testing.assert_close(back, torch.tensor([[0.3, 0.6]]))
    for trained, target, field in ((0.0, 0.5, "trained"), (0.5, 1.0, "target")):
        with pytest.raises(InputError) as caught:
            cls.shift_prior(p, trained, target)
        assert caught.value.field == field


def test_calibration_error_in_bins_of_equal_mass():
    p, y = torch.tensor([0.01, 0.02, 0.03, 0.9]), torch.tensor([0.0, 0, 1, 1])
    expected = 0.5 * 0.015 + 0.5 * abs((0.03 + 0.9) / 2 - 1)
    assert cls.expected_calibration_error(p, y, bins=2, equal_mass=True).item() == pytest.approx(expected)
    flat = torch.full((10,), 0.3)
    assert cls.expected_calibration_error(flat, torch.zeros(10), equal_mass=True).item() == pytest.approx(0.3)
    assert cls.expected_calibration_error(p, torch.full((4,), NAN), equal_mass=True).isnan()
