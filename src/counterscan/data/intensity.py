"""Modality units to [-1, 1], by one rule for a whole data set.

A contrast stretched to each image's own extremes leaks the label (a bright lesion darkens everything else), so no
recipe here looks at an image's own values: the ends come from the file's display settings, from the format, or from
bounds stored in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from counterscan.data.readers.raw import RawImage
from counterscan.errors import InputError

RecipeKind = Literal["voi", "window", "range", "percentile"]
ValidRule = Literal["padding", "border", "all"]

# Hounsfield units of the usual lung window (centre -600, width 1500).
CT_LUNG = (-1350.0, 150.0)
_SAMPLE_PIXELS = 20_000
_DARK = 1.0 / 255.0


@dataclass(frozen=True)
class IntensityRecipe:
    """How grey values become [-1, 1]; chosen per data set, stored with it and with every checkpoint.

    Attributes:
        kind: "voi": the file's own VOI LUT or window, else the range its stored bits can express. Right for
            radiographs, where the modality sets the window; MR and CT windows are chosen per series, so prefer the
            others there. "window": ``lo``..``hi`` in modality units (Hounsfield units for CT). "range": the range of
            the stored bits (8-bit: 0..255), or ``lo``..``hi`` for all files when given. "percentile": bounds fitted on
            a sample of the data set by `fit_recipe` (MR, whose units are arbitrary).
        lo: lower end in modality units, shown as -1.
        hi: upper end in modality units, shown as 1.
        percentiles: the pooled percentiles that ``lo`` and ``hi`` were measured at; a record only.
        pad: value of pixels that are not image.
        valid: which pixels are image: "padding" leaves out DICOM Pixel Padding and transparent pixels; "border" leaves
            out those and black bars at the edges; "all" takes every pixel.
        voi_index: which of the file's VOI transforms, tables first; the last one when there are fewer.

    Raises:
        InputError: a kind, rule or bound that makes no sense.
    """

    kind: RecipeKind = "voi"
    lo: float | None = None
    hi: float | None = None
    percentiles: tuple[float, float] | None = None
    pad: float = -1.0
    valid: ValidRule = "padding"
    voi_index: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("voi", "window", "range", "percentile"):
            raise _refusal("kind", f"{self.kind!r} is not voi, window, range or percentile")
        if self.valid not in ("padding", "border", "all"):
            raise _refusal("valid", f"{self.valid!r} is not padding, border or all")
        if not -1.0 <= self.pad <= 1.0 or self.voi_index < 0:
            raise _refusal("pad", "the pad value lies in -1..1 and voi_index counts from 0")
        if (self.lo is None) != (self.hi is None) or (self.lo is None and self.kind in ("window", "percentile")):
            raise _refusal("lo", f"{self.kind} needs both lo and hi")
        if self.lo is not None and self.hi is not None:
            if self.kind == "voi":
                raise _refusal("lo", "voi takes its ends from each file: leave lo and hi out")
            if not (math.isfinite(self.lo) and math.isfinite(self.hi) and self.lo < self.hi):
                raise _refusal("lo", f"lo {self.lo} must be below hi {self.hi}, both finite")

    def apply(self, raw: RawImage) -> np.ndarray:
        """(H, W) float32 in [-1, 1]; pixels that are not image hold ``pad``.

        Raises:
            InputError: the file names no range and the recipe gives none (floats, NIfTI wider than 8 bits).
        """
        return self.apply_with_valid(raw)[0]

    def apply_with_valid(self, raw: RawImage) -> tuple[np.ndarray, np.ndarray]:
        """`apply`, and (H, W) bool, False where a pixel is not image."""
        image = self._unit(raw)
        image *= np.float32(2.0)
        image -= np.float32(1.0)
        valid = np.ones(raw.shape, dtype=bool)
        if self.valid != "all" and raw.valid is not None:
            valid &= raw.valid
        if self.valid == "border":
            valid &= _inside_black_bars(image)
        if not valid.all():
            image[~valid] = self.pad
        return image, valid

    def valid_mask(self, raw: RawImage) -> np.ndarray:
        """(H, W) bool, False where a pixel is not image."""
        return self.apply_with_valid(raw)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> IntensityRecipe:
        """Inverse of `to_dict`.

        Raises:
            InputError: an unknown key, or values that make no sense.
        """
        unknown = sorted(set(value) - {entry.name for entry in fields(cls)})
        if unknown:
            raise _refusal(unknown[0], "is no setting of a recipe")
        settings: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in value.items()}
        return cls(**settings)

    def _unit(self, raw: RawImage) -> np.ndarray:
        """(H, W) float32 in [0, 1], freshly made."""
        if self.kind == "voi" and raw.voi:
            return raw.voi[min(self.voi_index, len(raw.voi) - 1)].apply(raw.pixels)
        ends = (self.lo, self.hi) if self.lo is not None else raw.stored_range
        if ends is None or ends[0] is None or ends[1] is None:
            raise _refusal("kind", f"{self.kind} needs a range, and a {raw.kind} file with such pixels names none")
        unit = (raw.pixels - np.float32(ends[0])) * np.float32(1.0 / (ends[1] - ends[0]))
        return np.clip(unit, 0.0, 1.0, out=unit)


def default_recipe(raw: RawImage) -> IntensityRecipe:
    """The rule for a single file when no data set is at hand: the lung window for CT, else "voi".

    It depends on the modality and never on pixel values.
    """
    return IntensityRecipe("window", *CT_LUNG) if raw.modality == "CT" else IntensityRecipe()


def fit_recipe(
    sample: Iterable[RawImage], *, percentiles: tuple[float, float] = (0.5, 99.5), valid: ValidRule = "padding"
) -> IntensityRecipe:
    """Choose one recipe for a data set from a sample of its images, a hundred or so, of training patients only.

    All CT: the lung window. 8-bit files: their range. 16-bit rasters: 0 to the smallest power of two above the
    brightest sampled pixel (12-bit data in 16-bit files is common). MR, NIfTI, floats, and DICOM of more than 8 bits
    without a VOI: pooled percentiles. Other DICOM: "voi".

    Args:
        sample: images, read once and not kept.
        percentiles: pooled over pixels that are image, the same number from each.
        valid: passed on to the recipe.

    Raises:
        InputError: no image, or all pixels alike.
    """
    pooled: list[np.ndarray] = []
    modalities: set[str] = set()
    wants: set[str] = set()
    brightest = 0.0
    for raw in sample:
        values = raw.pixels[raw.valid] if raw.valid is not None else raw.pixels.ravel()
        pooled.append(values[:: max(1, values.size // _SAMPLE_PIXELS)])
        brightest = max(brightest, float(values.max()))
        modalities.add(raw.modality)
        wants.add(_wish(raw))
    if not pooled:
        raise _refusal("sample", "holds no image")
    if modalities == {"CT"}:
        return IntensityRecipe("window", *CT_LUNG, valid=valid)
    if wants == {"wide raster"}:
        return IntensityRecipe("range", 0.0, float(2 ** max(8, math.ceil(math.log2(brightest + 1))) - 1), valid=valid)
    if wants <= {"range", "wide raster"}:
        return IntensityRecipe("range", valid=valid)
    if "percentile" not in wants:
        return IntensityRecipe("voi", valid=valid)
    lo, hi = (float(end) for end in np.percentile(np.concatenate(pooled), percentiles))
    if lo >= hi:
        raise _refusal("sample", "all pixels are alike, so no contrast can be chosen")
    return IntensityRecipe("percentile", lo, hi, percentiles=percentiles, valid=valid)


def _wish(raw: RawImage) -> str:
    """What kind of recipe one image asks for."""
    if raw.stored_range is None or raw.modality == "MR":
        return "percentile"
    if raw.kind == "dicom":
        return "voi" if raw.voi or raw.stored_range == (0.0, 255.0) else "percentile"
    return "range" if raw.stored_range == (0.0, 255.0) or raw.stored_range[0] < 0 else "wide raster"


def _inside_black_bars(image: np.ndarray) -> np.ndarray:
    """(H, W) bool, False on rows and columns at the edges that are black from end to end."""
    bright = image > -1.0 + 2 * _DARK
    inside = np.zeros(image.shape, dtype=bool)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if rows.size:
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        return inside
    return ~inside  # a wholly black image has no bars


def _refusal(field: str, problem: str) -> InputError:
    return InputError(
        problem, field=f"intensity.{field}", remedy='Give a recipe: IntensityRecipe("window", lo, hi), or fit_recipe'
    )
