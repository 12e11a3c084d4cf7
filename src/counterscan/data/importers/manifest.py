"""Small packed sets: a folder with images/, masks/ and manifest.csv (image, group, label, mask, boxes, ...)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from counterscan.data.importers.common import locate, make_table, read_csv
from counterscan.data.importers.nih_cxr14 import nih_labels
from counterscan.data.splits import split_by_patient
from counterscan.data.table import StudyTable

_REQUIRED = ("image", "group", "label", "label_name", "mask", "mask_kind", "boxes", "text")


def import_manifest(root: str | Path, *, seed: int = 0) -> StudyTable:
    """A packed set, told apart by its columns.

    * ``nih_findings``: chest radiographs. NIH's findings (blank for positives whose list is blank, Pneumonia and
      "Abnormal" from the label); the lists serve as short reports. **All images of patients with boxes are in the split
      "test"**, for boxes are truth for testing only; the other patients are split 70 : 10 : 20.
    * ``covid``: chest radiographs with notes: "COVID-19" and "Abnormal". Groups that share a note count as one patient,
      so that no text is in two splits.
    * ``rel_height``: brain slices: "Brain Tumor".
    * otherwise the label is "Abnormal".

    Args:
        root: folder with manifest.csv.
        seed: of the splits by ``group``.

    Returns:
        a table whose ``patient`` is the manifest's group; the set's own columns are carried along.

    Raises:
        InputError: no manifest.csv, or a column is missing.
    """
    path = locate(root, "manifest.csv", what="a packed set")
    rows = read_csv(path, _REQUIRED)
    frame = rows.drop(columns=["group", "label", "text"]).assign(patient=rows["group"], report=rows["text"])
    fixed: dict[str, str] = {}
    if "nih_findings" in rows:
        frame = _nih(frame, rows)
        fixed = dict.fromkeys(frame["patient"][frame["boxes"] != ""], "test")
    elif "covid" in rows:
        frame["COVID-19"] = rows["covid"]
        frame = frame.drop(columns="covid").assign(Abnormal=rows["label"], patient=_join_texts(rows))
    else:
        frame["Brain Tumor" if "rel_height" in rows else "Abnormal"] = rows["label"]
    return split_by_patient(make_table(frame, path.parent, ()), seed=seed, fixed=fixed)


def _nih(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    listed = (rows["nih_findings"] != "").to_numpy()
    labels = nih_labels(rows["nih_findings"], known=listed)
    ill = (rows["label"] == "1").to_numpy()
    named = (rows["label_name"].str.lower() == "pneumonia").to_numpy()
    labels["Pneumonia"] = np.where(named, 1.0, labels["Pneumonia"])
    text = rows["nih_findings"].str.replace("|", ", ").str.replace("_", " ")
    report = rows["text"].where(rows["text"] != "", text)
    return frame.assign(Abnormal=ill.astype(float), report=report).join(pd.DataFrame(labels))


def _join_texts(rows: pd.DataFrame) -> list[str]:
    """Group names, joined where two groups share a text."""
    leader = {name: name for name in rows["group"]}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    first: dict[str, str] = {}
    for group, text in zip(rows["group"], rows["text"].str.strip().str.lower(), strict=True):
        if text:
            one, other = find(first.setdefault(text, group)), find(group)
            leader[max(one, other)] = min(one, other)
    return [find(name) for name in rows["group"]]
