"""The study table: one row per image, one column per finding. Everything downstream takes this."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from counterscan.data import columns as cols
from counterscan.data.findings import canonical_name, is_known
from counterscan.errors import InputError
from counterscan.files import atomic_write

Policy = Literal["zeros", "ones", "ignore"]
Blank = Literal["zero", "ignore"]
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class StudyTable:
    """Images, patients, splits and labels.

    Columns of ``frame`` (index 0..N-1):

    ========================  =====================================================================================
    ``image``                 path, relative to ``root`` or absolute
    ``patient``               whatever tells patients apart; splits never cut through it
    ``split``                 train, val, test or ""
    one per finding           float32: 1 present, 0 absent, -1 uncertain, NaN unmentioned
    ``report``                optional text
    ``mask``                  optional path of the lesion mask, same pixels as the image, non-zero is lesion
    ``mask:<finding>``        optional, the same for one finding where several are drawn apart
    ``mask_kind``             pixel, box, none(empty) (truly no lesion) or none(unknown) (nobody looked)
    ``boxes``                 optional JSON ``[{"finding": ..., "box": [x, y, w, h]}]`` in pixels of the image file
    ``frame``                 optional frame number of a multi-frame file, from 0
    ``twin``                  optional path of the same body without the findings (phantom)
    ``lung_mask``             optional path of an organ mask: no lesion truth, only where the lungs are
    ========================  =====================================================================================

    All other columns are carried along.

    Args:
        frame: normalised rows (``from_frame`` and ``read`` make them).
        root: folder that relative paths start from.
        findings: names of the label columns, canonical where known.
    """

    frame: pd.DataFrame
    root: Path
    findings: tuple[str, ...]

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        root: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        findings: Sequence[str] = (),
        path: str | Path | None = None,
    ) -> StudyTable:
        """Normalise a frame (see :func:`counterscan.data.columns.normalise`); nothing is compared between rows yet.

        Raises:
            InputError: a missing column or an unreadable value, with row, column and remedy.
        """
        rows, names = cols.normalise(frame, columns=columns, findings=findings, path=path)
        return cls(rows, Path(root), names)

    @classmethod
    def read(
        cls,
        path: str | Path,
        columns: Mapping[str, str] | None = None,
        *,
        findings: Sequence[str] = (),
        root: str | Path | None = None,
        labelled: bool = True,
    ) -> StudyTable:
        """Read and validate a CSV (``.csv``, ``.csv.gz``, ``.tsv``) or Parquet file.

        Args:
            path: the file.
            columns: study-table column -> the file's column.
            findings: finding columns that are not known names.
            root: where relative paths start; by default the file's folder.
            labelled: labels of both classes are needed; False for images that are only to be looked at, which need no
                patient either.

        Raises:
            InputError: naming row (the header is row 1), column and remedy.
        """
        path = Path(path)
        frame = read_frame(path)
        if not labelled and "patient" not in frame and "image" in frame:
            columns = {"patient": "image", **(columns or {})}
        table = cls.from_frame(
            frame, root if root is not None else path.parent, columns=columns, findings=findings, path=path
        )
        table.validate(labelled=labelled, path=path)
        return table

    def write(self, path: str | Path) -> None:
        """Write CSV or Parquet by the file's ending, atomically; relative paths are rewritten for the new folder.

        Findings that no set we know has are written as ``finding:<name>``, so that reading finds them again.
        """
        path = Path(path)
        out = self.frame.copy()
        prefix = os.path.relpath(self.root.resolve(), path.parent.resolve())
        if prefix != ".":
            for name in self._path_columns():
                moved = [value if not value or os.path.isabs(value) else f"{prefix}/{value}" for value in out[name]]
                out[name] = moved
        out = out.rename(columns={n: cols.FINDING_PREFIX + n for n in self.findings if not is_known(n)})
        if path.suffix not in _PARQUET:
            words = {1.0: "1", 0.0: "0", -1.0: "-1"}
            named = (*self.findings, *(cols.FINDING_PREFIX + n for n in self.findings))
            for name in out.columns[out.columns.isin(named)]:
                out[name] = out[name].map(words)
            if "frame" in out:
                out["frame"] = out["frame"].astype("Int64")
        write_frame(out, path)

    def __len__(self) -> int:
        return len(self.frame)

    def validate(self, *, check_files: bool = False, labelled: bool = True, path: str | Path | None = None) -> None:
        """Check what only shows across rows.

        Args:
            check_files: every image, mask and twin must exist.
            labelled: at least one finding column with both classes must exist.
            path: the table's file, for messages.

        Raises:
            InputError: no rows; an image twice; a patient in two splits; no finding column; one class only; a
                missing file.
        """
        if not len(self):
            raise InputError("has no rows", path=path, remedy="Check that the right file was given")
        self._check_duplicates(path)
        check_patients(self.frame["patient"], self.frame["split"], path)
        if labelled:
            self._check_labels(path)
        if check_files:
            self._check_files(path)

    def require_both_classes(self, findings: Iterable[str] | None = None, path: str | Path | None = None) -> None:
        """Raise InputError unless every named finding (default: all) has at least one 1 and one 0 or blank."""
        for name in self.findings if findings is None else findings:
            if name not in self.findings:
                raise InputError(
                    "no such finding",
                    path=path,
                    field=f"column {name!r}",
                    remedy=f"There are: {', '.join(self.findings)}",
                )
            values = self.frame[name].to_numpy()
            present = int((values == 1).sum())
            absent = len(values) - present - int((values == -1).sum())
            if not present or not absent:
                raise InputError(
                    f"one class only: {present:,} rows with the finding, {absent:,} without",
                    path=path,
                    field=f"column {name!r}",
                    remedy="Both are needed to learn what tells them apart; add rows or leave this finding out",
                )

    def labels(self) -> np.ndarray:
        """(N, C) float32: 1, 0, -1 uncertain, NaN unmentioned; columns as in ``findings``."""
        values = self.frame[list(self.findings)].to_numpy(dtype=np.float32, copy=True)
        return values.reshape(len(self), len(self.findings))

    def targets(self, policy: Policy = "zeros", blank: Blank = "zero") -> np.ndarray:
        """(N, C) float32 of 0, 1 and NaN (to be ignored).

        Args:
            policy: what -1 means (Irvin et al. 2019: U-zeros, U-ones, U-ignore).
            blank: what an unmentioned finding means; CheXpert's own practice is "zero".
        """
        values = self.labels()
        uncertain = {"zeros": 0.0, "ones": 1.0, "ignore": np.nan}
        if policy not in uncertain or blank not in ("zero", "ignore"):
            raise ValueError(f"policy {policy!r} must be zeros, ones or ignore, and blank {blank!r} zero or ignore")
        doubt = values == -1
        if blank == "zero":
            values[np.isnan(values)] = 0.0
        values[doubt] = uncertain[policy]
        return values

    def image_path(self, row: int) -> Path:
        """Path of the image in row ``row`` (0..N-1)."""
        return self.root / self.frame["image"].iloc[row]

    def mask_paths(self, row: int) -> dict[str, Path]:
        """Mask files of a row by finding; the key "" is the mask that names none."""
        return {
            name.removeprefix(cols.MASK_PREFIX) if name != "mask" else "": self.root / self.frame[name].iloc[row]
            for name in self._path_columns()
            if name.startswith("mask") and self.frame[name].iloc[row]
        }

    def mask_path(self, row: int, finding: str = "") -> Path | None:
        """Path of one mask of a row, or None when there is none."""
        return self.mask_paths(row).get(finding)

    def twin_path(self, row: int) -> Path | None:
        """Path of the true healthy twin, or None."""
        value = self.frame["twin"].iloc[row] if "twin" in self.frame else ""
        return self.root / value if value else None

    def boxes(self, row: int) -> list[dict[str, Any]]:
        """``[{"finding": canonical name or "", "box": [x, y, w, h]}]`` in pixels of the image file."""
        return cols.parse_boxes(self.frame["boxes"].iloc[row]) if "boxes" in self.frame else []

    def frame_number(self, row: int) -> int | None:
        """Frame of a multi-frame file, or None."""
        value = self.frame["frame"].iloc[row] if "frame" in self.frame else np.nan
        return None if np.isnan(value) else int(value)

    def subset(
        self,
        *,
        split: str | None = None,
        rows: np.ndarray | Sequence[int] | None = None,
        patients: Iterable[str] | None = None,
    ) -> StudyTable:
        """The rows that satisfy all given conditions, in order (``rows`` may be indices, in their order, or a mask)."""
        frame = self.frame if rows is None else self.frame.iloc[np.asarray(rows)]
        if split is not None:
            frame = frame[frame["split"] == split]
        if patients is not None:
            frame = frame[frame["patient"].isin(set(patients))]
        return StudyTable(frame.reset_index(drop=True), self.root, self.findings)

    def with_findings(self, findings: Sequence[str]) -> StudyTable:
        """The same rows with only these label columns, in this order.

        Raises:
            InputError: one of them is not a finding of this table.
        """
        wanted = tuple(canonical_name(name) for name in findings)
        unknown = [name for name in wanted if name not in self.findings]
        if unknown:
            raise InputError("no such finding", field=unknown[0], remedy=f"There are: {', '.join(self.findings)}")
        return StudyTable(self.frame.drop(columns=[n for n in self.findings if n not in wanted]), self.root, wanted)

    def with_split(self, split: Sequence[str] | np.ndarray | pd.Series) -> StudyTable:
        """The same rows with another split column."""
        return StudyTable(self.frame.assign(split=list(split)), self.root, self.findings)

    def _path_columns(self) -> list[str]:
        return [n for n in self.frame.columns if n in cols.PATHS or n.startswith(cols.MASK_PREFIX)]

    def _check_duplicates(self, path: str | Path | None) -> None:
        keys = ["image", "frame"] if "frame" in self.frame else ["image"]
        twice = np.flatnonzero(self.frame.duplicated(keys))
        if len(twice):
            image = self.frame["image"].iloc[twice[0]]
            first = cols.row_number(int(np.flatnonzero(self.frame["image"] == image)[0]))
            raise cols.complain(
                f"{image!r} is already in row {first}",
                twice,
                path=path,
                column="image",
                remedy="Keep one row per image (and frame)",
            )

    def _check_labels(self, path: str | Path | None) -> None:
        if not self.findings:
            raise InputError(
                "has no finding column",
                path=path,
                remedy="Name columns after findings ('Edema', 'Pneumonia', ...), or say which column is one with "
                "--column 'Brain Tumor=label' or --finding <column>",
            )
        learnable = False
        for name in self.findings:
            values = self.frame[name].to_numpy()
            learnable |= bool((values == 1).any() and ((values == 0) | np.isnan(values)).any())
        if not learnable:
            self.require_both_classes(self.findings[:1], path)

    def _check_files(self, path: str | Path | None) -> None:
        for name in self._path_columns():
            values = self.frame[name].to_numpy()
            missing = [i for i, value in enumerate(values) if value and not os.path.isfile(self.root / value)]
            if missing:
                raise cols.complain(
                    f"no such file {str(self.root / values[missing[0]])!r}",
                    np.array(missing),
                    path=path,
                    column=name,
                    remedy="Relative paths start at the table's folder; give --root to start elsewhere",
                )


def check_patients(patient: pd.Series, split: pd.Series, path: str | Path | None = None) -> None:
    """Raise InputError when a patient is in two splits; blank splits do not count."""
    pairs = pd.DataFrame({"patient": patient, "split": split})[(split != "").to_numpy()].drop_duplicates()
    twice = pairs["patient"].duplicated()
    if twice.any():
        name = pairs["patient"][twice].iloc[0]
        splits = " and ".join(repr(s) for s in pairs["split"][pairs["patient"] == name])
        rows = np.flatnonzero((patient == name).to_numpy() & (split == pairs["split"][twice].iloc[0]).to_numpy())
        others = int(twice.sum()) - 1
        raise InputError(
            f"row {cols.row_number(rows[0])}: patient {name!r} is in splits {splits}"
            + (f", and so are {others:,} other patients" if others else ""),
            path=path,
            field="column 'split'",
            remedy="A patient belongs to one split; 'counterscan data split' makes such splits",
        )


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write .parquet, .tsv or .csv, atomically."""
    if path.suffix in _PARQUET:
        with atomic_write(path) as handle:
            frame.to_parquet(handle, index=False)
        return
    with atomic_write(path, "w") as handle:
        frame.to_csv(handle, index=False, lineterminator="\n", sep="\t" if path.suffix == ".tsv" else ",")


def read_frame(path: Path) -> pd.DataFrame:
    """The file as it is, all CSV columns as text.

    Raises:
        InputError: it cannot be read as a table.
    """
    if not path.is_file():
        raise InputError("no such file" if not path.exists() else "is a folder, not a table", path=path)
    try:
        if path.suffix in _PARQUET:
            return pd.read_parquet(path)
        separator = "\t" if path.suffix == ".tsv" else ","
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", sep=separator)
    except pd.errors.EmptyDataError:
        raise InputError("is empty", path=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason})", path=path, remedy="Save it as CSV UTF-8") from None
    except Exception as error:  # pandas and pyarrow raise a dozen kinds; all mean the file is not what it says
        remedy = "Give a comma-separated .csv with a header line, or .parquet"
        raise InputError(f"cannot be read as a table ({error})", path=path, remedy=remedy) from error
    other = next((mark for mark in ";\t|" if mark in str(frame.columns[0])), None)
    if len(frame.columns) == 1 and other is not None:
        raise InputError(
            f"seems to be separated by {other!r}, not by {separator!r}",
            path=path,
            remedy=f"Save it again with {separator!r} between the columns",
        )
    return frame
