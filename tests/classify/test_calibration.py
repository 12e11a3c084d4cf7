from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from counterscan.classify.calibration import Calibration, calibrate, fit_sigmoid


def smoothed(positives: int, negatives: int, present: int) -> float:
    """Mean of Platt's targets over a place with ``present`` positives of one hundred, given the totals."""
    high, low = (positives + 1) / (positives + 2), 1 / (negatives + 2)
    return (present * high + (100 - present) * low) / 100


def test_temperature_in_closed_form() -> None:
    # 100 images at z = +4 of which 80 show it, 100 at z = -4 of which 20 do: sigmoid(4 / T) must be that share.
    z = torch.tensor([4.0] * 100 + [-4.0] * 100)
    y = torch.tensor([1.0] * 80 + [0.0] * 20 + [1.0] * 20 + [0.0] * 80)
    share = smoothed(100, 100, 80)
    temperature, offset = fit_sigmoid(z, y)
    assert temperature == pytest.approx(4 / math.log(share / (1 - share)), rel=1e-6)
    assert offset == pytest.approx(0.0, abs=1e-8)


def test_offset_in_closed_form() -> None:
    # Two places, two unknowns: both shares are met exactly.
    z = torch.tensor([3.0] * 100 + [1.0] * 100)
    y = torch.tensor([1.0] * 60 + [0.0] * 40 + [1.0] * 10 + [0.0] * 90)
    high, low = (math.log(p / (1 - p)) for p in (smoothed(70, 130, 60), smoothed(70, 130, 10)))
    temperature, offset = fit_sigmoid(z, y)
    assert temperature == pytest.approx(2 / (high - low), rel=1e-6)
    assert offset == pytest.approx(high - 3 / temperature, rel=1e-6)


def test_agrees_with_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    z = rng.normal(3 * y - 2, 2.5)
    temperature, offset = fit_sigmoid(torch.from_numpy(z), torch.from_numpy(y))
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(z[:, None], y)
    assert 1 / temperature == pytest.approx(reference.coef_[0, 0], rel=0.01)
    assert offset == pytest.approx(reference.intercept_[0], abs=0.01)


def test_recovers_a_planted_temperature_and_the_shift_of_balanced_training() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(-2.5, 2, 20000)  # true logits, finding rare
    y = (rng.uniform(size=len(truth)) < 1 / (1 + np.exp(-truth))).astype(float)
    temperature, offset = fit_sigmoid(torch.from_numpy(3 * (truth + 2.0)), torch.from_numpy(y))
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert offset == pytest.approx(-2.0, abs=0.15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_perfectly_parted_or_reversed_logits_stay_finite(sign: float) -> None:
    z = sign * torch.tensor([-50.0, -40.0, 40.0, 50.0])
    temperature, offset = fit_sigmoid(z, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert 0 < temperature <= 20
    assert math.isfinite(offset)


def test_findings_are_fitted_apart_and_unknown_labels_skipped() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 2, generator=generator) * 3
    targets = (torch.rand(400, 2, generator=generator) < logits.sigmoid()).float()
    targets[200:, 1] = math.nan
    both = calibrate(logits, targets, "abc")
    alone = calibrate(logits[:200, 1:], targets[:200, 1:])
    assert both.temperature[1] == alone.temperature[0]
    assert both.threshold[1] == alone.threshold[0]
    assert both.checkpoint == "abc"
    assert all(0 < t < 1 for t in both.threshold)


def test_one_class_stays_uncalibrated() -> None:
    found = calibrate(torch.randn(5, 2), torch.tensor([[1.0, math.nan]] * 5))
    assert found == Calibration((1.0, 1.0), (0.0, 0.0), (0.5, 0.5))


def test_round_trip() -> None:
    found = Calibration((1.5,), (-0.2,), (0.4,), "d")
    assert Calibration.from_dict(found.to_dict()) == found
