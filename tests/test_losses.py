from __future__ import annotations

import math

import pytest
import torch

from counterscan import losses


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert losses.hinge_critic(real, fake).item() == pytest.approx(0.25 + 0.5)
    assert losses.hinge_generator(fake).item() == 1.0


def test_absence_is_the_log_loss_of_the_negative_label() -> None:
    assert losses.absence(torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert losses.absence(torch.tensor([-20.0])).item() == pytest.approx(0, abs=1e-6)


def test_unchanged_is_zero_where_nothing_changed_and_ignores_the_edited_finding() -> None:
    before = torch.tensor([[1.0, -2.0]])
    weight = torch.tensor([[0.0, 1.0]])
    assert losses.unchanged(before, before, weight).item() == pytest.approx(0, abs=1e-6)
    assert losses.unchanged(torch.tensor([[9.0, -2.0]]), before, weight).item() == pytest.approx(0, abs=1e-6)
    assert losses.unchanged(torch.tensor([[1.0, 2.0]]), before, weight).item() > 1


def test_unchanged_sends_no_gradient_to_the_image_as_it_was() -> None:
    before = torch.zeros(1, 1, requires_grad=True)
    after = torch.ones(1, 1, requires_grad=True)
    losses.unchanged(after, before, torch.ones(1, 1)).backward()
    assert before.grad is None
    assert after.grad is not None


def test_magnitude_counts_both_signs() -> None:
    maps = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    assert losses.magnitude(maps).item() == 1.0


def test_logistic() -> None:
    real, fake = torch.tensor([0.0, 20.0]), torch.tensor([0.0, -20.0])
    assert losses.logistic_critic(real, fake).item() == pytest.approx(math.log(2))
    assert losses.logistic_generator(torch.zeros(2)).item() == pytest.approx(math.log(2))
    assert losses.logistic_generator(torch.tensor([20.0])).item() == pytest.approx(0, abs=1e-6)


def test_r1_is_the_squared_gradient_and_can_be_differentiated() -> None:
    weight = torch.nn.Parameter(torch.tensor(3.0))
    images = torch.rand(2, 1, 4, 5)
    penalty = losses.r1_penalty(lambda x: weight * x.sum(dim=(1, 2, 3)), images)
    assert penalty.item() == pytest.approx(20 * 9)  # 20 pixels, slope 3 each
    penalty.backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(20 * 2 * 3)
    squares = losses.r1_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, images)
    assert squares.item() == pytest.approx(float(images.square().sum(dim=(1, 2, 3)).mean()), rel=1e-5)


def test_total_variation_adds_both_directions() -> None:
    steps = torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 1.0, 3.0]]]])
    down, right = (0 + 0 + 2) / 3, (1 + 0 + 1 + 2) / 4
    assert losses.total_variation(steps).item() == pytest.approx(down + right)
    assert losses.total_variation(torch.ones(1, 1, 3, 3)).item() == 0


def test_gradient_difference_ignores_a_constant() -> None:
    image = torch.rand(1, 1, 6, 6)
    assert losses.gradient_difference(image, image + 0.5).item() == pytest.approx(0, abs=1e-6)
    assert losses.gradient_difference(image, -image).item() == pytest.approx(2 * float(losses.total_variation(image)))
