"""Every file of the real DICOM set and of pydicom's own test files: read right, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from counterscan.data.intensity import IntensityRecipe
from counterscan.data.load import load
from counterscan.data.readers import RawImage, frame_count, read_image
from counterscan.errors import InputError
from tests.real import real_data

LUMINANCE = np.array([0.299, 0.587, 0.114])
# file: (frame, height, width, lowest, highest pixel after rescale and polarity), or the refusal
REAL = {
    "WG04_J2KI_RG1_J2KI.dcm": (None, 1955, 1841, 32767 - 26512, 32767 - 803),
    "WG04_RLE_MR4_RLE.dcm": (None, 512, 512, -19595, 2150 * 9.570207 - 19595),
    "WG04_RLE_RG2_RLE.dcm": (None, 2140, 1760, 0, 893),
    "WG04_RLE_RG3_RLE.dcm": (None, 1760, 1760, 0, 1023),
    "WG04_RLE_XA1_RLE.dcm": (None, 1024, 1024, 0, 504),
    "dcmqi_segmentations_ct-3slice_01.dcm": (None, 512, 512, -1024, 2405 - 1024),
    "dcmqi_segmentations_ct-3slice_02.dcm": (None, 512, 512, -1024, 2364 - 1024),
    "pydicom_693_UNCR.dcm": (None, 512, 512, -1024, 2492 - 1024),
    "pydicom_CT_small.dcm": (None, 128, 128, 128 - 1024, 2191 - 1024),
    "pydicom_MR_small.dcm": (None, 64, 64, 127, 2145),
    "pydicom_MR_small_RLE.dcm": (None, 64, 64, 127, 2145),
    "pydicom_MR_small_bigendian.dcm": (None, 64, 64, 127, 2145),
    "pydicom_MR_small_implicit.dcm": (None, 64, 64, 127, 2145),
    "pydicom_MR_small_jp2klossless.dcm": (None, 64, 64, 127, 2145),
    "pydicom_MR_truncated.dcm": "PixelData: is truncated: 8130 of 8192 bytes",
    "pydicom_OBXXXX1A_rle_2frame.dcm": (1, 600, 800, 0, 65280),
    "pydicom_US1_UNCR.dcm": (None, 480, 640, 0, 255),
    "pydicom_emri_small.dcm": (3, 64, 64, None, None),
    "pydicom_no_meta.dcm": (None, 128, 128, 128 - 1024, 2191 - 1024),
}
NOT_IMAGES = ("rtplan", "rtdose", "rtstruct", "reportsi", "test-SR", "waveform", "liver", "DICOMDIR", "README", ".json")
# Read by pydicom, refused here on purpose: not pictures.
REFUSED_THOUGH_DECODABLE = ("rtdose", "liver")


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    path = real_data("dicom") / name
    expected = REAL[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            read_image(path)
        return
    frame, height, width, low, high = expected
    if frame is not None:
        with pytest.raises(InputError, match=f"NumberOfFrames: holds {frame_count(path)} frames"):
            read_image(path)
    raw = read_image(path, frame=frame)
    assert raw.shape == (height, width)
    if low is not None:
        np.testing.assert_allclose((raw.pixels.min(), raw.pixels.max()), (low, high), rtol=1e-5, atol=1e-3)


def test_the_table_covers_the_whole_set():
    assert {path.name for path in real_data("dicom").glob("*.dcm")} == set(REAL)


def test_encodings_of_one_image_agree():
    folder = real_data("dicom")
    plain = read_image(folder / "pydicom_MR_small.dcm").pixels
    for other in ("RLE", "bigendian", "implicit", "jp2klossless"):
        np.testing.assert_array_equal(read_image(folder / f"pydicom_MR_small_{other}.dcm").pixels, plain)
    np.testing.assert_array_equal(
        read_image(folder / "pydicom_no_meta.dcm").pixels, read_image(folder / "pydicom_CT_small.dcm").pixels
    )


def test_the_chest_has_dark_lungs_and_a_bright_mediastinum():
    """MONOCHROME1: stored the other way round."""
    image = load(real_data("dicom") / "WG04_J2KI_RG1_J2KI.dcm", IntensityRecipe("voi"), size=64)[0][0]
    right_apex, left_apex, spine, beside = image[10:18, 18:24], image[10:18, 38:44], image[20:40, 30:34], image[2, 4]
    assert max(right_apex.mean(), left_apex.mean()) < spine.mean() - 0.4
    assert spine.mean() > 0.5
    assert beside < spine.mean()


def test_the_enhanced_file_takes_its_frame_from_the_groups():
    path = real_data("dicom") / "pydicom_emri_small.dcm"
    stack = pydicom.dcmread(path).pixel_array
    for frame in (0, 9):
        np.testing.assert_array_equal(read_image(path, frame=frame).pixels, stack[frame])


def local_testdata() -> list[Path]:
    """Files shipped inside the pydicom package; nothing is downloaded."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")


def test_each_of_pydicoms_files_is_read_or_refused_with_a_reason():
    files = local_testdata()
    assert len(files) > 100
    read = 0
    for path in files:
        raw = outcome(path)
        if isinstance(raw, InputError):
            assert raw.path == path
            assert raw.remedy
            continue
        assert not any(part in path.name for part in NOT_IMAGES), path
        assert np.isfinite(raw.pixels).all()
        agrees_with_pydicom(path, raw)
        read += 1
    assert read >= 75


def test_what_pydicom_decodes_is_refused_only_on_purpose():
    for path in local_testdata():
        if path.stat().st_size > 2_000_000 or any(part in path.name for part in REFUSED_THOUGH_DECODABLE):
            continue
        try:
            pixels = pydicom.dcmread(path).pixel_array
        except Exception:
            continue
        assert read_image(path, frame=frame_count(path) - 1).pixels.size <= pixels.size


def outcome(path: Path) -> RawImage | InputError:
    """The second frame where there is one, or the refusal."""
    try:
        return read_image(path, frame=min(1, frame_count(path) - 1))
    except InputError as error:
        return error


def agrees_with_pydicom(path: Path, raw: RawImage) -> None:
    """Compare with pydicom's own pixel_array and look-up tables."""
    header = pydicom.dcmread(path, force=True)
    if not header.file_meta.get("TransferSyntaxUID"):
        return
    pixels = header.pixel_array
    pixels = pixels[raw.frame] if raw.frames > 1 else pixels
    valid = np.ones(raw.shape, dtype=bool) if raw.valid is None else raw.valid
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
    if pixels.ndim == 3:
        np.testing.assert_allclose(raw.pixels, pixels @ LUMINANCE, rtol=1e-4, atol=1e-2)
        return
    values = apply_modality_lut(pixels, header).astype(np.float64)
    shown = apply_voi_lut(values, header) if raw.voi else None
    if header.PhotometricInterpretation == "MONOCHROME1":
        values = sum(raw.stored_range) - values
    np.testing.assert_allclose(raw.pixels[valid], values[valid], rtol=1e-5, atol=1e-3)
    if shown is not None:
        low, high = raw.stored_range
        theirs = (shown - low) / (high - low)
        theirs = 1 - theirs if header.PhotometricInterpretation == "MONOCHROME1" else theirs
        np.testing.assert_allclose(raw.voi[0].apply(raw.pixels)[valid], theirs[valid], atol=1e-4)
