"""Bytes of an image file to RGB pixels, by one stated policy.

JPEG, PNG, WebP, TIFF and BMP are read, whatever the file is called. The header is looked at first: more than 64
megapixels, a side over 32,768 or a side over 20 times the other is refused. Refused too: animations and multi-page
files (but for a camera's JPEG with previews behind it), files that are cut short or damaged, pixels of 32 bits, with
signs or fractions, and layouts that Pillow does not know.

- EXIF rotation is applied; damaged EXIF means none.
- An embedded colour profile is converted to sRGB, and left out if it is unusable. A PNG's gamma is not applied.
- Grey of 12 or 16 bits is scaled exactly, v / 257 rounded; of 16-bit colours Pillow keeps the high byte, which is
  within one level of it.
- Palettes, one-bit pictures and grey become RGB; CMYK by its profile, or else as R = (1 - C)(1 - K).
- Transparency is laid over white, before anything is resized.
"""

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from pixelspace.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MAX_BYTES, MAX_PIXELS, MAX_SIDE, MAX_ASPECT = 512 << 20, 64_000_000, 32_768, 20

# All that Pillow's decoders have been seen to raise on damaged files.
DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError),
    *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
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
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # TIFF tags
_COLOURS = {  # the opaque mode in which a profile speaks of the pixels
    **{"1": "L", "L": "L", "LA": "L", "P": "RGB", "PA": "RGB"},
    **{"RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "CMYK": "CMYK"},
}
_REFUSED = {"I": "pixels with signs or of 32 bits", "F": "floating-point pixels"}
_STARTS = {
    b"\xff\xd8\xff": "a JPEG that cannot be read: cut short, damaged or of a kind that Pillow does not know",
    b"\x89PNG\r\n\x1a\n": "a PNG that cannot be read: cut short, damaged or of a kind that Pillow does not know",
    b"II*\0": "a TIFF that cannot be read: cut short, damaged or of a kind that Pillow does not know",
    b"MM\0*": "a TIFF that cannot be read: cut short, damaged or of a kind that Pillow does not know",
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"version https://git-lfs": "a Git-LFS pointer, not the image itself; run git lfs pull",
}
_TEXT_STARTS = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML text",
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """An RGB image, the mode of its pixels in the file (Pillow's name), and what of the file could not be used."""

    image: Image.Image
    mode: str
    notes: tuple[str, ...] = ()


def shown(name: str) -> str:
    """A file's name fit for a terminal and a log: escaped if it holds control or undecodable characters."""
    return name if name.isprintable() else repr(name)


def what_else(data: bytes, expected: str = "a JPEG, PNG, WebP, TIFF or BMP image") -> str:
    """What a file that begins so is, where it is not what was expected."""
    text = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = [what for start, what in _STARTS.items() if data.startswith(start)]
    found += [what for start, what in _TEXT_STARTS.items() if text.startswith(start)]
    if data[4:8] == b"ftyp":
        found.append("a HEIC, AVIF or video file")
    return found[0] if found else f"not {expected}"


def what_is_wrong(data: bytes, error: Exception) -> str:
    """Why a decoder stopped, in a few words."""
    said = shown(" ".join(str(error).split())[:200]) or type(error).__name__
    size = 8 + int.from_bytes(data[4:8], "little")  # of a WebP, by its header
    if data.startswith(b"RIFF") and size > len(data):
        return f"cut short: {len(data):,} of {size:,} bytes"
    return f"{'cut short' if 'truncated' in said.lower() else 'damaged'}: {said}"


def check_size(width: int, height: int) -> None:
    """Raises DataError, with the bare reason, for a picture that is too large or too narrow."""
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} is over {MAX_PIXELS // 10**6} megapixels")
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{width}x{height} has a side over {MAX_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{width}x{height} has a side over {MAX_ASPECT} times the other")


def _check_header(image: Image.Image) -> None:
    check_size(*image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's JPEG with previews behind it
        # A TIFF's pages are not counted: there may be 100,000.
        raise DataError("several pages" if image.format == "TIFF" else f"animated ({image.n_frames} frames)")  # type: ignore[attr-defined]


def _grey(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    white = (1 << tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    values = np.asarray(image).astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow minds that up to 8 bits only
        values = white - values
    if "transparency" in image.info:
        raise DataError("a transparent grey of 16 bits")
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from `mode` by `profile` to sRGB, or None if the profile is sRGB to within a level."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
        converted = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
        if np.abs(converted.astype(int) - cube).max() <= 1:
            return None
    return transform


def _as(mode: str, image: Image.Image) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which copies what has that mode already


def to_rgb(image: Image.Image, profile: object, notes: list[str]) -> Image.Image:
    """The picture as RGB by the policy above but for EXIF; what could not be used is added to `notes`. It is `image`
    itself if nothing is to be done."""
    if image.mode.startswith("I;16"):
        image = _grey(image)
    if image.mode not in _COLOURS:
        raise DataError(_REFUSED.get(image.mode, f"pixels of mode {image.mode}"))
    base, alpha = _COLOURS[image.mode], None
    if image.has_transparency_data:
        whole = _as("RGBA", image)
        alpha = whole.getchannel("A")
        image = whole if base == "RGB" else image
    colours = _as(base, image)
    if isinstance(profile, bytes) and profile:
        try:
            if transform := _to_srgb(profile, colours.mode):
                colours = ImageCms.applyTransform(colours, transform) or colours
        except (ImageCms.PyCMSError, *DECODER_ERRORS):
            notes.append("unusable colour profile")
    colours = _as("RGB", colours)
    if alpha is None:
        return colours
    ground = Image.new("RGB", image.size, "white")
    ground.paste(colours, mask=alpha)
    return ground


def _turn(image: Image.Image, notes: list[str]) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:
        orientation = None
    if not isinstance(orientation, int):
        notes.append("damaged metadata")
        return None
    return _TURNED.get(orientation)


def _decoded(data: bytes) -> Decoded:
    notes: list[str] = []
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_header(image)
        mode, profile = image.mode, image.info.get("icc_profile")
        # Pillow scales a PNG's pixels to 8 bits, but not the one value that is to be transparent.
        if image.format == "PNG" and "transparency" in image.info and mode != "P" and data[24] != 8:
            raise DataError(f"a transparent colour in a PNG of {data[24]} bits a channel")
        image.load()
        turn = _turn(image, notes)
        pixels = to_rgb(image, profile, notes)
    return Decoded(pixels if turn is None else pixels.transpose(turn), mode, tuple(notes))


def examine(data: bytes) -> Decoded:
    """The image in `data` and what is to be said of it.

    Raises:
        DataError: with the bare reason; nothing else, whatever the bytes.
    """
    if not data:
        raise DataError("zero bytes")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            decoded = _decoded(data)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(what_else(data)) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"over {MAX_PIXELS // 10**6} megapixels") from error
    except DECODER_ERRORS as error:
        raise DataError(what_is_wrong(data, error)) from error
    if any(issubclass(warning.category, UserWarning) for warning in heard):
        return replace(decoded, notes=tuple({*decoded.notes, "damaged metadata"}))
    return decoded


def decode(data: bytes, name: str) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: with the name and the reason; nothing else, whatever the bytes.
    """
    try:
        return examine(data).image
    except DataError as error:
        raise DataError(f"{shown(name)}: {error}") from error


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: with the bare reason: it cannot be read, or is over 512 MiB.
    """
    try:
        with path.open("rb") as file:
            # Python makes room for all that it is asked to read.
            data = file.read(min(os.fstat(file.fileno()).st_size or MAX_BYTES, MAX_BYTES) + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"over {MAX_BYTES >> 20} MiB")
    return data
