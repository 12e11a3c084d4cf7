from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless, RLELossless, SegmentationStorage

from counterscan.data.readers import VoiTable, Window, frame_count, is_image, read_image
from counterscan.data.readers.dicom_pixels import codestream_shape
from counterscan.errors import InputError
from tests.data.readers_made import dataset, sequence_item, write

RAMP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300


def made(tmp_path, pixels=RAMP, **values):
    return write(dataset(pixels, **values), tmp_path / "made.dcm")


def test_rescale_and_stored_range(tmp_path):
    raw = read_image(made(tmp_path, BitsStored=12, RescaleSlope="2", RescaleIntercept="-1024"))
    np.testing.assert_array_equal(raw.pixels, RAMP.astype(np.float32) * 2 - 1024)
    assert raw.stored_range == (-1024.0, 4095.0 * 2 - 1024)
    assert raw.pixels.dtype == np.float32
    assert raw.modality == "CR"


def test_a_negative_slope_still_gives_an_ordered_range(tmp_path):
    assert read_image(made(tmp_path, BitsStored=12, RescaleSlope="-1", RescaleIntercept="0")).stored_range == (-4095, 0)


def test_signed_pixels(tmp_path):
    pixels = np.array([[-5, 0], [7, 100]], dtype=np.int16)
    raw = read_image(made(tmp_path, pixels, BitsStored=12))
    np.testing.assert_array_equal(raw.pixels, pixels)
    assert raw.stored_range == (-2048, 2047)


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_bits_stored_set_the_range_and_high_garbage_bits_are_dropped(tmp_path, bits):
    clean = np.array([[0, 1], [2**bits - 1, 5]], dtype=np.uint16)
    dirty = clean | (np.uint16(0xFFFF) << bits if bits < 16 else np.uint16(0))
    raw = read_image(made(tmp_path, dirty.astype(np.uint16), BitsStored=bits))
    np.testing.assert_array_equal(raw.pixels, clean)
    assert raw.stored_range == (0, 2**bits - 1)


def test_modality_table(tmp_path):
    table = sequence_item(LUTDescriptor=[4, 300, 12], ModalityLUTType="US")
    table.add_new("LUTData", "US", [10, 20, 4000, 40])
    raw = read_image(made(tmp_path, np.array([[0, 300], [302, 999]], np.uint16), ModalityLUTSequence=[table]))
    np.testing.assert_array_equal(raw.pixels, [[10, 10], [4000, 40]])
    assert raw.stored_range == (0, 4095)


def test_angiograms_keep_stored_values_when_the_table_leads_back_to_intensity(tmp_path):
    raw = read_image(
        made(tmp_path, Modality="XA", PixelIntensityRelationship="LOG", RescaleSlope="9", RescaleIntercept="1")
    )
    np.testing.assert_array_equal(raw.pixels, RAMP)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(tmp_path, function):
    path = made(
        tmp_path,
        BitsStored=12,
        WindowCenter=["1500", "900"],
        WindowWidth=["2000", "400"],
        VOILUTFunction=function,
        RescaleSlope="1.5",
        RescaleIntercept="-20",
    )
    raw, header = read_image(path), pydicom.dcmread(path)
    assert len(raw.voi) == 2
    low, high = raw.stored_range
    for index, voi in enumerate(raw.voi):
        theirs = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header, index=index)
        np.testing.assert_allclose(voi.apply(raw.pixels), (theirs - low) / (high - low), atol=1e-5)


def test_voi_table_agrees_with_pydicom_and_comes_before_windows(tmp_path):
    table = sequence_item(LUTDescriptor=[1000, 600, 12])
    entries = (np.sqrt(np.arange(1000) / 999) * 4095).astype(int)
    table.add_new("LUTData", "US", entries.tolist())
    path = made(tmp_path, BitsStored=12, VOILUTSequence=[table], WindowCenter="5", WindowWidth="6")
    raw, header = read_image(path), pydicom.dcmread(path)
    assert isinstance(raw.voi[0], VoiTable)
    assert raw.voi[1] == Window(5, 6)
    np.testing.assert_allclose(
        raw.voi[0].apply(raw.pixels), apply_voi_lut(header.pixel_array, header) / 4095, atol=1e-6
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "TABLE"])
def test_monochrome1_is_the_negative_of_monochrome2_after_its_voi(tmp_path, function):
    values = {"WindowCenter": "1500", "WindowWidth": "2001", "VOILUTFunction": function}
    if function == "TABLE":
        table = sequence_item(LUTDescriptor=[2000, 600, 12])
        table.add_new("LUTData", "US", (np.linspace(0, 1, 2000) ** 2 * 4095).astype(int).tolist())
        values = {"VOILUTSequence": [table]}
    plain = read_image(made(tmp_path, BitsStored=12, **values))
    negative = read_image(made(tmp_path, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **values))
    np.testing.assert_array_equal(negative.pixels, 4095 - plain.pixels)
    assert negative.stored_range == plain.stored_range
    np.testing.assert_allclose(negative.voi[0].apply(negative.pixels), 1 - plain.voi[0].apply(plain.pixels), atol=1e-5)


def test_windows_that_cannot_be_are_left_out(tmp_path):
    assert read_image(made(tmp_path, WindowCenter=["40", "50"], WindowWidth=["0", "100"])).voi == (Window(50, 100),)
    assert read_image(made(tmp_path, WindowCenter="40")).voi == ()


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_marked_and_lowest(tmp_path, interpretation):
    pixels = np.array([[4000, 1000], [2000, 4050]], dtype=np.uint16)
    raw = read_image(
        made(
            tmp_path,
            pixels,
            BitsStored=12,
            PixelPaddingValue=4000,
            PixelPaddingRangeLimit=4095,
            PhotometricInterpretation=interpretation,
        )
    )
    np.testing.assert_array_equal(raw.valid, [[False, True], [True, False]])
    assert raw.pixels[0, 0] == raw.pixels[1, 1] == min(raw.pixels[0, 1], raw.pixels[1, 0])


def test_signed_padding_and_nothing_but_padding(tmp_path):
    pixels = np.array([[-2000, 5], [6, 7]], dtype=np.int16)
    assert read_image(made(tmp_path, pixels, PixelPaddingValue=-2000)).valid.tolist() == [[False, True], [True, True]]
    with pytest.raises(InputError, match=r"PixelPaddingValue: every pixel"):
        read_image(made(tmp_path, np.full((2, 2), -2000, np.int16), PixelPaddingValue=-2000))


def test_colour_becomes_luminance(tmp_path):
    colour = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [77, 77, 77]]], dtype=np.uint8)
    raw = read_image(
        made(tmp_path, colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, Modality="US")
    )
    np.testing.assert_allclose(raw.pixels, [[76.245, 149.685], [29.07, 77]], atol=1e-3)
    assert raw.stored_range == (0, 255)
    assert raw.voi == ()


def test_palette_becomes_luminance(tmp_path):
    values = {"PhotometricInterpretation": "PALETTE COLOR"}
    with pytest.raises(InputError, match="RedPaletteColorLookupTableData"):
        read_image(made(tmp_path, np.zeros((2, 2), np.uint8), **values))
    for colour, entries in (("Red", [0, 255, 9, 0]), ("Green", [0, 255, 9, 100]), ("Blue", [0, 255, 9, 0])):
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        values[f"{colour}PaletteColorLookupTableData"] = bytes(entries)
    raw = read_image(made(tmp_path, np.array([[0, 1], [2, 3]], dtype=np.uint8), **values))
    np.testing.assert_allclose(raw.pixels, [[0, 255], [9, 58.7]], rtol=1e-6)
    assert raw.stored_range == (0, 255)


def test_frames_are_chosen_explicitly(tmp_path):
    stack = np.arange(24, dtype=np.uint16).reshape(3, 2, 4)
    path = made(tmp_path, stack, frames=3)
    with pytest.raises(InputError, match=r"NumberOfFrames: holds 3 frames and none was chosen.*frame=0\.\.2"):
        read_image(path)
    for frame in (-1, 3):
        with pytest.raises(InputError, match="it holds 3"):
            read_image(path, frame=frame)
    raw = read_image(path, frame=2)
    np.testing.assert_array_equal(raw.pixels, stack[2])
    assert (raw.frames, raw.frame, raw.references["ReferencedFrameNumber"]) == (3, 2, "3")
    assert frame_count(path) == 3


def test_single_frame_files_take_frame_0_only(tmp_path):
    path = made(tmp_path)
    assert "ReferencedFrameNumber" not in read_image(path, frame=0).references
    with pytest.raises(InputError, match="no frame 1: it holds 1"):
        read_image(path, frame=1)


def test_enhanced_functional_groups_per_frame_over_shared(tmp_path):
    stack = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    shared = sequence_item(
        PixelMeasuresSequence=[sequence_item(PixelSpacing=["0.5", "0.25"])],
        PixelValueTransformationSequence=[sequence_item(RescaleSlope="1", RescaleIntercept="0")],
        PlaneOrientationSequence=[sequence_item(ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])],
    )
    first = sequence_item(FrameVOILUTSequence=[sequence_item(WindowCenter="10", WindowWidth="20")])
    second = sequence_item(
        PixelValueTransformationSequence=[sequence_item(RescaleSlope="2", RescaleIntercept="-3")],
        FrameVOILUTSequence=[sequence_item(WindowCenter="11", WindowWidth="22", VOILUTFunction="SIGMOID")],
    )
    path = made(
        tmp_path,
        stack,
        frames=2,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[first, second],
    )
    zero, one = read_image(path, frame=0), read_image(path, frame=1)
    np.testing.assert_array_equal(zero.pixels, stack[0])
    np.testing.assert_array_equal(one.pixels, stack[1] * 2.0 - 3)
    assert (zero.voi, one.voi) == ((Window(10, 20),), (Window(11, 22, "SIGMOID"),))
    assert one.spacing == (0.5, 0.25)
    assert (one.spacing_source, one.orientation) == ("PixelSpacing", "P\\F")


def test_spacing_falls_back_to_the_detector_and_says_so(tmp_path):
    raw = read_image(made(tmp_path, PixelSpacing=["0", "0"]))
    assert (raw.spacing, raw.spacing_source) == (None, None)
    raw = read_image(made(tmp_path, PixelSpacing=["0", "0"], ImagerPixelSpacing=["0.1", "0.2"]))
    assert (raw.spacing, raw.spacing_source) == ((0.1, 0.2), "ImagerPixelSpacing")


def test_nothing_that_names_a_patient_leaves_the_header(tmp_path):
    raw = read_image(made(tmp_path, ViewPosition="SECRET", Laterality="L", PatientOrientation=["L", "F"]))
    assert set(raw.references) == {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"}
    assert (raw.view, raw.laterality, raw.orientation) == (None, "L", "L\\F")
    shown = repr(raw) + str(dict(raw.references))
    for secret in ("Secret", "SECRET", "4711", "1970", "2020", "ACC-99", "Hidden"):
        assert secret not in shown


def test_float_pixels(tmp_path):
    header = dataset(np.zeros((2, 2), np.uint16), BitsAllocated=32, BitsStored=None, HighBit=None, Modality="MR")
    del header.PixelData, header.PixelRepresentation
    header.FloatPixelData = np.array([[0.5, 1.5], [-2.0, 3.0]], dtype=np.float32).tobytes()
    raw = read_image(write(header, tmp_path / "float.dcm"))
    np.testing.assert_array_equal(raw.pixels, [[0.5, 1.5], [-2, 3]])
    assert raw.stored_range is None
    header.FloatPixelData = np.array([[0.5, np.nan], [np.inf, 3.0]], dtype=np.float32).tobytes()
    with pytest.raises(InputError, match="FloatPixelData: 2 of 4 pixels are NaN or infinite"):
        read_image(write(header, tmp_path / "nan.dcm"))


def test_run_length_encoding(tmp_path):
    header = dataset(RAMP, BitsStored=12)
    header.compress(RLELossless)
    np.testing.assert_array_equal(read_image(write(header, tmp_path / "rle.dcm")).pixels, RAMP)


def test_a_missing_codec_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("jpeg_ls")
    pixels = np.tile(RAMP, (16, 16))
    header = dataset(pixels, BitsStored=12)
    header.compress(JPEGLSLossless)
    path = write(header, tmp_path / "jls.dcm")
    np.testing.assert_array_equal(read_image(path).pixels, pixels)
    monkeypatch.setattr(pydicom.pixels.decoders.base.JPEGLSLosslessDecoder, "_available", {})
    with pytest.raises(InputError, match=r"TransferSyntaxUID: JPEG-LS.*pip install counterscan\[codecs\]"):
        read_image(path)


def test_a_missing_file_meta_is_guessed_when_plausible(tmp_path):
    whole = made(tmp_path, Modality="DX").read_bytes()
    start = whole.index(b"\x08\x00\x16\x00UI")
    for name, content in (("bare", whole[start:]), ("stray", b" " + whole[start:])):
        path = tmp_path / name
        path.write_bytes(content)
        np.testing.assert_array_equal(read_image(path).pixels, RAMP)
    implicit = dataset(RAMP)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    content = write(implicit, tmp_path / "implicit").read_bytes()
    (tmp_path / "bare_implicit").write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
    np.testing.assert_array_equal(read_image(tmp_path / "bare_implicit").pixels, RAMP)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, r"Rows: claims 65535 x 65535 pixels"),
        ({"Rows": 0}, r"Rows: is 0 x 4"),
        ({"Rows": 5000, "Columns": 5000}, r"PixelData: is truncated: 24 of 50000000 bytes"),
        ({"BitsStored": 20}, r"BitsStored: 20 bits stored in 16"),
        ({"BitsStored": 12, "HighBit": 15}, r"HighBit: is 15 where 12"),
        ({"PhotometricInterpretation": "CMYK"}, r"PhotometricInterpretation: 'CMYK' with 1 samples"),
        ({"PhotometricInterpretation": None}, r"PhotometricInterpretation: is missing"),
        ({"RescaleSlope": "0", "RescaleIntercept": "1"}, r"RescaleSlope: is 0"),
        (
            {"SOPClassUID": SegmentationStorage, "Modality": "SEG"},
            r"SOPClassUID: is a segmentation .SEG., not an image",
        ),
        ({"Modality": "RTDOSE"}, r"is a radiotherapy dose grid"),
        ({"Rows": None}, r"Rows: holds no image .it is CT Image Storage."),
        (
            {"VOILUTSequence": [sequence_item(LUTDescriptor=[9, 0, 12], LUTData=b"\0\1")]},
            r"VOILUTSequence: its LUTData",
        ),
    ],
)
def test_refusals_name_the_field_and_a_remedy(tmp_path, values, message):
    path = made(tmp_path, **values)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert caught.value.path == path
    assert caught.value.field
    assert caught.value.remedy


def test_an_image_without_pixel_data_is_refused(tmp_path):
    header = dataset(RAMP)
    del header.PixelData
    with pytest.raises(InputError, match="PixelData: holds no pixel data"):
        read_image(write(header, tmp_path / "empty.dcm"))


def test_an_unknown_transfer_syntax_is_named(tmp_path):
    path = made(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.1\0\0\0"))
    with pytest.raises(InputError, match="TransferSyntaxUID: is no known transfer syntax"):
        read_image(path)


def test_messages_of_the_decoder_that_may_quote_the_header_are_left_out(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("Secret^Person")

    monkeypatch.setattr("counterscan.data.readers.read_dicom", fail)
    with pytest.raises(InputError, match=r"cannot be decoded as dicom \(ValueError\)"):
        read_image(made(tmp_path))


def test_objects_without_images_are_told_by_their_class(tmp_path):
    header = dataset(RAMP)
    assert is_image(write(header, tmp_path / "a.dcm"))
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    assert not is_image(write(header, tmp_path / "b.dcm"))


def test_codestreams_state_their_size():
    jpeg = (
        b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + b"\xff\xc0\x00\x11\x08" + (7).to_bytes(2, "big") + b"\x00\x09" + b"\0" * 9
    )
    assert codestream_shape(jpeg) == (7, 9)
    size = b"".join(value.to_bytes(4, "big") for value in (30, 20, 10, 5))  # right, bottom, left, top
    assert codestream_shape(b"\xff\x4f\xff\x51\x00\x29\x00\x00" + size) == (15, 20)
    assert codestream_shape(b"nothing of the kind") is None
