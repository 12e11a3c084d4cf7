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
