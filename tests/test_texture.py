from __future__ import annotations

import pytest
import torch

from counterscan.texture import kept_texture


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
