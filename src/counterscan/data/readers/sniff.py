"""What a file is, from its first bytes; its name does not count."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from counterscan.errors import InputError

HEAD_BYTES = 1024

# The data set's first element is in group 0002 or 0008 with an explicit VR, little or big endian. A few stray bytes
# before it occur in files that lost their preamble.
_BARE_EXPLICIT = re.compile(
    rb"(?:[\x02\x08]\x00.\x00|\x00[\x02\x08]\x00.)(?:UL|UI|CS|SH|DA|TM|LO|OB|AE|SQ|UT|ST)", re.DOTALL
)
_BARE_LIMIT = 8
_BARE_IMPLICIT = re.compile(rb"[\x02\x08]\x00.\x00[\x00-\x80]\x00\x00\x00", re.DOTALL)

_RASTERS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_STRANGERS = (
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP or AVI"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000 (JP2)"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 codestream"),
    (b"PK\x03\x04", "zip archive"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"%PDF", "PDF document"),
    (b"NRRD", "NRRD volume"),
    (b"\x89HDF", "HDF5 file"),
    (b"\x93NUMPY", "NumPy array"),
)
_REMEDY = "Give a DICOM, PNG, JPEG, TIFF, BMP or NIfTI file"


@dataclass(frozen=True)
class Sniffed:
    """A file's kind.

    Attributes:
        kind: "dicom", "raster", "nifti", or None for what is not read.
        reason: what it is instead, when ``kind`` is None.
        bare_start: offset of the first element of a DICOM data set without file meta information; None otherwise.
        compressed: the whole file is gzip (NIfTI only).
    """

    kind: str | None
    reason: str = ""
    bare_start: int | None = None
    compressed: bool = False


def sniff(path: Path) -> Sniffed:
    """Kind of a file.

    Raises:
        InputError: there is no such regular file, or it cannot be read.
    """
    if path.is_dir():
        raise InputError("is a folder, not a file", path=path, remedy="Go through its files with iter_images")
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "no such file"
        raise InputError(problem, path=path, remedy="Check the path, and the folder that relative paths start from")
    try:
        with open(path, "rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", path=path, remedy="Check its permissions") from None
    return _classify(head) if not head.startswith(b"\x1f\x8b") else _classify_gzip(path)


def unreadable(path: Path, sniffed: Sniffed) -> InputError:
    """The refusal of a file of no known kind."""
    return InputError(sniffed.reason, path=path, remedy=_REMEDY)


def _classify(head: bytes) -> Sniffed:
    if not head:
        return Sniffed(None, "is empty")
    if head[128:132] == b"DICM":
        return Sniffed("dicom")
    if head.startswith(_RASTERS):
        return Sniffed("raster")
    if _is_nifti(head):
        return Sniffed("nifti")
    for magic, name in _STRANGERS:
        if head.startswith(magic):
            return Sniffed(None, f"is a {name}, which is not read")
    found = _BARE_EXPLICIT.search(head, 0, _BARE_LIMIT + 6)
    if found:
        return Sniffed("dicom", bare_start=found.start())
    if _BARE_IMPLICIT.match(head):
        return Sniffed("dicom", bare_start=0)
    return Sniffed(None, "is not an image of a known format")


def _classify_gzip(path: Path) -> Sniffed:
    try:
        with gzip.open(path, "rb") as handle:
            head = handle.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return Sniffed(None, "is a damaged gzip file")
    if _is_nifti(head):
        return Sniffed("nifti", compressed=True)
    inner = _classify(head).kind
    return Sniffed(None, f"is a gzip file{f' around a {inner} image: unpack it first' if inner else ''}")


def _is_nifti(head: bytes) -> bool:
    if len(head) < 348:
        return False
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return True
    return head[4:8] == b"n+2\0" and 540 in (struct.unpack("<i", head[:4])[0], struct.unpack(">i", head[:4])[0])
