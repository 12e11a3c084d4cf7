from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from counterscan.errors import InputError
from counterscan.inputs import checked_images


def test_good_images_pass_as_they_are() -> None:
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert checked_images(images) is images
    assert checked_images(images, 8) is images
    assert len(checked_images(images[:0], 8)) == 0
    assert checked_images(images.double()).dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "size", "field", "problem"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, "images", "got torch.uint8"),
        (np.zeros((1, 1, 8, 8), np.float32), None, "images", "got ndarray"),
        (torch.zeros(8, 8), None, "images", r"expected images \(N, 1, H, W\)"),
        (torch.zeros(1, 3, 8, 8), None, "images", r"expected images \(N, 1, H, W\)"),
        (torch.zeros(1, 1, 8, 6), 8, "size", "8 x 6, the model works at 8"),
        (torch.full((1, 1, 2, 2), float("nan")), None, "images", "4 pixels are NaN"),
        (torch.full((1, 1, 2, 2), float("inf")), None, "images", "4 pixels are NaN or infinite"),
        (torch.full((1, 1, 2, 2), 255.0), None, "images", "range from 255 to 255"),
        (torch.full((1, 1, 2, 2), -1.1), None, "images", "range from -1.1"),
    ],
)
def test_others_are_refused_with_the_field(images: Any, size: int | None, field: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        checked_images(images, size)
    assert caught.value.field == field
