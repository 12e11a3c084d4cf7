"""BUSI as published: Dataset_BUSI_with_GT/{benign,malignant,normal}/name (n).png, ..._mask.png, ..._mask_1.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from counterscan.data.importers.common import locate, make_table, need_folder
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

FINDINGS = ("Breast Lesion", "Benign Breast Lesion", "Malignant Breast Lesion")
_LABELS = {"benign": (1, 1, 0), "malignant": (1, 0, 1), "normal": (0, 0, 0)}


def import_busi(root: str | Path, *, derived: str | Path | None = None, seed: int = 0) -> StudyTable:
    """Benign, malignant and normal breast ultrasound with lesion masks.

    No patients are published, and the set is known to hold the same picture several times, at times under two classes.
    Pictures that look alike (equal 64-bit difference hash) therefore count as one patient, so that no copy is in two
    splits; true patients remain unknown. Several masks of a picture are merged into one file under ``derived``.

    Args:
        root: the folder that was unpacked.
        derived: folder for merged masks, needed where a picture has more than one.
        seed: of the 70 : 10 : 20 splits.

    Returns:
        three findings, ``patient`` is the group of look-alikes.

    Raises:
        InputError: not this layout, a lesion without a mask, or no ``derived`` folder where one is needed.

    Source: Al-Dhabyani et al. 2020, "Dataset of breast ultrasound images".
    """
    base = locate(root, "benign/benign*.png", what="BUSI").parent.parent
    rows: list[dict[str, Any]] = []
    for kind, labels in _LABELS.items():
        for path in sorted((base / kind).glob("*.png")):
            if "_mask" in path.stem:
                continue
            mask = _merged_mask(path, base, derived) if kind != "normal" else ""
            rows.append(
                {
                    "image": path.relative_to(base).as_posix(),
                    "patient": f"look_{_difference_hash(path):016x}",
                    "mask": mask,
                    "mask_kind": "pixel" if mask else "none(empty)",
                    **dict(zip(FINDINGS, labels, strict=True)),
                }
            )
    return split_by_patient(make_table(rows, base, FINDINGS), seed=seed)


def _merged_mask(image: Path, base: Path, derived: str | Path | None) -> str:
    """Path of the one mask of an image, made when there are several."""
    masks = sorted(p for p in image.parent.iterdir() if p.name.startswith(f"{image.stem}_mask") and p.suffix == ".png")
    if not masks:
        raise InputError("has no mask", path=image, remedy="Unpack the set again")
    if len(masks) == 1:
        return masks[0].relative_to(base).as_posix()
    folder = need_folder(derived, f"{image.name} has {len(masks)} masks, which are merged into one file")
    merged = np.logical_or.reduce([np.asarray(_open(path)) > 127 for path in masks])
    out = folder / f"{image.stem}_mask.png"
    Image.fromarray(merged.astype(np.uint8) * 255).save(out)
    return str(out)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("L")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy="Unpack the set again") from None


def _difference_hash(path: Path) -> int:
    """64 bits: is each cell of an 8 x 9 thumbnail brighter than its left neighbour? Equal for copies and rescalings."""
    cells = np.asarray(_open(path).resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")
