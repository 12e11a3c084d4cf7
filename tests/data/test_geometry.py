from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterscan.data.geometry import Geometry
from counterscan.errors import InputError

SIDES = st.integers(1, 90)


def test_content_is_centred_and_keeps_the_aspect():
    assert Geometry((200, 100), 64).content == (0, 16, 64, 32)
    assert Geometry((100, 200), 64).content == (16, 0, 32, 64)
    assert Geometry((50, 50), 64).content == (0, 0, 64, 64)
    assert Geometry((1000, 1), 64).content == (0, 31, 64, 1)


def test_padding_is_filled_and_never_valid():
    geometry = Geometry((20, 40), 32)
    grid = geometry.to_model(torch.ones(3, 20, 40), fill=-1.0)
    assert grid.shape == (3, 32, 32)
    assert torch.allclose(grid[0], geometry.valid() * 2.0 - 1.0)


def test_shrinking_averages():
    checker = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1.0
    assert Geometry((64, 64), 8).to_model(checker).abs().max() < 0.05


def test_an_impulse_keeps_its_mass_when_shrunk():
    image = torch.zeros(128, 128)
    image[60:64, 60:64] = 1.0
    assert Geometry((128, 128), 32).to_model(image).sum() * 16 == pytest.approx(16, rel=0.02)


@pytest.mark.parametrize("crop", [None, (8, 4, 40, 60)])
def test_smooth_images_come_back(crop):
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 60), torch.linspace(0, 3, 80), indexing="ij")
    image = torch.sin(rows) * torch.cos(columns)
    geometry = Geometry((60, 80), 48, crop=crop)
    back = geometry.to_native(geometry.to_model(image), fill=9.0)
    top, left, height, width = crop or (0, 0, 60, 80)
    inside = torch.zeros(60, 80, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert (back - image)[inside].abs().max() < 0.05
    assert (back[~inside] == 9.0).all()


def test_masks_stay_masks():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32, 8:40] = True
    geometry = Geometry((64, 64), 16)
    small = geometry.to_model(mask)
    assert small.dtype == torch.bool
    assert torch.equal(small, torch.nn.functional.avg_pool2d(mask[None].float(), 4)[0] >= 0.5)
    assert torch.equal(geometry.to_native(small, mode="nearest"), mask)
    assert not Geometry((10, 64), 16).to_model(torch.ones(10, 64, dtype=torch.bool)).all()


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, size=st.integers(1, 80), data=st.data())
def test_boxes_return_and_mark_the_same_pixels(height, width, size, data):
    geometry = Geometry((height, width), size)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = [left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))]
    on_grid = geometry.boxes_to_model([box])
    np.testing.assert_allclose(geometry.boxes_to_native(on_grid), [box], atol=1e-9)
    content = geometry.content
    assert on_grid[0, 0] >= content[1] - 1e-9
    assert on_grid[0, 1] + on_grid[0, 3] <= content[0] + content[2] + 1e-9


def test_a_box_and_its_mask_agree_to_a_pixel():
    geometry = Geometry((300, 200), 64, crop=(20, 10, 250, 150))
    mask = torch.zeros(300, 200, dtype=torch.bool)
    mask[80:180, 50:110] = True
    rows, columns = (torch.nonzero(geometry.to_model(mask).any(dim=axis)).flatten() for axis in (1, 0))
    x, y, width, height = geometry.boxes_to_model([[50, 80, 60, 100]])[0]
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, [x, y, x + width, y + height], atol=1.0)


def test_boxes_are_cut_to_the_crop_and_may_be_none():
    geometry = Geometry((100, 100), 50, crop=(0, 0, 50, 50))
    np.testing.assert_allclose(geometry.boxes_to_model([[40, 40, 40, 40]]), [[40, 40, 10, 10]])
    assert geometry.boxes_to_model([]).shape == (0, 4)


def test_dict_and_back():
    geometry = Geometry((30, 20), 16, (1, 2, 20, 10), (0.5, 0.25), "PixelSpacing", "L\\P")
    assert Geometry.from_dict(geometry.to_dict()) == geometry
    with pytest.raises(InputError, match="is not a geometry"):
        Geometry.from_dict({"native": [3, 4], "size": 5, "zoom": 2})


@pytest.mark.parametrize("crop", [(0, 0, 11, 5), (-1, 0, 5, 5), (0, 0, 0, 5), (6, 0, 5, 5)])
def test_crops_that_leave_the_image_are_refused(crop):
    with pytest.raises(InputError, match="leaves the"):
        Geometry((10, 10), 8, crop=crop)
    with pytest.raises(InputError, match="cannot be put"):
        Geometry((0, 10), 8)


def test_the_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"expected \(..., 10, 12\)"):
        Geometry((10, 12), 8).to_model(torch.zeros(12, 10))
    with pytest.raises(ValueError, match="mode is"):
        Geometry((10, 12), 8).to_model(torch.zeros(10, 12), mode="cubic")
