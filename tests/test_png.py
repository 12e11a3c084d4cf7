from __future__ import annotations

import io

import numpy as np
from PIL import Image

from counterscan.png import DISCLAIMER, png


def test_what_facts_name_themselves_stands_once() -> None:
    data = png(np.zeros((4, 4), np.uint8), {"Software": "mine", "Text": "Ödem"})
    assert data.count(b"Software") == 1
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.text == {"Software": "mine", "Disclaimer": DISCLAIMER, "Text": "Ödem"}  # type: ignore[attr-defined]


def test_sixteen_bits_and_colours_stay() -> None:
    for pixels in (np.array([[0, 65535], [7, 300]], np.uint16), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)):
        with Image.open(io.BytesIO(png(pixels))) as picture:
            assert (np.asarray(picture) == pixels).all()
