"""DICOM look-up tables: stored values to modality units (Modality LUT) and the file's own contrast (VOI LUT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from counterscan.data.readers import dicom_header as fields
from counterscan.data.readers.raw import Voi, VoiTable, Window
from counterscan.errors import InputError

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_REMEDY = "Correct the table, or remove it and set rescale or window fields"


@dataclass(frozen=True)
class Table:
    """A LUT as stored: entry ``k`` belongs to the input ``first + k``; inputs outside take the end entries.

    Attributes:
        first: first input mapped.
        entries: (K,) unsigned.
        bits: bits per entry, so that the outputs lie in 0..2**bits - 1.
    """

    first: int
    entries: np.ndarray
    bits: int

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """(H, W) integers to (H, W) float32 entries."""
        index = np.clip(stored.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries.astype(np.float32)[index]


def read_table(item: Dataset, signed: bool, little_endian: bool, path: Path, field: str) -> Table:
    """A LUT from an item with LUTDescriptor and LUTData (PS3.3 C.11.1.1, C.11.2.1.1).

    Raises:
        InputError: the descriptor is malformed or the data is shorter than it says.
    """
    descriptor = [int(value) for value in fields.numbers(item, "LUTDescriptor", path)]
    if len(descriptor) != 3 or not 1 <= descriptor[2] <= 16:
        raise InputError("its LUTDescriptor is malformed", path=path, field=field, remedy=_REMEDY)
    count = (descriptor[0] & 0xFFFF) or 65536
    first = descriptor[1] - 65536 if signed and descriptor[1] > 32767 else descriptor[1]
    try:
        data: Any = item.LUTData
        if isinstance(data, (bytes, bytearray)):
            width = "u1" if len(data) < 2 * count else "<u2" if little_endian else ">u2"
            entries = np.frombuffer(data, dtype=width, count=count).astype(np.uint16)
        else:
            entries = (np.atleast_1d(np.asarray(data, dtype=np.int64))[:count] & 0xFFFF).astype(np.uint16)
    except Exception:
        raise InputError("its LUTData cannot be read", path=path, field=field, remedy=_REMEDY) from None
    if len(entries) != count:
        raise InputError(f"its LUTData has {len(entries)} of {count} entries", path=path, field=field, remedy=_REMEDY)
    return Table(first, entries, descriptor[2])


def modality_transform(
    places: Sequence[Dataset], stored_range: tuple[float, float], signed: bool, little_endian: bool, path: Path
) -> tuple[Table | tuple[float, float], tuple[float, float]]:
    """How stored values become modality units.

    XA and RF images whose PixelIntensityRelationship is LOG or DISP keep their stored values: their Modality LUT leads
    back to X-ray intensity and is not for display (PS3.3 C.8.7.1.1.2).

    Returns:
        A Table or (slope, intercept), and the stored range in modality units (low, high).

    Raises:
        InputError: a zero slope or a broken table.
    """
    header = places[-1]
    relation = fields.text(header, "PixelIntensityRelationship")
    if fields.text(header, "Modality") in ("XA", "RF") and relation in ("LOG", "DISP"):
        return (1.0, 0.0), stored_range
    if fields.first_with(places, "RescaleSlope") is None and fields.items(header, "ModalityLUTSequence"):
        item = fields.items(header, "ModalityLUTSequence")[0]
        table = read_table(item, signed, little_endian, path, "ModalityLUTSequence")
        return table, (0.0, float(2**table.bits - 1))
    slope = _one(places, "RescaleSlope", 1.0, path)
    intercept = _one(places, "RescaleIntercept", 0.0, path)
    if slope == 0:
        raise InputError(
            "is 0, so every pixel would be the same", path=path, field="RescaleSlope", remedy="Correct the field"
        )
    low, high = sorted(slope * end + intercept for end in stored_range)
    return (slope, intercept), (low, high)


def voi_transforms(places: Sequence[Dataset], signed: bool, little_endian: bool, path: Path) -> tuple[Voi, ...]:
    """The file's VOI LUTs, then its windows; windows that cannot be (width <= 0, no number) are left out.

    Raises:
        InputError: a VOI LUT is broken.
    """
    found: list[Voi] = []
    header = places[-1]
    for item in fields.items(header, "VOILUTSequence"):
        table = read_table(item, signed, little_endian, path, "VOILUTSequence")
        unit = np.minimum(table.entries.astype(np.float32) / np.float32(2**table.bits - 1), np.float32(1.0))
        found.append(VoiTable(table.first, unit))
    place = fields.first_with(places, "WindowCenter")
    if place is None:
        return tuple(found)
    function = fields.text(place, "VOILUTFunction") or "LINEAR"
    try:
        centers = fields.numbers(place, "WindowCenter", path)
        widths = fields.numbers(place, "WindowWidth", path)
    except InputError:  # an unreadable window leaves the image without one
        return tuple(found)
    for center, width in zip(centers, widths, strict=False):
        if width > 0 and function in _FUNCTIONS and (width >= 1 or function != "LINEAR"):
            found.append(Window(center, width, function))
    return tuple(found)


def _one(places: Sequence[Dataset], keyword: str, default: float, path: Path) -> float:
    place = fields.first_with(places, keyword)
    values = fields.numbers(place, keyword, path) if place is not None else []
    return values[0] if values else default
