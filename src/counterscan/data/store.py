"""The prepared store: every image decoded once, read back from disk by row, at constant memory.

A store is a folder:

* ``images.npy``   (T, S, S) uint8 or uint16, one slot per row of the table; 0 is -1, the largest value is 1
* ``twins.npy``    (W, S, S) the same for true healthy twins, where the table has them
* ``masks.npy``    (M, S, S) unsigned integers whose bits are mask planes: bit 0 the mask that names no finding, bit k
  the k-th of ``mask_findings``
* ``valid.npy``    (T, ceil(S S / 8)) uint8, bits of the valid pixels, only for rows where more than the letterbox is no
  image (``masked`` in ``rows.parquet``); absent when there are none
* ``rows.parquet`` per row: slots, geometry, DICOM references, fingerprint of the files, reason if it is bad
* ``table.parquet`` the study table; ``bad.csv`` the rows that could not be decoded
* ``store.json``   settings, recipe, content hash; written last, so that a folder with it is complete

:func:`counterscan.data.prepare.prepare` makes it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from counterscan.counterpart import StudyBatch
from counterscan.data.prepare import PrepareReport, prepare
from counterscan.data.rows import CONTENT
from counterscan.data.splits import assert_disjoint
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import read_json

if TYPE_CHECKING:
    from counterscan.data.geometry import Geometry
    from counterscan.data.intensity import IntensityRecipe

__all__ = ["PrepareReport", "PreparedStore", "prepare"]

_RESIDENT_BYTES = 64 << 20
Indices = int | slice | Sequence[int] | np.ndarray | Tensor | None


class _Slots:
    """(K, ...) array in memory or in a file; a file is mapped on first use, also after a trip to another process.

    Pages that were read are given back now and then, so that an epoch over a large file does not fill the process.
    """

    def __init__(self, source: np.ndarray | Path | None) -> None:
        self._source = source
        self._array: np.ndarray | None = None
        self._touched = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_array": None, "_touched": 0}

    def take(self, slots: np.ndarray) -> np.ndarray:
        """A copy of the chosen slots."""
        if self._array is None:
            if self._source is None:
                raise InputError("the store has no such images", remedy="Prepare it from a table that names them")
            self._array = self._source if isinstance(self._source, np.ndarray) else np.load(self._source, mmap_mode="r")
        block = np.ascontiguousarray(self._array[slots])
        mapped = getattr(self._array, "_mmap", None)
        if mapped is not None and hasattr(mapped, "madvise"):
            # The system maps some 64 KiB around each row that is touched.
            self._touched += len(block) * max(1 << 16, block[:1].nbytes)
            if self._touched > _RESIDENT_BYTES:
                mapped.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
        return block


class PreparedStore:
    """Rows of a prepared store, or some of them (:meth:`subset`).

    Attributes:
        table: StudyTable of the rows, in order; bad rows are not among them.
        size: S, side of the grid.
        recipe: how intensities became [-1, 1]; None for stores made from arrays.
        findings: names of the label columns.
        labels: (N, C) float32: 1, 0, -1, NaN.
        patients, split: (N,) strings.
        has_mask: (N,) bool, a lesion mask (drawn, or from boxes) is stored.
        mask_known: (N,) bool, the truth is known: a mask is stored or the row is none(empty).
        has_twin: (N,) bool, the true healthy twin is stored.
        mask_findings: findings whose masks are kept apart; empty when masks name none.
        folder: where it lies, or None.
        content: hash of settings and input files; "" for stores made from arrays.
    """

    def __init__(
        self,
        table: StudyTable,
        rows: pd.DataFrame,
        *,
        images: np.ndarray | Path,
        masks: np.ndarray | Path | None,
        twins: np.ndarray | Path | None,
        valid: Path | None = None,
        size: int,
        mask_findings: Sequence[str] = (),
        recipe: IntensityRecipe | None = None,
        folder: Path | None = None,
        content: str = "",
    ) -> None:
        self._images, self._masks, self._twins = _Slots(images), _Slots(masks), _Slots(twins)
        self._valid = _Slots(valid)
        self.size, self.recipe, self.folder, self.content = size, recipe, folder, content
        self.mask_findings = tuple(mask_findings)
        self._take(table, rows)

    def _take(self, table: StudyTable, rows: pd.DataFrame) -> None:
        self.table, self._rows = table, rows
        self.findings = table.findings
        self.labels = table.labels()
        self.patients = table.frame["patient"].to_numpy(dtype=str)
        self.split = table.frame["split"].to_numpy(dtype=str)
        self._slot, self._mask_slot, self._twin_slot = (
            rows[name].to_numpy(dtype=np.int64) for name in ("slot", "mask_slot", "twin_slot")
        )
        self._content = rows[list(CONTENT)].to_numpy(dtype=np.int64)
        self._masked = rows["masked"].to_numpy(dtype=bool)
        self.has_mask = self._mask_slot >= 0
        self.mask_known = self.has_mask | (table.frame["mask_kind"] == "none(empty)").to_numpy()
        self.has_twin = self._twin_slot >= 0

    @classmethod
    def open(cls, out: str | Path) -> PreparedStore:
        """Open a finished store; nothing is decoded and no image is read.

        Raises:
            InputError: no store there, an unfinished one, or one of another format.
        """
        from counterscan.data.intensity import IntensityRecipe

        folder = Path(out)
        if not (folder / "store.json").is_file():
            remedy = "Make it with 'counterscan data prepare'; an interrupted one is resumed by the same command"
            raise InputError("is not a finished store", path=folder, remedy=remedy)
        about = read_json(folder / "store.json")
        if about.get("format") != 1:
            raise InputError(f"has format {about.get('format')}", path=folder / "store.json", remedy="Prepare it again")
        table = StudyTable.read(folder / "table.parquet", labelled=False).with_findings(about["findings"])
        rows = pd.read_parquet(folder / "rows.parquet")
        rows["slot"] = np.arange(len(rows))
        good = np.flatnonzero(rows["bad"].to_numpy() == "")
        return cls(
            table.subset(rows=good),
            rows.iloc[good].reset_index(drop=True),
            images=folder / "images.npy",
            masks=folder / "masks.npy" if about["masks"] else None,
            twins=folder / "twins.npy" if about["twins"] else None,
            valid=folder / "valid.npy" if about["valid"] else None,
            size=about["size"],
            mask_findings=about["mask_findings"],
            recipe=IntensityRecipe.from_dict(about["recipe"]),
            folder=folder,
            content=about["content"],
        )

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        table: StudyTable | None = None,
        *,
        labels: np.ndarray | None = None,
        findings: Sequence[str] | None = None,
        patients: Sequence[str] | None = None,
        split: Sequence[str] | str = "",
        masks: np.ndarray | Mapping[str, np.ndarray] | None = None,
        twins: np.ndarray | None = None,
    ) -> PreparedStore:
        """A store in memory.

        Args:
            images: (N, S, S) uint8 or uint16, 0 is -1.
            table: its rows; or give ``labels`` (N, C) with ``findings``, and, if wanted, ``patients`` and ``split``.
            masks: (N, S, S) bool, or the same by finding. A row without any True counts as truly without lesion.
            twins: (N, S, S) like ``images``.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if images.ndim != 3 or images.shape[1] != images.shape[2] or images.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"images must be (N, S, S) uint8 or uint16, not {images.shape} {images.dtype}")
        count, size = len(images), images.shape[1]
        planes, mask_findings = _planes(masks, images.shape)
        lesion = planes.any(axis=(1, 2)) if planes is not None else np.zeros(count, dtype=bool)
        if table is None:
            values = np.zeros((count, 0)) if labels is None else np.asarray(labels, dtype=float).reshape(count, -1)
            names = findings if findings is not None else [f"finding {i}" for i in range(values.shape[1])]
            frame = pd.DataFrame(
                {
                    "image": [f"array/{i:06d}" for i in range(count)],
                    "patient": list(patients) if patients is not None else [f"p{i:06d}" for i in range(count)],
                    "split": split if isinstance(split, str) else list(split),
                }
            )
            frame["mask_kind"] = "none(empty)" if masks is not None else "none(unknown)"
            columns = {f"finding:{n}": values[:, i] for i, n in enumerate(names)}
            table = StudyTable.from_frame(pd.concat([frame, pd.DataFrame(columns)], axis=1), Path())
        if len(table) != count or (twins is not None and twins.shape != images.shape):
            raise ValueError(f"{count} images need as many rows ({len(table)}) and twins of the same shape")
        rows = pd.DataFrame(
            {
                "slot": np.arange(count),
                "mask_slot": np.where(lesion, np.arange(count), -1),
                "twin_slot": np.arange(count) if twins is not None else -1,
                **dict(zip(CONTENT, (0, 0, size, size), strict=True)),
                "masked": False,
            }
        )
        return cls(table, rows, images=images, masks=planes, twins=twins, size=size, mask_findings=mask_findings)

    def __len__(self) -> int:
        return len(self.table)

    def images(self, indices: Indices = None) -> Tensor:
        """(n, 1, S, S) float32 in [-1, 1]; padding is -1."""
        return _to_unit(self._images.take(self._slot[self._at(indices)]))

    def over(self, rows: np.ndarray, function: Callable[[Tensor], Tensor], batch_size: int = 64) -> Tensor:
        """What a function gives for the images of some rows, at least one, asked in parts; joined on the CPU."""
        parts = [function(self.images(rows[at : at + batch_size])).cpu() for at in range(0, len(rows), batch_size)]
        return torch.cat(parts)

    def twins(self, indices: Indices = None) -> Tensor:
        """(n, 1, S, S) float32 in [-1, 1], the same bodies without the findings.

        Raises:
            InputError: one of the rows has no twin.
        """
        slots = self._twin_slot[self._at(indices)]
        if (slots < 0).any():
            raise InputError(f"{int((slots < 0).sum())} of the rows have no twin", field="column 'twin'")
        return _to_unit(self._twins.take(slots))

    def masks(self, indices: Indices = None, finding: str | None = None) -> Tensor:
        """Lesion masks on the model's grid; all False where no mask is stored (see ``has_mask``, ``mask_known``).

        Args:
            finding: only this finding's mask; None for all findings together. Masks that name no finding (a plain
                ``mask`` column) count for every finding, but only in stores where no mask names one.

        Returns:
            (n, 1, S, S) bool.
        """
        slots = self._mask_slot[self._at(indices)]
        out = np.zeros((len(slots), self.size, self.size), dtype=bool)
        there = np.flatnonzero(slots >= 0)
        if len(there):
            planes = self._masks.take(slots[there])
            if finding is None or not self.mask_findings:
                out[there] = planes != 0
            elif finding in self.mask_findings:
                out[there] = (planes >> planes.dtype.type(1 + self.mask_findings.index(finding))) & 1 != 0
        return torch.from_numpy(out).unsqueeze(1)

    def valid(self, indices: Indices = None) -> Tensor:
        """(n, 1, S, S) bool: True on image, False on padding."""
        at = self._at(indices)
        content = self._content[at][:, :, None]
        top, left, height, width = content[:, 0], content[:, 1], content[:, 2], content[:, 3]
        grid = np.arange(self.size)[None, :]
        rows = (grid >= top) & (grid < top + height)
        columns = (grid >= left) & (grid < left + width)
        valid = rows[:, :, None] & columns[:, None, :]
        own = np.flatnonzero(self._masked[at])
        if len(own):
            bits = np.unpackbits(self._valid.take(self._slot[at[own]]), axis=1, count=self.size * self.size)
            valid[own] = bits.reshape(-1, self.size, self.size).astype(bool)
        return torch.from_numpy(valid).unsqueeze(1)

    def check_size(self, size: int, whose: str) -> None:
        """Refuse images of another size than a model's.

        Args:
            size: in pixels.
            whose: such as "the generator makes".

        Raises:
            InputError: they are.
        """
        if self.size != size:
            raise InputError(
                f"images are prepared at {self.size} px, {whose} {size}",
                path=self.folder,
                field="size",
                remedy=f"Prepare them with --size {size}",
            )

    @property
    def division(self) -> str:
        """Digest of the rows' patients, splits and labels: what a training depends on beside ``content``."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, dtype=np.float32).tobytes())
        for patient, part in zip(self.patients.tolist(), self.split.tolist(), strict=True):
            digest.update(f"{patient}\0{part}\0".encode())
        return digest.hexdigest()[:16]

    def batch(self, indices: Indices = None) -> StudyBatch:
        """Images, labels and valid pixels of some rows, as the systems take them."""
        at = self._at(indices)
        labels = torch.from_numpy(self.labels[at])
        return StudyBatch(self.images(at), findings=self.findings, labels=labels, valid=self.valid(at))

    def geometry(self, index: int) -> Geometry:
        """Maps between the image file's grid and the store's; the identity for stores made from arrays."""
        from counterscan.data.geometry import Geometry

        if "geometry" in self._rows:
            return Geometry.from_dict(json.loads(self._rows["geometry"].iloc[index]))
        return Geometry(native=(self.size, self.size), size=self.size)

    def references(self, index: int) -> dict[str, str]:
        """DICOM UIDs that derived objects of this row must point to; empty for other files."""
        return json.loads(self._rows["references"].iloc[index]) if "references" in self._rows else {}

    def subset(self, rows: Indices) -> PreparedStore:
        """A view of some rows, in their order; images stay where they are.

        Args:
            rows: indices, a slice, or an (N,) bool mask, as in ``store.subset(store.split == "test")``.
        """
        at = self._at(rows)
        view = object.__new__(PreparedStore)
        view.__dict__.update(self.__dict__)
        view._take(self.table.subset(rows=at), self._rows.iloc[at].reset_index(drop=True))
        return view

    def with_findings(self, findings: Sequence[str]) -> PreparedStore:
        """A view with only these label columns, in this order; see ``StudyTable.with_findings``."""
        view = object.__new__(PreparedStore)
        view.__dict__.update(self.__dict__)
        view._take(self.table.with_findings(findings), self._rows)
        return view

    def parts(self, *splits: str) -> tuple[PreparedStore, ...]:
        """The rows of each split, as training takes them.

        Raises:
            InputError: a split is empty, or a patient is in two of them.
        """
        found = tuple(self.subset(self.split == name) for name in splits)
        for name, part in zip(splits, found, strict=True):
            if not len(part):
                raise InputError(
                    f"no row is in the split {name!r}",
                    path=self.folder,
                    field="split",
                    remedy="Make splits with `counterscan data split` and prepare again",
                )
        assert_disjoint(*(part.patients for part in found))
        return found

    def _at(self, indices: Indices) -> np.ndarray:
        """Row numbers, negative ones counted from the end.

        Raises:
            IndexError: beyond the store.
        """
        everything = np.arange(len(self))
        if indices is None:
            return everything
        if isinstance(indices, Tensor):
            indices = indices.cpu().numpy()
        if isinstance(indices, slice):
            return everything[indices]
        chosen = np.atleast_1d(np.asarray(indices))
        return everything[chosen if chosen.size else chosen.astype(np.int64)]


def _to_unit(block: np.ndarray) -> Tensor:
    """(n, S, S) unsigned integers -> (n, 1, S, S) float32 in [-1, 1]."""
    half = np.iinfo(block.dtype).max / 2
    if block.dtype == np.uint8:
        return torch.from_numpy(block).unsqueeze(1).to(torch.float32).div_(half).sub_(1.0)
    return torch.from_numpy(block.astype(np.float32)).unsqueeze(1).div_(half).sub_(1.0)


def _planes(
    masks: np.ndarray | Mapping[str, np.ndarray] | None, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Bit planes of masks in memory, and the findings of bits 1, 2, ..."""
    if masks is None:
        return None, ()
    named = masks if isinstance(masks, Mapping) else {"": masks}
    if any(mask.shape != shape for mask in named.values()):
        raise ValueError(f"masks must have the images' shape {shape}")
    names = tuple(name for name in named if name)
    planes = np.zeros(shape, dtype=np.min_scalar_type(2 ** (len(names) + 1) - 1))
    for name, mask in named.items():
        bit = names.index(name) + 1 if name else 0
        planes |= mask.astype(bool).astype(planes.dtype) << planes.dtype.type(bit)
    return planes, names
