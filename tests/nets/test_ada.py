from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from counterscan.errors import InputError
from counterscan.losses import r1_penalty
from counterscan.nets.ada import AdaptiveConfig, AdaptiveP, ViewConfig, ramped_p, random_views

NOTHING = ViewConfig(shift=0, scale=0, degrees=0, stretch=0, fraction=0, brightness=0, contrast=0)
EVERYTHING = ViewConfig(curve=0.1, noise=0.05, cutout=0.3)


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(side: int = 33, row: float = 20, column: float = 12) -> Tensor:
    """(1, 1, side, side) a smooth bump, not in the middle."""
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 18)[None, None]


def centre(image: Tensor) -> tuple[float, float]:
    return ndimage.center_of_mass(image[0].numpy())


def test_p_zero_is_the_identity() -> None:
    images = torch.randn(5, 1, 12, 16)
    assert random_views(images, 0.0, EVERYTHING) is images


@pytest.mark.parametrize("side", [(16, 16), (12, 20)])
def test_a_closed_gate_leaves_an_image_bit_for_bit(side: tuple[int, int]) -> None:
    images = torch.randn(400, 1, *side)
    views = random_views(images, 0.2, generator=dice())
    same = (views == images).flatten(1).all(dim=1).float().mean()
    # Seven gates of .2: shift, scale, rotation, stretch, fraction, brightness, contrast.
    assert float(same) == pytest.approx(0.8**7, abs=0.06)
    assert torch.equal(random_views(images, 1.0, NOTHING), images)


def test_whole_pixel_moves_copy_pixels_and_reflect_at_the_border() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(50, 1, 1, 1)
    views = random_views(images, 1.0, replace(NOTHING, shift=0.25), dice())
    padded = np.pad(images[0, 0].numpy(), 8, mode="symmetric")
    seen = set()
    for view in views[:, 0].numpy():
        errors = {
            (r, d): np.abs(view - padded[8 + d : 16 + d, 8 + r : 16 + r]).max()
            for r in range(-2, 3)
            for d in range(-2, 3)
        }
        best = min(errors, key=lambda key: errors[key])
        assert errors[best] < 1e-3
        seen.add(best)
    assert len(seen) > 10


def test_rotation_is_by_at_most_the_angle_and_keeps_distances() -> None:
    middle = 16.0
    images = blob().repeat(200, 1, 1, 1)
    row, column = centre(images[0])
    start, radius = math.atan2(row - middle, column - middle), math.hypot(row - middle, column - middle)
    angles = []
    for view in random_views(images, 1.0, replace(NOTHING, degrees=15.0), dice()):
        row, column = centre(view)
        assert math.hypot(row - middle, column - middle) == pytest.approx(radius, rel=0.02)
        angles.append(math.degrees(math.atan2(row - middle, column - middle) - start))
    assert max(map(abs, angles)) < 15.2
    assert max(angles) > 8
    assert min(angles) < -8


@pytest.mark.parametrize(("field", "width"), [("scale", 0.15), ("stretch", 0.1)])
def test_magnification_is_log_normal(field: str, width: float) -> None:
    images = blob(65, 40, 32).repeat(400, 1, 1, 1)  # on the middle column, 8 rows below the middle
    views = random_views(images, 1.0, replace(NOTHING, **{field: width}), dice())
    away = torch.tensor([centre(view)[0] - 32 for view in views]) / (centre(images[0])[0] - 32)
    assert float(away.log2().std()) == pytest.approx(width, rel=0.15)
    assert abs(float(away.log2().mean())) < 0.3 * width


def test_rotation_and_scale_keep_round_things_round_on_oblong_images() -> None:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(48.0), indexing="ij")
    images = torch.exp(-((y - 12) ** 2 + (x - 24) ** 2) / 8)[None, None].repeat(20, 1, 1, 1)
    for view in random_views(images, 1.0, replace(NOTHING, degrees=40.0), dice()):
        weight = view[0] / view.sum()
        spread = [float((weight * (axis - (weight * axis).sum()) ** 2).sum()) for axis in (y, x)]
        assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_exposure_is_the_formula() -> None:
    images = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).repeat(300, 1, 1, 1)
    flat = images[0].flatten()
    brighter = random_views(images, 1.0, replace(NOTHING, brightness=0.15), dice()) - images
    assert torch.allclose(brighter.flatten(1).std(dim=1), torch.zeros(300), atol=1e-6)
    assert float(brighter[:, 0, 0, 0].std()) == pytest.approx(0.15, rel=0.15)
    factor = random_views(images, 1.0, replace(NOTHING, contrast=0.3), dice()) / images
    assert torch.allclose(factor, factor[:, :, :1, :1], atol=1e-5)
    assert float(factor[:, 0, 0, 0].log2().std()) == pytest.approx(0.3, rel=0.15)
    bent = random_views(images, 1.0, replace(NOTHING, curve=0.4), dice()).flatten(1)
    assert torch.allclose(bent[:, [0, -1]], flat[[0, -1]].expand(300, 2))  # black and white stay
    assert bool((bent.diff(dim=1) > 0).all())  # and no order is lost
    noisy = random_views(torch.zeros(300, 1, 16, 16), 1.0, replace(NOTHING, noise=0.1), dice())
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.15)
    holes = random_views(torch.ones(300, 1, 16, 16), 1.0, replace(NOTHING, cutout=0.5), dice()) == 0
    assert int(holes.sum(dim=(1, 2, 3)).min()) >= 16  # a quarter of the square at a corner
    assert int(holes.sum(dim=(1, 2, 3)).max()) == 64


def test_nothing_is_mirrored_or_turned_over() -> None:
    """A chest with its heart on the right of the picture keeps it there, whatever is drawn."""
    images = blob(33, 22, 24).repeat(300, 1, 1, 1)
    views = random_views(images, 1.0, ViewConfig(brightness=0, contrast=0), dice())
    centres = torch.tensor([centre(view) for view in views])
    assert bool((centres[:, 1] > 15).all())
    assert bool((centres[:, 0] > 13).all())


def test_no_dark_border_moves_in() -> None:
    bright = torch.full((100, 1, 16, 16), 0.7)
    assert torch.allclose(random_views(bright, 1.0, ViewConfig(brightness=0, contrast=0), dice()), bright, atol=1e-5)


def test_it_can_be_differentiated_twice() -> None:
    images = torch.randn(2, 1, 5, 6, dtype=torch.double, requires_grad=True)

    def viewed(x: Tensor) -> Tensor:
        return random_views(x, 0.9, replace(EVERYTHING, noise=0.0), dice()).pow(3)

    assert gradcheck(viewed, images)
    assert gradgradcheck(viewed, images)


def test_r1_through_the_views_trains_the_critic() -> None:
    weight = torch.randn(1, 64, requires_grad=True)
    penalty = r1_penalty(
        lambda x: (random_views(x, 1.0, generator=dice()).flatten(1) * weight).sum(dim=1), torch.randn(4, 1, 8, 8)
    )
    (slope,) = torch.autograd.grad(penalty, weight)
    assert penalty > 0
    assert slope.abs().sum() > 0


def test_the_same_dice_give_the_same_views() -> None:
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(random_views(images, 0.5, EVERYTHING, dice(3)), random_views(images, 0.5, EVERYTHING, dice(3)))
    torch.manual_seed(1)
    first = random_views(images, 0.8)
    assert not torch.equal(first, random_views(images, 0.8))
    torch.manual_seed(1)
    assert torch.equal(first, random_views(images, 0.8))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: random_views(torch.zeros(2, 3, 8, 8), 0.5), "images"),
        (lambda: random_views(torch.zeros(2, 1, 8, 8), 1.5), "p"),
        (lambda: ViewConfig(scale=-1), "scale"),
        (lambda: ViewConfig(degrees=90), "degrees"),
        (lambda: AdaptiveConfig(target=1.0), "target"),
        (lambda: AdaptiveConfig(kimg=0), "kimg"),
        (lambda: AdaptiveConfig(interval=0), "interval"),
        (lambda: AdaptiveConfig(start=0.7), "ceiling"),
    ],
)
def test_bad_settings_are_named(call: object, field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        call()  # type: ignore[operator]


def test_p_follows_the_sign_of_the_answers() -> None:
    p = AdaptiveP(AdaptiveConfig(target=0.6, kimg=1.0, interval=2, ceiling=0.1))
    sure, unsure = torch.ones(10), torch.tensor([1.0] * 5 + [-1.0] * 5)
    assert p.update(sure) == 0
    assert math.isnan(p.r_t)
    assert p.update(sure) == pytest.approx(20 / 1000)  # two steps of 10 images
    assert p.r_t == 1
    p.update(sure)
    p.update(unsure)
    assert p.r_t == 0.5
    assert p.p == 0  # below the target, and back to the floor
    for _ in range(20):
        p.update(sure)
    assert p.p == 0.1
    mixed = torch.tensor([1.0] * 8 + [-1.0] * 2)
    p.update(mixed)
    assert p.update(mixed) == 0.1  # at the target it stands still
    assert p.r_t == pytest.approx(0.6)


def test_p_goes_on_where_it_was_saved() -> None:
    config = AdaptiveConfig(kimg=1.0, interval=3)
    whole, part = AdaptiveP(config), AdaptiveP(config)
    for step in range(8):
        logits = torch.sin(torch.arange(6.0) + step) + 0.4
        whole.update(logits)
        part.update(logits)
        again = AdaptiveP(config)
        again.load_state_dict(part.state_dict())
        part = again
    assert whole.state_dict() == part.state_dict()
    assert whole.state_dict()["r_t"] is not None


def test_p_counts_the_images_of_all_processes() -> None:
    def both(sums: Tensor) -> Tensor:
        """The other process saw as many images and was unsure of half."""
        return sums + torch.tensor([0.0, 8.0])

    p = AdaptiveP(AdaptiveConfig(kimg=1.0, interval=1, target=0.4))
    assert p.update(torch.ones(8), both) == pytest.approx(16 / 1000)
    assert p.r_t == 0.5


def test_the_ramp_rises_once() -> None:
    assert [ramped_p(share, 0.3) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 0.15, 0.3, 0.3])
