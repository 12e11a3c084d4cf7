"""One image file onto the model's grid: read, contrast, letterbox."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from counterscan.data.geometry import Geometry
from counterscan.data.intensity import IntensityRecipe, default_recipe
from counterscan.data.readers import RawImage, read_image


def load(
    path: str | Path, recipe: IntensityRecipe | None = None, size: int = 256, frame: int | None = None
) -> tuple[Tensor, Geometry, RawImage]:
    """Read a file as the model sees it.

    Args:
        path: an image file of any kind that `read_image` takes.
        recipe: the data set's intensity recipe; None takes `default_recipe` for the modality.
        size: side of the model's grid in pixels.
        frame: frame from 0 of multi-frame files.

    Returns:
        image (1, size, size) float32 in [-1, 1]; the geometry back to the native grid; the plane as read.

    Raises:
        InputError: the file cannot be read, or the recipe does not fit it.
    """
    raw = read_image(path, frame=frame)
    image, _, geometry = on_grid(raw, recipe or default_recipe(raw), size)
    return image, geometry, raw


def on_grid(raw: RawImage, recipe: IntensityRecipe, size: int) -> tuple[Tensor, Tensor, Geometry]:
    """Put a plane on the model's grid.

    Returns:
        image (1, size, size) float32 in [-1, 1]; valid (size, size) bool, False on letterbox and on pixels that are not
        image; the geometry.

    Raises:
        InputError: the recipe does not fit the plane.
    """
    geometry = geometry_of(raw, size)
    image, valid = recipe.apply_with_valid(raw)
    grid = geometry.to_model(torch.from_numpy(image), fill=recipe.pad).clamp_(-1.0, 1.0)
    inside = geometry.valid() if valid.all() else geometry.to_model(torch.from_numpy(valid))
    return grid[None], inside, geometry


def geometry_of(raw: RawImage, size: int) -> Geometry:
    """The letterbox of a whole plane onto a grid of ``size`` pixels."""
    return Geometry(
        native=raw.shape,
        size=size,
        spacing=raw.spacing,
        spacing_source=raw.spacing_source,
        orientation=raw.orientation,
    )
