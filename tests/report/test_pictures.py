from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from counterscan.png import png
from counterscan.report import pictures
from tests.report.answers import answer, attribution


def test_grey_covers_the_range_and_survives_bad_pixels():
    image = torch.tensor([[[-1.0, 0.0, 1.0], [-3.0, 3.0, torch.nan]]])
    assert pictures.grey(image).tolist() == [[0, 128, 255], [0, 255, 0]]
    with pytest.raises(ValueError, match="expected"):
        pictures.grey(torch.zeros(2, 4, 4))


def test_overlay_is_warm_cool_or_the_image():
    image = torch.zeros(1, 1, 3)
    laid = pictures.overlay(image, torch.tensor([[[1.0, -1.0, 0.0]]]), scale=1.0)
    warm, cool, none = laid[0]
    assert warm[0] > warm[2] + 80
    assert cool[2] > cool[0] + 80
    assert none.tolist() == [128, 128, 128]
    weak = pictures.overlay(image, torch.tensor([[[0.1, 0.1, 0.1]]]), scale=1.0)[0, 0]
    assert np.abs(weak.astype(int) - 128).sum() < np.abs(warm.astype(int) - 128).sum()


def test_signed_map_takes_its_sign_from_the_change():
    ours = answer()
    torch.testing.assert_close(pictures.signed_map(ours), ours.delta, atol=1e-6, rtol=0)
    assert (pictures.signed_map(attribution()) >= 0).all()


def test_scale_is_a_high_percentile_of_what_is_not_zero():
    assert pictures.colour_scale([torch.zeros(3), torch.tensor([0.0, -2.0])]) == 2
    assert pictures.colour_scale([]) == 1
    assert pictures.colour_scale([torch.zeros(3)]) == 1


def test_outline_goes_around_and_leaves_the_inside():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 3:5, 3:5] = True
    drawn = pictures.outline(np.zeros((64, 64), np.uint8), mask, (255, 0, 0))
    red = drawn[..., 0] > 0
    assert not red[24:40, 24:40].any()
    assert red[22:24, 24:40].all()
    assert not red[:22].any()
    dashed = pictures.outline(np.zeros((64, 64), np.uint8), mask, (255, 0, 0), dashed=True)
    assert 0.3 < (dashed[..., 0] > 0).sum() / red.sum() < 0.7
    assert not pictures.outline(np.zeros((8, 8), np.uint8), torch.zeros(1, 8, 8, dtype=torch.bool), (9, 9, 9)).any()


def test_resized_keeps_the_aspect():
    assert pictures.resized(np.zeros((10, 20), np.uint8), 320).shape == (160, 320)
    assert pictures.resized(np.zeros((600, 300, 3), np.uint8), 320).shape == (320, 160, 3)


def test_png_says_what_it_is():
    data = png(np.zeros((4, 4), np.uint8), pictures.synthetic_facts(answer()))
    text = Image.open(io.BytesIO(data)).text
    assert text["Synthetic"] == "true"
    assert "without Lung Lesion" in text["Description"]
    assert "Not a medical device" in text["Disclaimer"]
    assert text["Checkpoint"] == "abc"
