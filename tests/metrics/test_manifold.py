"""Figures with intervals against plain loops and closed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from counterscan.errors import InputError
from counterscan.metrics import manifold as m
from counterscan.metrics.realism import precision_recall_density_coverage


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(n, prefix="p"):
    return [f"{prefix}{i}" for i in range(n)]


def test_figures_are_brute_force_means():
    real, fake, k = normal(40, 3, 0), normal(30, 3, 1) + 0.7, 3
    between = (real[:, None] - fake[None]).norm(dim=2)

    def reach(x):
        return (x[:, None] - x[None]).norm(dim=2).sort(1).values[:, k]

    within = between <= reach(real)[:, None] + 1e-12
    found = m.manifold_figures(real, fake, names(40), names(30), k=k, resamples=50)
    assert found.precision.value == pytest.approx(float(within.any(0).double().mean()))
    assert found.density.value == pytest.approx(float(within.sum()) / k / 30)
    assert found.coverage.value == pytest.approx(float(within.any(1).double().mean()))
    assert found.recall.value == pytest.approx(float((between <= reach(fake) + 1e-12).any(1).double().mean()))
    assert found.size == 30
    assert found.precision.low <= found.precision.value <= found.precision.high
    assert found.precision.low < found.precision.high


def test_closed_cases():
    real = normal(30, 4, 0)
    same = m.manifold_figures(real, real, names(30), names(30), k=2, resamples=20)
    assert [same.precision.value, same.recall.value, same.coverage.value] == [1, 1, 1]
    far = m.manifold_figures(real, real + 100, names(30), names(30), k=2, resamples=20)
    assert [x.value for x in (far.precision, far.recall, far.density, far.coverage)] == [0, 0, 0, 0]
    # One image over and over, and that a real one: precise, but covering next to nothing.
    one = m.manifold_figures(real, real[:1].expand(20, -1), names(30), names(20), k=2, resamples=20)
    assert one.precision.value == 1
    assert one.coverage.value < 0.3
    assert one.recall.value == pytest.approx(1 / 30)


def test_recall_and_coverage_at_a_size_are_means_over_subsets():
    real, fake = normal(50, 2, 0), normal(60, 2, 1)
    found = m.manifold_figures(real, fake, names(50), names(60), size=20, subsets=4, resamples=20)
    generator = torch.Generator().manual_seed(0)
    parts = [
        precision_recall_density_coverage(real, fake[torch.randperm(60, generator=generator)[:20]]) for _ in range(4)
    ]
    assert found.coverage.value == pytest.approx(float(np.mean([float(p.coverage.mean()) for p in parts])))
    assert found.recall.value == pytest.approx(float(np.mean([float(p.recall.mean()) for p in parts])))
    whole = m.manifold_figures(real, fake, names(50), names(60), resamples=20)
    assert found.coverage.value < whole.coverage.value
    assert found.precision.value == whole.precision.value
    assert found.size == 20
    for size in (5, 61):
        with pytest.raises(InputError, match="size"):
            m.manifold_figures(real, fake, names(50), names(60), size=size)


def test_mean_pairwise_distance_by_hand():
    x = torch.tensor([[0.0], [1.0], [4.0]])
    assert m.mean_pairwise_distance(x) == pytest.approx((1 + 4 + 3) / 3)
    # The first two are of one patient, whose own images are not compared.
    assert m.mean_pairwise_distance(x, ["a", "a", "b"]) == pytest.approx((4 + 3) / 2)
    with pytest.raises(InputError, match="2 are needed"):
        m.mean_pairwise_distance(x, ["a", "a", "a"])
    with pytest.raises(InputError, match="2 for 3"):
        m.mean_pairwise_distance(x, ["a", "b"])
    with pytest.raises(InputError, match="finite"):
        m.mean_pairwise_distance(x * math.nan)


def test_diversity_ratio():
    real = normal(120, 4, 0)
    scaled = m.diversity_ratio(real, 0.5 * normal(90, 4, 1) + 7, resamples=300)
    assert scaled.low < 0.5 < scaled.high
    assert m.diversity_ratio(real, 0.5 * real).value == pytest.approx(0.5)
    repeated = m.diversity_ratio(real, real[:1].expand(10, -1), resamples=50)
    assert (repeated.value, repeated.low, repeated.high) == (0, 0, 0)
    assert math.isnan(m.diversity_ratio(real[:1].expand(10, -1), real).value)
    with pytest.raises(InputError, match="one width"):
        m.diversity_ratio(real, real[:, :2])
    # The interval covers: of equal distributions it leaves 1 out in about one of twenty.
    missed = sum(
        m.diversity_ratio(normal(40, 3, i), normal(40, 3, i + 500), resamples=200).excludes(1) for i in range(60)
    )
    assert missed <= 9


def test_diversity_of_large_sets_is_that_of_some():
    real, fake = normal(300, 2, 0), 2 * normal(300, 2, 1)
    assert m.diversity_ratio(real, fake, most=60, resamples=100).value == pytest.approx(2, abs=0.4)
    patients = [f"p{i // 100}" for i in range(300)]
    three = m.diversity_ratio(real, fake, patients, patients, resamples=100)
    assert three.value == pytest.approx(2, abs=0.1)
