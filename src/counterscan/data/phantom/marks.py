"""On the film but not in the body: collimated borders, the side marker, the planted shortcut."""

from __future__ import annotations

import numpy as np

from counterscan.data.phantom.projection import Array
from counterscan.data.phantom.view import Frame

SHORTCUT_CORNER = (0.02, 0.02, 0.09, 0.05)  # left, top, width, height as shares of the side


def stamp_marks(film: Array, frame: Frame, *, tagged: bool) -> None:
    """Draw borders, side marker (an L beside the patient's left shoulder) and shortcut tag into ``film``, in place.

    Collimated borders come out black. The side marker is independent of every finding. The tag is a bright bar in the
    upper left corner.
    """
    size = film.shape[0]
    left, top, right, bottom = frame.acquisition.collimation
    if left:
        open_ = _span(left, 1 - right, size) * _span(top, 1 - bottom, size)[:, None]
        film += (1 - open_) * (np.float32(-0.97) - film)
    if frame.acquisition.marker:
        noise = frame.acquisition.noise_seed
        left, top = 0.90 + 0.04 * (noise % 7) / 7, 0.05 + 0.10 * (noise % 11) / 11
        _box(film, left, top, 0.010, 0.045, size)
        _box(film, left, top + 0.036, 0.030, 0.010, size)
    if tagged:
        _box(film, *SHORTCUT_CORNER, size)
    np.copyto(film, np.rint((film + 1) * np.float32(127.5)) * np.float32(2 / 255) - 1)


def _span(start: float, stop: float, size: int) -> Array:
    """(size,) share of each pixel that lies between two positions, given as shares of the side."""
    edges = np.arange(size, dtype=np.float32)
    return np.clip(np.minimum(edges + 1, stop * size) - np.maximum(edges, start * size), 0, 1).astype(np.float32)


def _box(film: Array, left: float, top: float, width: float, height: float, size: int) -> None:
    """A bright rectangle; edges that cut a pixel cover it in part."""
    cover = _span(top, top + height, size)[:, None] * _span(left, left + width, size)
    film += cover * (np.float32(0.92) - film)
