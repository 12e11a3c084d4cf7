from __future__ import annotations

from functools import partial

import pytest
import torch

from counterscan.errors import InputError
from counterscan.peers.gradient_shap import GradientSHAP
from tests.peers.tiny import IMAGE, ByHand, Squares, TwoStages, W, own_settings

pytest.importorskip("captum")


def test_a_linear_logit_by_hand() -> None:
    # S = 2 mean(x): every point of every line gives (x - b) * 2 / 4.
    still = partial(GradientSHAP, ByHand(), sigma=0.0, n_samples=7)
    torch.testing.assert_close(still().attribute(IMAGE, 0), (IMAGE + 1) / 2)
    torch.testing.assert_close(still(baseline="mean").attribute(IMAGE, 0), (IMAGE - 0.25) / 2)
    half = still(baseline=lambda x: x / 2)
    torch.testing.assert_close(half.attribute(IMAGE, 0), IMAGE / 4)


def test_means_over_the_line_the_noise_and_the_background() -> None:
    many = partial(GradientSHAP, Squares(W), n_samples=40_000, internal_batch_size=10_000)
    # Mean over a of 2 w (b + a d) d, d = x - b, is w (x^2 - b^2); with noise in x, w (x^2 + sigma^2 - b^2).
    torch.testing.assert_close(many(sigma=0.0).attribute(IMAGE, 0), W * (IMAGE.square() - 1), atol=0.1, rtol=0)
    noisy = many(sigma=0.5, baseline=lambda x: torch.zeros_like(x)).attribute(IMAGE, 0)
    torch.testing.assert_close(noisy, W * (IMAGE.square() + 0.25), atol=0.1, rtol=0)
    background = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    drawn = many(sigma=0.0, baseline=background).attribute(IMAGE, 0)
    torch.testing.assert_close(drawn, W * (IMAGE.square() - 0.75), atol=0.1, rtol=0)


def test_attributions_sum_to_the_change_of_the_logit() -> None:
    net = TwoStages().eval()
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    background = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    maps = GradientSHAP(net, baseline=background, sigma=0.0, n_samples=3000).attribute(images, 1)
    with torch.no_grad():
        change = net(images)[:, 1] - net(background)[:, 1].mean()
    torch.testing.assert_close(maps.sum((1, 2, 3)), change, atol=0.01, rtol=0.05)


def test_repeats_by_seed_and_passes_are_bounded() -> None:
    net = Squares(W)
    first, again, other = (
        GradientSHAP(net, n_samples=11, internal_batch_size=4, seed=s).attribute(IMAGE, 0) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sum(net.sizes) == 33
    assert max(net.sizes) == 4


def test_settings_and_unusable_ones() -> None:
    assert own_settings(GradientSHAP(ByHand(), baseline=torch.zeros(3, 1, 2, 2))) == {
        "baseline": "3 images",
        "sigma": 0.1,
        "n_samples": 50,
        "part": "positive",
        "seed": 0,
    }
    with pytest.raises(InputError, match="black, blur or mean"):
        GradientSHAP(ByHand(), baseline="white")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(B, 1, H, W\)"):
        GradientSHAP(ByHand(), baseline=torch.zeros(0, 1, 2, 2))
    with pytest.raises(InputError, match=r"background images are \(3, 3\)"):
        GradientSHAP(ByHand(), baseline=torch.zeros(2, 1, 3, 3)).attribute(IMAGE, 0)
    with pytest.raises(InputError, match="n_samples"):
        GradientSHAP(ByHand(), n_samples=0)
