"""NIH ChestX-ray14 as published: Data_Entry_2017[_v2020].csv, BBox_List_2017.csv, two list files, images_0xx/images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from counterscan.data.findings import NO_FINDING, canonical_name
from counterscan.data.importers.common import (
    Missing,
    boxes_json,
    index_images,
    keep_existing,
    locate,
    make_table,
    read_csv,
)
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

NIH_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)


def import_nih_cxr14(
    root: str | Path, *, val_fraction: float = 0.1, seed: int = 0, missing: Missing = "error"
) -> StudyTable:
    """The 14 text-mined findings (Mass and Nodule together are "Lung Lesion"), all images, published test list.

    Patients of the published test list, and all patients who have a radiologist's box, are in the split "test": boxes
    are truth for testing only. Of the others, ``val_fraction`` of the patients validate. Without the list files only
    the boxed patients are fixed and the rest is split 70 : 10 : 20.

    Args:
        root: folder with Data_Entry_2017.csv or Data_Entry_2017_v2020.csv.
        val_fraction: share of the training patients that validate.
        seed: deals the validation patients.
        missing: "error" when an image file is not there, or "skip" it (a part of the archives is unpacked).

    Returns:
        13 findings; ``boxes`` in pixels of the 1024 x 1024 files; ``view``, ``age``, ``sex`` are carried along.

    Raises:
        InputError: not this layout, or missing images.

    Source: Wang et al. 2017, "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks".
    """
    entry = locate(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv", what="NIH ChestX-ray14")
    base = entry.parent
    rows = read_csv(entry, ("Image Index", "Finding Labels", "Patient ID"))
    places = index_images(base)
    frame = pd.DataFrame(
        {
            "image": [places.get(name, name) for name in rows["Image Index"]],
            "patient": rows["Patient ID"].str.zfill(8),
            "view": rows.get("View Position", ""),
            "age": rows.get("Patient Age", rows.get("Patient Age ", "")),
            "sex": rows.get("Patient Gender", rows.get("Patient Sex", "")),
        }
    )
    frame = frame.assign(**nih_labels(rows["Finding Labels"]))
    boxes = _read_boxes(base)
    text = [boxes_json(boxes.get(name, ())) for name in rows["Image Index"]]
    healthy = (rows["Finding Labels"] == NO_FINDING).to_numpy()
    frame["boxes"] = text
    frame["mask_kind"] = np.where(np.array(text) != "", "box", np.where(healthy, "none(empty)", "none(unknown)"))
    boxed = set(frame["patient"][frame["boxes"] != ""])
    tested = boxed | set(frame["patient"][rows["Image Index"].isin(_read_list(base, "test_list.txt"))])
    table = make_table(keep_existing(frame, base, missing, "NIH ChestX-ray14"), base, ())
    shares = {"train": 1 - val_fraction, "val": val_fraction}
    if tested == boxed:
        shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    return split_by_patient(table, shares, seed, fixed=dict.fromkeys(tested, "test"))


def nih_labels(text: pd.Series, known: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Label columns from "A|B|C" strings.

    Args:
        text: (N,) findings joined by "|", or "No Finding".
        known: (N,) rows whose list can be trusted; the others stay blank. Default: all.

    Returns:
        canonical name -> (N,) float of 1, 0 and NaN.

    Raises:
        InputError: a finding that the set does not have.
    """
    mentioned = [set(value.split("|")) for value in text]
    odd = set().union(*mentioned) - {*NIH_FINDINGS, NO_FINDING, ""} if mentioned else set()
    if odd:
        raise InputError(f"unknown findings {sorted(odd)}", field="Finding Labels", remedy="Restore the published file")
    labels: dict[str, np.ndarray] = {}
    for name in NIH_FINDINGS:
        values = np.array([float(name in row) for row in mentioned])
        if known is not None:
            values[~known] = np.nan
        canonical = canonical_name(name)
        labels[canonical] = np.fmax(labels[canonical], values) if canonical in labels else values
    return labels


def _read_boxes(base: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Boxes by image. The header is published as 'Bbox [x', 'y', 'w', 'h]', so columns are taken by position."""
    path = base / "BBox_List_2017.csv"
    if not path.is_file():
        return {}
    rows = read_csv(path, ("Image Index", "Finding Label"))
    try:
        numbers = rows.iloc[:, 2:6].astype(float).to_numpy()
    except ValueError as error:
        raise InputError(f"has a box that is not four numbers ({error})", path=path) from None
    boxes: dict[str, list[tuple[str, list[float]]]] = {}
    for image, finding, box in zip(rows["Image Index"], rows["Finding Label"], numbers.tolist(), strict=True):
        boxes.setdefault(image, []).append((canonical_name(finding), box))
    return boxes


def _read_list(base: Path, name: str) -> set[str]:
    path = base / name
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
