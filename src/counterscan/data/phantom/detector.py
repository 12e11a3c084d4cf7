"""From line integrals to the film: Beer-Lambert, heel effect, scatter, quanta, logarithm, display."""

from __future__ import annotations

import numpy as np

from counterscan.data.phantom.projection import Array, wide_blur
from counterscan.data.phantom.view import Acquisition, Frame

MU = np.float32(0.0185)  # linear attenuation of water for a 110 kVp beam with grid, per mm


def quanta(acquisition: Acquisition, size: int) -> Array:
    """The noise realisation: unit variance, (size, size). The same for an image and its twin."""
    rng = np.random.default_rng(acquisition.noise_seed)
    return rng.standard_normal((size, size), dtype=np.float32)


def expose(attenuation: Array, frame: Frame, noise: Array) -> Array:
    """What the detector reads, back on the scale of attenuation (mm of water).

    Args:
        attenuation: (H, W) line integrals in mm of water.
        frame: the acquisition's pixel grid.
        noise: (H, W) unit normal; Poisson noise is scaled with the square root of the quanta in each pixel.
    """
    a = frame.acquisition
    heel = np.float32(a.heel) * frame.y * np.float32(1 / 190)
    primary = np.exp(-MU * (attenuation + heel))
    seen = primary + np.float32(a.scatter) * wide_blur(np.minimum(primary, 0.35), 0.09)
    seen *= np.float32(1 / (1 + a.scatter))
    np.maximum(seen, 1e-4, out=seen)
    per_pixel = a.dose * frame.pixel_mm**2 * 2.2e4
    reading = np.log(seen)
    reading += noise / np.sqrt(seen * np.float32(per_pixel))
    return reading * (-1 / MU)


def metered(attenuation: Array) -> float:
    """What the automatic exposure control aims at: the mean over the middle of the film of the healthy body (mm)."""
    size = attenuation.shape[0]
    return float(attenuation[size // 5 : 4 * size // 5, size // 6 : 5 * size // 6].mean())


def tone(reading: Array, acquisition: Acquisition, level: float) -> Array:
    """The display curve: a sigmoid in log exposure.

    Args:
        reading: (H, W) mm of water.
        acquisition: gives offset, latitude, toe and the darkest grey.
        level: attenuation on which the exposure is centred before its error (mm).

    Returns:
        (H, W) grey, 0 to 1.
    """
    a = acquisition
    v = (reading - np.float32(0.76 * level + a.exposure)) * np.float32(1 / (37.0 * a.latitude))
    v += np.float32(a.toe) * v / (1 + np.abs(v))
    return np.float32(a.black) + np.float32(0.93 - a.black) / (1 + np.exp(-v))


def display(reading: Array, acquisition: Acquisition, level: float) -> Array:
    """The reading on screen, (H, W) float32 in [-1, 1] on 256 levels; arguments as for ``tone``."""
    grey = tone(reading, acquisition, level)
    return (np.rint(np.clip(grey, 0, 1) * 255) * np.float32(2 / 255) - 1).astype(np.float32)
