"""Nearest training images by hand, and the test for near copies against its exact distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter

from counterscan.errors import InputError
from counterscan.metrics import memorisation as mem


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def names(n):
    return [f"p{i}" for i in range(n)]


def test_thumbnails_ignore_brightness_contrast_noise_and_blur():
    smooth = torch.from_numpy(gaussian_filter(normal(5, 1, 64, 64).numpy(), (0, 0, 5, 5))) * 5
    small = mem.thumbnails(smooth)
    assert small.shape == (5, 256)
    assert small.mean(1).abs().max() < 1e-6
    assert small.norm(dim=1) == pytest.approx(torch.ones(5).numpy())
    changed = 0.4 * smooth + 0.2
    assert (mem.thumbnails(changed) - small).norm(dim=1).max() < 1e-4
    noisy = smooth + 0.1 * normal(5, 1, 64, 64, seed=1)
    blurred = torch.from_numpy(gaussian_filter(smooth.numpy(), (0, 0, 1, 1)))
    for copies in (noisy, blurred):
        assert mem.correlation((mem.thumbnails(copies) - small).norm(dim=1)).min() > 0.98
    pair = (mem.thumbnails(smooth[:1]) - small[1:2]).norm(dim=1)
    plain = np.corrcoef(small[0].numpy(), small[1].numpy())[0, 1]
    assert float(mem.correlation(pair)) == pytest.approx(plain, abs=1e-5)
    assert mem.thumbnails(torch.full((1, 1, 8, 8), 0.3)).abs().max() == 0
    assert mem.thumbnails(normal(2, 1, 10, 12)).shape == (2, 120)
    with pytest.raises(InputError, match="N, 1, H, W"):
        mem.thumbnails(normal(3, 8, 8))


def test_nearest_training_image_by_hand():
    training = torch.tensor([[0.0], [10.0], [11.0]])
    found = mem.nearest_training(torch.tensor([[10.0], [4.0]]), training, neighbours=2)
    assert found.distance.tolist() == [0, 4]
    assert found.index.tolist() == [1, 0]
    assert found.relative.tolist() == pytest.approx([0, 4 / 5])
    # All the nearest are the same image as the query: nothing to compare with, and a copy.
    assert mem.nearest_training(torch.zeros(1, 1), torch.zeros(3, 1)).relative.tolist() == [0]
    other = mem.nearest_training(torch.tensor([[1.0], [0.5]]), training)
    nearer = found.nearer_of(other)
    assert nearer.distance.tolist() == [0, 0.5]
    assert nearer.index.tolist() == [1, 0]
    assert len(mem.nearest_training(torch.zeros(0, 1), training).distance) == 0
    with pytest.raises(InputError, match="training"):
        mem.nearest_training(torch.zeros(1, 1), torch.zeros(0, 1))


def test_near_copies_by_hand():
    held = torch.arange(1.0, 101.0)
    made = torch.tensor([0.5, 1.0, 1.5, 50.0])
    found = mem.near_copies(made, held, names(100), resamples=200)
    assert found.threshold == 1
    assert found.near.tolist() == [True, True, False, False]
    assert found.count == 2
    assert found.expected == pytest.approx(1 / 101)
    low, high = stats.beta.ppf(0.025, 2, 3), stats.beta.ppf(0.975, 3, 2)
    assert (found.rate.value, found.rate.low, found.rate.high) == pytest.approx((0.5, low, high))
    # Chance that at least 2 of 4 new ones lie below the least of 100: over all orders of 104.
    exact = 1 - sum(math.comb(4, x) * math.factorial(x) * math.factorial(103 - x) * 100 for x in (0, 1)) / (
        math.factorial(104)
    )
    assert found.p_value == pytest.approx(exact)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(held.tolist(), made.tolist())]
    assert found.nearer.value == pytest.approx(np.mean(pairs))
    assert found.ratio.value == pytest.approx(1.0 / 50.0)  # lower medians
    assert found.nearer.low < found.nearer.value < found.nearer.high
    tenth = mem.near_copies(made, held, names(100), share=0.1, resamples=20)
    assert (tenth.threshold, tenth.expected) == (10, pytest.approx(10 / 101))


def test_p_is_right_when_nothing_is_copied():
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        made, held = torch.from_numpy(rng.gamma(3, size=60)), torch.from_numpy(rng.gamma(3, size=50))
        p.append(mem.near_copies(made, held, names(50), share=0.1, resamples=2).p_value)
    for level in (0.05, 0.2):
        assert np.mean(np.array(p) <= level) <= level + 0.05


def test_copies_are_found_and_patients_count_once():
    training, held = normal(200, 20), normal(150, 20, seed=1)
    fresh, copies = normal(100, 20, seed=2), training[:8] + 0.01 * normal(8, 20, seed=3)
    usual = mem.nearest_training(held, training)
    for made, copied in ((fresh, 0), (torch.cat([fresh, copies]), 8)):
        near = mem.nearest_training(made, training)
        for own, other in ((near.distance, usual.distance), (near.relative, usual.relative)):
            found = mem.near_copies(own, other, names(150), resamples=50)
            assert bool(found.near[100:].all())
            assert (found.p_value < 0.05) == bool(copied)
            assert found.nearer.low < 0.6
    # A patient with a hundred equal images sets the threshold no more than one with a single image.
    distances = torch.cat([torch.full((100,), 0.1), torch.arange(1.0, 60.0)])
    found = mem.near_copies(near.distance, distances, ["same"] * 100 + names(59), share=0.05, resamples=10)
    assert found.threshold == 2
    assert found.expected == pytest.approx(3 / 61)


def test_exact_copies_count_where_the_splits_leak():
    held = torch.cat([torch.zeros(2), torch.ones(58)])
    assert mem.near_copies(torch.tensor([0.0, 0.5]), held, names(60), resamples=10).near.tolist() == [True, False]


def test_large_sets_are_resampled_in_part(monkeypatch):
    monkeypatch.setattr(mem, "_RESAMPLED", 10)
    made = torch.linspace(0, 1, 1000)
    found = mem.near_copies(made, torch.linspace(0, 1, 40), names(40), resamples=20)
    assert len(found.near) == 1000
    assert found.nearer.value == pytest.approx(0.5, abs=0.1)


def test_refusals():
    with pytest.raises(InputError, match="20 are needed"):
        mem.near_copies(torch.ones(3), torch.ones(40), [f"p{i // 10}" for i in range(40)])
    for made, held, people, share in (
        (torch.ones(3) * math.nan, torch.ones(30), names(30), 0.01),
        (torch.ones(3), torch.ones(30), names(29), 0.01),
        (torch.ones(0), torch.ones(30), names(30), 0.01),
        (torch.ones(3), torch.ones(30), names(30), 0.9),
    ):
        with pytest.raises(InputError):
            mem.near_copies(made, held, people, share=share)
    with pytest.raises(InputError, match="synthetic_patients"):
        mem.near_copies(torch.ones(3), torch.ones(30), names(30), ["a"])
