"""Decoding rows of a study table into fixed slots of files: the part of `prepare` that runs in worker processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterscan.data.geometry import Geometry
from counterscan.data.intensity import IntensityRecipe
from counterscan.data.load import on_grid
from counterscan.data.readers import read_image
from counterscan.errors import InputError


@dataclass(frozen=True)
class Job:
    """One row: which files, and which slots they go to.

    Attributes:
        masks: bit plane -> mask file.
        boxes: (bit plane, (x, y, w, h) in pixels of the image file).
    """

    slot: int
    image: Path
    frame: int | None = None
    masks: tuple[tuple[int, Path], ...] = ()
    boxes: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()
    twin: Path | None = None
    mask_slot: int = -1
    twin_slot: int = -1

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file the row is made of."""
        return (self.image, *(path for _, path in self.masks), *((self.twin,) if self.twin else ()))


@dataclass(frozen=True)
class Target:
    """An .npy file that is written slot by slot.

    Attributes:
        path: the file, whose header exists.
        offset: bytes before the first slot.
        dtype: of its numbers.
    """

    path: Path
    offset: int
    dtype: str


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know once."""

    size: int
    recipe: Mapping[str, Any]
    targets: Mapping[str, Target]


_settings: Settings | None = None


def start_worker(settings: Settings) -> None:
    """Called once in each process; one thread each, since the processes are the parallelism."""
    global _settings
    _settings = settings
    torch.set_num_threads(1)


def decode_chunk(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Decode some rows in a worker that :func:`start_worker` has prepared."""
    assert _settings is not None
    return run_chunk(jobs, _settings)


def run_chunk(jobs: Sequence[Job], settings: Settings) -> list[dict[str, Any]]:
    """Decode some rows and write them to their slots, safely on disk when this returns.

    Returns:
        one record per row: ``slot``, ``sha``, ``bad`` ("" or the reason), ``geometry`` and ``references`` (JSON),
        ``content`` [top, left, height, width], ``masked`` (pixels other than the letterbox are no image).

    Raises:
        OSError: a slot could not be written (disk full). A file that cannot be read is no error but a bad row.
    """
    recipe = IntensityRecipe.from_dict(settings.recipe)
    handles = {name: os.open(target.path, os.O_WRONLY) for name, target in settings.targets.items()}
    try:
        records = []
        for job in jobs:
            arrays, record = _decode(job, recipe, settings)
            for name, (slot, array) in arrays.items():
                _write(handles[name], settings.targets[name].offset + slot * array.nbytes, array)
            records.append(record)
        for handle in handles.values():
            os.fsync(handle)
        return records
    finally:
        for handle in handles.values():
            os.close(handle)


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of several files, in order.

    Raises:
        OSError: one of them cannot be read.
    """
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def _decode(
    job: Job, recipe: IntensityRecipe, settings: Settings
) -> tuple[dict[str, tuple[int, np.ndarray]], dict[str, Any]]:
    """Arrays by target with their slots, and the record; a bad row has no arrays."""
    record: dict[str, Any] = {"slot": job.slot, "sha": "", "bad": "", "content": [0, 0, 0, 0]}
    record |= {"geometry": "{}", "references": "{}", "masked": False}
    try:
        record["sha"] = fingerprint(job.files)
        raw = read_image(job.image, frame=job.frame)
        pixels, valid, geometry = on_grid(raw, recipe, settings.size)
        arrays = {"images": (job.slot, _quantise(pixels, settings.targets["images"].dtype))}
        if job.twin is not None:
            twin, _, _ = on_grid(read_image(job.twin), recipe, settings.size)
            arrays["twins"] = (job.twin_slot, _quantise(twin, settings.targets["twins"].dtype))
        if job.mask_slot >= 0:
            arrays["masks"] = (job.mask_slot, _planes(job, geometry, settings.targets["masks"].dtype))
    except InputError as error:
        return {}, record | {"bad": str(error)}
    except Exception as error:  # decoders of broken files raise anything; the row is bad, the run goes on
        return {}, record | {"bad": f"{job.image}: {type(error).__name__}: {error}".splitlines()[0]}
    if not torch.equal(valid, geometry.valid()):
        record["masked"] = True
        arrays["valid"] = (job.slot, np.packbits(valid.numpy().ravel()))
    record["content"] = [int(v) for v in geometry.content]
    record["geometry"] = json.dumps(geometry.to_dict(), sort_keys=True)
    record["references"] = json.dumps(dict(raw.references), sort_keys=True)
    return arrays, record


def _quantise(pixels: torch.Tensor, dtype: str) -> np.ndarray:
    """(1, S, S) in [-1, 1] -> (S, S) unsigned integers over the whole range.

    Raises:
        ValueError: NaN or infinite pixels.
    """
    values = pixels[0].numpy()
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinite pixels")
    half = np.iinfo(dtype).max / 2
    return np.rint(np.clip((values.astype(np.float64) + 1) * half, 0, 2 * half)).astype(dtype)


def _planes(job: Job, geometry: Geometry, dtype: str) -> np.ndarray:
    """(S, S) bit planes of a row's masks and boxes."""
    planes = np.zeros((geometry.size, geometry.size), dtype=dtype)
    for bit, path in job.masks:
        pixels = read_image(path).pixels
        drawn = pixels > 0.5 * pixels.max() if pixels.max() > 0 else np.zeros(pixels.shape, dtype=bool)
        planes |= _to_grid(_fit(drawn, geometry.native, path), geometry).astype(dtype) << np.dtype(dtype).type(bit)
    for bit, (x, y, width, height) in job.boxes:
        drawn = np.zeros(geometry.native, dtype=bool)
        top, left = max(0, round(y)), max(0, round(x))
        drawn[top : max(top + 1, round(y + height)), left : max(left + 1, round(x + width))] = True
        if not drawn.any():
            raise InputError(f"the box {[x, y, width, height]} lies outside the image", path=job.image, field="boxes")
        planes |= _to_grid(drawn, geometry).astype(dtype) << np.dtype(dtype).type(bit)
    return planes


def _fit(drawn: np.ndarray, native: tuple[int, int], path: Path) -> np.ndarray:
    """A mask drawn on a rescaled copy of the image (COVID-19 Radiography: 256 for 299) brought to the image's pixels.

    Raises:
        InputError: another shape altogether.
    """
    if drawn.shape == tuple(native):
        return drawn
    if abs(drawn.shape[0] * native[1] - drawn.shape[1] * native[0]) > 0.01 * drawn.shape[0] * native[1]:
        raise InputError(
            f"the mask is {drawn.shape} and the image {tuple(native)}", path=path, remedy="Give the mask of this image"
        )
    rows = (np.arange(native[0]) * drawn.shape[0] // native[0]).astype(int)
    columns = (np.arange(native[1]) * drawn.shape[1] // native[1]).astype(int)
    return drawn[np.ix_(rows, columns)]


def _to_grid(drawn: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(S, S) bool: cells that are at least half lesion; a lesion too small for that keeps its fullest cells."""
    share = geometry.to_model(torch.from_numpy(drawn.astype(np.float32)), fill=0.0).numpy()
    return share >= max(min(0.5, float(share.max())), 1e-6)


def _write(handle: int, offset: int, array: np.ndarray) -> None:
    view = memoryview(array.tobytes())
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done
