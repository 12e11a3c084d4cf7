"""Whatever the bytes, a reader answers with an image or with InputError."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from counterscan.data.readers import RawImage, frame_count, is_image, read_image
from counterscan.errors import InputError
from tests.data.readers_made import dataset, sequence_item, write

PLANE = (np.add.outer(np.arange(40), np.arange(48)) * 40).astype(np.uint16)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def _dicom(syntax=None, **values) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        header = dataset(PLANE, BitsStored=12, WindowCenter="300", WindowWidth="600", **values)
        if syntax is not None:
            header.compress(syntax)
        return write(header, Path(folder) / "a.dcm").read_bytes()


def _raster(name: str, plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format=name)
    return buffer.getvalue()


def _seeds() -> dict[str, bytes]:
    table = sequence_item(LUTDescriptor=[4, 0, 8], LUTData=bytes([0, 1, 0, 2, 0, 3, 0, 4]))
    nifti = nib.Nifti1Image(PLANE.astype(np.int16)[..., None], np.eye(4)).to_bytes()
    return {
        "dicom": _dicom(),
        "dicom tables": _dicom(VOILUTSequence=[table], PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0),
        "dicom rle": _dicom(RLELossless),
        "dicom jpeg-ls": _dicom(JPEGLSLossless),
        "dicom jpeg2000": _dicom(JPEG2000Lossless),
        "dicom bare": _dicom()[144:],
        "png": _raster("PNG", PLANE),
        "jpeg": _raster("JPEG", PLANE.astype(np.uint8)),
        "tiff": _raster("TIFF", PLANE),
        "bmp": _raster("BMP", PLANE.astype(np.uint8)),
        "nifti": nifti,
        "nifti gz": gzip.compress(nifti, mtime=0),
    }


@pytest.fixture(scope="module")
def seeds():
    pytest.importorskip("jpeg_ls")
    pytest.importorskip("openjpeg")
    return _seeds()


def answer(content: bytes, folder: Path) -> None:
    """Read the bytes in every way there is; anything but an image or InputError fails the test."""
    path = folder / "fuzz"
    path.write_bytes(content)
    is_image(path)
    for attempt in (lambda: frame_count(path), lambda: read_image(path), lambda: read_image(path, frame=0)):
        result = _outcome(attempt)
        if isinstance(result, InputError):
            assert result.path == path
        elif isinstance(result, RawImage):
            assert result.pixels.dtype == np.float32
            assert np.isfinite(result.pixels).all()


def _outcome(attempt: Callable[[], RawImage | int]) -> RawImage | int | InputError:
    try:
        return attempt()
    except InputError as error:
        return error


NAMES = ["dicom", "dicom tables", "dicom rle", "dicom jpeg-ls", "dicom jpeg2000", "dicom bare"]
DESCRIPTION = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
DESCRIPTION += ["SamplesPerPixel", "PixelPaddingValue"]
NAMES += ["png", "jpeg", "tiff", "bmp", "nifti", "nifti gz"]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_itself_reads(seeds, tmp_path, name):
    path = tmp_path / "seed"
    path.write_bytes(seeds[name])
    assert set(read_image(path).shape) == {40, 48}


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files(seeds, tmp_path, name, share):
    answer(seeds[name][: int(share * len(seeds[name]))], tmp_path)


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)),
        min_size=1,
        max_size=8,
    )
)
def test_mutated_bytes(seeds, tmp_path, name, changes):
    content = bytearray(seeds[name])
    for where, value in changes:
        content[int(where * len(content))] = value
    answer(bytes(content), tmp_path)


@pytest.mark.parametrize(
    "head", [b"", b"\0" * 128 + b"DICM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"\x1f\x8b"]
)
@QUICK
@given(tail=st.binary(max_size=600))
def test_random_bytes(tmp_path, head, tail):
    answer(head + tail, tmp_path)


@QUICK
@given(
    keyword=st.sampled_from(DESCRIPTION),
    value=st.integers(0, 65535),
)
def test_mutated_image_description(tmp_path, keyword, value):
    header = dataset(PLANE, PixelPaddingValue=0)
    setattr(header, keyword, value)
    answer(write(header, tmp_path / "made").read_bytes(), tmp_path)


@QUICK
@given(
    keyword=st.sampled_from(["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames"]),
    text=st.sampled_from(["", "0", "-1", "1e999", "nan", "1A", "1\\2", "99999999", "1e-300", "3"])
    | st.text("0123456789.-eE+ \\", max_size=16),
)
def test_mutated_numbers(tmp_path, keyword, text):
    content = _dicom(**{"RescaleSlope": "1.000000000000", "RescaleIntercept": "0.00000000000", "NumberOfFrames": "01"})
    header = tmp_path / "made"
    header.write_bytes(content)
    tag = {"RescaleSlope": b"\x28\0\x53\x10", "RescaleIntercept": b"\x28\0\x52\x10", "WindowCenter": b"\x28\0\x50\x10"}
    tag |= {"WindowWidth": b"\x28\0\x51\x10", "NumberOfFrames": b"\x28\0\x08\0"}
    at = content.index(tag[keyword])
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    value = text.encode() + b" " * (len(text) % 2)
    mutated = content[: at + 6] + len(value).to_bytes(2, "little") + value + content[at + 8 + length :]
    answer(mutated, tmp_path)
