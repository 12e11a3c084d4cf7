from __future__ import annotations

import pytest
import torch
from torch import Tensor

from counterscan.medxgan import (
    displacement_integrated_gradients,
    gradients_of,
    path_integrated_gradients,
    straight_path,
)
from tests.medxgan.ladders import Curved


def curved(x: Tensor) -> Tensor:
    net = Curved()
    return net(x)[:, 0]


def bent_path(steps: int) -> Tensor:
    """From 0 to 1 in every pixel, on different ways."""
    generator = torch.Generator().manual_seed(3)
    speed = torch.rand(2, 1, 16, 16, generator=generator) * 3 + 0.3
    t = torch.linspace(0, 1, steps + 1).view(-1, 1, 1, 1, 1)
    return t**speed - 0.5


@pytest.mark.parametrize(("steps", "gap"), [(10, 0.03), (50, 0.003)])
def test_the_path_form_is_complete(steps: int, gap: float) -> None:
    path = bent_path(steps)
    rise = curved(path[-1]) - curved(path[0])
    total = path_integrated_gradients(path, curved).flatten(1).sum(dim=1)
    assert ((total - rise).abs() / rise.abs()).max() < gap


def test_the_published_form_is_not_on_a_bent_path_and_is_on_a_straight_one() -> None:
    bent = bent_path(50)
    rise = curved(bent[-1]) - curved(bent[0])
    published = displacement_integrated_gradients(bent, curved).flatten(1).sum(dim=1)
    ours = path_integrated_gradients(bent, curved).flatten(1).sum(dim=1)
    assert (published - rise).abs().min() > 5 * (ours - rise).abs().max()
    straight = straight_path(bent[0], bent[-1], 200)
    both = [m(straight, curved) for m in (path_integrated_gradients, displacement_integrated_gradients)]
    torch.testing.assert_close(both[0], both[1], atol=2e-3, rtol=0.05)


def test_by_hand_for_a_product() -> None:
    # F = x0 x1 on the way (t, t^2): dF = x1 dx0 + x0 dx1, integrals 1/3 and 2/3.
    t = torch.linspace(0, 1, 201)
    path = torch.stack([t, t**2], dim=1).view(-1, 1, 1, 1, 2)
    found = path_integrated_gradients(path, lambda x: x[:, 0, 0, 0] * x[:, 0, 0, 1])
    torch.testing.assert_close(found.flatten(), torch.tensor([1 / 3, 2 / 3]), atol=1e-4, rtol=0)


def test_steps_are_cut_where_the_sum_misses_and_nowhere_else() -> None:
    def kinked(x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.13).clamp_min(0).sum(dim=1)

    ends = torch.zeros(2, 1, 4, 4)
    ends[0], ends[1, :, 0] = 1.0, 0.1  # the second stays below the kink
    path = straight_path(torch.zeros_like(ends), ends, 4)
    once = path_integrated_gradients(path, kinked)
    found = path_integrated_gradients(path, kinked, tolerance=0.01)
    rise = kinked(path[-1]) - kinked(path[0])
    assert (once.flatten(1).sum(dim=1) - rise)[0].abs() > 0.02 * rise[0]
    assert (found.flatten(1).sum(dim=1) - rise)[0].abs() < 0.01 * rise[0]
    assert torch.equal(found[1], once[1])


def test_only_the_steps_that_are_wrong_are_asked_again() -> None:
    asked: list[int] = []

    def kinked(x: Tensor) -> Tensor:
        if x.requires_grad:
            asked.append(len(x))
        return (x.flatten(1) - 0.36).clamp_min(0).sum(dim=1)

    path = straight_path(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), 4)
    found = path_integrated_gradients(path, kinked, tolerance=0.01)
    assert asked == [4, 2, 6]  # four middles, then two and six more of the second step, where the kink is
    ninths = straight_path(path[1], path[2], 9)
    by_hand = path_integrated_gradients(ninths, kinked) + path_integrated_gradients(path[2:], kinked)
    torch.testing.assert_close(found, by_hand)


def test_a_path_that_stands_still_explains_nothing() -> None:
    path = torch.rand(1, 2, 1, 16, 16).expand(5, -1, -1, -1, -1)
    assert (path_integrated_gradients(path, curved) == 0).all()


def test_batches_do_not_matter_and_no_history_is_kept() -> None:
    x = torch.rand(5, 1, 16, 16)
    torch.testing.assert_close(gradients_of(x, curved, batch_size=2), gradients_of(x, curved))
    assert not gradients_of(x, curved).requires_grad
    with torch.inference_mode():
        assert gradients_of(x, curved).shape == x.shape
    assert gradients_of(x[:0], curved).shape == (0, 1, 16, 16)


def test_a_straight_path_has_both_ends() -> None:
    start, end = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    path = straight_path(start, end, 4)
    assert torch.equal(path[0], start)
    assert torch.equal(path[-1], end)
    torch.testing.assert_close(path[1], torch.full_like(start, 0.25))
