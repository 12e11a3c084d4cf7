"""From a file's columns to the study table's: names, label values, boxes. Every complaint names row and column."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from counterscan.data.findings import canonical_name, is_known
from counterscan.errors import InputError

REQUIRED = ("image", "patient")
PATHS = ("image", "mask", "twin", "lung_mask")
RESERVED = ("image", "patient", "split", "report", "mask", "mask_kind", "boxes", "frame", "twin", "lung_mask")
MASK_KINDS = ("pixel", "box", "none(empty)", "none(unknown)")
SPLITS = ("train", "val", "test")
MASK_PREFIX = "mask:"
FINDING_PREFIX = "finding:"

_SPLIT_ALIASES = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "testing": "test",
}
_BLANKS = {"", "nan", "none", "na", "n/a", "<na>"}


def row_number(position: int) -> int:
    """The row as a spreadsheet counts it: the header is row 1, the first study row 2."""
    return int(position) + 2


def _more(count: int) -> str:
    return f" (and {count - 1:,} more rows)" if count > 1 else ""


def complain(
    problem: str, positions: np.ndarray, *, path: str | Path | None, column: str, remedy: str | None = None
) -> InputError:
    """An InputError that points at the first of the offending rows and counts the others."""
    return InputError(
        f"row {row_number(positions[0])}: {problem}{_more(len(positions))}",
        path=path,
        field=f"column {column!r}",
        remedy=remedy,
    )


def text_column(series: pd.Series) -> pd.Series:
    """Strings without surrounding blanks; missing values become ``""``."""
    return series.astype(object).where(series.notna(), "").astype(str).str.strip()


def parse_labels(series: pd.Series, column: str, path: str | Path | None = None) -> np.ndarray:
    """Label values of one column.

    Args:
        series: (N,) text or numbers: 1 present, 0 absent, -1 uncertain, blank unmentioned.

    Returns:
        (N,) float32 with blank as NaN.

    Raises:
        InputError: any other value, with its row.
    """
    codes, uniques = pd.factorize(series)
    values = np.full(len(uniques) + 1, np.nan, dtype=np.float32)  # the last slot answers code -1: missing
    wrong: list[int] = []
    for index, unique in enumerate(uniques):
        text = str(unique).strip().lower()
        if text in _BLANKS:
            continue
        try:
            number = float(unique)
        except (TypeError, ValueError):
            number = math.nan
        if number in (1.0, 0.0, -1.0):
            values[index] = number
        else:
            wrong.append(index)
    if wrong:
        positions = np.flatnonzero(np.isin(codes, wrong))
        raise complain(
            f"unknown label value {uniques[codes[positions[0]]]!r}",
            positions,
            path=path,
            column=column,
            remedy="Use 1 (present), 0 (absent), -1 (uncertain) or leave it blank (unmentioned)",
        )
    return values[codes]


def merge_labels(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One label from several columns that mean the same finding: 1 beats -1, -1 beats 0, 0 beats blank."""
    stacked = np.stack(columns)
    merged = np.full(stacked.shape[1], np.nan, dtype=np.float32)
    for value in (0.0, -1.0, 1.0):
        merged[(stacked == value).any(axis=0)] = value
    return merged


def parse_boxes(text: str) -> list[dict[str, Any]]:
    """Boxes of one row.

    Args:
        text: JSON list of ``{"finding": name, "box": [x, y, w, h]}``, in pixels of the image file, x to the right and
            y down from the top left corner; "finding" may be missing.

    Returns:
        The list with canonical finding names (``""`` where none is given).

    Raises:
        ValueError: it is something else; the message says what.
    """
    if not text:
        return []
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg})") from None
    if not isinstance(items, list):
        raise ValueError("is not a JSON list")
    boxes = []
    for item in items:
        box = item.get("box") if isinstance(item, dict) else None
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise ValueError(f'has an entry that is not {{"finding": ..., "box": [x, y, w, h]}}: {item!r}')
        if not all(math.isfinite(v) for v in box) or box[2] <= 0 or box[3] <= 0:
            raise ValueError(f"has a box without a positive width and height: {box}")
        boxes.append({"finding": canonical_name(str(item.get("finding") or "")), "box": [float(v) for v in box]})
    return boxes


def _parse_boxes_column(series: pd.Series, path: str | Path | None) -> pd.Series:
    text = text_column(series)
    for position in np.flatnonzero(text.to_numpy() != ""):
        try:
            parse_boxes(text.iloc[position])
        except ValueError as error:
            remedy = 'Write boxes as [{"finding": "Pneumonia", "box": [x, y, width, height]}]'
            raise complain(str(error), np.array([position]), path=path, column="boxes", remedy=remedy) from None
    return text


def _parse_split(series: pd.Series, path: str | Path | None) -> pd.Series:
    text = text_column(series).str.lower().replace(_SPLIT_ALIASES)
    wrong = np.flatnonzero(~text.isin((*SPLITS, "")))
    if len(wrong):
        raise complain(
            f"unknown split {text.iloc[wrong[0]]!r}", wrong, path=path, column="split", remedy="Use train, val or test"
        )
    return text


def _parse_frame(series: pd.Series, path: str | Path | None) -> pd.Series:
    text = text_column(series)
    blank = text.str.lower().isin(_BLANKS)
    numbers = pd.to_numeric(text.mask(blank), errors="coerce").astype(float)
    wrong = np.flatnonzero((numbers.isna() & ~blank) | (numbers < 0) | (numbers % 1 > 0))
    if len(wrong):
        problem = f"{text.iloc[wrong[0]]!r} is not a frame number"
        raise complain(problem, wrong, path=path, column="frame", remedy="Count frames from 0, or leave it blank")
    return numbers


def _parse_mask_kind(frame: pd.DataFrame, path: str | Path | None) -> pd.Series:
    masks = [frame[name] != "" for name in frame.columns if name == "mask" or name.startswith(MASK_PREFIX)]
    has_mask = np.logical_or.reduce(masks) if masks else np.zeros(len(frame), dtype=bool)
    has_boxes = (frame["boxes"] != "").to_numpy() if "boxes" in frame else np.zeros(len(frame), dtype=bool)
    guess = np.where(has_mask, "pixel", np.where(has_boxes, "box", "none(unknown)"))
    if "mask_kind" not in frame:
        return pd.Series(guess, index=frame.index)
    given = text_column(frame["mask_kind"]).str.lower().replace({"empty": "none(empty)", "unknown": "none(unknown)"})
    kind = given.where(given != "", pd.Series(guess, index=frame.index, dtype="str"))
    wrong = np.flatnonzero(~kind.isin(MASK_KINDS))
    if len(wrong):
        problem = f"unknown mask kind {kind.iloc[wrong[0]]!r}"
        raise complain(problem, wrong, path=path, column="mask_kind", remedy=f"Use one of {', '.join(MASK_KINDS)}")
    lost = np.flatnonzero(((kind == "pixel") & ~has_mask) | ((kind == "box") & ~has_mask & ~has_boxes))
    if len(lost):
        problem = f"says {kind.iloc[lost[0]]!r} but the row has no mask" + (" or boxes" if "box" in kind.values else "")
        remedy = "Fill in the mask, or say none(unknown)"
        raise complain(problem, lost, path=path, column="mask_kind", remedy=remedy)
    extra = np.flatnonzero(kind.str.startswith("none").to_numpy() & (has_mask | has_boxes))
    if len(extra):
        problem = f"says {kind.iloc[extra[0]]!r} but the row has a mask or boxes"
        raise complain(problem, extra, path=path, column="mask_kind", remedy="Say pixel or box, or take the mask out")
    return kind


def _rename(raw: pd.DataFrame, columns: Mapping[str, str], path: str | Path | None) -> dict[str, pd.Series]:
    """Columns under their new names: the mapping's first, then the rest as they are."""
    named: dict[str, pd.Series] = {}
    for target, source in columns.items():
        if source not in raw.columns:
            raise InputError(
                f"no such column, wanted for {target!r}",
                path=path,
                field=f"column {source!r}",
                remedy=f"The file has: {', '.join(map(repr, raw.columns[:40]))}",
            )
        plain = target in RESERVED or target.startswith((MASK_PREFIX, FINDING_PREFIX))
        named[target if plain else FINDING_PREFIX + target] = raw[source]
    used = set(columns.values())
    for name in raw.columns:
        reserved = name.lower() if name.lower() in RESERVED else name
        # The column of images may tell patients apart as well.
        if (name not in used or reserved in REQUIRED) and reserved not in named:
            named[reserved] = raw[name]
    return named


def normalise(
    raw: pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    findings: Sequence[str] = (),
    path: str | Path | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The study table's columns from a file's.

    A column is a finding when its name is a known one (any alias), when it is written ``finding:<name>``, when it is in
    ``findings``, or when ``columns`` maps it to a name that is not reserved. Other columns are carried along unread.

    Args:
        raw: the file as read.
        columns: study-table column -> the file's column, as in ``{"patient": "group", "Brain Tumor": "label"}``.
        findings: further finding columns, as the file names them.
        path: for messages.

    Returns:
        the normalised frame (index 0..N-1) and the finding names in column order.

    Raises:
        InputError: naming row, column and remedy.
    """
    raw = raw.rename(columns=lambda name: str(name).strip())
    twice = raw.columns[raw.columns.duplicated()]
    if len(twice):
        raise InputError("appears twice in the header", path=path, field=f"column {twice[0]!r}", remedy="Rename one")
    missing = [name for name in findings if name not in raw.columns]
    if missing:
        raise InputError("no such column", path=path, field=f"column {missing[0]!r}", remedy="Check the finding names")
    named = _rename(raw.reset_index(drop=True), columns or {}, path)
    labels: dict[str, list[np.ndarray]] = {}
    data: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for name, series in named.items():
        if name.startswith(FINDING_PREFIX) or (is_known(name) and name not in RESERVED) or name in findings:
            finding = canonical_name(name.removeprefix(FINDING_PREFIX))
            labels.setdefault(finding, []).append(parse_labels(series, name.removeprefix(FINDING_PREFIX), path))
        elif name.startswith(MASK_PREFIX):
            data[MASK_PREFIX + canonical_name(name.removeprefix(MASK_PREFIX))] = text_column(series)
        elif name == "boxes":
            data[name] = _parse_boxes_column(series, path)
        elif name == "split":
            data[name] = _parse_split(series, path)
        elif name == "frame":
            data[name] = _parse_frame(series, path)
        elif name in RESERVED:
            data[name] = text_column(series)
        else:
            extras[name] = series
    _require_columns(data, raw, path)
    data.setdefault("split", "")
    frame = pd.DataFrame({name: data[name] for name in (*REQUIRED, "split")} | data, index=range(len(raw)))
    frame["mask_kind"] = _parse_mask_kind(frame, path)
    merged = {name: merge_labels(parts) for name, parts in labels.items()}
    clash = [name for name in extras if name in merged]
    parts = [
        frame,
        pd.DataFrame(merged, index=frame.index),
        pd.DataFrame(extras, index=frame.index).drop(columns=clash),
    ]
    return pd.concat(parts, axis=1), tuple(merged)


def _require_columns(data: Mapping[str, Any], raw: pd.DataFrame, path: str | Path | None) -> None:
    remedies = {
        "image": "Name it with --column image=<the column of image paths>",
        "patient": "Name it with --column patient=<the column that tells patients apart>; "
        "when every image is another patient, --column patient=<the image column>",
    }
    for name in REQUIRED:
        if name not in data:
            known = ", ".join(map(repr, raw.columns[:40]))
            raise InputError(
                "is missing", path=path, field=f"column {name!r}", remedy=f"{remedies[name]}. The file has: {known}"
            )
        blank = np.flatnonzero((data[name] == "").to_numpy())
        if len(blank):
            raise complain("is blank", blank, path=path, column=name, remedy="Every row needs one")
