"""`prepare`: decode every image of a study table once, in parallel, into a store that later runs map into memory.

The work goes on in ``<out>.partial`` beside the store and takes its place in one rename at the end, so that a store is
never half written and an older one stays usable meanwhile. Finished chunks are noted in a journal: a killed run goes on
where it stopped. A later run with other rows or changed files copies what it can from the old store.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from counterscan import __version__
from counterscan.data import rows as store_rows
from counterscan.data.splits import spaced
from counterscan.data.table import StudyTable
from counterscan.errors import InputError
from counterscan.files import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from counterscan.data.decode import Job, Settings, Target
    from counterscan.data.intensity import IntensityRecipe

CHUNK = 64
SPAWN_PAYS = 8.0  # seconds of decoding that is left; starting processes (each imports torch) costs as much
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrepareReport:
    """What a run of :func:`prepare` did.

    Attributes:
        out: the store.
        rows: rows of the table.
        bad: rows that could not be decoded; they are in ``bad.csv`` with the reason.
        decoded: rows decoded by this run.
        reused: rows taken over: from an unfinished run, or from the store as it was.
        masks: rows with a stored lesion mask.
        seconds: time taken.
    """

    out: Path
    rows: int
    bad: int
    decoded: int
    reused: int
    masks: int
    seconds: float

    @property
    def good(self) -> int:
        """Rows that the store holds."""
        return self.rows - self.bad


def prepare(
    table: StudyTable,
    out: str | Path,
    *,
    size: int,
    recipe: IntensityRecipe | None = None,
    workers: int = 2,
    dtype: Literal["uint8", "uint16"] = "uint8",
    retry_bad: bool = False,
    progress: Progress | None = None,
) -> PrepareReport:
    """Decode a table into a store.

    Memory does not grow with the number of images beyond the table itself. Running it again with the same table, files
    and settings does nothing; changed files (by size and time, then by content) are decoded again, changed labels are
    only rewritten. Rows that cannot be decoded are listed in ``bad.csv`` and counted, never fatal unless all are.

    Args:
        table: study table; its images, masks, boxes and twins are stored.
        out: folder of the store.
        size: side of the square grid, in pixels; images are letterboxed into it.
        recipe: how intensities become [-1, 1]; None keeps the recipe of an existing store, or fits one to a sample of
            the training rows (of all rows when there is no split).
        workers: decoding processes; with 1, or for a few seconds of work, all is done in this one.
        dtype: "uint8", or "uint16" for images whose contrast needs more than 256 steps.
        retry_bad: decode rows again that were bad (after installing a codec, say).
        progress: called with (rows done, rows in all).

    Raises:
        InputError: the table contradicts itself, ``out`` is some other folder, no image can be decoded, or the disk is
            full (what is done is kept, and the same command goes on from there).
    """
    began = time.perf_counter()
    out = Path(os.path.abspath(out))
    if dtype not in ("uint8", "uint16") or size < 8:
        raise InputError(f"dtype {dtype!r} and size {size} are not possible", remedy="Use uint8 or uint16, size >= 8")
    table.validate(labelled=False)
    with store_rows.locked(out):
        store_rows.recover(out)
        if out.exists() and not (out / "store.json").is_file() and (not out.is_dir() or any(out.iterdir())):
            raise InputError("exists and is no store", path=out, remedy="Choose another folder")
        old = store_rows.Old.open(out)
        plan = store_rows.Plan.of(table)
        about = _settings_of(table, out, size, dtype, recipe, plan, old)
        usable = old if old is not None and old.fits(about) else None
        slots = store_rows.match(plan, table.root, usable, retry_bad)
        if usable is not None and usable.keys == plan.keys and (slots >= 0).all():
            return _only_labels(table, out, plan, usable, began)
        return _Run(table, out, plan, about, workers, progress).go(usable, slots, began)


def _settings_of(
    table: StudyTable,
    out: Path,
    size: int,
    dtype: str,
    recipe: IntensityRecipe | None,
    plan: store_rows.Plan,
    old: store_rows.Old | None,
) -> dict[str, Any]:
    """What must agree for slots to be reused."""
    chosen: Any = None if recipe is None else recipe.to_dict()
    if chosen is None:
        partial = store_rows.partial_of(out) / "plan.json"
        if old is not None:
            chosen = old.about["recipe"]
        elif partial.is_file():
            chosen = read_json(partial)["recipe"]
        else:
            chosen = _fit(table).to_dict()
    about = {"format": 1, "size": size, "dtype": dtype, "recipe": chosen, "mask_findings": list(plan.mask_findings)}
    return json.loads(json.dumps(about))


def _fit(table: StudyTable, sample: int = 48) -> IntensityRecipe:
    """A recipe for the whole set from evenly spread training rows.

    Raises:
        InputError: none of the sampled images can be read.
    """
    from counterscan.data.intensity import fit_recipe
    from counterscan.data.readers import read_image

    at = np.flatnonzero((table.frame["split"] == "train").to_numpy())
    at = at if len(at) else np.arange(len(table))
    raws, problem = [], ""
    for row in spaced(at, sample):
        try:
            raws.append(read_image(table.image_path(int(row)), frame=table.frame_number(int(row))))
        except Exception as error:  # decoders of broken files raise anything; the next one may do
            problem = problem or str(error)
    if not raws:
        raise InputError(f"none of the images sampled can be read; the first says: {problem}", path=table.root)
    return fit_recipe(raws)


def _only_labels(
    table: StudyTable, out: Path, plan: store_rows.Plan, old: store_rows.Old, began: float
) -> PrepareReport:
    """Nothing to decode: write the table again if it changed."""
    if not old.same_table(table):
        table.write(out / "table.parquet")
        write_json(out / "store.json", old.about | {"findings": list(table.findings)})
    if old.rows["signature"].tolist() != plan.signatures:  # the same content under new times: not compared again
        with atomic_write(out / "rows.parquet") as handle:
            old.rows.assign(signature=plan.signatures).to_parquet(handle, index=False)
    bad, masks = int((old.rows["bad"] != "").sum()), int((old.rows["mask_slot"] >= 0).sum())
    return PrepareReport(out, len(table), bad, 0, len(table), masks, time.perf_counter() - began)


class _Run:
    """One run that decodes something."""

    def __init__(
        self,
        table: StudyTable,
        out: Path,
        plan: store_rows.Plan,
        about: dict[str, Any],
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.table, self.out, self.plan, self.about = table, out, plan, about
        self.workers, self.progress = workers, progress
        self.partial = store_rows.partial_of(out)
        self.journal = self.partial / "journal.jsonl"

    def go(self, old: store_rows.Old | None, slots: np.ndarray, began: float) -> PrepareReport:
        try:
            self._begin()
            targets = self._allocate()
            records = store_rows.Records(len(self.plan))
            if old is not None:
                self._copy(old, slots, targets, records)
            copied = int(records.done.sum())
            resumed = self._replay(records)
            todo = np.flatnonzero(~records.done)
            self._decode(todo, targets, records, copied + resumed)
            return self._finish(records, len(todo), copied + resumed, began)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                sizes = (int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self._shapes().values())
                need = sum(sizes)
                raise InputError(
                    f"the disk is full; the store needs {need / 1e9:.2f} GB in all",
                    path=self.partial,
                    remedy="Free space and run the same command again: what is done is kept",
                ) from error
            raise

    def _begin(self) -> None:
        """Keep an unfinished run of the same plan, or start a new one."""
        agreed = self.about | {"keys": hashlib.sha256("\n".join(self.plan.keys).encode()).hexdigest()}
        if (self.partial / "plan.json").is_file() and read_json(self.partial / "plan.json") == agreed:
            return
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True)
        write_json(self.partial / "plan.json", agreed)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        side = self.about["size"]
        row_bytes = (side * side + 7) // 8
        counts = {"images": len(self.plan), "twins": self.plan.twins, "masks": self.plan.masks}
        bits = np.min_scalar_type(2 ** (len(self.plan.mask_findings) + 1) - 1).name
        kind = {"images": self.about["dtype"], "twins": self.about["dtype"], "masks": bits}
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            name: ((count, side, side), kind[name]) for name, count in counts.items() if count
        }
        return shapes | {"valid": ((len(self.plan), row_bytes), "uint8")}

    def _allocate(self) -> dict[str, Target]:
        """Files of full length, so that a disk that is too small says so before hours of decoding."""
        from counterscan.data.decode import Target

        targets = {}
        for name, (shape, dtype) in self._shapes().items():
            path = self.partial / f"{name}.npy"
            with open(path, "r+b" if path.is_file() else "w+b") as handle:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(handle, header)
                handle.flush()
                offset = handle.tell()
                length = offset + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                # Few rows have a valid mask of their own: that file stays a sparse one.
                if hasattr(os, "posix_fallocate") and name != "valid":
                    os.posix_fallocate(handle.fileno(), 0, length)
                else:
                    handle.truncate(length)
            targets[name] = Target(path, offset, dtype)
        return targets

    def _copy(self, old: store_rows.Old, slots: np.ndarray, targets: dict[str, Target], records: Any) -> None:
        """Take over slots of the old store whose files are the same."""
        new = np.flatnonzero(slots >= 0)
        places = {"images": (new, slots[new])}
        for name, ours, theirs in (
            ("masks", self.plan.mask_slot, old.rows["mask_slot"].to_numpy()),
            ("twins", self.plan.twin_slot, old.rows["twin_slot"].to_numpy()),
        ):
            with_it = new[(ours[new] >= 0) & (theirs[slots[new]] >= 0)]
            places[name] = (ours[with_it], theirs[slots[with_it]])
        own = new[old.rows["masked"].to_numpy()[slots[new]]]
        places["valid"] = (own, slots[own])
        for name, (to, source) in places.items():
            if not len(to):
                continue
            target = np.load(targets[name].path, mmap_mode="r+")
            origin = np.load(old.folder / f"{name}.npy", mmap_mode="r")
            for start in range(0, len(to), CHUNK):
                target[to[start : start + CHUNK]] = origin[source[start : start + CHUNK]]
            target.flush()
        for slot, record in zip(new.tolist(), old.records(slots[new]), strict=True):
            records.add(record | {"slot": slot, "signature": self.plan.signatures[slot]})

    def _replay(self, records: Any) -> int:
        """Rows that an interrupted run has finished, if their files are still the same."""
        count = 0
        for record in store_rows.read_journal(self.journal):
            slot = record["slot"]
            if not records.done[slot] and record["signature"] == self.plan.signatures[slot]:
                records.add(record)
                count += 1
        return count

    def _decode(self, todo: np.ndarray, targets: dict[str, Target], records: Any, before: int) -> None:
        from counterscan.data.decode import Settings

        settings = Settings(self.about["size"], self.about["recipe"], targets)
        done = before
        with open(self.journal, "ab") as journal:
            for chunk in self._chunks(todo, settings):
                for record in chunk:
                    record["signature"] = self.plan.signatures[record["slot"]]
                    records.add(record)
                journal.write("".join(json.dumps(record) + "\n" for record in chunk).encode())
                journal.flush()
                os.fsync(journal.fileno())
                done += len(chunk)
                if self.progress is not None:
                    self.progress(done, len(self.plan))

    def _chunks(self, todo: np.ndarray, settings: Settings) -> Iterator[list[dict[str, Any]]]:
        """Records of decoded chunks, as they come."""
        from counterscan.data.decode import decode_chunk, run_chunk, start_worker

        parts = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
        began = time.perf_counter()
        if parts:
            yield run_chunk(self._jobs(parts[0]), settings)
        left = (time.perf_counter() - began) * (len(parts) - 1)
        workers = min(self.workers, len(parts) - 1)
        if workers <= 1 or left < SPAWN_PAYS:
            yield from (run_chunk(self._jobs(part), settings) for part in parts[1:])
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(settings,))
        try:
            waiting: set[Future[list[dict[str, Any]]]] = set()
            for part in parts[1:]:
                waiting.add(pool.submit(decode_chunk, self._jobs(part)))
                if len(waiting) >= 2 * workers:  # jobs are made as they are needed, whatever the size of the set
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ready)
            yield from (future.result() for future in waiting)
        except BrokenProcessPool as error:
            raise InputError(
                "a decoding process died (out of memory, a crashing codec, or a script without "
                "if __name__ == '__main__')",
                path=self.partial,
                remedy="Run the same command with one worker: what is done is kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _jobs(self, slots: Sequence[int] | np.ndarray) -> list[Job]:
        return [self.plan.job(self.table, int(slot)) for slot in slots]

    def _finish(self, records: Any, decoded: int, reused: int, began: float) -> PrepareReport:
        rows = records.frame(self.plan)
        bad = np.flatnonzero((rows["bad"] != "").to_numpy())
        if len(bad) == len(rows):
            shutil.rmtree(self.partial)
            raise InputError(
                f"none of the {len(rows):,} images can be decoded; the first says: {rows['bad'].iloc[0]}",
                path=self.table.root,
                remedy="Check the paths; for compressed DICOM, pip install 'counterscan[codecs]'",
            )
        rows["mask_slot"] = np.where(rows["bad"] != "", -1, rows["mask_slot"])
        with atomic_write(self.partial / "rows.parquet") as handle:
            rows.to_parquet(handle, index=False)
        self.table.write(self.partial / "table.parquet")
        listing = pd.DataFrame(
            {"row": bad + 2, "image": self.table.frame["image"].to_numpy()[bad], "reason": rows["bad"].to_numpy()[bad]}
        )
        with atomic_write(self.partial / "bad.csv", "w") as handle:
            listing.to_csv(handle, index=False, lineterminator="\n")
        shapes = self._shapes()
        if not records.masked.any():
            (self.partial / "valid.npy").unlink()
        write_json(
            self.partial / "store.json",
            self.about
            | {
                "findings": list(self.table.findings),
                "rows": len(rows),
                "bad": len(bad),
                "masks": "masks" in shapes,
                "twins": "twins" in shapes,
                "valid": bool(records.masked.any()),
                "content": records.content(self.about, self.plan),
                "counterscan": __version__,
            },
        )
        for name in ("plan.json", "journal.jsonl"):
            (self.partial / name).unlink(missing_ok=True)
        store_rows.take_place(self.partial, self.out)
        masks = int((rows["mask_slot"] >= 0).sum())
        return PrepareReport(self.out, len(rows), len(bad), decoded, reused, masks, time.perf_counter() - began)
