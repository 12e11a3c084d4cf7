"""LGG-MRI as published on Kaggle: kaggle_3m/TCGA_XX_1234_date/TCGA_..._n.tif (3 channels) and ..._n_mask.tif."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from counterscan.data.importers.common import locate, make_table, need_folder
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

CHANNELS = {"pre": 0, "flair": 1, "post": 2}
_NAME = re.compile(r"(?P<patient>TCGA_(?P<institution>[A-Z0-9]+)_[A-Z0-9]+)_\d+_(?P<slice>\d+)$")


def import_lgg_mri(
    root: str | Path,
    *,
    derived: str | Path | None = None,
    channel: Literal["flair", "pre", "post"] = "flair",
    min_pixels: int = 1,
    seed: int = 0,
) -> StudyTable:
    """Brain slices with the tumour drawn in FLAIR.

    Each file holds three sequences as its channels: before contrast, FLAIR, after contrast (for some patients the FLAIR
    is repeated where a sequence was not taken). The house works on one channel, and luminance would mix the three, so
    that the chosen one is written once as an 8-bit PNG under ``derived``; masks stay where they are.

    Args:
        root: folder with kaggle_3m/ or that folder itself.
        derived: folder for the single-channel images.
        channel: "flair" (what the masks were drawn on), "pre" or "post".
        min_pixels: a slice with a smaller tumour is uncertain (-1).
        seed: of the 70 : 10 : 20 splits by patient (none are published).

    Returns:
        "Brain Tumor"; ``slice``, ``institution`` and ``mask_px`` are carried along.

    Raises:
        InputError: not this layout, a slice without its mask, or no ``derived`` folder.

    Source: Buda et al. 2019; Mazurowski et al. 2017 (TCGA-LGG, The Cancer Imaging Archive).
    """
    base = locate(root, "TCGA_*/TCGA_*_mask.tif", what="LGG-MRI").parent.parent
    out = need_folder(derived, "LGG-MRI files hold three sequences, and the chosen one is written out as PNG")
    rows: list[dict[str, Any]] = []
    for path in sorted(base.glob("TCGA_*/TCGA_*.tif"), key=_order):
        match = _NAME.match(path.stem)
        if match is None:
            continue
        mask = path.with_name(f"{path.stem}_mask.tif")
        pixels = _read(mask).astype(bool)
        image = out / path.parent.name / f"{path.stem}_{channel}.png"
        if not image.is_file():
            image.parent.mkdir(exist_ok=True)
            _save_channel(path, image, CHANNELS[channel])
        area = int(pixels.sum())
        rows.append(
            {
                "image": str(image),
                "patient": match["patient"],
                "mask": str(mask.resolve()) if area else "",
                "mask_kind": "pixel" if area else "none(empty)",
                "Brain Tumor": 1 if area >= max(min_pixels, 1) else (-1 if area else 0),
                "slice": match["slice"],
                "institution": match["institution"],
                "mask_px": area,
            }
        )
    return split_by_patient(make_table(rows, base, ("Brain Tumor",)), seed=seed)


def _order(path: Path) -> tuple[str, int, str]:
    match = _NAME.match(path.stem)
    return (path.parent.name, int(match["slice"]) if match else -1, path.name)


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError:
        raise InputError("is missing: the slice has no mask", path=path, remedy="Unpack the set again") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy="Unpack the set again") from None


def _save_channel(path: Path, out: Path, index: int) -> None:
    pixels = _read(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"is {pixels.dtype} of shape {pixels.shape}, not three 8-bit channels",
            path=path,
            remedy="Take the set as published on Kaggle",
        )
    part = out.with_suffix(".part")
    Image.fromarray(np.ascontiguousarray(pixels[:, :, index])).save(part, format="PNG")
    part.replace(out)
