"""Counterparts as pictures: grey images, signed overlays, outlines, and facts that mark them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from counterscan.counterpart import Counterpart

# Orange against blue, and yellow against cyan, stay apart for every common kind of colour blindness; truth is
# dashed as well.
WARM = np.array([[255, 176, 46], [255, 92, 20], [230, 20, 30]], dtype=np.float32)
COOL = np.array([[90, 200, 255], [40, 130, 255], [60, 60, 230]], dtype=np.float32)
_LEVELS = 255
MASK_COLOUR = (255, 214, 0)
TRUTH_COLOUR = (0, 229, 255)


def grey(image: Tensor) -> np.ndarray:
    """(1, H, W) or (H, W) in [-1, 1] to uint8 (H, W); values outside are clipped, NaN is black."""
    plane = _plane(image).float().nan_to_num(-1.0)
    return ((plane.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def signed_map(counterpart: Counterpart) -> Tensor:
    """(1, H, W) evidence with the sign of the map: positive where the finding brightened the body.

    A plain attribution map has no sign and stays positive.
    """
    if counterpart.counterpart is None:
        return counterpart.evidence
    return counterpart.evidence * counterpart.delta.sign()


def overlay(image: Tensor, signed: Tensor, scale: float) -> np.ndarray:
    """Lay a signed map over an image: warm where positive, cool where negative.

    Args:
        image: (1, H, W) in [-1, 1].
        signed: (1, H, W); opacity and colour grow with its magnitude.
        scale: magnitude that gets full colour; use one for all pictures that are compared.

    Returns:
        uint8 (H, W, 3).
    """
    strength = _plane(signed).float().nan_to_num(0.0).numpy() / max(scale, 1e-12)
    level = np.rint(np.clip(strength, -1, 1) * _LEVELS).astype(np.int16) + _LEVELS
    paint, share = _colours()
    base = grey(image).astype(np.float32) * share[level]
    return (base[..., None] + paint[level]).astype(np.uint8)


@cache
def _colours() -> tuple[np.ndarray, np.ndarray]:
    """Per level of strength, coolest first: the paint to add (L, 3), already weighted, and the image's share (L,)."""
    amount = np.abs(np.linspace(-1, 1, 2 * _LEVELS + 1))
    alpha = (0.9 * amount**0.75).astype(np.float32)
    ramps = [np.stack([np.interp(amount, (0, 0.5, 1), s[:, c]) for c in range(3)], axis=-1) for s in (COOL, WARM)]
    colour = np.where((np.arange(len(amount)) < _LEVELS)[:, None], *ramps).astype(np.float32)
    return colour * alpha[:, None] + 0.5, 1 - alpha  # the half rounds


def colour_scale(maps: list[Tensor]) -> float:
    """Magnitude that gets full colour when these maps are shown together: the 99.5th percentile of what is not zero."""
    values = torch.cat([m.detach().float().abs().flatten() for m in maps]) if maps else torch.zeros(0)
    values = values[torch.isfinite(values) & (values > 0)]
    return float(np.quantile(values.numpy(), 0.995)) if len(values) else 1.0


def outline(picture: np.ndarray, mask: Tensor, colour: tuple[int, int, int], *, dashed: bool = False) -> np.ndarray:
    """Draw a line of two pixels around a mask, on a picture at least as large as the mask; the inside stays visible.

    Args:
        picture: uint8 (H', W') or (H', W', 3).
        mask: (1, H, W) bool.
        colour: of the line.
        dashed: leave gaps, so that a line beneath it shows.

    Returns:
        uint8 (H', W', 3), a new array.
    """
    canvas = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture.copy()
    height, width = canvas.shape[:2]
    small = Image.fromarray(_plane(mask).to(torch.uint8).numpy() * 255)
    region = np.asarray(small.resize((width, height), Image.Resampling.NEAREST)) > 0
    line = binary_dilation(region, np.ones((5, 5), dtype=bool)) & ~region
    if dashed:
        rows, columns = np.indices(region.shape)
        line &= ((rows + columns) // 5) % 2 == 0
    canvas[line] = colour
    return canvas


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A uint8 picture with its longer side brought to ``side`` pixels, smoothly."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    shape = (max(1, round(width * factor)), max(1, round(height * factor)))
    kind = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(shape, kind))


def synthetic_facts(counterpart: Counterpart) -> dict[str, str]:
    """Text chunks that mark a generated image as such, for good."""
    made_by, query = counterpart.made_by, counterpart.query
    verb = "with" if query.direction == "add" else "without"
    facts = {
        "Synthetic": "true",
        "Description": f"Synthetic image: the same body {verb} {query.finding}, made by {made_by.system}",
    }
    return facts | ({"Checkpoint": made_by.checkpoint} if made_by.checkpoint else {})


def _plane(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    if x.ndim == 3 and x.shape[0] == 1:
        x = x[0]
    if x.ndim != 2:
        raise ValueError(f"expected (1, H, W) or (H, W), got {tuple(x.shape)}")
    return x
