from __future__ import annotations

import pytest
import torch

from counterscan.errors import InputError
from counterscan.taggan.masks import MaskRule, calibrate, hide_and_seek


def test_threshold_is_the_percentile_of_valid_healthy_pixels() -> None:
    evidence = torch.arange(100.0).view(1, 1, 10, 10)
    assert calibrate(evidence, percentile=90).threshold == pytest.approx(89.1)
    valid = evidence < 50
    assert calibrate(evidence, valid, percentile=100).threshold == 49


def test_no_healthy_image_is_an_error() -> None:
    with pytest.raises(InputError, match="no validation image without the finding"):
        calibrate(torch.zeros(0, 1, 8, 8))


def test_specks_go_and_regions_stay() -> None:
    evidence = torch.zeros(2, 1, 10, 10)
    evidence[0, 0, 1, 1] = 1
    evidence[0, 0, 5:8, 5:8] = 1
    mask = MaskRule(0.5, min_area=0.04)(evidence)
    assert mask[0].sum() == 9
    assert not mask[0, 0, 1, 1]
    assert not mask[1].any()


def test_padding_is_never_mask() -> None:
    valid = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert not MaskRule(0.0, 0.0)(torch.ones(1, 1, 4, 4), valid).any()


def test_hide_and_seek_keeps_what_brings_the_finding_back() -> None:
    image = torch.zeros(1, 12, 12)
    image[0, 1:4, 1:4] = 1  # the finding
    image[0, 8:10, 8:10] = -1  # changed too, but the classifier does not care
    mask = image != 0
    kept = hide_and_seek(mask, image, torch.zeros_like(image), lambda x: x.clamp_min(0).sum(dim=(1, 2, 3)))
    assert torch.equal(kept, image > 0)


def test_hide_and_seek_of_an_empty_mask_is_empty() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert not hide_and_seek(empty, torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), lambda x: x.sum(dim=(1, 2, 3))).any()
