"""NIfTI-1 and NIfTI-2 planes (.nii, .nii.gz), shown as a radiologist hangs them."""

from __future__ import annotations

import gzip
from io import BufferedReader
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from counterscan.data.readers.raw import RawImage, check_finite, check_size, choose_frame
from counterscan.errors import InputError

# One gibivoxel: a whole-body CT at full resolution. More is a broken header or a gzip bomb.
MAX_VOXELS = 1 << 30
# Column and row of the screen run against each canonical axis: right to Left, anterior to Posterior, superior to Feet.
_SCREEN_LETTERS = ("L", "P", "F")


def read_nifti(path: Path, *, frame: int | None = None, compressed: bool = False) -> RawImage:
    """Read one slice.

    A volume is taken in canonical RAS+ orientation and cut across its last axis: frame 0 is the lowest axial slice,
    whatever the storage order. The slice is displayed in radiological convention: the patient's right on the left of
    the screen, anterior at the top (superior at the top of a two-dimensional coronal or sagittal image). ``pixels`` are
    therefore not in storage order; ``orientation`` is "L\\\\P" for axial slices. The header's slope and intercept are
    applied.

    Args:
        path: the file.
        frame: slice from 0; needed when there are several.
        compressed: the file is gzip.

    Returns:
        The plane; ``stored_range`` is known for 8-bit unsigned volumes only.

    Raises:
        InputError: damaged, truncated, two-file NIfTI, colour or complex voxels, more than three axes, NaN voxels, or
            several slices and none chosen.
    """
    with _opened(path, compressed) as handle:
        image, shape = _load(handle, path)
        _check_length(image, path, compressed)
        across, along, flipped = _axes(image.affine, shape)
        frames = shape[across]
        index = choose_frame(frame, frames, path, "dim")
        where: list[Any] = [slice(None)] * 3 + [0] * (len(image.shape) - 3)
        where[across] = frames - 1 - index if flipped[across] else index
        check_size(shape[along[1]], shape[along[0]], path, "dim")
        plane = np.asarray(image.dataobj[tuple(where[: len(image.shape)])], dtype=np.float32)
    plane = plane.reshape(shape[min(along)], shape[max(along)])
    plane = plane if along[0] < along[1] else plane.T  # now (horizontal, vertical)
    plane = plane if flipped[along[0]] else plane[::-1]
    plane = plane if flipped[along[1]] else plane[:, ::-1]
    pixels = np.ascontiguousarray(plane.T)
    check_finite(pixels, path, "voxels")
    spacing = _spacing(image, along)
    return RawImage(
        pixels=pixels,
        stored_range=_stored_range(image),
        kind="nifti",
        spacing=spacing,
        spacing_source="pixdim" if spacing else None,
        orientation=_orientation(image.affine, along),
        frames=frames,
        frame=index,
    )


def nifti_frames(path: Path, compressed: bool = False) -> int:
    """Number of slices, from the header alone.

    Raises:
        InputError: the header is damaged or describes no volume of grey values.
    """
    with _opened(path, compressed) as handle:
        image, shape = _load(handle, path)
        return shape[_axes(image.affine, shape)[0]]


def _opened(path: Path, compressed: bool) -> gzip.GzipFile | BufferedReader:
    return gzip.GzipFile(path, "rb") if compressed else open(path, "rb")


def _load(handle: gzip.GzipFile | BufferedReader, path: Path) -> tuple[Any, tuple[int, int, int]]:
    """The image, its voxels still on disk, and its three extents."""
    start = handle.read(348)
    handle.seek(0)
    if start[344:348] == b"ni1\0":
        raise InputError("is half of a two-file NIfTI", path=path, field="magic", remedy="Convert it to one .nii file")
    is_second = start[344:348] != b"n+1\0"
    try:
        image: Any = (nib.Nifti2Image if is_second else nib.Nifti1Image).from_stream(handle)
    except Exception as error:  # nibabel raises many kinds on damaged headers
        raise InputError(
            f"its NIfTI header is damaged ({type(error).__name__})", path=path, remedy="Restore it from its source"
        ) from None
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(
            f"voxels of type {image.get_data_dtype()} are not read",
            path=path,
            field="datatype",
            remedy="Save it as integers or floats",
        )
    extents = tuple(int(extent) for extent in image.shape)
    if len(extents) < 2 or any(extent != 1 for extent in extents[3:]) or min(extents) < 1:
        raise InputError(
            f"has the shape {extents}; two or three axes are read",
            path=path,
            field="dim",
            remedy="Choose one time point or channel and save it alone",
        )
    if int(np.prod(extents, dtype=object)) > MAX_VOXELS:
        raise InputError(f"claims the shape {extents}", path=path, field="dim", remedy="Check the header")
    height = extents[2] if len(extents) > 2 else 1
    return image, (extents[0], extents[1], height)


def _check_length(image: Any, path: Path, compressed: bool) -> None:
    if compressed:
        return
    needed = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    present = path.stat().st_size
    if present < needed:
        raise InputError(
            f"is truncated: {present} of {needed} bytes", path=path, field="dim", remedy="Restore it from its source"
        )


def _axes(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[int, tuple[int, int], tuple[bool, bool, bool]]:
    """Storage axis across the slices, storage axes (horizontal, vertical) of the screen, and which run backwards."""
    order = _ornt(affine)
    flipped = (bool(order[0, 1] < 0), bool(order[1, 1] < 0), bool(order[2, 1] < 0))
    to_storage = [int(np.flatnonzero(order[:, 0] == axis)[0]) for axis in range(3)]
    across = 2 if shape[2] == 1 else to_storage[2]
    first, second = (axis for axis in to_storage if axis != across)
    return across, (first, second), flipped


def _ornt(affine: np.ndarray) -> np.ndarray:
    order = nib.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    return order if np.isfinite(order).all() else np.array([[0, 1], [1, 1], [2, 1]])


def _orientation(affine: np.ndarray, along: tuple[int, int]) -> str | None:
    if not np.isfinite(affine).all() or not np.isfinite(nib.io_orientation(affine)).all():
        return None
    order = _ornt(affine)
    return "\\".join(_SCREEN_LETTERS[int(order[axis, 0])] for axis in along)


def _spacing(image: Any, along: tuple[int, int]) -> tuple[float, float] | None:
    zooms = [float(zoom) for zoom in image.header.get_zooms()]
    column, row = (zooms[axis] for axis in along)
    return (row, column) if np.isfinite([row, column]).all() and min(row, column) > 0 else None


def _stored_range(image: Any) -> tuple[float, float] | None:
    if image.get_data_dtype() != np.uint8:
        return None
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    low, high = sorted((intercept, 255.0 * slope + intercept))
    return low, high
