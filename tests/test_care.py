"""Views are tested where they are used (peers, taggan); here what happens to evidence afterwards."""

from __future__ import annotations

import math

import pytest
import torch

from counterscan.care import Care, smooth, spread, tidy

SIZE = 32


def halves() -> torch.Tensor:
    """(1, 1, 32, 32): dark on the left, bright on the right."""
    image = torch.full((1, 1, SIZE, SIZE), -0.5)
    image[..., SIZE // 2 :] = 0.5
    return image


def point(row: int, column: int) -> torch.Tensor:
    evidence = torch.zeros(1, 1, SIZE, SIZE)
    evidence[0, 0, row, column] = 1.0
    return evidence


def test_no_reach_is_no_change() -> None:
    evidence = torch.rand(2, 1, SIZE, SIZE)
    assert torch.equal(spread(evidence, halves().expand(2, -1, -1, -1), 0.0, 0.04), evidence)
    assert len(spread(evidence[:0], halves()[:0], 0.1, 0.04)) == 0


def test_on_a_flat_image_it_spreads_as_far_as_it_says() -> None:
    size, reach = 64, 0.05
    evidence = torch.zeros(1, 1, size, size, dtype=torch.float64)
    evidence[0, 0, 32, 32] = 1.0
    spreaded = spread(evidence, torch.zeros_like(evidence), reach, 0.04)[0, 0]
    assert float(spreaded.sum()) == pytest.approx(1.0)  # far from the border nothing is lost
    offsets = torch.arange(size, dtype=torch.float64) - 32
    for axis in (0, 1):
        variance = float((spreaded.sum(axis) * offsets.square()).sum())
        assert math.sqrt(variance) == pytest.approx(reach * size, rel=0.02)


def test_it_hardly_crosses_an_edge() -> None:
    spreaded = spread(point(16, 14), halves(), 0.1, 0.04)[0, 0]
    left, right = spreaded[:, : SIZE // 2].sum(), spreaded[:, SIZE // 2 :].sum()
    assert float(right) < 1e-6
    assert float(left) > 0.9  # rows of P sum to 1, not its columns: at a border the sum may change a little
    crossed = spread(point(16, 14), halves(), 0.1, 4.0)[0, 0]  # an edge that counts as none
    assert float(crossed[:, SIZE // 2 :].sum()) > 0.1


def test_it_fills_a_ring_up_to_the_border_of_what_it_marks() -> None:
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    radius = torch.hypot(rows - 16.0, columns - 16.0)
    image = torch.where(radius < 6, 0.5, -0.5)[None, None]
    ring = ((radius >= 4) & (radius < 6)).float()[None, None]
    filled = spread(ring, image, 0.15, 0.04)[0, 0]
    assert float(filled[16, 16]) > 0.3
    assert float(filled[radius >= 6].max()) < 1e-6


def test_constant_evidence_stays_and_no_value_leaves_the_range() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, SIZE, 40) * 2 - 1
    constant = torch.full((3, 1, SIZE, 40), 0.3)
    torch.testing.assert_close(spread(constant, images, 0.1, 0.2)[..., 5:-5, 5:-5], constant[..., 5:-5, 5:-5])
    evidence = torch.rand(3, 1, SIZE, 40)
    spreaded = spread(evidence, images, 0.1, 0.2)
    assert float(spreaded.min()) >= float(evidence.min())
    assert float(spreaded.max()) <= float(evidence.max())


def test_borders_neither_lose_nor_gain() -> None:
    corner = spread(torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE), 0.1, 0.04)
    torch.testing.assert_close(corner, torch.ones_like(corner))


def test_larger_images_are_walked_in_longer_steps_to_the_same_reach() -> None:
    evidence = smooth(torch.nn.functional.interpolate(point(16, 16), size=256), 0.03)
    flat = torch.zeros(1, 1, 256, 256)
    spreaded = spread(evidence, flat, 0.055, 0.04)[0, 0]
    share = spreaded.sum(0) / spreaded.sum()
    offsets = torch.arange(256) - (share * torch.arange(256)).sum()
    before = evidence[0, 0].sum(0) / evidence.sum()
    start = float((before * (torch.arange(256) - (before * torch.arange(256)).sum()).square()).sum())
    grown = float((share * offsets.square()).sum()) - start
    assert math.sqrt(grown) == pytest.approx(0.055 * 256, rel=0.03)


def test_images_do_not_answer_for_each_other() -> None:
    torch.manual_seed(1)
    images, evidence = torch.rand(2, 1, SIZE, SIZE), torch.rand(2, 1, SIZE, SIZE)
    together = spread(evidence, images, 0.08, 0.1)
    alone = torch.cat([spread(e[None], x[None], 0.08, 0.1) for e, x in zip(evidence, images, strict=True)])
    torch.testing.assert_close(together, alone)


def test_tidy_smooths_and_then_spreads() -> None:
    care = Care(smoothing=0.05, reach=0.1, edge=0.2)
    evidence = torch.rand(1, 1, SIZE, SIZE)
    torch.testing.assert_close(tidy(evidence, halves(), care), spread(smooth(evidence, 0.05), halves(), 0.1, 0.2))
    assert torch.equal(tidy(evidence, halves(), Care()), evidence)
