"""PNG, JPEG, TIFF and BMP planes: 1 to 16 bits, 32-bit floats, palettes, alpha, pages and EXIF orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from counterscan.data.readers.raw import RawImage, check_finite, check_size, choose_frame, hide_padding, luminance
from counterscan.errors import InputError

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
# TIFF 6.0 tags
_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 256, 257, 258, 262, 274, 339
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE_IS_ZERO = 0
_COLOUR_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "P", "PA", "LA", "La")
_INTEGER_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_raster(path: Path, *, frame: int | None = None) -> RawImage:
    """Read one page of a raster image, turned as its EXIF orientation says.

    Greys keep their values (8 bits 0..255, 16 bits 0..65535, 12-bit TIFF 0..4095; WhiteIsZero TIFF is reflected).
    Colour becomes luminance, 16-bit colour at 8 bits. Wholly transparent pixels are marked invalid, partly
    transparent ones lie on black.

    Args:
        path: the file.
        frame: page from 0; needed when the file holds several.

    Returns:
        The plane; ``stored_range`` is None for 32-bit samples, whose range the format does not name.

    Raises:
        InputError: damaged, too large, of an unknown pixel type, NaN pixels, or several pages and none chosen.
    """
    with _open(path) as image:
        check_size(image.size[1], image.size[0], path, "size")
        frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        index = choose_frame(frame, frames, path, "pages")
        if frames > 1:
            image.seek(index)
            check_size(image.size[1], image.size[0], path, "size")
        tags = dict(getattr(image, "tag_v2", {}))  # before loading, which drops some
        is_png = image.format == "PNG"
        turned = _upright(image)
    if turned.mode in _COLOUR_MODES:
        pixels, opaque = _colour(turned)
        valid = None if opaque is None else hide_padding(pixels, opaque, path, "alpha")
        return RawImage(pixels, (0.0, 255.0), "raster", valid=valid, frames=frames, frame=index)
    pixels, stored_range = _grey(turned, tags, is_png, path)
    return RawImage(pixels, stored_range, "raster", frames=frames, frame=index)


def raster_frames(path: Path) -> int:
    """Number of pages.

    Raises:
        InputError: the file cannot be opened as an image.
    """
    with _open(path) as image:
        return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise InputError(
            "claims more pixels than are read", path=path, field="size", remedy="Scale the image down"
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its orientation tag says.

    Pillow scrambles uncompressed TIFFs whose orientation exchanges rows and columns (12 to 13 at least), so the tag is
    taken from it before decoding, and the stored size put back.
    """
    if not isinstance(image, TiffImageFile):
        image.load()
        return ImageOps.exif_transpose(image)
    turn = _TURNS.get(image.tag_v2.get(_ORIENTATION, 1))
    if _ORIENTATION in image.tag_v2:
        del image.tag_v2[_ORIENTATION]
        image.getexif().pop(_ORIENTATION, None)
        image._size = (image.tag_v2[_WIDTH], image.tag_v2[_LENGTH])
    image.load()
    return image if turn is None else image.transpose(turn)


def _colour(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) luminance in 0..255, and where it is not wholly transparent (None when there is no alpha)."""
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        samples = np.asarray(image.convert("RGBA"))
        alpha = samples[..., 3]
        pixels = luminance(samples)
        pixels *= alpha.astype(np.float32) / np.float32(255.0)
        return pixels, alpha > 0
    return luminance(np.asarray(image.convert("RGB"))), None


def _grey(
    image: Image.Image, tags: dict[int, object], is_png: bool, path: Path
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """(H, W) float32 grey values and the range that their bits can express."""
    if image.mode == "1":
        return np.asarray(image.convert("L")).astype(np.float32), (0.0, 255.0)
    if image.mode == "L":
        return np.asarray(image).astype(np.float32), (0.0, 255.0)
    if image.mode not in (*_INTEGER_MODES, "F"):
        raise InputError(
            f"pixels of type {image.mode} are not read", path=path, field="mode", remedy="Convert it to grey or RGB"
        )
    pixels = np.asarray(image).astype(np.float32)
    check_finite(pixels, path, "pixels")
    stored_range = _integer_range(image.mode, tags, is_png)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        if stored_range is None:
            raise InputError(
                "is WhiteIsZero with 32-bit samples, whose range is not known",
                path=path,
                field="PhotometricInterpretation",
                remedy="Save it as BlackIsZero",
            )
        pixels = np.float32(sum(stored_range)) - pixels
    return pixels, stored_range


def _integer_range(mode: str, tags: dict[int, object], is_png: bool) -> tuple[float, float] | None:
    bits = _first(tags.get(_BITS_PER_SAMPLE), 16 if is_png or mode != "I" else 32)
    if mode == "F" or bits > 16:
        return None
    if _first(tags.get(_SAMPLE_FORMAT), 1) == 2:
        return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1)


def _first(value: object, default: int) -> int:
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) and value > 0 else default
