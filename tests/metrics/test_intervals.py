"""Patient bootstrap: coverage, clusters, pairing, and agreement with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from counterscan.metrics import intervals as iv
from counterscan.metrics.classification import roc_auc


def people(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_interval_prints_and_formats():
    interval = iv.Interval(0.7812, 0.7534, 0.8051)
    assert str(interval) == "0.78 [0.75, 0.81]"
    assert f"{interval:.3f}" == "0.781 [0.753, 0.805]"
    assert f"{interval:+.1%}" == "+78.1% [+75.3%, +80.5%]"
    assert str(iv.Interval(0.5, math.nan, math.nan)) == "0.50"
    assert str(iv.Interval(math.nan, math.nan, math.nan)) == "n/a"
    assert interval.excludes(0)
    assert not interval.excludes(0.8)
    assert not iv.Interval(0.5, math.nan, math.nan).excludes(0)


def test_one_image_per_patient_is_the_ordinary_bootstrap():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    ours = iv.mean_interval(values, people(60), resamples=20000)
    theirs = bootstrap((values.numpy(),), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx(values.mean().item())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_images_of_a_patient_are_drawn_together():
    values = torch.randn(20, generator=torch.Generator().manual_seed(1)).double()
    repeated = values.repeat_interleave(10)
    names = [p for p in people(20) for _ in range(10)]
    clustered, alone = iv.mean_interval(repeated, names), iv.mean_interval(values, people(20))
    assert clustered == alone  # ten copies of an image teach nothing
    naive = iv.mean_interval(repeated, people(200))
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)
    draws = iv.patient_draws(names, 50)
    assert (draws.reshape(50, 20, 10) == draws.reshape(50, 20, 10)[..., :1]).all()
    assert (draws.sum(1) == 200).all()


def test_coverage_is_close_to_the_level():
    generator = torch.Generator().manual_seed(2)
    covered = 0
    for _ in range(200):
        means = torch.randn(40, generator=generator).repeat_interleave(3)
        sample = means + 0.3 * torch.randn(120, generator=generator)
        interval = iv.mean_interval(sample, [p for p in people(40) for _ in range(3)], resamples=400)
        covered += interval.low <= 0 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_seeds_are_averaged_first_and_nan_left_out():
    values = torch.tensor([[1.0, 2, math.nan, 4], [3.0, 4, math.nan, 6]])
    assert iv.mean_interval(values, people(4)) == iv.mean_interval(torch.tensor([2.0, 3, 5]), [*people(4)[:2], "p3"])
    assert math.isnan(iv.mean_interval(torch.full((3,), math.nan), people(3)).value)
    one = iv.mean_interval(torch.tensor([1.0, 2]), ["a", "a"])
    assert one.value == 1.5
    assert math.isnan(one.low)
    with pytest.raises(ValueError, match="patients"):
        iv.mean_interval(torch.ones(3), people(2))


def test_pairs_are_sharper_than_their_parts():
    generator = torch.Generator().manual_seed(3)
    difficulty = torch.rand(80, generator=generator)
    ours, theirs = difficulty + 0.05, difficulty + 0.01 * torch.randn(80, generator=generator)
    paired = iv.paired_interval(ours, theirs, people(80))
    assert paired.value == pytest.approx((ours - theirs).mean().item(), abs=1e-6)
    assert paired.excludes(0)
    assert paired.high - paired.low < 0.1 * (
        iv.mean_interval(ours, people(80)).high - iv.mean_interval(ours, people(80)).low
    )


def test_fast_auc_equals_resampling_rows():
    generator = torch.Generator().manual_seed(4)
    labels = (torch.rand(60, generator=generator) < 0.4).float()
    scores = labels + torch.randn(60, generator=generator)
    names = [p for p in people(30) for _ in range(2)]
    (fast,) = iv.roc_auc_intervals(scores, labels, names, resamples=300)
    slow = iv.statistic_interval(lambda rows: roc_auc(scores[rows], labels[rows]).item(), names, resamples=300)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))
    both = torch.stack([scores, scores], 1), torch.stack([labels, torch.full_like(labels, math.nan)], 1)
    first, second = iv.pr_auc_intervals(*both, names, resamples=100)
    assert first.low < first.value < first.high
    assert math.isnan(second.value)


def test_a_figure_that_rarely_exists_gets_no_interval():
    labels, scores = torch.zeros(30), torch.rand(30)
    labels[0] = 1  # its patient is missing from about a third of the resamples
    (interval,) = iv.roc_auc_intervals(scores, labels, people(30))
    assert math.isfinite(interval.low)
    sparse = iv.percentile_interval(0.5, torch.tensor([0.4, math.nan, math.nan, math.nan]))
    assert math.isnan(sparse.low)
    assert sparse.value == 0.5
