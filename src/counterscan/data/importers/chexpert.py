"""CheXpert as published: train.csv, valid.csv (and test.csv), CheXpert-v1.0[-small]/train/patient00001/study1/*.jpg."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from counterscan.data.findings import CHEXPERT
from counterscan.data.importers.common import Missing, imply_absent, keep_existing, locate, make_table, read_csv
from counterscan.data.table import StudyTable

_PLACE = r"(?P<image>(?P<split>train|valid|test)/(?P<patient>patient\d+)/.+)$"


def import_chexpert(root: str | Path, *, frontal_only: bool = True, missing: Missing = "error") -> StudyTable:
    """CheXpert's own labels, untouched: 1, 0, -1 uncertain, blank unmentioned.

    The published ``valid`` folder becomes the split "val". "No Finding" is carried along and makes the blanks of its
    row 0, which is what it says.

    Args:
        root: folder with train.csv.
        frontal_only: leave lateral views out.
        missing: "error" when an image file is not there, or "skip" it.

    Returns:
        13 findings; ``sex``, ``age``, ``view`` and "No Finding" are carried along.

    Raises:
        InputError: not this layout, or missing images.

    Source: Irvin et al. 2019, "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels".
    """
    train = locate(root, "train.csv", what="CheXpert")
    base = train.parent
    files = [base / name for name in ("train.csv", "valid.csv", "test.csv")]
    parts = [read_csv(path, ("Path",)) for path in files if path.is_file()]
    rows = pd.concat(parts, ignore_index=True).fillna("")
    place = rows["Path"].str.extract(_PLACE)
    rows = rows[place["image"].notna()].join(place.dropna())
    if frontal_only:
        lateral = rows["Frontal/Lateral"] if "Frontal/Lateral" in rows else pd.Series("", index=rows.index)
        rows = rows[~((lateral == "Lateral") | rows["image"].str.contains("lateral"))]
    findings = [name for name in CHEXPERT if name in rows]
    rows = imply_absent(rows, findings)
    view = rows["AP/PA"] if "AP/PA" in rows else pd.Series("", index=rows.index)
    out = rows[["image", "patient", "split", *findings]].assign(
        sex=rows.get("Sex", ""), age=rows.get("Age", ""), view=view.where(view != "", "lateral")
    )
    return make_table(keep_existing(out.reset_index(drop=True), base, missing, "CheXpert"), base, ())
