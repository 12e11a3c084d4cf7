"""Rows of a store: their fingerprints, what can be reused from an older store, and the swap of the two."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterscan.data.columns import MASK_PREFIX
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json

if TYPE_CHECKING:
    from counterscan.data.decode import Job

CONTENT = ("top", "left", "height", "width")
_KEY_COLUMNS = ("image", "frame", "mask", "boxes", "twin")


@dataclass(frozen=True)
class Plan:
    """What a store of a table is made of.

    Attributes:
        keys: per row, everything that names its files.
        signatures: per row, size and time of its files ("-" for a missing one).
        mask_slot, twin_slot: (N,) slot or -1.
        mask_findings: findings whose masks or boxes are kept apart.
    """

    keys: list[str]
    signatures: list[str]
    mask_slot: np.ndarray
    twin_slot: np.ndarray
    mask_findings: tuple[str, ...]

    @classmethod
    def of(cls, table: StudyTable) -> Plan:
        frame = table.frame
        columns = [n for n in frame.columns if n in _KEY_COLUMNS or n.startswith(MASK_PREFIX)]
        texts = [frame[n].map(lambda v: "" if pd.isna(v) else str(v)).tolist() for n in columns]
        keys = [json.dumps(list(zip(columns, values, strict=True))) for values in zip(*texts, strict=True)]
        named = {n.removeprefix(MASK_PREFIX) for n in columns if n.startswith(MASK_PREFIX)}
        masked = np.zeros(len(frame), dtype=bool)
        for name in columns:
            if name.startswith("mask") or name == "boxes":
                masked |= (frame[name] != "").to_numpy()
        if "boxes" in frame:
            for row in np.flatnonzero((frame["boxes"] != "").to_numpy()):
                named |= {box["finding"] for box in table.boxes(int(row))}
        twinned = (frame["twin"] != "").to_numpy() if "twin" in frame else np.zeros(len(frame), dtype=bool)
        findings = tuple(sorted(named - {""}))
        return cls(keys, _signatures(table, columns), _number(masked), _number(twinned), findings)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def masks(self) -> int:
        """Mask slots."""
        return int((self.mask_slot >= 0).sum())

    @property
    def twins(self) -> int:
        """Twin slots."""
        return int((self.twin_slot >= 0).sum())

    def job(self, table: StudyTable, row: int) -> Job:
        """What a worker has to do for a row."""
        from counterscan.data.decode import Job

        def bit(finding: str) -> int:
            return self.mask_findings.index(finding) + 1 if finding else 0

        return Job(
            slot=row,
            image=table.image_path(row),
            frame=table.frame_number(row),
            masks=tuple((bit(finding), path) for finding, path in table.mask_paths(row).items()),
            boxes=tuple((bit(box["finding"]), tuple(box["box"])) for box in table.boxes(row)),
            twin=table.twin_path(row),
            mask_slot=int(self.mask_slot[row]),
            twin_slot=int(self.twin_slot[row]),
        )


def _number(there: np.ndarray) -> np.ndarray:
    return np.where(there, np.cumsum(there) - 1, -1)


def _signatures(table: StudyTable, columns: list[str]) -> list[str]:
    signatures = [""] * len(table)
    for name in columns:
        if name in ("frame", "boxes"):
            continue
        for row, value in enumerate(table.frame[name].tolist()):
            if value:
                try:
                    status = os.stat(table.root / value)
                    signatures[row] += f"{status.st_size}:{status.st_mtime_ns} "
                except OSError:
                    signatures[row] += "- "
    return signatures


@dataclass(frozen=True)
class Old:
    """A finished store that slots may be taken from."""

    folder: Path
    about: dict[str, Any]
    rows: pd.DataFrame

    @classmethod
    def open(cls, folder: Path) -> Old | None:
        if not (folder / "store.json").is_file():
            return None
        return cls(folder, read_json(folder / "store.json"), pd.read_parquet(folder / "rows.parquet"))

    @property
    def keys(self) -> list[str]:
        return self.rows["key"].tolist()

    def fits(self, about: dict[str, Any]) -> bool:
        """Whether size, type, recipe and mask planes are the same."""
        return all(self.about.get(name) == value for name, value in about.items())

    def same_table(self, table: StudyTable) -> bool:
        """Whether nothing in the table has changed, labels included."""
        before = StudyTable.read(self.folder / "table.parquet", labelled=False)
        if before.findings != table.findings or list(before.frame.columns) != list(table.frame.columns):
            return False
        paths = set(before._path_columns())
        return all(n in paths or before.frame[n].equals(table.frame[n]) for n in before.frame.columns)

    def records(self, taken: np.ndarray) -> Iterator[dict[str, Any]]:
        """Journal records of the given rows, in order."""
        part = self.rows.iloc[taken]
        columns = {
            name: part[name].tolist() for name in ("signature", "sha", "bad", "geometry", "references", "masked")
        }
        contents = part[list(CONTENT)].to_numpy().tolist()
        for values, content in zip(zip(*columns.values(), strict=True), contents, strict=True):
            yield dict(zip(columns, values, strict=True)) | {"content": content}


def match(plan: Plan, root: Path, old: Old | None, retry_bad: bool) -> np.ndarray:
    """(N,) row of the old store that holds the same files, or -1.

    Files are the same when size and time are; otherwise their content is compared.
    """
    slots = np.full(len(plan), -1, dtype=np.int64)
    if old is None:
        return slots
    from counterscan.data.decode import fingerprint

    where = {key: row for row, key in enumerate(old.keys)}
    signatures, shas, bad = (old.rows[name].tolist() for name in ("signature", "sha", "bad"))
    for new, (key, signature) in enumerate(zip(plan.keys, plan.signatures, strict=True)):
        row = where.get(key)
        if row is None or (retry_bad and bad[row]):
            continue
        same = signatures[row] == signature
        if not same and shas[row] and "-" not in signature:
            with contextlib.suppress(OSError):
                same = fingerprint(_files(key, root)) == shas[row]
        if same:
            slots[new] = row
    return slots


def _files(key: str, root: Path) -> list[Path]:
    """The files of a row in the order in which its fingerprint was taken: image, masks, twin."""
    pairs = json.loads(key)
    masks = [Path(root, value) for name, value in pairs if value and name.startswith("mask")]
    image, twin = ([Path(root, v) for n, v in pairs if n == name and v] for name in ("image", "twin"))
    return [*image, *masks, *twin]


class Records:
    """What is known of each row, kept small: repeated texts are stored once."""

    _TEXTS = ("signature", "sha", "bad", "geometry", "references")

    def __init__(self, count: int) -> None:
        self.done = np.zeros(count, dtype=bool)
        self.masked = np.zeros(count, dtype=bool)
        self._content = np.zeros((count, 4), dtype=np.int32)
        self._texts: dict[str, list[str]] = {name: [""] * count for name in self._TEXTS}

    def add(self, record: dict[str, Any]) -> None:
        slot = record["slot"]
        self.done[slot] = True
        self.masked[slot] = record["masked"]
        self._content[slot] = record["content"]
        for name, values in self._texts.items():
            # Geometry and references repeat from row to row; fingerprints never do.
            values[slot] = record[name] if name in ("sha", "signature") else sys.intern(record[name])

    def frame(self, plan: Plan) -> pd.DataFrame:
        """rows.parquet."""
        return pd.DataFrame(
            {
                "key": plan.keys,
                **self._texts,
                **{name: self._content[:, i] for i, name in enumerate(CONTENT)},
                "masked": self.masked,
                "mask_slot": plan.mask_slot,
                "twin_slot": plan.twin_slot,
            }
        )

    def content(self, about: dict[str, Any], plan: Plan) -> str:
        """Hash of the settings and of every input file, in order."""
        total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for key, sha in zip(plan.keys, self._texts["sha"], strict=True):
            total.update(f"{key} {sha}\n".encode())
        return total.hexdigest()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Records of an interrupted run; a last line that was cut off ends it."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


def partial_of(out: Path) -> Path:
    """Where an unfinished store lies: beside the finished one."""
    return out.with_name(out.name + ".partial")


def take_place(partial: Path, out: Path) -> None:
    """Put the finished folder where the old one is; a crash between the renames is mended by :func:`recover`."""
    before = out.with_name(out.name + ".before")
    if out.exists():
        out.rename(before)
    partial.rename(out)
    if before.exists():
        shutil.rmtree(before)


def recover(out: Path) -> None:
    """Mend what a crash during :func:`take_place` left."""
    before = out.with_name(out.name + ".before")
    if before.exists():
        if out.exists():
            shutil.rmtree(before)
        else:
            before.rename(out)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one process prepares a store.

    Raises:
        InputError: another one does, or the parent folder cannot be written.
    """
    path = out.with_name(f".{out.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "w")  # noqa: SIM115  (held until the end of the block)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", path=out.parent) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("is being prepared by another process", path=out, remedy="Wait for it") from None
        yield
        path.unlink(missing_ok=True)
    finally:
        handle.close()
