from __future__ import annotations

import pytest
import torch

from counterscan.transfer import kept_texture, transfer_mask


def test_texture_fades_with_the_change_around() -> None:
    change = torch.zeros(1, 1, 64, 64)
    change[..., 30:40, 30:40] = -0.2
    kept = kept_texture(change, 0.4)
    assert kept[0, 0, 35, 35] == pytest.approx(0.5)
    assert kept[0, 0, 35, 28] == pytest.approx(1 - 0.5 / 5)  # a fifth of the window changes
    assert (kept[..., :28] == 1).all()
    assert (kept_texture(change, 0.1)[..., 32:38, 32:38] == 0).all()


@pytest.mark.parametrize(("size", "reach"), [(32, 1), (64, 2), (256, 10)])
def test_the_window_grows_with_the_image(size: int, reach: int) -> None:
    change = torch.zeros(1, 1, size, size)
    change[..., size // 2, size // 2] = 1
    assert int((kept_texture(change, 1.0) < 1).sum()) == (2 * reach + 1) ** 2


def test_transfer_happens_around_the_difference_only() -> None:
    difference = torch.zeros(2, 1, 40, 40)
    difference[0, 0, 10:13, 10:13] = -0.5
    difference[1, 0, 20, 20] = 0.001  # below the floor: nothing to transfer
    mask = transfer_mask(difference)
    assert mask[0, 0, 11, 11] == 1
    assert 0 < mask[0, 0, 11, 15] <= 1
    assert (mask[0, 0, 20:] == 0).all()
    assert (mask[1] == 0).all()
