"""Per-image outputs: exact maps for programs, pictures for people. Every file is written atomically."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from torch import Tensor

from counterscan.counterpart import Counterpart
from counterscan.data.geometry import Geometry
from counterscan.errors import InputError
from counterscan.files import atomic_write
from counterscan.png import DISCLAIMER, png
from counterscan.report import pictures

Format = Literal["nifti", "npz", "png"]
FORMATS: tuple[Format, ...] = ("nifti", "npz", "png")
# Patient directions (DICOM letters) as axes of NIfTI's right-anterior-superior space.
_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "H": (2, 1), "S": (2, 1), "F": (2, -1), "I": (2, -1)}


def safe_name(name: str) -> str:
    """A file name that stays inside its folder: other characters become "_", and a short hash keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:80]
    return plain if plain == name else f"{plain or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_outputs(
    folder: str | Path,
    name: str,
    counterpart: Counterpart,
    *,
    native: bool = True,
    native_image: Tensor | None = None,
    formats: Collection[Format] = FORMATS,
    full_colour: float | None = None,
) -> dict[str, Path]:
    """Write one answer.

    ======================== =====================================================================================
    ``<name>_map.nii.gz``    signed map M = image - counterpart, float32, full range 2 (systems with a counterpart)
    ``<name>_evidence.nii.gz``  evidence >= 0, float32
    ``<name>.npz``           map, evidence, mask, counterpart as (H, W) arrays and ``about``, JSON text
    ``<name>_counterpart.png``  8-bit; marked "Synthetic: true" in its metadata
    ``<name>_mask.png``      0 or 255
    ``<name>_overlay.png``   map over image
    ======================== =====================================================================================

    Args:
        folder: made when missing.
        name: of the image, without patient data; see ``safe_name``.
        counterpart: the answer.
        native: bring everything to the image's own grid when its geometry is known; False keeps the model's grid.
        native_image: (1, H, W) in [-1, 1] on the native grid; overlay and counterpart then keep its full detail
            (counterpart = native image - M) instead of being enlarged from the model's grid.
        formats: which kinds to write.
        full_colour: magnitude of full colour in the overlay; None takes the 99.5th percentile of this image, so that
            overlays of different images cannot be compared by colour.

    Returns:
        {"map": path, ...} of what was written.

    Raises:
        InputError: an unknown format, a native image of another shape, or a file that cannot be written.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise InputError(f"unknown format {sorted(unknown)}", field="formats", remedy=f"Use {', '.join(FORMATS)}")
    geometry = counterpart.source.geometry if native and counterpart.source is not None else None
    arrays, image = _arrays(counterpart, geometry, native_image)
    base, written = Path(folder) / safe_name(name), {}

    def put(kind: str, ending: str, content: bytes) -> None:
        written[kind] = base.with_name(base.name + ending)
        with atomic_write(written[kind]) as handle:
            handle.write(content)

    if "nifti" in formats:
        for kind in ("map", "evidence", "uncertainty"):
            if kind in arrays:
                put(kind, f"_{kind}.nii.gz", _nifti(arrays[kind], geometry, counterpart))
    if "npz" in formats:
        written["npz"] = base.with_name(base.name + ".npz")
        with atomic_write(written["npz"]) as handle:
            contents: dict[str, Any] = {**arrays, "about": np.array(_about(counterpart))}
            np.savez_compressed(handle, **contents)
    if "png" in formats:
        _pictures(put, arrays, image, counterpart, full_colour)
    return written


def _arrays(
    counterpart: Counterpart, geometry: Geometry | None, native_image: Tensor | None
) -> tuple[dict[str, np.ndarray], Tensor]:
    """Planes (H, W) on the grid to write, and the image there."""

    def place(x: Tensor, fill: float = 0.0) -> Tensor:
        x = x.detach().cpu()
        return x if geometry is None else geometry.to_native(x, fill=fill)

    image = place(counterpart.image, -1.0)
    if native_image is not None:
        if native_image.shape != image.shape:
            raise InputError(f"the native image is {tuple(native_image.shape)}, its geometry says {tuple(image.shape)}")
        image = native_image.detach().cpu()
    planes = {"evidence": place(counterpart.evidence).float()}
    if counterpart.counterpart is not None:
        planes["map"] = place(counterpart.delta).float()
        healed = (
            (image - planes["map"]).clamp(-1, 1) if native_image is not None else place(counterpart.counterpart, -1.0)
        )
        planes["counterpart"] = healed.float()
    if counterpart.mask is not None:
        planes["mask"] = place(counterpart.mask)
    if "uncertainty" in counterpart.extras:
        planes["uncertainty"] = place(counterpart.extras["uncertainty"]).float()
    return {kind: plane[0].numpy() for kind, plane in planes.items()}, image


def _pictures(
    put: Callable[[str, str, bytes], None],
    arrays: dict[str, np.ndarray],
    image: Tensor,
    counterpart: Counterpart,
    full_colour: float | None,
) -> None:
    if "counterpart" in arrays:
        healed = pictures.grey(torch.from_numpy(arrays["counterpart"]))
        put("counterpart", "_counterpart.png", png(healed, pictures.synthetic_facts(counterpart)))
    facts = {"Finding": counterpart.query.finding, "System": counterpart.made_by.system}
    if "mask" in arrays:
        put("mask", "_mask.png", png(arrays["mask"].astype(np.uint8) * 255, facts))
    evidence = torch.from_numpy(arrays["evidence"])
    signed = evidence * torch.from_numpy(arrays["map"]).sign() if "map" in arrays else evidence
    scale = full_colour or pictures.colour_scale([evidence])
    laid = pictures.overlay(image, signed, scale)
    put("overlay", "_overlay.png", png(laid, facts | {"FullColour": f"{scale:.6g}"}))


def _nifti(plane: np.ndarray, geometry: Geometry | None, counterpart: Counterpart) -> bytes:
    """A (columns, rows, 1) volume whose affine follows the image's spacing and orientation.

    Without orientation, columns run to the patient's left and rows to the back, so that viewers show it as it was read.
    """
    spacing = geometry.spacing if geometry is not None else None
    row_mm, column_mm = spacing or (1.0, 1.0)
    letters = ((geometry.orientation if geometry is not None else None) or "L\\P").upper().split("\\")
    try:
        (along, across) = [_AXES[letter[0]] for letter in letters]
    except (KeyError, ValueError, IndexError):
        along, across = _AXES["L"], _AXES["P"]
    affine = np.zeros((4, 4))
    affine[along[0], 0], affine[across[0], 1], affine[3, 3] = along[1] * column_mm, across[1] * row_mm, 1.0
    affine[:3, 2] = np.cross(affine[:3, 0] / column_mm, affine[:3, 1] / row_mm)
    volume = nibabel.Nifti1Image(np.ascontiguousarray(plane.T[:, :, None], dtype=np.float32), affine)
    volume.header.set_xyzt_units("mm" if spacing else "unknown")
    volume.header["descrip"] = f"{counterpart.made_by.system}: {counterpart.query.finding}; research use only".encode()[
        :79
    ]
    return gzip.compress(volume.to_bytes(), compresslevel=6, mtime=0)


def _about(counterpart: Counterpart) -> str:
    made_by, query = counterpart.made_by, counterpart.query
    facts: dict[str, Any] = {
        "finding": query.finding,
        "direction": query.direction,
        "score_before": counterpart.score_before,
        "score_after": counterpart.score_after,
        "figures": counterpart.figures,
        "verdict": counterpart.verdict,
        "system": made_by.system,
        "version": made_by.version,
        "checkpoint": made_by.checkpoint,
        "settings": made_by.settings,
        "disclaimer": DISCLAIMER,
    }
    return json.dumps(finite(facts), default=str)


def finite(value: Any) -> Any:
    """A value as strict JSON can hold it: numbers that are NaN or infinite become None, tuples lists."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
