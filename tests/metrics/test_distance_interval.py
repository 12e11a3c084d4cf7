"""Half samples against closed forms and repeated draws from the truth."""

from __future__ import annotations

import math

import pytest
import torch

from counterscan.errors import InputError
from counterscan.metrics.distance_interval import distance_interval
from counterscan.metrics.realism import fid


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(x, y):
    return float(y.mean() - x.mean())


def test_the_value_is_the_distance_and_repeats_with_the_seed():
    x, y = normal(40, 3, 0), normal(30, 3, 1) + 1
    found = distance_interval(fid, x, y, draws=20)
    assert found.value == fid(x, y)
    assert found.low < found.value < found.high
    assert found == distance_interval(fid, x, y, draws=20)
    assert found != distance_interval(fid, x, y, draws=20, seed=1)


def test_spread_is_that_of_a_difference_of_means():
    x, y = normal(400, 1, 0), normal(200, 1, 1)
    found = distance_interval(difference, x, y, draws=2000)
    exact = 2 * 1.96 * math.sqrt(float(x.var()) / 400 + float(y.var()) / 200)
    assert found.high - found.low == pytest.approx(exact, rel=0.1)


def test_patients_are_drawn_whole():
    x = normal(50, 1, 0).repeat_interleave(4, 0)  # four equal images of each patient
    y, patients = normal(200, 1, 1), [f"p{i // 4}" for i in range(200)]
    together = distance_interval(difference, x, y, patients, draws=1000)
    apart = distance_interval(difference, x, y, draws=1000)
    exact = math.sqrt(1 / 50 + 1 / 200) / math.sqrt(1 / 200 + 1 / 200)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_covers(shift):
    def squared(a, b):  # of the means, unbiased: as skewed as KID, and its truth is known
        noise = a.var(0).sum() / len(a) + b.var(0).sum() / len(b)
        return float((a.mean(0) - b.mean(0)).square().sum() - noise)

    found = [distance_interval(squared, normal(50, 3, i), normal(40, 3, i + 300) + shift) for i in range(80)]
    missed = sum(not x.low <= 3 * shift**2 <= x.high for x in found)
    assert missed <= 10
    assert all(x.excludes(0.0) for x in found) == bool(shift)


def test_at_a_size_fid_of_sets_of_different_length_agrees():
    real, fake = normal(300, 8, 0), normal(300, 8, 1)
    few = distance_interval(fid, real, fake[:40], draws=2)
    many = distance_interval(fid, real, fake, size=40, draws=2)
    whole = distance_interval(fid, real, fake, draws=2)
    assert many.value == pytest.approx(few.value, rel=0.3)
    assert whole.value < 0.5 * few.value
    for size in (1, 301):
        with pytest.raises(InputError, match="size"):
            distance_interval(fid, real, fake, size=size)


def test_few_patients_have_no_interval():
    x = normal(6, 2, 0)
    found = distance_interval(fid, x, x, ["a", "a", "b", "b", "c", "c"])
    assert found.value == pytest.approx(0, abs=1e-9)
    assert math.isnan(found.low)
    with pytest.raises(InputError, match="patients"):
        distance_interval(fid, x, x, ["a"])
