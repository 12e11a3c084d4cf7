"""Validity and path figures by hand; similarity against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch

from counterscan.errors import InputError
from counterscan.metrics import validity as v

NAN = float("nan")


def listed(x):
    assert x.dtype == torch.float64
    return x.nan_to_num(-1).tolist()


def test_flipped_counts_the_starting_side_only():
    before, after = torch.tensor([0.9, 0.5, 0.6, 0.2, 0.1]), torch.tensor([0.4, 0.5, NAN, 0.8, 0.3])
    assert listed(v.flipped(before, after)) == [1, 0, 0, -1, -1]
    assert listed(v.flipped(before, after, direction="add")) == [-1, -1, -1, 1, 0]
    assert listed(v.flipped(before, after, 0.25, "add")) == [-1, -1, -1, 1, 1]
    assert listed(v.flipped(torch.tensor([NAN]), torch.tensor([0.1]))) == [-1]


def test_counterfactual_validity():
    before = torch.tensor([0.95, 0.9, 0.85, 0.5, 0.1, 0.1, 0.8, 0.99])
    after = torch.tensor([0.10, 0.15, 0.04, 0.0, 0.95, 0.85, 0.0, NAN])
    assert listed(v.counterfactual_validity(before, after)) == [1, 0, 1, -1, 1, 0, -1, 0]
    assert listed(v.counterfactual_validity(before, after, tau=0.5)) == [1, 1, 1, -1, 1, 1, 1, 0]


def test_target_error():
    after = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert v.target_error(after, 0.0).tolist() == pytest.approx([0.1, 0.9])
    assert v.target_error(after, torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.1, 0.1])


def test_l1_and_l0():
    delta = torch.tensor([[[[0.0, -0.4], [0.1, 0.3]]]])
    valid = torch.tensor([[[[True, True], [True, False]]]])
    assert v.l1(delta).item() == pytest.approx(0.2)
    assert v.l1(delta, valid).item() == pytest.approx(0.5 / 3)
    assert v.l0(delta).item() == 0.5  # 0.1 is not more than 0.1
    assert v.l0(delta, 0.05).item() == 0.75
    assert v.l0(delta, valid=valid).item() == pytest.approx(1 / 3)
    assert v.l0(torch.where(valid, 0.0, NAN), valid=valid).item() == 0


def test_ssim_and_psnr():
    functional = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    other = (image + 0.3 * torch.randn(image.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    expected = functional.peak_signal_noise_ratio(image, other, data_range=2.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(v.psnr(image, other), expected)
    assert v.psnr(image, image).tolist() == [math.inf, math.inf]
    assert v.psnr(torch.zeros_like(image), torch.full_like(image, 0.02))[0] == pytest.approx(40)
    similar = functional.structural_similarity_index_measure(
        image, other, data_range=2.0, sigma=1.5, kernel_size=11, reduction="none"
    )
    # Only the border is treated differently.
    torch.testing.assert_close(v.ssim(image, other), similar.double(), atol=0.03, rtol=0)
    assert v.ssim(image, image).tolist() == pytest.approx([1, 1])
    half = torch.zeros(image.shape, dtype=torch.bool)
    half[..., :16] = True
    spoilt = torch.where(half, image, -image)
    assert v.ssim(image, spoilt, half).tolist() == pytest.approx([1, 1])
    assert v.psnr(image, spoilt, half)[0] == math.inf


def test_monotonicity():
    outputs = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 1.0, 0.5], [3.0, 2.0, 1.0, 0.0], [0.0, NAN, 1.0, 2.0]])
    assert listed(v.monotonicity(outputs)) == pytest.approx([1, 1 / 3, 0, -1])
    assert listed(v.monotonicity(outputs, "remove")) == pytest.approx([0, 1 / 3, 1, -1])


def test_calibration_along_path():
    outputs = torch.tensor([[0.0, 0.5, 1.0], [0.3, 0.5, 0.4]])
    targets = torch.tensor([0.0, 0.5, 1.0])
    assert v.calibration_along_path(outputs, targets).tolist() == pytest.approx([0, 0.3])
    assert v.calibration_along_path(outputs, outputs).tolist() == [0, 0]


def test_cout_by_hand():
    image = torch.tensor([[[[1.0, 0.6], [0.0, 0.0]]]])
    healthy = torch.zeros_like(image)

    def present(x):
        return (x[:, 0, 0, 0] > 0.5).double()

    # The largest change comes first and decides: P(finding) is 1, 0, 0, 0, 0 on the way, area 1/8.
    assert v.cout(present, image, healthy, steps=4).item() == pytest.approx(1 - 2 / 8)
    assert v.cout(present, image, healthy, steps=2).item() == pytest.approx(1 - 2 / 4)
    assert v.cout(present, healthy, image, "add", steps=4).item() == pytest.approx(1 - 2 / 8)
    # The second pixel decides: 1, 1, 0, 0, 0.
    assert v.cout(lambda x: (x[:, 0, 0, 1] > 0.5).double(), image, healthy, steps=4).item() == pytest.approx(1 - 6 / 8)
    assert v.cout(lambda x: torch.ones(len(x)), image, healthy).item() == pytest.approx(-1)
    assert v.cout(lambda x: torch.full((len(x),), 0.5), image, healthy).item() == pytest.approx(0)


def test_bad_input_names_the_field():
    one, image = torch.ones(2), torch.zeros(1, 1, 4, 4)
    calls = {
        "before, after": lambda: v.flipped(one, torch.ones(3)),
        "direction": lambda: v.flipped(one, one, direction="up"),
        "tau": lambda: v.counterfactual_validity(one, one, tau=1.0),
        "after: probabilities": lambda: v.counterfactual_validity(one, 2 * one),
        "after, target": lambda: v.target_error(one, torch.ones(3)),
        "delta": lambda: v.l0(torch.zeros(4, 4)),
        "counterpart": lambda: v.ssim(image, image[..., :3]),
        "outputs": lambda: v.monotonicity(torch.zeros(3, 1)),
        "outputs, targets": lambda: v.calibration_along_path(torch.zeros(3, 4), torch.zeros(3)),
        "probability": lambda: v.cout(lambda x: 3 + x.mean((1, 2, 3)), image, image),
    }
    for field, call in calls.items():
        with pytest.raises(InputError, match=field):
            call()
