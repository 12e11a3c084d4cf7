"""One frame of DICOM pixel data, decoded: native, RLE, JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.decoders.base import Decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, RLELossless

from counterscan.data.readers import dicom_header as fields
from counterscan.data.readers.apart import DecoderFailed, decode_apart
from counterscan.data.readers.raw import check_size, luminance
from counterscan.errors import InputError

_PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
# Fastest first; python-gdcm, which alone knows lossless JPEG, comes last.
_PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "pydicom", "gdcm")
# Decoded in this process, by Pillow and the RLE codecs; all else, and anything by gdcm, apart.
_HERE = (RLELossless, JPEGBaseline8Bit)
_END_OF_IMAGE = b"\xff\xd9"
_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_UNDEFINED = 0xFFFFFFFF
_AGAIN = "Restore the file from its source"


def decode_frame(
    handle: BinaryIO, header: Dataset, frame: int, path: Path
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Decode one frame.

    Args:
        handle: the file, positioned at the pixel data element.
        header: everything before it, with ``file_meta.TransferSyntaxUID`` set.
        frame: index from 0, already checked.
        path: for messages.

    Returns:
        (H, W) stored values, or (H, W) float32 luminance of colour images, and their possible range (low, high); None
        for float pixels.

    Raises:
        InputError: fields that contradict each other, a codec that is not installed, damaged or truncated data.
    """
    rows, columns = fields.integer(header, "Rows", path), fields.integer(header, "Columns", path)
    check_size(rows, columns, path, "Rows")
    interpretation = _interpretation(header, path)
    options = _options(handle, header, path)
    is_float = options["pixel_keyword"] != "PixelData"
    stored_range = None if is_float else _stored_range(header, path)
    decoder = _decoder(header, path)
    if decoder.is_encapsulated:
        data = _codestream(handle, options, frame, (rows, columns), path)
        pixels = _decode(decoder, data, options, path)
    else:
        _check_length(handle, options, frame, path)
        known = {key: value for key, value in options.items() if key != "value_length"}
        pixels = decoder.as_array(handle, index=frame, **known)[0]
    if interpretation == "PALETTE COLOR":
        return _palette(pixels, header, path)
    if pixels.ndim == 3:
        return luminance(pixels), stored_range
    return pixels, stored_range


def _interpretation(header: Dataset, path: Path) -> str:
    value = fields.text(header, "PhotometricInterpretation")
    samples = fields.integer(header, "SamplesPerPixel", path, default=1)
    if value in (*_MONOCHROME, "PALETTE COLOR") and samples == 1:
        return value
    if value in _COLOUR and samples == 3:
        return value
    problem = f"{value!r} with {samples} samples per pixel is not read" if value else "is missing"
    raise InputError(
        problem,
        path=path,
        field="PhotometricInterpretation",
        remedy="Convert the file to MONOCHROME2, RGB, YBR or PALETTE COLOR",
    )


def _options(handle: BinaryIO, header: Dataset, path: Path) -> dict[str, Any]:
    """What the decoder needs to know; leaves the handle at the first byte of the pixel data's value."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    tag = handle.read(4)
    length = handle.read(4)
    key = int.from_bytes(tag[:2], order) << 16 | int.from_bytes(tag[2:], order)
    if len(length) < 4 or key not in _PIXEL_KEYWORDS:
        raise InputError(
            "holds no pixel data", path=path, field="PixelData", remedy="Leave it out, or restore it from its source"
        )
    extra = {}
    if length[:2] in _PIXEL_VRS:  # some files with an explicit syntax are implicit all the same
        extra["pixel_vr"] = length[:2].decode("ascii", "replace")
        length = handle.read(4)
    options: dict[str, Any] = as_pixel_options(header, pixel_keyword=_PIXEL_KEYWORDS[key], **extra)
    options["transfer_syntax_uid"] = syntax
    options["value_length"] = int.from_bytes(length, order)
    options.setdefault("samples_per_pixel", 1)
    if syntax == JPEG2000:
        # Lossy values may overshoot the stored bits by a little; wrapping them would turn white into black.
        options["correct_unused_bits"] = False
    return options


def _stored_range(header: Dataset, path: Path) -> tuple[float, float]:
    allocated = fields.integer(header, "BitsAllocated", path)
    stored = fields.integer(header, "BitsStored", path, default=allocated)
    high_bit = fields.integer(header, "HighBit", path, default=stored - 1)
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= allocated:
        raise InputError(
            f"{stored} bits stored in {allocated} allocated is not read",
            path=path,
            field="BitsStored",
            remedy="Export the image with 8 or 16 bits allocated",
        )
    if high_bit != stored - 1:
        raise InputError(
            f"is {high_bit} where {stored} bits stored need {stored - 1}",
            path=path,
            field="HighBit",
            remedy="Export the image with its samples in the low bits",
        )
    if fields.integer(header, "PixelRepresentation", path, default=0) == 1:
        return -float(2 ** (stored - 1)), float(2 ** (stored - 1) - 1)
    return 0.0, float(2**stored - 1)


def _decoder(header: Dataset, path: Path) -> Decoder:
    syntax = UID(header.file_meta.TransferSyntaxUID)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise InputError(
            f"{syntax.name} is not read",
            path=path,
            field="TransferSyntaxUID",
            remedy="Convert the file to Explicit VR Little Endian",
        ) from None
    if decoder.is_encapsulated and not decoder.available_plugins:
        raise InputError(
            f"{syntax.name} needs a codec that is not installed",
            path=path,
            field="TransferSyntaxUID",
            remedy="Run: pip install counterscan[codecs]",
        )
    return decoder


def _check_length(handle: BinaryIO, options: dict[str, Any], frame: int, path: Path) -> None:
    """Refuse a truncated file before room for its pixels is made."""
    if options["value_length"] == _UNDEFINED:
        raise InputError(
            "the pixel data is compressed and the file does not say how",
            path=path,
            field="TransferSyntaxUID",
            remedy="Restore its file meta information",
        )
    start = handle.tell()
    present = min(handle.seek(0, 2) - start, options["value_length"])
    handle.seek(start)
    samples, bits = options["samples_per_pixel"], options["bits_allocated"]
    bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(options["pixel_keyword"], bits)
    per_frame = options["rows"] * options["columns"] * samples * bits / 8
    if options["photometric_interpretation"] == "YBR_FULL_422":
        per_frame = per_frame * 2 / 3
    needed = int(per_frame * (frame + 1))
    if present < needed:
        raise InputError(
            f"is truncated: {present} of {needed} bytes of pixels are there",
            path=path,
            field="PixelData",
            remedy=_AGAIN,
        )


def _codestream(handle: BinaryIO, options: dict[str, Any], frame: int, shape: tuple[int, int], path: Path) -> bytes:
    """One compressed frame, whole, and of the size that the header says: decoders trust it and allocate for it."""
    start = handle.tell()
    try:
        data = get_frame(
            handle,
            frame,
            number_of_frames=options["number_of_frames"],
            extended_offsets=options.get("extended_offsets"),
        )
    except Exception:
        raise InputError(
            f"is truncated or damaged: frame {frame} is not there", path=path, field="PixelData", remedy=_AGAIN
        ) from None
    finally:
        handle.seek(start)
    if options["transfer_syntax_uid"] == RLELossless:
        return data
    if _END_OF_IMAGE not in data[-64:]:
        raise InputError(f"is truncated: frame {frame} has no end", path=path, field="PixelData", remedy=_AGAIN)
    claimed = codestream_shape(data)
    if claimed is not None and claimed != shape:
        raise InputError(
            f"is {shape[0]} x {shape[1]} by the header and {claimed[0]} x {claimed[1]} in the compressed data",
            path=path,
            field="Rows",
            remedy=_AGAIN,
        )
    return data


def codestream_shape(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None when it declares none."""
    if data[:4] == b"\xff\x4f\xff\x51":
        left, top = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        right, bottom = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12))
        return bottom - top, right - left
    position = 2 if data[:2] == b"\xff\xd8" else len(data)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return rows, columns
        is_fill = marker == 0xFF
        position += 1 if is_fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _decode(decoder: Decoder, data: bytes, options: dict[str, Any], path: Path) -> np.ndarray:
    """One compressed frame, by the first plugin that can."""
    syntax = options["transfer_syntax_uid"]
    available = [name for name in _PLUGINS if name in decoder.available_plugins]
    known = {key: value for key, value in options.items() if key not in ("value_length", "extended_offsets")}
    known["number_of_frames"] = 1
    here = [name for name in available if syntax in _HERE and name != "gdcm"]
    for plugin in here:
        try:
            return decoder.as_array(encapsulate([data], has_bot=False), index=0, decoding_plugin=plugin, **known)[0]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the RLE codec panics in Rust, which is no Exception
            continue
    if apart := [name for name in available if name not in here]:
        with contextlib.suppress(DecoderFailed):
            return decode_apart(data, known, apart)
    raise InputError(
        f"none of {', '.join(available)} can decode this {syntax.name} data: "
        "it is damaged or of a variant they do not know",
        path=path,
        field="PixelData",
        remedy="Restore the file, convert it to Explicit VR Little Endian, or pip install counterscan[codecs]",
    )


def _palette(pixels: np.ndarray, header: Dataset, path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    try:
        colour = apply_color_lut(pixels, header)
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    except Exception:
        raise InputError(
            "its palette is missing or malformed",
            path=path,
            field="RedPaletteColorLookupTableData",
            remedy="Export the image as RGB",
        ) from None
    high = float(2 ** (bits if bits in (8, 16) else 8 * colour.dtype.itemsize) - 1)
    return np.minimum(luminance(colour[..., :3]), np.float32(high)), (0.0, high)
