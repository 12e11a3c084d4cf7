"""Counterfactual figures by hand, and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch

from counterscan.metrics import counterfactual as cf


@pytest.fixture
def square():
    truth = torch.zeros(2, 1, 24, 24, dtype=torch.bool)
    truth[:, :, 8:14, 8:14] = True
    return truth


def test_magnitudes():
    delta = torch.zeros(4, 1, 2, 2)
    delta[0] = -0.1
    delta[2:] = 0.5
    magnitude = cf.mean_magnitude(delta)
    torch.testing.assert_close(magnitude, torch.tensor([0.1, 0, 0.5, 0.5], dtype=torch.float64))
    found = cf.healthy_and_diseased(magnitude, torch.tensor([False, False, True, True]))
    assert (found.healthy, found.diseased, found.ratio) == pytest.approx((0.05, 0.5, 10))
    assert cf.healthy_and_diseased(magnitude[1:], torch.tensor([False, True, True])).ratio == math.inf
    assert math.isnan(cf.healthy_and_diseased(magnitude, torch.ones(4, dtype=torch.bool)).ratio)
    valid = torch.tensor([[1, 0], [0, 0]]).bool().expand(4, 1, 2, 2)
    delta[0, 0, 0, 0] = 0
    assert cf.mean_magnitude(delta, valid)[0] == 0


def test_healed_counts_only_what_was_called_diseased():
    before, after = torch.tensor([0.9, 0.8, 0.5, 0.2]), torch.tensor([0.1, 0.7, 0.49, 0.0])
    assert cf.healed(before, after, 0.5).nan_to_num(-1).tolist() == [1, 0, 1, -1]
    assert cf.healed_rate(before, after, 0.5) == pytest.approx(2 / 3)
    assert math.isnan(cf.healed_rate(before, after, 0.95))


def test_change_outside(square):
    delta = torch.where(square, 1.0, -0.25)
    assert cf.change_outside(delta, square).tolist() == [0.25, 0.25]
    assert cf.change_outside(delta, torch.zeros_like(square))[0] == pytest.approx(0.25 + 0.75 * 36 / 576)
    assert cf.change_outside(delta, torch.ones_like(square)).isnan().all()


def test_twin_error(square):
    twin = torch.zeros(2, 1, 24, 24)
    image = torch.where(square, 0.8, 0.0)
    half = torch.where(square, 0.4, 0.1)
    error = cf.twin_error(half, twin, image, square)
    assert error.inside[0] == pytest.approx(0.4)
    assert error.outside[0] == pytest.approx(0.1)
    assert error.inside_relative[0] == pytest.approx(0.5)
    assert error.outside_relative[0] == pytest.approx(0.125)
    assert error.remaining[0] == pytest.approx((36 * 0.4 + 540 * 0.1) / (36 * 0.8))
    perfect, idle = cf.twin_error(twin, twin, image, square), cf.twin_error(image, twin, image, square)
    assert perfect.remaining[0] == perfect.inside_relative[0] == 0
    assert idle.remaining[0] == idle.inside_relative[0] == 1
    assert idle.outside[0] == 0


def test_psnr_outside_sees_only_the_outside(square):
    image = torch.zeros(2, 1, 24, 24)
    counterpart = torch.where(square, 1.0, 0.02)
    assert cf.psnr_outside(image, counterpart, square)[0] == pytest.approx(20 * math.log10(2 / 0.02), abs=1e-4)
    assert cf.psnr_outside(image, torch.where(square, 1.0, 0.0), square)[0] == math.inf


def test_psnr_and_ssim_equal_torchmetrics_without_a_lesion():
    functional = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 40, 40, generator=generator, dtype=torch.float64) * 2 - 1
    other = (image + 0.2 * torch.randn(image.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    nothing = torch.zeros(image.shape, dtype=torch.bool)
    expected = functional.peak_signal_noise_ratio(image, other, data_range=2.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(cf.psnr_outside(image, other, nothing), expected.double())
    # Compare where no window reaches the border, which the two treat differently.
    centre = torch.zeros_like(nothing)
    centre[:, :, 5:-5, 5:-5] = True
    _, full = functional.structural_similarity_index_measure(
        image, other, data_range=2.0, sigma=1.5, kernel_size=11, return_full_image=True
    )
    ours = cf.ssim_map(image, other, ~nothing)
    torch.testing.assert_close(ours[centre], full[centre], atol=1e-6, rtol=0)


def test_ssim_outside_ignores_the_lesion(square):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 1, 24, 24, generator=generator) * 2 - 1
    healed = torch.where(square, torch.rand(image.shape, generator=generator), image)
    assert cf.ssim_outside(image, healed, square).tolist() == pytest.approx([1, 1])
    assert (cf.ssim_outside(image, healed, torch.zeros_like(square)) < 0.99).all()
    assert cf.ssim_outside(image, healed, torch.ones_like(square)).isnan().all()
