"""DICOM planes (PS3.3 C.7.6.3, C.11.1, C.11.2): one frame, in modality units, bright where the screen is bright."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from counterscan.data.readers import dicom_header as fields
from counterscan.data.readers.dicom_luts import Table, modality_transform, voi_transforms
from counterscan.data.readers.dicom_pixels import decode_frame
from counterscan.data.readers.raw import RawImage, Voi, check_finite, choose_frame, hide_padding
from counterscan.data.readers.sniff import HEAD_BYTES
from counterscan.errors import InputError

_DEFLATED_UID = DeflatedExplicitVRLittleEndian.encode()
_META_START = 128 + 4 + 12  # preamble, "DICM", and the group length element that counts what follows it
_INFLATED_LIMIT = 1 << 30
_LONG_VALUE = 1 << 22  # elements beyond this are not part of an image's description and are skipped


def read_dicom(path: Path, *, frame: int | None = None, bare_start: int | None = None) -> RawImage:
    """Read one frame of a DICOM image.

    The Modality LUT or rescale is applied, MONOCHROME1 is reflected so that larger is brighter, colour becomes
    luminance, and Pixel Padding is marked. The VOI LUTs and windows are returned, not applied: that is the intensity
    recipe's choice.

    Args:
        path: the file.
        frame: index from 0; needed when the file holds several.
        bare_start: offset of the data set in a file without file meta information.

    Returns:
        The plane; ``stored_range`` comes from BitsStored and PixelRepresentation through the Modality LUT.

    Raises:
        InputError: not an image, damaged, of an unknown encoding, or several frames and none chosen.
    """
    with open(path, "rb") as file:
        handle = _data_set(file, path, bare_start)
        header = _header(handle, path)
        fields.refuse_non_images(header, path)
        frames = fields.frame_count(header, path)
        index = choose_frame(frame, frames, path, "NumberOfFrames")
        stored, stored_range = decode_frame(handle, header, index, path)
    return _assemble(header, stored, stored_range, index, frames, path)


def dicom_frames(path: Path, bare_start: int | None = None) -> int:
    """Number of frames, from the header alone.

    Raises:
        InputError: the header cannot be read or describes no image.
    """
    with open(path, "rb") as file:
        header = _header(_data_set(file, path, bare_start), path)
    fields.refuse_non_images(header, path)
    return fields.frame_count(header, path)


def holds_image(path: Path) -> bool:
    """Whether the file's SOP class can hold an image, from its file meta information alone."""
    try:
        return fields.is_image_class(str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")))
    except Exception:  # a damaged file is still to be shown to the reader, which says what is wrong
        return True


def _data_set(file: BinaryIO, path: Path, bare_start: int | None) -> BinaryIO:
    """The file itself; or the data set alone when stray bytes precede a bare one or the whole is deflated."""
    if bare_start is not None:
        file.seek(bare_start)
        return io.BytesIO(file.read())
    is_deflated = _DEFLATED_UID in file.read(HEAD_BYTES)
    file.seek(0)
    if not is_deflated:
        return file
    length = int(read_file_meta_info(path).FileMetaInformationGroupLength)
    file.seek(_META_START + length)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), _INFLATED_LIMIT)
    if inflater.unconsumed_tail:
        raise InputError(
            f"inflates to more than {_INFLATED_LIMIT} bytes",
            path=path,
            field="TransferSyntaxUID",
            remedy="Leave it out",
        )
    return io.BytesIO(data)


def _header(handle: BinaryIO, path: Path) -> Dataset:
    """Everything before the pixel data, with a transfer syntax; leaves the handle at the pixel data element."""
    try:
        header = dcmread(handle, stop_before_pixels=True, force=True, defer_size=_LONG_VALUE)
    except Exception as error:  # pydicom raises a dozen kinds on damaged headers
        raise InputError(
            f"its DICOM header is damaged ({type(error).__name__})", path=path, remedy="Restore it from its source"
        ) from None
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        implicit, little_endian = header.original_encoding
        plain = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    elif not (isinstance(syntax, UID) and syntax.is_transfer_syntax):
        raise InputError(
            "is no known transfer syntax",
            path=path,
            field="TransferSyntaxUID",
            remedy="Restore the file's meta information, or convert it to Explicit VR Little Endian",
        )
    return header


def _assemble(
    header: Dataset, stored: np.ndarray, stored_range: tuple[float, float] | None, index: int, frames: int, path: Path
) -> RawImage:
    places = fields.frame_items(header, index)
    is_grey = fields.text(header, "PhotometricInterpretation").startswith("MONOCHROME")
    spacing, spacing_source = fields.spacing(places, path)
    pixels = stored.astype(np.float32, copy=False)
    valid: np.ndarray | None = None
    voi: tuple[Voi, ...] = ()
    if is_grey:
        pixels, stored_range, valid, voi = _grey(header, places, stored, stored_range, path)
    return RawImage(
        pixels=pixels,
        stored_range=stored_range,
        kind="dicom",
        valid=valid,
        modality=fields.modality(header),
        voi=voi,
        spacing=spacing,
        spacing_source=spacing_source,
        orientation=fields.orientation(places, path),
        view=fields.view(header),
        laterality=fields.laterality(places),
        frames=frames,
        frame=index,
        references=fields.references(header, index, frames),
    )


def _grey(
    header: Dataset,
    places: list[Dataset],
    stored: np.ndarray,
    stored_range: tuple[float, float] | None,
    path: Path,
) -> tuple[np.ndarray, tuple[float, float] | None, np.ndarray | None, tuple[Voi, ...]]:
    """The grey pipeline up to the VOI step: pixels in modality units, their range, valid pixels, VOI transforms."""
    signed = stored_range is not None and stored_range[0] < 0
    little_endian = bool(header.file_meta.TransferSyntaxUID.is_little_endian)
    transform, modality_range = modality_transform(places, stored_range or (0.0, 1.0), signed, little_endian, path)
    if isinstance(transform, Table):
        pixels = transform.apply(stored)
    else:
        pixels = stored.astype(np.float32)
        if transform != (1.0, 0.0):
            pixels *= np.float32(transform[0])
            pixels += np.float32(transform[1])
    if stored_range is None or transform != (1.0, 0.0):
        check_finite(pixels, path, "RescaleSlope" if stored_range else "FloatPixelData")
    voi = voi_transforms(places, signed, little_endian, path)
    if fields.text(header, "PhotometricInterpretation") == "MONOCHROME1":
        if stored_range is None:
            raise InputError(
                "is MONOCHROME1 with floating pixels, whose range is not known",
                path=path,
                field="PhotometricInterpretation",
                remedy="Negate the values and store them as MONOCHROME2",
            )
        total = modality_range[0] + modality_range[1]
        np.subtract(np.float32(total), pixels, out=pixels)
        voi = tuple(entry.reflected(total) for entry in voi)
    padding = _padding(header, stored, signed, path)
    valid = None if padding is None else hide_padding(pixels, ~padding, path, "PixelPaddingValue")
    return pixels, None if stored_range is None else modality_range, valid, voi


def _padding(header: Dataset, stored: np.ndarray, signed: bool, path: Path) -> np.ndarray | None:
    """(H, W) bool, True on padding by PixelPaddingValue and PixelPaddingRangeLimit (stored values); None if unused."""
    try:
        ends = fields.numbers(header, "PixelPaddingValue", path)[:1]
        ends += fields.numbers(header, "PixelPaddingRangeLimit", path)[:1] if ends else []
    except InputError:  # an unreadable padding value marks nothing
        return None
    if not ends or stored.dtype.kind == "f":
        return None
    size = 2 ** (8 * stored.dtype.itemsize)
    ends = [end - size if signed and end >= size // 2 else end for end in ends]
    return (stored >= min(ends)) & (stored <= max(ends))
