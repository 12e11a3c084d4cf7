from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from counterscan.data.readers import frame_count, raw, read_image
from counterscan.errors import InputError

GREY = np.array([[0, 10, 20], [30, 128, 255]], dtype=np.uint8)
WIDE = np.array([[0, 1000, 4095], [40000, 50000, 65535]], dtype=np.uint16)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_eight_bits(tmp_path, name):
    plane = read_image(saved(tmp_path, GREY, name))
    np.testing.assert_array_equal(plane.pixels, GREY)
    assert (plane.stored_range, plane.kind, plane.pixels.dtype) == ((0, 255), "raster", np.float32)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_every_bit(tmp_path, name):
    plane = read_image(saved(tmp_path, WIDE, name))
    np.testing.assert_array_equal(plane.pixels, WIDE)
    assert plane.stored_range == (0, 65535)


def test_jpeg_is_what_pillow_decodes_and_names_do_not_count(tmp_path):
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    path = saved(tmp_path, smooth, "a.jpg", quality=90)
    np.testing.assert_array_equal(read_image(path).pixels, np.asarray(Image.open(path)))
    disguised = path.rename(tmp_path / "a.dcm")
    assert read_image(disguised).kind == "raster"


def test_floats_name_no_range_and_nan_is_counted(tmp_path):
    values = np.array([[0.25, -3.0], [7.5, 1e6]], dtype=np.float32)
    plane = read_image(saved(tmp_path, values, "a.tif"))
    np.testing.assert_array_equal(plane.pixels, values)
    assert plane.stored_range is None
    values[0] = np.nan, np.inf
    with pytest.raises(InputError, match="2 of 4 pixels are NaN or infinite"):
        read_image(saved(tmp_path, values, "b.tif"))


def test_signed_sixteen_and_thirty_two_bits(tmp_path):
    path = saved(tmp_path, np.array([[-5, 7]], dtype=np.int32), "a.tif")
    plane = read_image(path)
    np.testing.assert_array_equal(plane.pixels, [[-5, 7]])
    assert plane.stored_range is None


def test_white_is_zero_is_reflected(tmp_path):
    pages = {"tiffinfo": {262: 0}}
    plane = read_image(saved(tmp_path, WIDE, "a.tif", **pages))
    if Image.open(tmp_path / "a.tif").tag_v2[262] == 0:
        np.testing.assert_array_equal(plane.pixels, 65535 - WIDE.astype(np.int64))
    assert plane.stored_range == (0, 65535)


def test_colour_is_luminance_within_one_of_pillow(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = saved(tmp_path, colour, "a.png")
    np.testing.assert_allclose(read_image(path).pixels, np.asarray(Image.open(path).convert("L")), atol=1.0)
    grey = saved(tmp_path, np.repeat(GREY[..., None], 3, axis=2), "b.png")
    np.testing.assert_array_equal(read_image(grey).pixels, GREY)


def test_palette_bilevel_cmyk(tmp_path):
    palette = Image.fromarray(GREY // 128, mode="P")
    palette.putpalette([10, 10, 10, 200, 200, 200])
    np.testing.assert_array_equal(read_image(saved(tmp_path, palette, "a.png")).pixels, [[10, 10, 10], [10, 200, 200]])
    bilevel = Image.fromarray(GREY > 100)
    np.testing.assert_array_equal(read_image(saved(tmp_path, bilevel, "b.png")).pixels, (GREY > 100) * 255)
    cmyk = Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)).convert("CMYK")
    np.testing.assert_allclose(read_image(saved(tmp_path, cmyk, "c.tif")).pixels, GREY, atol=1.0)


def test_transparent_pixels_are_not_image(tmp_path):
    colour = np.full((2, 2, 4), 200, dtype=np.uint8)
    colour[..., 3] = [[0, 255], [255, 255]]
    plane = read_image(saved(tmp_path, colour, "a.png"))
    np.testing.assert_array_equal(plane.valid, [[False, True], [True, True]])
    np.testing.assert_array_equal(plane.pixels[plane.valid], 200)
    colour[..., 3] = 255
    assert read_image(saved(tmp_path, colour, "b.png")).valid is None
    colour[..., 3] = 0
    with pytest.raises(InputError, match="alpha: every pixel is padding"):
        read_image(saved(tmp_path, colour, "c.png"))


def test_pages_are_chosen_explicitly(tmp_path):
    pages = [Image.fromarray(WIDE), Image.fromarray(WIDE[::-1].copy())]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert frame_count(path) == 2
    with pytest.raises(InputError, match="pages: holds 2 frames and none was chosen"):
        read_image(path)
    plane = read_image(path, frame=1)
    np.testing.assert_array_equal(plane.pixels, WIDE[::-1])
    assert (plane.frames, plane.frame) == (2, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "lzw.tif"])
def test_exif_orientation_is_obeyed(tmp_path, orientation, name):
    upright = np.zeros((16, 32), dtype=np.uint8)
    upright[:8, :8] = 255  # a marker at the top left once shown rightly
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    undo = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).T,
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, np.ascontiguousarray(undo(upright)), name, exif=exif, **options)
    plane = read_image(path)
    assert plane.shape == (16, 32)
    np.testing.assert_allclose(plane.pixels, upright, atol=3.0)


def test_absurd_sizes_are_refused_before_decoding(tmp_path, monkeypatch):
    path = saved(tmp_path, GREY, "a.png")
    monkeypatch.setattr(raw, "MAX_PIXELS", 5)
    with pytest.raises(InputError, match="size: claims 2 x 3 pixels"):
        read_image(path)
    monkeypatch.undo()
    header = bytearray(path.read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    crc = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    header[29:33] = crc
    path.write_bytes(bytes(header))
    with pytest.raises(InputError, match="size: claims"):
        read_image(path)


def test_truncated_files_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        path = saved(tmp_path, rng.integers(0, 256, (40, 40), dtype=np.uint8), name)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert caught.value.remedy
