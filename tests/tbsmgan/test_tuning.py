from __future__ import annotations

import math

import pytest
import torch

from counterscan.errors import InputError
from counterscan.metrics.validity import psnr
from counterscan.tbsmgan import StyleGAN
from counterscan.tbsmgan.inversion import Latents, render
from counterscan.tbsmgan.tuning import TuneConfig, _near, tune
from tests.tbsmgan.lively import lively_gan

QUICK = TuneConfig(steps=60, rate=2e-3)


@pytest.fixture(scope="module")
def gan() -> StyleGAN:
    return lively_gan()


def pivots(gan: StyleGAN, count: int = 4) -> tuple[torch.Tensor, Latents]:
    """Images that the generator cannot make, and the mean w."""
    x = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1) * 0.5
    return x, Latents(gan.generator.w_avg.expand(count, gan.generator.num_ws, -1), {})


def shown(gan: StyleGAN, latents: Latents) -> torch.Tensor:
    with torch.no_grad():
        return render(gan.generator, latents.ws).clamp(-1, 1)


def test_a_copy_learns_its_pivot_and_the_generator_stays(gan: StyleGAN) -> None:
    before = {name: t.clone() for name, t in gan.generator.state_dict().items()}
    x, latents = pivots(gan, 1)
    tuned = tune(gan, x, latents, QUICK)
    assert float(psnr(x, shown(tuned, latents)).mean()) > float(psnr(x, shown(gan, latents)).mean()) + 3
    for name, tensor in gan.generator.state_dict().items():
        assert torch.equal(tensor, before[name])
    z, c = torch.randn(2, 8), torch.eye(2)
    assert torch.equal(tuned.map(z, c), gan.map(z, c))  # the space of w is the same
    assert tuned.checkpoint != gan.checkpoint
    assert not any(p.requires_grad for p in tuned.generator.parameters())


def test_locality_keeps_other_images_as_they_were(gan: StyleGAN) -> None:
    x, latents = pivots(gan, 2)
    other = gan.map(torch.randn(16, 8, generator=torch.Generator().manual_seed(3)), torch.eye(2).repeat(8, 1))
    moved = []
    for locality in (0.0, 3.0):
        tuned = tune(gan, x, latents, TuneConfig(steps=60, rate=2e-3, locality=locality))
        moved.append(float((tuned.synthesize(other) - gan.synthesize(other)).abs().mean()))
    assert moved[1] < 0.7 * moved[0]


def test_places_near_a_pivot_lie_as_far_away_as_asked(gan: StyleGAN) -> None:
    ws = pivots(gan)[1].ws
    near = _near(gan, ws, 0.5, torch.Generator().manual_seed(0))
    usual = float(gan.generator.w_sd.norm()) * math.sqrt(gan.generator.num_ws)
    torch.testing.assert_close((near - ws).flatten(1).norm(dim=1), torch.full((4,), 0.5 * usual))


def test_it_ends_when_it_is_good_enough(gan: StyleGAN) -> None:
    x, latents = pivots(gan, 1)
    one, many = (tune(gan, x, latents, TuneConfig(steps=n, rate=2e-3, enough=0.0)) for n in (1, 50))
    torch.testing.assert_close(shown(one, latents), shown(many, latents))


def test_the_copy_knows_whom_it_learned_from(gan: StyleGAN) -> None:
    x, latents = pivots(gan)
    quick = TuneConfig(steps=1)
    named = tune(gan, x, latents, quick, patients=["new", "new", "p000001", "other"])
    assert named.patients.among(["new", "other", "p000000", "nobody"]) == ["new", "other", "p000000"]
    with pytest.raises(InputError, match="nothing is known"):
        tune(gan, x, latents, quick).refuse_patients(["nobody"])


def test_wrong_input_is_refused(gan: StyleGAN) -> None:
    x, latents = pivots(gan)
    with pytest.raises(InputError, match="latents"):
        tune(gan, x[:3], latents)
    with pytest.raises(InputError, match="latents"):
        tune(gan, x, latents, patients=["one"])
    for settings in ({"steps": 0}, {"rate": 0.0}, {"reach": -1.0}, {"locality": -1.0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            TuneConfig(**settings)
