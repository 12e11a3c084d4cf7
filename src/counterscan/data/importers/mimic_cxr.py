"""MIMIC-CXR-JPG as published: mimic-cxr-2.0.0-{metadata,split,chexpert}.csv[.gz], files/p10/p1.../s5.../<id>.jpg."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from counterscan.data.findings import CHEXPERT
from counterscan.data.importers.common import Missing, imply_absent, keep_existing, locate, make_table, read_csv
from counterscan.data.table import StudyTable


def import_mimic_cxr(
    root: str | Path,
    *,
    reports: str | Path | None = None,
    frontal_only: bool = True,
    missing: Missing = "error",
) -> StudyTable:
    """MIMIC-CXR-JPG with the CheXpert labels, the published split, and the reports where they are given.

    Labels belong to the study, and every image of a study gets them. Studies without labels stay blank.

    Args:
        root: folder with the three CSV files and files/.
        reports: folder of the separately published mimic-cxr-reports (files/p10/p1.../s5....txt).
        frontal_only: keep AP and PA views only.
        missing: "error" when an image file is not there, or "skip" it.

    Returns:
        13 findings; ``view`` and ``study`` are carried along.

    Raises:
        InputError: not this layout, or missing images.

    Source: Johnson et al. 2019, MIMIC-CXR-JPG 2.0.0.
    """
    metadata = locate(root, "mimic-cxr-2.*-metadata.csv*", what="MIMIC-CXR-JPG")
    base = metadata.parent
    keys = ("subject_id", "study_id")
    rows = read_csv(metadata, ("dicom_id", *keys, "ViewPosition"))
    split = read_csv(locate(base, "mimic-cxr-2.*-split.csv*", what="MIMIC-CXR-JPG"), ("dicom_id", "split"))
    labels = read_csv(locate(base, "mimic-cxr-2.*-chexpert.csv*", what="MIMIC-CXR-JPG"), keys)
    if frontal_only:
        rows = rows[rows["ViewPosition"].isin(("AP", "PA"))]
    rows = rows[["dicom_id", *keys, "ViewPosition"]].merge(split[["dicom_id", "split"]], on="dicom_id", how="left")
    rows = rows.merge(labels, on=list(keys), how="left").fillna("")
    findings = [name for name in CHEXPERT if name in rows]
    rows = imply_absent(rows, findings)
    subject = "p" + rows["subject_id"]
    study = subject.str[:3] + "/" + subject + "/s" + rows["study_id"]
    out = pd.DataFrame(
        {
            "image": "files/" + study + "/" + rows["dicom_id"] + ".jpg",
            "patient": subject,
            "split": rows["split"],
            **{name: rows[name] for name in findings},
            "view": rows["ViewPosition"],
            "study": "s" + rows["study_id"],
        }
    )
    if reports is not None:
        texts = locate(reports, "files", what="the MIMIC-CXR reports")
        out["report"] = [_read_report(texts / f"{name}.txt") for name in study]
    return make_table(keep_existing(out, base, missing, "MIMIC-CXR-JPG"), base, ())


def _read_report(path: Path) -> str:
    """The report's text with single blanks, or "" when it was not published."""
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else ""
