"""What the importers share: finding the published files, and saying what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from counterscan.data.findings import NO_FINDING
from counterscan.data.table import StudyTable
from counterscan.errors import InputError

Missing = Literal["error", "skip"]


def locate(root: str | Path, *choices: str, what: str) -> Path:
    """The first of ``choices`` under ``root``, looking two folders deep, since archives are often unpacked in a folder.

    Args:
        choices: relative paths or patterns, in order of preference.
        what: name of the set, for the message.

    Raises:
        InputError: none of them is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError("no such folder", path=root, remedy=f"Give the folder that {what} was unpacked in")
    for choice in choices:
        for depth in ("", "*/", "*/*/"):
            found = sorted(root.glob(depth + choice))
            if found:
                return found[0]
    raise InputError(
        f"has no {' or '.join(choices)}, which {what} is published with",
        path=root,
        remedy=f"Give the folder that {what} was unpacked in",
    )


def read_csv(path: Path, required: Iterable[str]) -> pd.DataFrame:
    """All columns as text.

    Raises:
        InputError: not a CSV, or a column is missing.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as CSV ({error})", path=path, remedy="Unpack it again") from None
    for name in required:
        if name not in frame.columns:
            raise InputError(
                "is missing",
                path=path,
                field=f"column {name!r}",
                remedy=f"The published file has it; this one has {', '.join(map(repr, frame.columns[:30]))}",
            )
    return frame


def index_images(folder: Path, endings: tuple[str, ...] = (".png", ".jpg", ".jpeg")) -> dict[str, str]:
    """File name -> path relative to ``folder``, for every image below it."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        relative = os.path.relpath(place, folder)
        for name in names:
            if name.lower().endswith(endings):
                found.setdefault(name, name if relative == "." else f"{relative}/{name}")
    return found


def keep_existing(frame: pd.DataFrame, root: Path, missing: Missing, what: str) -> pd.DataFrame:
    """The rows whose image is there.

    Args:
        missing: "error" to insist on every image, "skip" for a part of a set.

    Raises:
        InputError: an image is missing (with "error"), or all are.
    """
    there = np.array([os.path.isfile(root / name) for name in frame["image"]], dtype=bool)
    if not there.any() or (missing == "error" and not there.all()):
        first = frame["image"].iloc[int(np.argmin(there))]
        raise InputError(
            f"{int((~there).sum()):,} of {len(there):,} images of {what} are not there, the first is {first!r}",
            path=root,
            remedy="Unpack the rest, or take only what is there (missing='skip', --missing skip)"
            if there.any()
            else "Give the folder that holds the images",
        )
    return frame[there].reset_index(drop=True)


def imply_absent(frame: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """Where the labeller wrote "No Finding" = 1, blanks of the other findings become 0 (Support Devices stay blank)."""
    frame = frame.copy()
    healthy = pd.to_numeric(frame[NO_FINDING], errors="coerce") == 1
    for name in findings:
        if name not in (NO_FINDING, "Support Devices"):
            frame.loc[healthy & (frame[name] == ""), name] = "0"
    return frame


def boxes_json(boxes: Sequence[tuple[str, Sequence[float]]]) -> str:
    """The ``boxes`` column from (finding, (x, y, w, h)) pairs; "" for none."""
    return json.dumps([{"finding": name, "box": [float(v) for v in box]} for name, box in boxes]) if boxes else ""


def make_table(rows: Sequence[dict[str, Any]] | pd.DataFrame, root: Path, findings: Sequence[str]) -> StudyTable:
    """A validated table of an importer's rows; ``findings`` that are absent from a row are blank.

    Raises:
        InputError: no rows, or the set contradicts itself.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if not len(frame):
        raise InputError("holds no images of this set", path=root, remedy="Give the folder that it was unpacked in")
    for name in findings:
        if name not in frame:
            frame[name] = np.nan
    table = StudyTable.from_frame(frame, root, path=root)
    table.validate(labelled=False, path=root)
    return table


def need_folder(derived: str | Path | None, why: str) -> Path:
    """The folder for files that an importer has to make.

    Raises:
        InputError: none was given.
    """
    if derived is None:
        raise InputError(why, field="derived", remedy="Give a folder for the files made (derived=..., --derived)")
    folder = Path(derived).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
