from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from counterscan.care import Care, smooth
from counterscan.errors import InputError
from counterscan.peers.smoothgrad import SmoothGrad
from tests.peers.tiny import IMAGE, ByHand, Squares, TwoStages, W, own_settings

pytest.importorskip("captum")

QUICK = partial(SmoothGrad, n_samples=5)


def test_the_gradient_of_a_linear_logit_needs_no_smoothing() -> None:
    torch.testing.assert_close(QUICK(ByHand()).attribute(IMAGE, 0), torch.full_like(IMAGE, 0.5))
    signed = QUICK(ByHand()).attribute(IMAGE, 1)
    torch.testing.assert_close(signed, torch.full_like(IMAGE, -0.75))
    assert (QUICK(ByHand(), care=Care()).evidence(signed, IMAGE) == 0.75).all()
    assert (QUICK(ByHand(), care=Care(), part="positive").evidence(signed, IMAGE) == 0).all()


def test_means_over_the_noise() -> None:
    many = partial(SmoothGrad, Squares(W), n_samples=40_000, internal_batch_size=10_000, sigma=0.5)
    # dS/dx (x + e) = 2 w (x + e): mean 2 w x, mean square 4 w^2 (x^2 + sigma^2).
    torch.testing.assert_close(many().attribute(IMAGE, 0), 2 * W * IMAGE, atol=0.05, rtol=0)
    torch.testing.assert_close(many().attribute(IMAGE, 1), -2 * W * IMAGE, atol=0.05, rtol=0)
    squared = many(squared=True).attribute(IMAGE, 0)
    torch.testing.assert_close(squared, 4 * W.square() * (IMAGE.square() + 0.25), atol=0.02, rtol=0.05)
    torch.testing.assert_close(SmoothGrad(Squares(W), sigma=0, n_samples=1).attribute(IMAGE, 0), 2 * W * IMAGE)


def test_repeats_by_seed_and_leaves_the_generators_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    first, again, other = (SmoothGrad(Squares(W), seed=seed).attribute(IMAGE, 0) for seed in (0, 0, 1))
    after = torch.rand(2), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(after[0], torch.rand(2))
    assert after[1] == np.random.rand()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_passes_are_bounded() -> None:
    net = Squares(W)
    SmoothGrad(net, n_samples=11, internal_batch_size=4).attribute(IMAGE.repeat(3, 1, 1, 1), 0)
    assert sum(net.sizes) == 33
    assert max(net.sizes) == 4


def test_settings_and_smoothing() -> None:
    method = SmoothGrad(TwoStages(), squared=True, seed=4)
    assert own_settings(method) == {
        "sigma": 0.3,
        "n_samples": 50,
        "squared": True,
        "part": "magnitude",
        "seed": 4,
    }
    maps = torch.randn(2, 1, 50, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.evidence(maps, torch.zeros_like(maps)), smooth(maps.abs(), 0.02))


def test_unusable_settings_are_explained() -> None:
    for wrong in ({"sigma": -0.1}, {"n_samples": 0}, {"internal_batch_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            SmoothGrad(ByHand(), **wrong)  # type: ignore[arg-type]
