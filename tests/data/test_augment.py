from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from counterscan.data.augment import AugmentConfig, augment, shift_together
from counterscan.errors import InputError


def only(**options: float) -> AugmentConfig:
    return AugmentConfig(**{**vars(AugmentConfig.none()), **options})


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 64, height: int = 48, width: int = 48) -> Tensor:
    """A bright dot right of and above the centre, on padding."""
    images = torch.full((count, 1, height, width), -1.0)
    images[..., height // 4 - 2 : height // 4 + 2, 3 * width // 4 - 2 : 3 * width // 4 + 2] = 1.0
    return images


def centres(images: Tensor) -> Tensor:
    """(N, 2) centre of brightness, x then y, in pixels from the centre of the image."""
    light = (images[:, 0] + 1).clamp_min(0)
    y = torch.arange(light.shape[1]) + 0.5 - light.shape[1] / 2
    x = torch.arange(light.shape[2]) + 0.5 - light.shape[2] / 2
    mass = light.sum((1, 2))
    return torch.stack([(light.sum(1) * x).sum(1) / mass, (light.sum(2) * y).sum(1) / mass], dim=1)


def test_none_changes_nothing() -> None:
    images = torch.rand(3, 1, 9, 12) * 2 - 1
    seen, masks = augment(images, None, AugmentConfig.none())
    assert torch.equal(seen, images + 1 - 1)
    assert masks is None


def test_flip_is_exact_and_as_frequent_as_asked() -> None:
    images = torch.rand(400, 1, 8, 6) * 2 - 1
    seen, _ = augment(images, dice(), only(flip=0.3))
    flipped = (seen - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    kept = (seen - images).abs().amax((1, 2, 3)) < 1e-5
    assert (flipped | kept).all()
    assert 0.2 < flipped.float().mean() < 0.4
    always, _ = augment(images, dice(), only(flip=1.0))
    assert torch.allclose(always, images.flip(-1), atol=1e-5)


def test_without_flip_sides_stay() -> None:
    seen, _ = augment(blobs(), dice(), AugmentConfig(flip=0.0, noise=0.0))
    assert (centres(seen)[:, 0] > 0).all()


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96), (96, 48)])
def test_rotation_turns_about_the_centre_whatever_the_shape(height: int, width: int) -> None:
    images = torch.full((64, 1, height, width), -1.0)
    x, y = width // 2 + 14, height // 2 - 6
    images[..., y - 2 : y + 2, x - 2 : x + 2] = 1.0
    seen, _ = augment(images, dice(), only(degrees=30.0))
    before, after = centres(images), centres(seen)
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), atol=0.3)
    turned = torch.atan2(after[:, 1], after[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    assert turned.abs().max() <= math.radians(30) + 0.02
    assert turned.min() < -math.radians(15)
    assert turned.max() > math.radians(15)


def test_scale_and_shift_are_as_large_as_asked() -> None:
    images = blobs(200, 48, 96)
    scaled, _ = augment(images, dice(), only(scale=0.2))
    ratio = centres(scaled).norm(dim=1) / centres(images).norm(dim=1)
    assert math.exp(-0.2) - 0.02 < ratio.min() < 0.87
    assert 1.15 < ratio.max() < math.exp(0.2) + 0.02
    shifted, _ = augment(images, dice(), only(shift=0.05))
    moved = (centres(shifted) - centres(images)).abs()
    assert moved.max() <= 0.05 * 96 + 0.1
    assert (moved.amax(0) > 0.04 * 96).all()  # pixels, along both axes


def test_what_moves_in_is_padding() -> None:
    images = torch.full((32, 1, 16, 16), 0.8)
    seen, _ = augment(images, dice(), only(shift=0.3))
    assert seen.min() == pytest.approx(-1.0, abs=1e-6)
    assert seen.max() <= 0.8 + 1e-6


def test_masks_move_with_the_images() -> None:
    images = blobs()
    masks = torch.cat([images > 0, torch.zeros_like(images, dtype=torch.bool)], dim=1)
    seen, moved = augment(images, dice(), AugmentConfig(noise=0.0, bias=0.0, gain=0.0), masks=masks)
    assert moved is not None
    assert moved.dtype == torch.bool
    assert moved.shape == masks.shape
    assert torch.equal(moved[:, :1], seen > 0)
    assert not moved[:, 1].any()


def test_gain_and_bias_leave_padding_alone() -> None:
    images = torch.full((200, 1, 4, 4), -1.0)
    images[..., 2:] = 0.0
    gained, _ = augment(images, dice(), only(gain=0.1))
    light = gained[..., 3, 3] + 1
    assert (gained[..., :2] == -1).all()
    assert math.exp(-0.1) <= light.min() < 0.93
    assert 1.07 < light.max() <= math.exp(0.1)
    brightened, _ = augment(images, dice(), only(bias=0.06))
    assert (brightened[..., :2] == -1).all()
    assert 0.05 < brightened[..., 2:].abs().max() <= 0.06
    assert (brightened[..., 2:].std((1, 2, 3)) < 1e-6).all()


def test_noise_differs_in_strength_between_images() -> None:
    seen, _ = augment(torch.zeros(200, 1, 24, 24), dice(), only(noise=0.1))
    sigma = seen.std((1, 2, 3))
    assert sigma.max() < 0.11
    assert sigma.min() < 0.01
    assert sigma.mean() == pytest.approx(0.05, abs=0.01)


def test_erasing_takes_one_small_rectangle() -> None:
    images = torch.full((200, 1, 40, 40), 5.0)
    seen, _ = augment(images, dice(), only(erase=0.5))
    gone = (seen != 5.0)[:, 0]
    some = gone.any(2).any(1)
    share = gone[some].float().mean((1, 2))
    assert 0.35 < some.float().mean() < 0.65
    assert share.min() > 0.01
    assert share.max() < 0.15
    rectangle = gone.any(2)[:, :, None] & gone.any(1)[:, None, :]
    assert torch.equal(rectangle, gone)


def test_same_seed_same_view() -> None:
    images = torch.rand(8, 1, 16, 16)
    first, second, other = (augment(images, dice(seed), AugmentConfig.strong())[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_input_is_left_as_it_was_and_nothing_is_fine() -> None:
    images = torch.rand(4, 1, 16, 16)
    before = images.clone()
    augment(images, dice(), AugmentConfig.strong())
    assert torch.equal(images, before)
    assert augment(images[:0], None, AugmentConfig())[0].shape == (0, 1, 16, 16)


def test_bad_settings_and_shapes_are_named() -> None:
    for options, field in (({"flip": 1.5}, "flip"), ({"degrees": -1.0}, "degrees"), ({"noise": math.nan}, "noise")):
        with pytest.raises(InputError) as caught:
            AugmentConfig(**options)
        assert caught.value.field == field
    with pytest.raises(ValueError, match="images"):
        augment(torch.zeros(2, 3, 8, 8), None, AugmentConfig())
    with pytest.raises(ValueError, match="masks"):
        augment(torch.zeros(2, 1, 8, 8), None, AugmentConfig(), masks=torch.zeros(2, 1, 8, 9, dtype=torch.bool))


def test_a_batch_is_shifted_together_and_repeatably() -> None:
    x = torch.rand(3, 1, 32, 32)
    moved, again = (shift_together(x, 0.1, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(moved, again)
    fits = [
        (down, right)
        for down in range(-3, 4)
        for right in range(-3, 4)
        if torch.equal(moved, torch.roll(x, (down, right), dims=(-2, -1)))
    ]
    assert len(fits) == 1
    assert shift_together(x, 0.0) is x
