from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterscan.errors import InputError
from counterscan.peers.rise import RISE, random_masks
from tests.peers.tiny import FINDINGS, ByHand, own_settings


class MeanOver(nn.Module):
    """Logit 0 = gain x mean over a region, logit 1 its negative; keeps the sizes of its batches."""

    findings, cam_layers = FINDINGS, ()

    def __init__(self, region: tuple[slice, slice], gain: float = 1.0) -> None:
        super().__init__()
        self.region, self.gain = region, gain
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logit = self.gain * x[(..., *self.region)].mean((1, 2, 3))
        return torch.stack([logit, -logit], dim=1)


def stretched(line: np.ndarray, length: int) -> np.ndarray:
    """Bilinear along one axis, pixel areas aligned."""
    places = (np.arange(length) + 0.5) * len(line) / length - 0.5
    return np.interp(places, np.arange(len(line)), line)


def every_mask(cells: int, height: int, width: int) -> np.ndarray:
    """All masks, one for each grid and shift, all equally likely at p1 = 0.5."""
    found = []
    down, right = -(-height // cells), -(-width // cells)
    for bits in itertools.product((0.0, 1.0), repeat=cells * cells):
        grid = np.array(bits).reshape(cells, cells)
        wide = np.stack([stretched(row, (cells + 1) * right) for row in grid])
        large = np.stack([stretched(column, (cells + 1) * down) for column in wide.T]).T
        found += [large[top : top + height, left : left + width] for top in range(down) for left in range(right)]
    return np.array(found)


def test_masks_equal_an_independent_upsampling() -> None:
    expected = every_mask(2, 5, 4)
    grids = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(-1, 1, 2, 2).repeat_interleave(6, dim=0)
    down, right = (torch.arange(6) // 2).repeat(16), (torch.arange(6) % 2).repeat(16)
    masks = random_masks(grids, down, right, 5, 4)
    np.testing.assert_allclose(masks[:, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("substrate", ["black", "mean"])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_approaches_the_expectation_over_all_masks(substrate: str, score: str) -> None:
    region = (slice(0, 2), slice(0, 1))
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    method = RISE(MeanOver(region, gain=3.0), n_masks=30_000, cells=2, substrate=substrate, score=score)  # type: ignore[arg-type]
    found = method.attribute(x, torch.tensor([0, 1]))
    masks = every_mask(2, 4, 4)
    for i, sign in enumerate((1, -1)):
        image = x[i, 0].numpy()
        b = -1.0 if substrate == "black" else image.mean()
        masked = b + masks * (image - b)
        f = sign * 3.0 * masked[(slice(None), *region)].mean((1, 2))
        f = f if score == "logit" else 1 / (1 + np.exp(-f))
        expected = (f[:, None, None] * masks).mean(0) / masks.mean(0)
        np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=0.03)


def test_a_region_stands_out_and_what_is_far_from_it_is_level() -> None:
    x = torch.full((1, 1, 16, 16), 0.6)
    method = RISE(MeanOver((slice(0, 4), slice(0, 4))), n_masks=20_000, cells=4, score="logit")
    found = method.attribute(x, 0)[0, 0]
    # Cells are independent: far away, f given that a pixel is in view is its plain mean, -1 + 1.6 p1.
    torch.testing.assert_close(found[10:, 10:], torch.full((6, 6), -1 + 1.6 * 0.5), atol=0.03, rtol=0)
    assert found.argmax() % 16 < 4
    assert found.argmax() // 16 < 4
    evidence = method.evidence(found[None, None], x)
    torch.testing.assert_close(evidence[0, 0], found - found.min())
    assert evidence.min() == 0


def test_a_constant_score_gives_a_level_map() -> None:
    # With p1 for the mean of the masks, pixels seen by chance more often would stand out.
    level = RISE(MeanOver((slice(0, 4), slice(0, 4)), gain=0.0), n_masks=10).attribute(torch.rand(2, 1, 9, 9), 0)
    torch.testing.assert_close(level, torch.full_like(level, 0.5))


def test_passes_are_bounded_and_change_nothing() -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    nets = [MeanOver((slice(0, 4), slice(0, 4))) for _ in range(3)]
    maps = [
        RISE(net, n_masks=21, internal_batch_size=size).attribute(x, 0)
        for net, size in zip(nets, (2, 7, 200), strict=True)
    ]
    torch.testing.assert_close(maps[0], maps[2])
    torch.testing.assert_close(maps[1], maps[2])
    assert [max(net.sizes) for net in nets] == [2, 6, 63]
    assert [sum(net.sizes) for net in nets] == [63, 63, 63]
    assert not torch.equal(RISE(nets[0], n_masks=21, seed=1).attribute(x, 0), maps[2])


def test_settings_and_unusable_ones() -> None:
    assert own_settings(RISE(ByHand(), seed=2)) == {
        "n_masks": 2000,
        "cells": 7,
        "p1": 0.5,
        "substrate": "black",
        "score": "probability",
        "seed": 2,
    }
    for wrong in ({"n_masks": 0}, {"cells": 0}, {"p1": 1.0}, {"substrate": "blur"}, {"score": "margin"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            RISE(ByHand(), **wrong)  # type: ignore[arg-type]
