"""Lead letters on the film: the side marker that real films carry, and the planted shortcut."""

from __future__ import annotations

import numpy as np

from counterscan.data.phantom.projection import Array
from counterscan.data.phantom.view import Frame

SHORTCUT_CORNER = (0.02, 0.02, 0.09, 0.05)  # left, top, width, height as shares of the side


def stamp_marks(film: Array, frame: Frame, *, tagged: bool) -> None:
    """Draw the side marker (an L beside the patient's left shoulder) and the shortcut tag into ``film``, in place.

    The side marker is independent of every finding. The tag is a bright bar in the upper left corner.
    """
    size = film.shape[0]
    if frame.acquisition.marker:
        noise = frame.acquisition.noise_seed
        left, top = 0.90 + 0.04 * (noise % 7) / 7, 0.05 + 0.10 * (noise % 11) / 11
        _box(film, left, top, 0.010, 0.045, size)
        _box(film, left, top + 0.036, 0.030, 0.010, size)
    if tagged:
        _box(film, *SHORTCUT_CORNER, size)


def _box(film: Array, left: float, top: float, width: float, height: float, size: int) -> None:
    """A bright rectangle; edges that cut a pixel cover it in part."""
    edges = np.arange(size, dtype=np.float32)
    x, y = (
        np.clip(np.minimum(edges + 1, (at + wide) * size) - np.maximum(edges, at * size), 0, 1)
        for at, wide in ((left, width), (top, height))
    )
    cover = y[:, None] * x[None, :]
    film += cover * (np.float32(0.92) - film)
    np.copyto(film, np.rint((film + 1) * np.float32(127.5)) / np.float32(127.5) - 1)
