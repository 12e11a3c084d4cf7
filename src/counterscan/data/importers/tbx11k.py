"""TBX11K as published: imgs/{health,sick,tb}/*.png, annotations/json/TBX11K_{train,val}.json (COCO), lists/*.txt."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from counterscan.data.findings import canonical_name
from counterscan.data.importers.common import boxes_json, index_images, locate, make_table
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json

FINDINGS = ("Tuberculosis", "Active Tuberculosis", "Latent Tuberculosis", "Abnormal")


def import_tbx11k(root: str | Path) -> StudyTable:
    """Tuberculosis against healthy and against other disease, with radiologists' boxes.

    Folder ``health`` is 0 for everything; ``sick`` is ill without tuberculosis (only "Abnormal" is 1); ``tb`` is
    "Tuberculosis", whose boxes tell active from latent (the annotation's "Obsolete"). Where activity could not be told,
    or no box was drawn, active and latent are -1. ``mask_kind`` speaks of tuberculosis: none(empty) for health and
    sick.
    The test images have no published labels and are left out. The set names no patients: each image is its own.

    Args:
        root: folder with imgs/ and annotations/.

    Returns:
        four findings, boxes in pixels of the 512 x 512 files, the published train and val splits.

    Raises:
        InputError: not this layout, an image that the annotations name is missing, or an unknown category.

    Source: Liu et al. 2020, "Rethinking Computer-Aided Tuberculosis Diagnosis".
    """
    images = locate(root, "imgs", what="TBX11K")
    base = images.parent
    places = index_images(images)
    rows: dict[str, dict[str, Any]] = {}
    for split in ("train", "val"):
        path = locate(base, f"annotations/json/TBX11K_{split}.json", f"annotations/TBX11K_{split}.json", what="TBX11K")
        for name, boxes in _read_coco(path).items():
            place = name if (images / name).is_file() else places.get(PurePosixPath(name).name)
            if place is None:
                raise InputError(f"names {name!r}, which is not in imgs/", path=path, remedy="Unpack the images again")
            rows[place] = _row(place, split, boxes, path)
    return make_table([rows[name] for name in sorted(rows)], base, FINDINGS)


def _read_coco(path: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> boxes (finding, [x, y, w, h]) of one COCO file."""
    data = read_json(path)
    try:
        names = {item["id"]: item["file_name"] for item in data["images"]}
        categories = {item["id"]: canonical_name(item["name"]) for item in data["categories"]}
        boxes: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in names.values()}
        for item in data["annotations"]:
            boxes[names[item["image_id"]]].append((categories[item["category_id"]], item["bbox"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"is not COCO JSON ({error!r} is missing)", path=path, remedy="Unpack it again") from None
    odd = {finding for found in boxes.values() for finding, _ in found} - set(FINDINGS)
    if odd:
        raise InputError(f"has unknown categories {sorted(odd)}", path=path)
    return boxes


def _row(place: str, split: str, boxes: list[tuple[str, list[float]]], path: Path) -> dict[str, Any]:
    folder = PurePosixPath(place).parts[0]
    row: dict[str, Any] = {"image": f"imgs/{place}", "patient": PurePosixPath(place).stem, "split": split}
    if folder in ("health", "sick"):
        if boxes:
            raise InputError(f"has tuberculosis boxes for {place!r}, an image without tuberculosis", path=path)
        absent = dict.fromkeys(FINDINGS, 0)
        return row | absent | {"Abnormal": int(folder == "sick"), "boxes": "", "mask_kind": "none(empty)"}
    if folder != "tb":
        raise InputError(f"names {place!r}, outside health, sick and tb", path=path)
    found = {finding for finding, _ in boxes}
    unsure = not found or "Tuberculosis" in found
    other = -1 if unsure else 0
    return row | {
        "Tuberculosis": 1,
        "Active Tuberculosis": 1 if "Active Tuberculosis" in found else other,
        "Latent Tuberculosis": 1 if "Latent Tuberculosis" in found else other,
        "Abnormal": 1,
        "boxes": boxes_json(boxes),
        "mask_kind": "box" if boxes else "none(unknown)",
    }
