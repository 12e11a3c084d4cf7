"""Image files to planes in modality units: DICOM, PNG, JPEG, TIFF, BMP and NIfTI, told apart by content."""

from __future__ import annotations

from pathlib import Path

from counterscan.data.readers.dicom import read_dicom
from counterscan.data.readers.nifti import read_nifti
from counterscan.data.readers.raster import read_raster
from counterscan.data.readers.raw import RawImage, VoiTable, Window
from counterscan.data.readers.sniff import sniff, unreadable
from counterscan.data.readers.walk import ImageItem, ImageWalk, frame_count, is_image, iter_images
from counterscan.errors import InputError

__all__ = [
    "ImageItem",
    "ImageWalk",
    "RawImage",
    "VoiTable",
    "Window",
    "frame_count",
    "is_image",
    "iter_images",
    "read_image",
]


def read_image(path: str | Path, *, frame: int | None = None) -> RawImage:
    """Read one plane of an image file, before any choice of contrast.

    Args:
        path: a DICOM, PNG, JPEG, TIFF, BMP or NIfTI file; its content counts, not its name.
        frame: frame, page or slice from 0; needed when the file holds several.

    Returns:
        The plane in modality units with what is needed to display it and to point back at it.

    Raises:
        InputError: naming file, field and remedy, for anything that cannot be read; no other exception leaves here.
    """
    path = Path(path)
    sniffed = sniff(path)
    try:
        if sniffed.kind == "dicom":
            return read_dicom(path, frame=frame, bare_start=sniffed.bare_start)
        if sniffed.kind == "nifti":
            return read_nifti(path, frame=frame, compressed=sniffed.compressed)
        if sniffed.kind == "raster":
            return read_raster(path, frame=frame)
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            "needs more memory than there is", path=path, field="size", remedy="Scale the image down"
        ) from None
    except Exception as error:  # decoders raise whatever they meet in a damaged file
        raise InputError(
            f"is damaged and cannot be decoded as {sniffed.kind} ({_brief(error, sniffed.kind)})",
            path=path,
            field="PixelData" if sniffed.kind == "dicom" else "pixels",
            remedy="Restore it from its source, or leave it out",
        ) from error
    raise unreadable(path, sniffed)


def _brief(error: Exception, kind: str | None) -> str:
    """What went wrong; of DICOM files the type alone, since messages may quote the header."""
    words = "" if kind == "dicom" else " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:160]}" if words else type(error).__name__
