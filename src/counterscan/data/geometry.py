"""Where a pixel of the model's square grid lies on the native image, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from counterscan.errors import InputError

ResizeMode = Literal["area", "bilinear", "nearest"]


@dataclass(frozen=True)
class Geometry:
    """A letterbox: the native image (or a crop of it) scaled to fit a square grid, aspect kept, centred.

    Attributes:
        native: (H, W) of the image as displayed, in pixels.
        size: side of the model's grid in pixels.
        crop: (top, left, height, width) in native pixels that the model sees; None is the whole image.
        spacing: (row, column) distance between native pixel centres in mm; None when unknown.
        spacing_source: which field ``spacing`` came from; "ImagerPixelSpacing" is at the detector, so magnified.
        orientation: patient directions toward the right and the bottom of the image, as in DICOM's
            PatientOrientation ("L\\\\P" for a usual axial slice); None when unknown.

    Raises:
        InputError: a size below one pixel, or a crop that leaves the image.
    """

    native: tuple[int, int]
    size: int
    crop: tuple[int, int, int, int] | None = None
    spacing: tuple[float, float] | None = None
    spacing_source: str | None = None
    orientation: str | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or min(self.native) < 1:
            raise InputError(f"a {self.native} image cannot be put on a grid of {self.size} pixels", field="geometry")
        top, left, height, width = self._region
        if (
            min(top, left) < 0
            or min(height, width) < 1
            or top + height > self.native[0]
            or left + width > self.native[1]
        ):
            raise InputError(f"the crop {self.crop} leaves the {self.native} image", field="geometry.crop")

    @property
    def _region(self) -> tuple[int, int, int, int]:
        return self.crop if self.crop is not None else (0, 0, *self.native)

    @property
    def content(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the image on the model's grid; what lies outside is padding."""
        _, _, crop_height, crop_width = self._region
        longest = max(crop_height, crop_width)
        height = max(1, round(self.size * crop_height / longest))
        width = max(1, round(self.size * crop_width / longest))
        return (self.size - height) // 2, (self.size - width) // 2, height, width

    def to_model(self, x: Tensor, fill: float = -1.0, mode: ResizeMode = "area") -> Tensor:
        """Native grid to model grid.

        Args:
            x: (..., H, W); boolean masks are averaged and cut at one half, and padded with False.
            fill: value of the padding.
            mode: "area" (or "bilinear") averages when shrinking and interpolates when growing; "nearest" picks.

        Returns:
            (..., size, size) of the same kind (floating or bool) as ``x``.

        Raises:
            ValueError: ``x`` is not on the native grid.
        """
        _require_grid(x, self.native)
        top, left, height, width = self._region
        return _place(
            _resize(x[..., top : top + height, left : left + width], self.content[2:], mode),
            (self.size, self.size),
            self.content,
            fill,
        )

    def to_native(self, x: Tensor, fill: float = 0.0, mode: ResizeMode = "area") -> Tensor:
        """Model grid to native grid: the padding is cut off, what the crop left out is filled.

        Args:
            x: (..., size, size).
            fill: value outside the crop.
            mode: as in `to_model`.

        Returns:
            (..., H, W).

        Raises:
            ValueError: ``x`` is not on the model's grid.
        """
        _require_grid(x, (self.size, self.size))
        top, left, height, width = self.content
        region = self._region
        return _place(
            _resize(x[..., top : top + height, left : left + width], region[2:], mode), self.native, region, fill
        )

    def valid(self) -> Tensor:
        """(size, size) bool, False on the padding."""
        top, left, height, width = self.content
        mask = torch.zeros(self.size, self.size, dtype=torch.bool)
        mask[top : top + height, left : left + width] = True
        return mask

    def boxes_to_model(self, boxes: Any) -> np.ndarray:
        """(N, 4) boxes (x, y, w, h) in native pixels to pixels of the model's grid, cut to the crop; float64."""
        return _map_boxes(boxes, self._region, self.content)

    def boxes_to_native(self, boxes: Any) -> np.ndarray:
        """(N, 4) boxes (x, y, w, h) on the model's grid to native pixels, the padding cut off; float64."""
        return _map_boxes(boxes, self.content, self._region)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Geometry:
        """Inverse of `to_dict`.

        Raises:
            InputError: a key is unknown or missing.
        """
        settings: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in value.items()}
        try:
            return cls(**settings)
        except TypeError as error:
            raise InputError(f"is not a geometry ({error})", field="geometry") from None


def _require_grid(x: Tensor, grid: tuple[int, int]) -> None:
    if tuple(x.shape[-2:]) != tuple(grid):
        raise ValueError(f"expected (..., {grid[0]}, {grid[1]}), got {tuple(x.shape)}")


def _resize(x: Tensor, shape: tuple[int, int], mode: ResizeMode) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(shape):
        return x
    if mode not in ("area", "bilinear", "nearest"):
        raise ValueError(f"mode is area, bilinear or nearest, not {mode!r}")
    values = x.reshape(-1, 1, *x.shape[-2:])
    values = values if values.is_floating_point() else values.float()
    if mode == "nearest":
        values = F.interpolate(values, size=shape, mode="nearest-exact")
    else:
        values = F.interpolate(values, size=shape, mode="bilinear", antialias=True, align_corners=False)
    values = values.reshape(*x.shape[:-2], *shape)
    return values >= 0.5 if x.dtype == torch.bool else values


def _place(x: Tensor, shape: tuple[int, int], region: tuple[int, int, int, int], fill: float) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(shape):
        return x
    top, left, height, width = region
    canvas = x.new_full((*x.shape[:-2], *shape), False if x.dtype == torch.bool else fill)
    canvas[..., top : top + height, left : left + width] = x
    return canvas


def _map_boxes(boxes: Any, source: tuple[int, int, int, int], target: tuple[int, int, int, int]) -> np.ndarray:
    given = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    corners = np.stack([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)  # (N, 2, 2): corner, (x, y)
    origin = np.array([source[1], source[0]], dtype=np.float64)
    extent = np.array([source[3], source[2]], dtype=np.float64)
    relative = np.clip((corners - origin) / extent, 0.0, 1.0)
    mapped = relative * np.array([target[3], target[2]]) + np.array([target[1], target[0]])
    return np.concatenate([mapped[:, 0], mapped[:, 1] - mapped[:, 0]], axis=1)
