"""Fields of a DICOM header: typed, checked, found in enhanced functional groups, and nothing that names a patient."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from counterscan.errors import InputError

_UID = re.compile(r"[0-9.]{1,64}")
_MODALITY = re.compile(r"[A-Z]{2,10}")
_DIRECTIONS = re.compile(r"[APRLHF]{1,3}")
# Only defined terms pass: a free-text view could hold anything.
_VIEWS = frozenset(
    {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "OBL", "OBLIQUE", "AXIAL"}
    | {"CC", "MLO", "ML", "LM", "LMO", "FB", "SIO", "ISO", "XCC", "XCCL", "XCCM"}
)
_REFERENCES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_GROUPS = (
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PlaneOrientationSequence",
    "FrameAnatomySequence",
    "FramePixelDataPropertiesSequence",
)
_EXPORT = "Export the file again from its source, or correct the field"

# Objects that carry pixels, or are taken for images, without being pictures of a body.
_NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label-map segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.5": "a surface segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose grid (RTDOSE)",
    "1.2.840.10008.1.3.10": "a DICOMDIR index",
}
_NOT_IMAGE_MODALITIES = {"SEG": "a segmentation (SEG)", "RTDOSE": "a radiotherapy dose grid (RTDOSE)"}
_MASK_REMEDY = "Export its segments as PNG or NIfTI and name them in the table's mask column"
_INDEX_REMEDY = "Give the folder of image files that it lists"


def numbers(item: Dataset, keyword: str, path: Path) -> list[float]:
    """All values of a numeric field; empty when the field is missing or blank."""
    try:
        value = item.get(keyword)
        if value is None or value == "":
            return []
        values = [value] if isinstance(value, (int, float, str)) else list(value)
        result = [float(entry) for entry in values]
    except Exception:  # pydicom converts on access and raises whatever the conversion raised
        raise InputError("is not a number", path=path, field=keyword, remedy=_EXPORT) from None
    if not all(math.isfinite(entry) for entry in result):
        raise InputError("is not a finite number", path=path, field=keyword, remedy=_EXPORT)
    return result


def integer(item: Dataset, keyword: str, path: Path, default: int | None = None) -> int:
    """A whole number; a missing one is an error unless ``default`` is given."""
    values = numbers(item, keyword, path)
    if not values and default is not None:
        return default
    if len(values) != 1 or values[0] != int(values[0]):
        problem = "is missing" if not values else "is not one whole number"
        raise InputError(problem, path=path, field=keyword, remedy=_EXPORT)
    return int(values[0])


def text(item: Dataset, keyword: str) -> str:
    """A code string, upper case; "" when missing or unreadable."""
    try:
        value = item.get(keyword)
    except Exception:
        return ""
    return value.strip().upper() if isinstance(value, str) else ""


def items(owner: Dataset, keyword: str) -> Sequence[Dataset]:
    """Items of a sequence; empty when it is missing or is none."""
    try:
        value = owner.get(keyword)
        return [entry for entry in value if isinstance(entry, Dataset)] if value else []
    except Exception:
        return []


def frame_items(header: Dataset, frame: int) -> list[Dataset]:
    """Where a frame's attributes are looked for, nearest first: its own groups, the shared ones, the top level."""
    found: list[Dataset] = []
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    for group in [*per_frame[frame : frame + 1], *items(header, "SharedFunctionalGroupsSequence")[:1]]:
        for keyword in _GROUPS:
            found.extend(items(group, keyword)[:1])
    return [*found, header]


def first_with(places: Sequence[Dataset], keyword: str) -> Dataset | None:
    """The nearest place that holds a field."""
    return next((place for place in places if keyword in place and place.get_item(keyword) is not None), None)


def frame_count(header: Dataset, path: Path) -> int:
    """Number of frames, at least 1 (a blank or zero field means one)."""
    return max(1, integer(header, "NumberOfFrames", path, default=1))


def refuse_non_images(header: Dataset, path: Path) -> None:
    """Refuse segmentations, dose grids, indices and what holds no pixels, naming what the object is."""
    sop = _uid(header, "SOPClassUID") or _uid(getattr(header, "file_meta", Dataset()), "MediaStorageSOPClassUID")
    modality = text(header, "Modality")
    what = _NOT_IMAGES.get(sop) or _NOT_IMAGE_MODALITIES.get(modality)
    if what:
        remedy = _INDEX_REMEDY if "index" in what else _MASK_REMEDY if "segm" in what else "Leave it out"
        raise InputError(f"is {what}, not an image", path=path, field="SOPClassUID", remedy=remedy)
    if "Rows" not in header or "Columns" not in header:
        name = UID(sop).name if sop else ""
        known = f" (it is {name})" if name and name != sop else ""
        raise InputError(
            f"holds no image{known}", path=path, field="Rows", remedy="Leave it out, or give the image it belongs to"
        )


def is_image_class(sop: str) -> bool:
    """Whether a SOP class can hold an image that is read; unknown and private classes count as images."""
    if sop in _NOT_IMAGES:
        return False
    name = UID(sop).name if _UID.fullmatch(sop) else ""
    return name == sop or "Image Storage" in name or "Parametric Map" in name or not name


def spacing(places: Sequence[Dataset], path: Path) -> tuple[tuple[float, float] | None, str | None]:
    """(row, column) mm and the field it came from; (None, None) when no field holds two positive numbers."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        place = first_with(places, keyword)
        try:
            values = numbers(place, keyword, path) if place is not None else []
        except InputError:  # an unreadable spacing costs the millimetres, not the image
            continue
        if len(values) == 2 and min(values) > 0:
            return (values[0], values[1]), keyword
    return None, None


def orientation(places: Sequence[Dataset], path: Path) -> str | None:
    """Patient directions toward the right and the bottom of the image, e.g. "L\\P"; None when not stated."""
    place = first_with(places, "ImageOrientationPatient")
    try:
        cosines = numbers(place, "ImageOrientationPatient", path) if place is not None else []
    except InputError:
        cosines = []
    if len(cosines) == 6 and any(cosines[:3]) and any(cosines[3:]):
        return f"{_letter(cosines[:3])}\\{_letter(cosines[3:])}"
    place = first_with(places, "PatientOrientation")
    try:
        stated: Any = place.get("PatientOrientation") if place is not None else None
        letters = [str(entry).strip() for entry in stated] if stated and not isinstance(stated, str) else []
    except Exception:
        return None
    return "\\".join(letters) if len(letters) == 2 and all(map(_DIRECTIONS.fullmatch, letters)) else None


def laterality(places: Sequence[Dataset]) -> str | None:
    """ "L", "R", "B" or None."""
    for keyword in ("FrameLaterality", "ImageLaterality", "Laterality"):
        for place in places:
            value = text(place, keyword)
            if value in ("L", "R", "B"):
                return value
    return None


def view(header: Dataset) -> str | None:
    """ViewPosition, when it is a defined term."""
    value = text(header, "ViewPosition")
    return value if value in _VIEWS else None


def modality(header: Dataset) -> str:
    """DICOM modality, "" when missing or malformed."""
    value = text(header, "Modality")
    return value if _MODALITY.fullmatch(value) else ""


def references(header: Dataset, frame: int, frames: int) -> dict[str, str]:
    """UIDs that derived objects point to; nothing else leaves the header."""
    found = {keyword: _uid(header, keyword) for keyword in _REFERENCES}
    found = {keyword: value for keyword, value in found.items() if value}
    if frames > 1:
        found["ReferencedFrameNumber"] = str(frame + 1)
    return found


def _uid(owner: Dataset, keyword: str) -> str:
    try:
        value = str(owner.get(keyword) or "")
    except Exception:
        return ""
    return value if _UID.fullmatch(value) else ""


def _letter(cosine: Sequence[float]) -> str:
    axis = max(range(3), key=lambda index: abs(cosine[index]))
    return ("LR", "PA", "HF")[axis][0 if cosine[axis] > 0 else 1]
