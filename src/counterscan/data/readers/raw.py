"""What every reader returns, and the guards they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from counterscan.errors import InputError

Kind = Literal["dicom", "raster", "nifti"]

# No clinical plane comes near this; a header that claims more is broken or hostile.
MAX_PIXELS = 150_000_000


@dataclass(frozen=True)
class Window:
    """A VOI window in modality units (DICOM PS3.3 C.11.2.1.2).

    Attributes:
        center: the middle of the window.
        width: its width, > 0.
        function: "LINEAR" (the standard's, with its half-unit offsets), "LINEAR_EXACT" or "SIGMOID".
    """

    center: float
    width: float
    function: str = "LINEAR"

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W) modality units to (H, W) float32 in [0, 1]."""
        if self.function == "SIGMOID":
            exponent = np.clip((-4.0 / self.width) * (pixels - np.float32(self.center)), -80.0, 80.0)
            return (1.0 / (1.0 + np.exp(exponent))).astype(np.float32, copy=False)
        if self.function == "LINEAR_EXACT":
            low, span = self.center - self.width / 2, self.width
        else:
            low, span = self.center - 0.5 - (self.width - 1) / 2, self.width - 1
        if span <= 0:
            return (pixels > low).astype(np.float32)
        unit = (pixels - np.float32(low)) * np.float32(1.0 / span)
        return np.clip(unit, 0.0, 1.0, out=unit)

    def reflected(self, total: float) -> Window:
        """The window that treats ``total - x`` as this one treats ``x``, dark and bright exchanged."""
        offset = 1.0 if self.function == "LINEAR" else 0.0
        return Window(total - self.center + offset, self.width, self.function)


@dataclass(frozen=True, eq=False)
class VoiTable:
    """A VOI LUT: modality units to brightness (DICOM PS3.3 C.11.2.1.1).

    Attributes:
        first: the modality value that the first entry belongs to; values outside take the end entries.
        table: (K,) float32 in [0, 1].
    """

    first: float
    table: np.ndarray

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W) modality units to (H, W) float32 in [0, 1]."""
        index = np.clip(np.rint(pixels - self.first), 0, len(self.table) - 1)
        return self.table[index.astype(np.int32)]

    def reflected(self, total: float) -> VoiTable:
        """The table that treats ``total - x`` as this one treats ``x``, dark and bright exchanged."""
        return VoiTable(total - (self.first + len(self.table) - 1), 1.0 - self.table[::-1])


Voi = Window | VoiTable


@dataclass(frozen=True, eq=False)
class RawImage:
    """One plane, decoded, before any choice of contrast. Carries no name, number or date of a patient.

    Attributes:
        pixels: (H, W) float32 in modality units (rescale or Modality LUT applied); larger is brighter on screen, so
            MONOCHROME1 is reflected within ``stored_range``; colour is luminance (ITU-R BT.601). Padding holds the
            lowest value of the rest.
        stored_range: what the stored bits can express, in modality units; None where the format names none
            (floats, 32-bit integers, NIfTI volumes wider than 8 bits).
        kind: "dicom", "raster" or "nifti".
        valid: (H, W) bool, False on DICOM pixel padding and transparent pixels; None means all are image.
        modality: DICOM modality ("CR", "CT"), "" when unknown.
        voi: the file's own windows and tables, tables first; empty when it has none.
        spacing: (row, column) mm between pixel centres.
        spacing_source: the field that ``spacing`` came from.
        orientation: patient directions toward the right and the bottom of the image, e.g. "L\\\\P".
        view: radiographic view ("PA", "AP", "LL", "CC"), None when unknown.
        laterality: "L", "R", "B" or None.
        frames: number of frames (pages, slices) in the file.
        frame: index of this one, from 0.
        references: UIDs that a derived DICOM object must point to, by keyword; ReferencedFrameNumber counts from 1.
    """

    pixels: np.ndarray
    stored_range: tuple[float, float] | None
    kind: Kind
    valid: np.ndarray | None = None
    modality: str = ""
    voi: tuple[Voi, ...] = ()
    spacing: tuple[float, float] | None = None
    spacing_source: str | None = None
    orientation: str | None = None
    view: str | None = None
    laterality: str | None = None
    frames: int = 1
    frame: int = 0
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[0], self.pixels.shape[1]


def check_size(rows: int, columns: int, path: Path, field: str) -> None:
    """Refuse a plane that is empty or absurdly large, before anything is allocated."""
    if rows < 1 or columns < 1:
        raise InputError(
            f"is {rows} x {columns} pixels", path=path, field=field, remedy="Export the image again from its source"
        )
    if rows * columns > MAX_PIXELS:
        raise InputError(
            f"claims {rows} x {columns} pixels, more than the {MAX_PIXELS:,} that are read",
            path=path,
            field=field,
            remedy="Check the header; scale the image down if it is really so large",
        )


def check_finite(pixels: np.ndarray, path: Path, field: str) -> None:
    """Refuse NaN and infinite pixels, saying how many there are."""
    bad = int(pixels.size - np.count_nonzero(np.isfinite(pixels)))
    if bad:
        raise InputError(
            f"{bad} of {pixels.size} pixels are NaN or infinite",
            path=path,
            field=field,
            remedy="Replace them (background is usually 0) and mark them in a mask if they matter",
        )


def choose_frame(frame: int | None, frames: int, path: Path, field: str) -> int:
    """Index of the frame to read; several frames and no choice is an error that states the number."""
    if frame is None:
        if frames == 1:
            return 0
        raise InputError(
            f"holds {frames} frames and none was chosen",
            path=path,
            field=field,
            remedy=f"Choose one with frame=0..{frames - 1}, in Python or as column of a study table, or take all with "
            "--each-frame",
        )
    if not 0 <= frame < frames:
        raise InputError(
            f"has no frame {frame}: it holds {frames}",
            path=path,
            field=field,
            remedy="Leave the frame out" if frames == 1 else f"Choose one with frame=0..{frames - 1}",
        )
    return int(frame)


def luminance(colour: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB to (H, W) float32 luminance, ITU-R BT.601; exact where the three channels agree."""
    red, green, blue = (colour[..., channel].astype(np.float32) for channel in range(3))
    return green + np.float32(0.299) * (red - green) + np.float32(0.114) * (blue - green)


def hide_padding(pixels: np.ndarray, valid: np.ndarray, path: Path, field: str) -> np.ndarray | None:
    """Give padding the lowest value of the image proper, in place; the mask, or None when nothing is padding."""
    if valid.all():
        return None
    if not valid.any():
        raise InputError(
            "every pixel is padding", path=path, field=field, remedy="Leave the file out or correct the field"
        )
    pixels[~valid] = pixels[valid].min()
    return valid
