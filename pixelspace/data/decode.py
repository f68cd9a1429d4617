"""Bytes of an image file to RGB pixels, by one stated policy.

JPEG, PNG, WebP, TIFF and BMP are read, whatever the file is called. The header is looked at first: more than 64
megapixels, a side over 32,768 or a side 20 times the other is refused. Refused too: animations and multi-page files,
files that are cut short or damaged, 32-bit integer and floating-point pixels. EXIF rotation is applied. An embedded
colour profile is converted to sRGB, and ignored if it is broken. 16-bit values are scaled exactly (v / 257); palettes,
grey and one-bit pictures become RGB, CMYK by its profile or else by plain inversion; transparency is laid over white.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms

from pixelspace.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MAX_PIXELS, MAX_SIDE, MAX_ASPECT = 64_000_000, 32_768, 20

# All that Pillow's decoders have been seen to raise on damaged files.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError),
    *(ArithmeticError, NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def _what_else(data: bytes) -> str | None:
    start = data[:256].lstrip().lower()
    if not data:
        return "zero bytes"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the image itself; run git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<svg")):
        return "an SVG or XML text"
    return None


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} is over {MAX_PIXELS // 10**6} megapixels")
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{width}x{height} has a side over {MAX_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width}x{height} is more than {MAX_ASPECT} times as long as wide")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews behind it
        raise DataError(f"{frames} frames or pages; one is wanted")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNED.get(image.getexif().get(_ORIENTATION, 1))
    except _DECODER_ERRORS:
        return image  # damaged EXIF says nothing
    return image if turn is None else image.transpose(turn)


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *_DECODER_ERRORS):
        return None


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError("32-bit integer pixels" if image.mode == "I" else "floating-point pixels")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        if profile:
            colours = _by_profile(image.convert("RGB"), profile)
            if colours is not None:
                colours.putalpha(image.getchannel("A"))
                image = colours
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        return ground.convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    converted = _by_profile(image, profile) if profile and image.mode in ("RGB", "L", "CMYK") else None
    return converted if converted is not None else image.convert("RGB")


def decode(data: bytes, name: str) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: with the name and the reason; nothing else, whatever the bytes.
    """
    if reason := _what_else(data):
        raise DataError(f"{name}: {reason}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image)
                profile = image.info.get("icc_profile")
                image.load()
                return _to_rgb(_upright(image), profile if isinstance(profile, bytes) else None)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: not a JPEG, PNG, WebP, TIFF or BMP image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: over {MAX_PIXELS // 10**6} megapixels") from error
    except _DECODER_ERRORS as error:
        text = str(error) or type(error).__name__
        reason = f"cut short ({text})" if "truncated" in text.lower() else f"damaged ({text})"
        raise DataError(f"{name}: {reason}") from error
