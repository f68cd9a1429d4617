"""Image files made by hand: what Pillow will not write, and what nobody should."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def saved(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def picture(width: int = 83, height: int = 61) -> np.ndarray:
    """A smooth picture without symmetry, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256], -1).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: list[bytes], *extra: bytes) -> bytes:
    """A PNG of any depth and colour type; without rows it is all header."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    width: int, height: int, photometric: int, bits: tuple[int, ...], pixels: bytes, *, kind: int = 1, order: str = "<"
) -> bytes:
    """A bare TIFF of one page; `kind` is 1 for whole numbers, 2 for signed ones, 3 for fractions."""
    blob = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4) + pixels + bytes(len(pixels) % 2))
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: len(bits), 278: height}
    tags |= {279: len(pixels), 339: (kind,) * len(bits)}
    entries = b""
    for tag, values in sorted(tags.items()):
        values = values if isinstance(values, tuple) else (values,)
        letter, code = ("H", 3) if tag in (258, 259, 262, 277, 339) else ("I", 4)
        raw = struct.pack(order + letter * len(values), *values)
        if len(raw) > 4:
            raw, at = struct.pack(order + "I", len(blob)), raw
            blob += at
        entries += struct.pack(order + "HHI", tag, code, len(values)) + raw.ljust(4, b"\0")
    struct.pack_into(order + "I", blob, 4, len(blob))
    return bytes(blob) + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def webp_header(width: int, height: int) -> bytes:
    """A WebP that says it is so large and holds next to nothing."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    pixels = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\x88\x88\x08"
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + b"VP8L" + struct.pack("<I", len(pixels)) + pixels
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_header(width: int, height: int) -> bytes:
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8" + frame + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0" + bytes(99)


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3_profile() -> bytes:
    """The sRGB profile with the primaries of Display P3 (D65 white, adapted to D50)."""
    columns = {
        b"rXYZ": (0.515102, 0.241182, -0.001049),
        b"gXYZ": (0.291965, 0.692236, 0.041882),
        b"bXYZ": (0.157153, 0.066582, 0.784378),
    }
    profile = bytearray(srgb_profile())
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        name, at, _ = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if name in columns:
            struct.pack_into(">iii", profile, at + 8, *(round(value * 65536) for value in columns[name]))
    return bytes(profile)


def black_only_profile() -> bytes:
    """A CMYK profile for which only black shows: L* falls linearly from 100 to 0."""
    table = bytes((255, 128, 128, 0, 128, 128)) * 8  # Lab by corner of CMYK; K changes fastest
    identity = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + identity * 4 + table + identity * 3
    size = 128 + 4 + 12 + len(lut)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp")
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)  # D50
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut
