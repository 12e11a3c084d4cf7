"""COVID-QU-Ex and the COVID-19 Radiography Database as published: folders per class, images and masks beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from counterscan.data.importers.common import locate, make_table
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

QU_EX_FINDINGS = ("COVID-19", "Pneumonia", "Abnormal")
RADIOGRAPHY_FINDINGS = ("COVID-19", "Lung Opacity", "Viral Pneumonia", "Abnormal")

_QU_EX_PARTS = {"infection": "Infection Segmentation Data", "lung": "Lung Segmentation Data"}
_QU_EX_LABELS: dict[str, dict[str, float]] = {
    "COVID-19": {"COVID-19": 1, "Pneumonia": np.nan, "Abnormal": 1},
    "Non-COVID": {"COVID-19": 0, "Pneumonia": 1, "Abnormal": 1},
    "Normal": {"COVID-19": 0, "Pneumonia": 0, "Abnormal": 0},
}
_RADIOGRAPHY_LABELS: dict[str, dict[str, float]] = {
    "COVID": {"COVID-19": 1, "Lung Opacity": np.nan, "Viral Pneumonia": np.nan, "Abnormal": 1},
    "Lung_Opacity": {"COVID-19": 0, "Lung Opacity": 1, "Viral Pneumonia": np.nan, "Abnormal": 1},
    "Viral Pneumonia": {"COVID-19": 0, "Lung Opacity": np.nan, "Viral Pneumonia": 1, "Abnormal": 1},
    "Normal": dict.fromkeys(RADIOGRAPHY_FINDINGS, 0),
}


def import_covid_qu_ex(root: str | Path, *, part: Literal["infection", "lung"] = "infection") -> StudyTable:
    """COVID-QU-Ex with its published Train, Val and Test folders.

    The infection mask of a COVID-19 image is its lesion mask. Nobody drew the pneumonia of the Non-COVID images, so
    that their published black infection masks are not taken for truth: none(unknown). A COVID-19 image says nothing
    about "Pneumonia", which here means viral or bacterial, non-COVID. No patients are named: each image is its own.

    Args:
        root: the folder that was unpacked.
        part: "infection" (2,913 COVID-19 images with infection masks, and as many others) or "lung" (33,920 images,
            lung masks only).

    Returns:
        three findings; lung masks in ``lung_mask``.

    Raises:
        InputError: not this layout, or a COVID-19 image without its infection mask.

    Source: Tahir et al. 2021, "COVID-19 infection localization and severity grading from chest X-ray images".
    """
    # The archive holds the folder once more inside itself.
    name = _QU_EX_PARTS[part]
    base = locate(root, f"{name}/{name}/Train", f"{name}/Train", what="COVID-QU-Ex").parent
    rows: list[dict[str, Any]] = []
    for folder, split in (("Train", "train"), ("Val", "val"), ("Test", "test")):
        for kind, labels in _QU_EX_LABELS.items():
            for image in _images(base / folder / kind / "images"):
                row: dict[str, Any] = {"image": image, "patient": Path(image).stem, "split": split, "mask": ""} | labels
                row["patient"] = f"{kind}/{row['patient']}"
                row["mask_kind"] = "none(empty)" if kind == "Normal" else "none(unknown)"
                row["lung_mask"] = _beside(base, image, "lung masks")
                if kind == "COVID-19" and part == "infection":
                    row |= {"mask": _beside(base, image, "infection masks"), "mask_kind": "pixel"}
                    if not row["mask"]:
                        raise InputError("has no infection mask", path=base / image, remedy="Unpack the set again")
                rows.append(row)
    _relative(rows, base)
    return make_table(rows, base, QU_EX_FINDINGS)


def import_covid_radiography(root: str | Path, *, seed: int = 0) -> StudyTable:
    """COVID-19 Radiography Database: COVID, Lung_Opacity, Normal, Viral Pneumonia.

    The published masks are *lungs*, so that they go to ``lung_mask`` and no image but the normal ones has lesion truth.
    A class says nothing about the others, except that Lung_Opacity and Viral Pneumonia are not COVID-19. No patients
    and no splits are published: each image is its own patient, and splits are made 70 : 10 : 20.

    Args:
        root: the folder that was unpacked.
        seed: of the splits.

    Raises:
        InputError: not this layout.

    Source: Chowdhury et al. 2020; Rahman et al. 2021.
    """
    base = locate(root, "COVID/images", "COVID", what="the COVID-19 Radiography Database")
    base = base.parent.parent if base.name == "images" else base.parent
    rows: list[dict[str, Any]] = []
    for kind, labels in _RADIOGRAPHY_LABELS.items():
        folder = base / kind / "images" if (base / kind / "images").is_dir() else base / kind
        for image in _images(folder):
            row: dict[str, Any] = {"image": image, "patient": f"{kind}/{Path(image).stem}"} | labels
            row["lung_mask"] = _beside(base, image, "masks")
            row["mask_kind"] = "none(empty)" if kind == "Normal" else "none(unknown)"
            rows.append(row)
    _relative(rows, base)
    return split_by_patient(make_table(rows, base, RADIOGRAPHY_FINDINGS), seed=seed)


def _images(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
                yield str(path)


def _beside(base: Path, image: str, folder: str) -> str:
    """The file of the same name in a folder beside the image's, or ""."""
    path = Path(image).parent.parent / folder / Path(image).name
    return str(path) if path.is_file() and path != Path(image) else ""


def _relative(rows: list[dict[str, Any]], base: Path) -> None:
    for row in rows:
        for name in ("image", "mask", "lung_mask"):
            if row.get(name):
                row[name] = Path(row[name]).relative_to(base).as_posix()
