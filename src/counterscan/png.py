"""PNG bytes that say what they are."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import counterscan

DISCLAIMER = "Research use only. Not a medical device."


def png(picture: np.ndarray, facts: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes of a picture, (H, W) uint8 or uint16, or (H, W, 3) uint8.

    ``facts`` go into its text chunks, beside the software and the disclaimer where they do not name these themselves.
    """
    facts = facts or {}
    info, buffer = PngInfo(), io.BytesIO()
    for key, value in {"Software": f"counterscan {counterscan.__version__}", "Disclaimer": DISCLAIMER}.items():
        if key not in facts:
            info.add_text(key, value)
    for key, value in facts.items():
        info.add_itxt(key, value)
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
