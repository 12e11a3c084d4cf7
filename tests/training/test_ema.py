from __future__ import annotations

import pytest
import torch
from torch import nn

from counterscan.training import EMA
from counterscan.training.ema import ema_decay


def test_average_matches_the_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average = EMA(module, half_life=4)
    nn.init.constant_(module.weight, 0.0)
    for step in range(1, 9):
        average.update(elapsed=1, seen=step)
    # A jump from 1 to 0: after two half-lives a quarter of the old value is left.
    assert average.module.weight.item() == pytest.approx(0.25, abs=1e-6)


def test_average_of_a_line_lags_by_the_mean_age() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = EMA(module, half_life=5)
    for step in range(1, 401):
        nn.init.constant_(module.weight, float(step))
        average.update(elapsed=1, seen=step)
    decay = 0.5 ** (1 / 5)
    assert average.module.weight.item() == pytest.approx(400 - decay / (1 - decay), abs=1e-2)


def test_ramp_bounds_the_half_life() -> None:
    assert ema_decay(1, seen=10, half_life=100, ramp=0.1) == 0.5
    assert ema_decay(1, seen=10_000, half_life=100, ramp=0.1) == 0.5 ** (1 / 100)
    assert ema_decay(32, seen=32, half_life=64) == 0.5**0.5


def test_buffers_are_copied_and_the_copy_is_apart() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = EMA(module, half_life=10)
    module(torch.randn(8, 2))
    average.update(1, 1)
    assert torch.equal(average.module[1].running_mean, module[1].running_mean)
    assert average.module[1].num_batches_tracked == 1
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
    with torch.no_grad():
        module[0].weight.fill_(7)
    assert not torch.equal(average.module[0].weight, module[0].weight)


def test_spectral_norm_can_be_averaged() -> None:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    average = EMA(module, half_life=10)
    module(torch.randn(2, 3))
    average.update(1, 1)
    assert torch.isfinite(average.module(torch.randn(2, 3))).all()
