from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterscan.errors import InputError
from counterscan.metrics.validity import psnr
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.inversion import (
    Likeness,
    LikenessConfig,
    RefineConfig,
    noise_penalty,
    own_noise,
    refine,
    render,
)
from tests.tbsmgan.lively import lively_gan


@pytest.fixture(scope="module")
def gan() -> StyleGAN:
    return lively_gan()


def mean_ws(gan: StyleGAN, count: int) -> Tensor:
    return gan.generator.w_avg.expand(count, gan.generator.num_ws, -1)


def quality(gan: StyleGAN, x: Tensor, ws: Tensor) -> float:
    return float(psnr(x, render(gan.generator, ws).clamp(-1, 1)).mean())


class Edges(nn.Module):
    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x - 1], dim=1)


def test_the_distance_is_what_it_says() -> None:
    a = torch.zeros(2, 1, 16, 16)
    b = a.clone()
    b[1, 0, 0, 0] = 0.5
    full, half = 0.5 / 256, 0.125 / 64  # mean |d| at 16 and at 8 px
    expected = torch.tensor([0.0, 2.0 * 0.25 / 256 + 3.0 * (full + half) / 2])
    torch.testing.assert_close(Likeness(LikenessConfig(pixel=2.0, scales=3.0))(a, b), expected)


def test_features_are_compared_as_directions() -> None:
    a, b = torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 8, 8), 0.0)  # features (1, 0) and (0, -1)
    only = LikenessConfig(pixel=1e-9, scales=0.0, features=1.0)
    likeness = Likeness(only, Edges())
    torch.testing.assert_close(likeness(a, b), torch.tensor([2.0]))
    torch.testing.assert_close(likeness(a, b, likeness.features(b)), torch.tensor([2.0]))
    assert float(Likeness(only)(a, a)) == 0


def test_white_noise_is_left_alone_and_structure_is_not() -> None:
    dice = torch.Generator().manual_seed(0)
    white = torch.randn(200, 32, 32, generator=dice)
    expected = 2 * (1 / 32**2 + 1 / 16**2 + 1 / 8**2)  # variance of each mean of products
    assert float(noise_penalty(white).mean()) == pytest.approx(expected, rel=0.25)
    smooth = F.avg_pool2d(white[:, None], 3, 1, 1)[:, 0] * 3
    assert float(noise_penalty(smooth).min()) > 10 * expected
    stripes = torch.ones(1, 8, 8)
    stripes[:, ::2] = -1  # right neighbours agree, those below do not
    assert float(noise_penalty(stripes)) == pytest.approx(2.0)


def test_a_sample_is_found_again_from_the_mean_w(gan: StyleGAN) -> None:
    x = gan.sample(3, psi=0.7, seed=2)
    start = mean_ws(gan, 3)
    before = quality(gan, x, start)
    likeness = Likeness(LikenessConfig(features=0.0))
    found = refine(gan, x, start, RefineConfig(steps=150, prior=0.0), likeness)
    assert not found.noises
    assert not found.ws.requires_grad
    assert quality(gan, x, found.ws) > before + 10
    few = refine(gan, x, start, RefineConfig(steps=10, prior=0.0), likeness)
    assert before < quality(gan, x, few.ws) < quality(gan, x, found.ws)


def test_images_do_not_mix(gan: StyleGAN) -> None:
    x, config = gan.sample(3, psi=1.0, seed=3), RefineConfig(steps=8, noise=True)
    together = refine(gan, x, mean_ws(gan, 3), config)
    alone = refine(gan, x[1:2], mean_ws(gan, 1), config)
    torch.testing.assert_close(together.ws[1:2], alone.ws, atol=1e-3, rtol=1e-3)


def test_no_steps_leave_the_start_and_a_strong_prior_stays_near_it(gan: StyleGAN) -> None:
    x, start = gan.sample(2, psi=1.0, seed=4), mean_ws(gan, 2)
    assert torch.equal(refine(gan, x, start, RefineConfig(steps=0)).ws, start)
    free, held = (refine(gan, x, start, RefineConfig(steps=40, prior=p)).ws for p in (0.0, 100.0))
    assert (held - start).square().mean() < 0.05 * (free - start).square().mean()


def test_noise_maps_are_found_and_stay_white(gan: StyleGAN) -> None:
    ws = gan.map(torch.randn(2, 8, generator=torch.Generator().manual_seed(7)), torch.eye(2))
    drawn = {
        name: torch.randn(2, *maps.shape, generator=torch.Generator().manual_seed(9))
        for name, maps in own_noise(gan.generator).items()
    }
    x = render(gan.generator, ws, drawn)
    x = x / x.abs().max()
    without, found = (refine(gan, x, ws, RefineConfig(steps=60, noise=noise)) for noise in (False, True))
    assert set(found.noises) == set(drawn)
    again = render(gan.generator, found.ws, found.noises).clamp(-1, 1)
    assert float(psnr(x, again).mean()) > quality(gan, x, without.ws) + 1
    for maps in found.noises.values():
        assert float(maps.mean(dim=(1, 2)).abs().max()) < 1e-4
        torch.testing.assert_close(maps.square().mean(dim=(1, 2)), torch.ones(2), atol=1e-3, rtol=0)


def test_noise_of_its_own_is_what_is_rendered(gan: StyleGAN) -> None:
    ws = mean_ws(gan, 2)
    same = {name: maps.expand(2, -1, -1) for name, maps in own_noise(gan.generator).items()}
    with torch.no_grad():
        torch.testing.assert_close(render(gan.generator, ws, same), gan.synthesize(ws))
        silent = {name: torch.zeros_like(maps) for name, maps in same.items()}
        torch.testing.assert_close(render(gan.generator, ws, silent), gan.synthesize(ws, noise="none"))
    with pytest.raises(InputError, match="noise map"):
        render(gan.generator, ws, {"convs.0.0.noise_const": torch.zeros(2, 3, 3)})


def test_features_are_taken_into_account(gan: StyleGAN) -> None:
    x, start = gan.sample(2, psi=1.0, seed=6), mean_ws(gan, 2)
    plain, seen = (
        refine(gan, x, start, RefineConfig(steps=30), Likeness(LikenessConfig(features=w), Edges())).ws
        for w in (0.0, 5.0)
    )
    unlike = Likeness(LikenessConfig(pixel=1e-9, scales=0.0, features=1.0), Edges())
    assert float(unlike(render(gan.generator, seen), x).mean()) < float(unlike(render(gan.generator, plain), x).mean())


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 1, 8, 8), "expected images"),
        (torch.zeros(0, 1, 16, 16), "expected images"),
        (torch.full((2, 1, 16, 16), np.nan), "finite"),
        (torch.full((2, 1, 16, 16), 255.0), r"\[-1, 1\]"),
    ],
)
def test_images_that_cannot_be_inverted_are_refused(gan: StyleGAN, images: Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        refine(gan, images, mean_ws(gan, len(images)))


def test_wrong_settings_are_refused(gan: StyleGAN) -> None:
    with pytest.raises(InputError, match="expected ws"):
        refine(gan, torch.zeros(2, 1, 16, 16), mean_ws(gan, 3))
    for settings in ({"steps": -1}, {"rate": 0.0}, {"prior": -1.0}, {"noise_penalty": float("nan")}):
        with pytest.raises(InputError, match=next(iter(settings))):
            RefineConfig(**settings)
    with pytest.raises(InputError, match="pixel"):
        LikenessConfig(pixel=0.0, scales=0.0)
    with pytest.raises(InputError, match="features"):
        Likeness(classifier=nn.Identity())
