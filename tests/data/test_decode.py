"""Every odd image has its verdict, and nothing but DataError ever comes out."""

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from pixelspace.data import decode as decoding
from pixelspace.data.decode import MAX_BYTES, decode, examine, read, shown
from pixelspace.errors import DataError
from tests.data.odd_images import (
    black_only_profile,
    bmp_header,
    chunk,
    display_p3_profile,
    jpeg_header,
    picture,
    png,
    saved,
    srgb_profile,
    tiff,
    webp_header,
)

PICTURE = picture()
IMAGE = Image.fromarray(PICTURE)
LEVELS = np.array([[0, 1, 128, 129, 255, 256, 257, 1000, 32767, 32768, 40000, 65278, 65535]], np.uint16)
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}


def pixels(data: bytes, name: str = "x.png") -> np.ndarray:
    image = decode(data, name)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def damaged_exif() -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\0\xff\xff\xff"


def oriented(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# What is read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x"])
def test_a_good_image_is_read_whatever_its_suffix(kind, name):
    close = 8 if kind == "JPEG" else 0
    assert np.abs(pixels(saved(IMAGE, kind, **KINDS[kind]), name) - PICTURE).mean() <= close


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_the_pixel(kind, orientation):
    x = pixels(saved(IMAGE, kind, **KINDS[kind]))
    # EXIF 2.32, 4.6.4 A: which side of the scene row 0 and column 0 are.
    upright = [x, x[:, ::-1], x[::-1, ::-1], x[::-1], x.transpose(1, 0, 2)]
    upright += [np.rot90(x, -1), x[::-1, ::-1].transpose(1, 0, 2), np.rot90(x)]
    turned = pixels(saved(IMAGE, kind, exif=oriented(orientation), **KINDS[kind]))
    assert np.array_equal(turned, upright[orientation - 1])


def test_orientation_6_puts_the_first_row_on_the_right():
    assert decode(saved(IMAGE, "PNG", exif=oriented(6)), "x").size == (61, 83)
    assert np.array_equal(pixels(saved(IMAGE, "PNG", exif=oriented(6)))[:, -1], PICTURE[0])


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation):
    assert np.array_equal(pixels(saved(IMAGE, "PNG", exif=oriented(orientation))), PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_rotation_and_noted(kind):
    decoded = examine(saved(IMAGE, kind, exif=damaged_exif(), **KINDS[kind]))
    assert decoded.image.size == IMAGE.size and decoded.notes == ("damaged metadata",)


GREY = {
    "PNG": png(13, 1, 16, 0, [LEVELS.astype(">u2").tobytes()]),
    "TIFF": tiff(13, 1, 1, (16,), LEVELS.astype("<u2").tobytes()),
    "big-endian TIFF": tiff(13, 1, 1, (16,), LEVELS.astype(">u2").tobytes(), order=">"),
    "white-is-zero TIFF": tiff(13, 1, 0, (16,), (65535 - LEVELS).astype("<u2").tobytes()),
}


@pytest.mark.parametrize("data", GREY.values(), ids=GREY.keys())
def test_16_bit_grey_is_scaled_exactly(data):
    want = np.round(LEVELS / 257).astype(int)[..., None]
    assert np.array_equal(pixels(data), np.broadcast_to(want, (1, 13, 3)))
    assert examine(data).mode.startswith("I;16")


def test_12_bit_grey_is_scaled_by_its_own_white():
    packed = bytes.fromhex("000" + "010" + "800" + "fff")  # two values in three bytes
    assert pixels(tiff(4, 1, 1, (12,), packed))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "colour", "colour and alpha"])
def test_16_bit_channels_are_within_a_level(channels):
    values = np.stack([LEVELS, LEVELS[:, ::-1], np.roll(LEVELS, 3), np.full_like(LEVELS, 65535)], -1)
    shown_as = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, -1)
    kept = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    data = png(13, 1, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], [values[..., kept].astype(">u2").tobytes()])
    assert np.abs(pixels(data) - shown_as / 257).max() <= 1


@pytest.mark.parametrize("order", "<>")
def test_16_bit_colour_tiffs_are_within_a_level(order):
    values = np.stack([LEVELS, LEVELS[:, ::-1], np.roll(LEVELS, 3)], -1)
    data = tiff(13, 1, 2, (16, 16, 16), values.astype(f"{order}u2").tobytes(), order=order)
    assert np.abs(pixels(data) - values / 257).max() <= 1


def test_transparency_is_laid_over_white_exactly():
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([colour, 255 - colour, colour // 2, alpha], -1).astype(np.uint8)
    share = rgba[..., 3:] / 255
    want = np.floor(rgba[..., :3] * share + 255 * (1 - share) + 0.5)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(saved(Image.fromarray(rgba), kind)), want)
    grey = Image.fromarray(rgba).convert("LA")
    values = np.asarray(grey).astype(float)
    want = np.floor(values[..., :1] * share + 255 * (1 - share) + 0.5)
    assert np.array_equal(pixels(saved(grey, "PNG")), want.repeat(3, -1))


def test_hidden_colours_below_transparency_do_not_show():
    rgba = np.zeros((4, 4, 4), np.uint8)
    assert (pixels(saved(Image.fromarray(rgba), "PNG")) == 255).all()
    assert (pixels(saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)) == 255).all()


def test_palettes_become_their_colours_and_their_transparency_white():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert pixels(saved(palette, "PNG")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert pixels(saved(palette, "BMP")).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    see_through = pixels(saved(palette, "PNG", transparency=bytes([0, 255, 51])))
    assert see_through.tolist() == [[[255, 255, 255], [0, 255, 0], [204, 204, 255]]]
    assert pixels(saved(palette, "PNG", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_a_transparent_colour_is_white():
    data = png(3, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6, 1, 2, 4])], chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert pixels(data).tolist() == [[[255, 255, 255], [4, 5, 6], [1, 2, 4]]]
    data = png(2, 1, 8, 0, [bytes([7, 8])], chunk(b"tRNS", struct.pack(">H", 7)))
    assert pixels(data).tolist() == [[[255] * 3, [8] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind):
    bits = Image.fromarray((PICTURE[..., 0] > 99).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(pixels(saved(bits, kind))[..., 0], (PICTURE[..., 0] > 99) * 255)


def test_grey_is_the_same_in_all_channels():
    grey = Image.fromarray(PICTURE[..., 2])
    assert np.array_equal(pixels(saved(grey, "PNG")), PICTURE[..., 2:].repeat(3, -1))


# Colour


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])  # Pillow writes Adobe's inverted CMYK into a JPEG
def test_cmyk_without_a_profile_is_one_minus_ink_times_one_minus_black(kind):
    ink = np.concatenate([PICTURE, (PICTURE[..., :1] // 2)], -1)
    want = (1 - ink[..., :3] / 255) * (1 - ink[..., 3:] / 255) * 255
    settings = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = pixels(saved(Image.fromarray(ink, "CMYK"), kind, **settings))
    assert np.abs(found - want).mean() <= 2


def test_cmyk_is_converted_by_its_profile():
    ink = Image.new("CMYK", (16, 8), (9, 99, 200, 0))
    ink.paste((9, 99, 200, 128), (8, 0, 16, 8))
    for kind, settings in (("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        decoded = examine(saved(ink, kind, icc_profile=black_only_profile(), **settings))
        found = np.asarray(decoded.image).astype(int)
        assert decoded.notes == () and np.abs(found[:, :8] - 255).max() <= 2  # L* = 100
        assert np.abs(found[:, 8:] - 119).max() <= 2  # L* = 50: Y = 0.184, which is 119 in sRGB


def linear(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def encoded(v: np.ndarray) -> np.ndarray:
    v = np.clip(v, 0, 1)
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)


def test_display_p3_becomes_srgb():
    # Both share their white and curve, so a matrix does it (from the primaries of SMPTE EG 432-1 and IEC 61966-2-1).
    matrix = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
    want = encoded(linear(PICTURE / 255) @ matrix.T) * 255
    decoded = examine(saved(IMAGE, "PNG", icc_profile=display_p3_profile()))
    found = np.asarray(decoded.image).astype(float)
    assert np.abs(found - want).mean() <= 0.5 and np.abs(found - want).max() <= 2 and decoded.notes == ()
    assert np.abs(found - PICTURE).mean() > 5


def test_a_profile_and_transparency_go_together():
    rgba = np.concatenate([PICTURE, np.full_like(PICTURE[..., :1], 255)], -1)
    rgba[:, :40, 3] = 0
    found = pixels(saved(Image.fromarray(rgba), "PNG", icc_profile=display_p3_profile()))
    opaque = pixels(saved(IMAGE, "PNG", icc_profile=display_p3_profile()))
    assert (found[:, :40] == 255).all() and np.array_equal(found[:, 40:], opaque[:, 40:])


def test_an_srgb_profile_changes_no_bit():
    decoded = examine(saved(IMAGE, "PNG", icc_profile=srgb_profile()))
    assert np.array_equal(np.asarray(decoded.image), PICTURE) and decoded.notes == ()


@pytest.mark.parametrize(
    "profile", [b"garbage", srgb_profile()[:200], black_only_profile()], ids=["garbage", "cut", "of CMYK"]
)
def test_an_unusable_profile_is_left_out_and_noted(profile):
    decoded = examine(saved(IMAGE, "PNG", icc_profile=profile))
    assert np.array_equal(np.asarray(decoded.image), PICTURE) and decoded.notes == ("unusable colour profile",)


# What is refused


def frames(kind: str, count: int) -> bytes:
    others = [Image.fromarray(np.roll(PICTURE, i, 1)) for i in range(1, count)]
    return saved(IMAGE, kind, save_all=True, append_images=others)


def text_bomb(kind: bytes) -> bytes:
    return png(2, 1, 8, 0, [b"ab"], chunk(kind, b"comment\0\0" + zlib.compress(bytes(4 << 20))))


REFUSED = {
    "empty": (b"", "zero bytes"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body>", "an HTML page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git-LFS pointer"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "XML": (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "an XML text"),
    "text": (b"hello, world", "not a JPEG, PNG, WebP, TIFF or BMP image"),
    "noise": (random.Random(0).randbytes(999), "not a JPEG, PNG, WebP, TIFF or BMP image"),
    "GIF": (saved(IMAGE, "GIF"), "a GIF"),
    "animated GIF": (frames("GIF", 3), "a GIF"),
    "PDF": (saved(IMAGE, "PDF"), "a PDF"),
    "ZIP": (b"PK\x03\x04" + bytes(40), "a ZIP archive"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(20), "a HEIC, AVIF or video file"),
    "PPM": (saved(IMAGE, "PPM"), "not a JPEG, PNG, WebP, TIFF or BMP image"),
    "ICO": (saved(IMAGE, "ICO"), "not a JPEG, PNG, WebP, TIFF or BMP image"),
    "APNG": (frames("PNG", 12), r"animated \(12 frames\)"),
    "animated WebP": (frames("WEBP", 4), r"animated \(4 frames\)"),
    "pages": (frames("TIFF", 2), "several pages"),
    "float TIFF": (tiff(2, 1, 1, (32,), np.ones(2, "<f4").tobytes(), kind=3), "floating-point pixels"),
    "float colour TIFF": (tiff(1, 1, 2, (32,) * 3, np.ones(3, "<f4").tobytes(), kind=3), "a TIFF that cannot be read"),
    "32-bit TIFF": (tiff(2, 1, 1, (32,), bytes(8)), "pixels with signs or of 32 bits"),
    "signed TIFF": (tiff(2, 1, 1, (16,), bytes(4), kind=2), "pixels with signs or of 32 bits"),
    "LAB TIFF": (tiff(1, 1, 8, (8, 8, 8), bytes(3)), "pixels of mode LAB"),
    "60,000 x 60,000 PNG": (png(60_000, 60_000, 8, 2, []), "over 64 megapixels"),
    "60,000 x 60,000 JPEG": (jpeg_header(60_000, 60_000), "over 64 megapixels"),
    "60,000 x 60,000 BMP": (bmp_header(60_000, 60_000), "over 64 megapixels"),
    "60,000 x 60,000 TIFF": (tiff(60_000, 60_000, 2, (8, 8, 8), bytes(99)), "over 64 megapixels"),
    "16,383 x 16,383 WebP": (webp_header(16_383, 16_383), "over 64 megapixels"),
    "12,000 x 12,000 PNG": (png(12_000, 12_000, 8, 2, []), "12000x12000 is over 64 megapixels"),
    "1 x 65,000": (png(1, 65_000, 8, 0, [b"\0"] * 65_000), "1x65000 has a side over 32768"),
    "strip": (png(22, 1, 8, 0, [bytes(22)]), "22x1 has a side over 20 times the other"),
    "text bomb": (text_bomb(b"zTXt"), "damaged: (?i:Decompressed data too large)"),
    "profile bomb": (text_bomb(b"iCCP"), "damaged: (?i:Decompressed data too large)"),
    "16-bit tRNS": (png(1, 1, 16, 0, [b"ab"], chunk(b"tRNS", b"ab")), "a transparent colour in a PNG of 16 bits"),
    "4-bit tRNS": (png(2, 1, 4, 0, [b"a"], chunk(b"tRNS", b"\0\1")), "a transparent colour in a PNG of 4 bits"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_by_name_and_reason(data, reason):
    with pytest.raises(DataError, match=f"^holiday.png: {reason}"):
        decode(data, "holiday.png")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_refused(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind, **KINDS[kind])
    with pytest.raises(DataError, match="^x: cut short: " if share > 0.1 else r"^x: (cut short|a|not a) "):
        decode(data[: int(share * len(data))], "x")


@pytest.mark.parametrize(("width", "height", "fits"), [(8000, 8000, True), (8000, 8001, False)])
def test_the_limit_of_pixels_is_64_million(width, height, fits):
    # The file has no pixels, so it is refused in either case, but a size that fits is refused only for that.
    with pytest.raises(DataError, match="cut short" if fits else "8000x8001 is over 64 megapixels"):
        decode(png(width, height, 8, 2, []), "x")


@pytest.mark.parametrize(("width", "fits"), [(20, True), (21, False)])
def test_the_limit_of_sides_is_20_to_1(width, fits):
    data = png(width, 1, 8, 0, [bytes(width)])
    if fits:
        assert decode(data, "x").size == (width, 1)
    else:
        with pytest.raises(DataError, match="20 times the other"):
            decode(data, "x")


def test_bombs_take_no_memory():
    code = """
import resource, sys
from pixelspace.data.decode import decode
from pixelspace.errors import DataError
decode(open(sys.argv[1], "rb").read(), "good")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in sys.stdin.read().split():
    try:
        decode(bytes.fromhex(bomb), "bomb")
    except DataError:
        pass
    else:
        raise SystemExit("accepted")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    bombs = [data for name, (data, _) in REFUSED.items() if "bomb" in name or "000 x" in name or "383 x" in name]
    assert len(bombs) == 8
    good = decoding.__file__.replace("decode.py", "emoji/atlas.webp")
    run = [sys.executable, "-c", code, good]
    done = subprocess.run(run, input=" ".join(map(bytes.hex, bombs)), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # MiB


def test_names_that_a_terminal_would_obey_are_escaped():
    assert shown("a b/ü.png") == "a b/ü.png"
    for name in ("a\nb.png", "\x1b[2J.png", "\udcff.png", "a\u202egnp.exe"):
        assert shown(name).isprintable()
        with pytest.raises(DataError) as error:
            decode(b"", name)
        assert str(error.value).isprintable()


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^cannot be read: No such file"):
        read(tmp_path / "absent.png")
    with pytest.raises(DataError, match=r"^cannot be read: Is a directory"):
        read(tmp_path)
    with (tmp_path / "huge.tif").open("wb") as file:
        file.truncate(33)
    monkeypatch.setattr(decoding, "MAX_BYTES", 32)
    with pytest.raises(DataError, match=r"^over 0 MiB"):
        read(tmp_path / "huge.tif")
    assert MAX_BYTES == 512 << 20


# Mutants


def bases() -> list[bytes]:
    meta = {"exif": oriented(6), "icc_profile": srgb_profile()}
    made = [saved(IMAGE, kind, **settings) for kind, settings in KINDS.items()]
    made += [saved(IMAGE, "JPEG", progressive=True, **meta), saved(IMAGE.convert("CMYK"), "JPEG"), frames("PNG", 3)]
    made += [saved(IMAGE, kind, **meta) for kind in ("PNG", "WEBP", "TIFF")]
    made += [saved(IMAGE.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    made += [saved(IMAGE, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")]
    made += [saved(IMAGE.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGBA", "CMYK")]
    made += [saved(IMAGE.convert("1"), "TIFF", compression="group4"), frames("TIFF", 2), frames("WEBP", 2)]
    made += [saved(IMAGE.convert(mode), "BMP") for mode in ("1", "L", "P")]
    made += [saved(IMAGE.convert("RGBA"), "WEBP", quality=quality) for quality in (10, 90)]
    made += [*GREY.values(), saved(IMAGE, "PNG", icc_profile=display_p3_profile())]
    made += [saved(IMAGE.convert("CMYK"), "JPEG", icc_profile=black_only_profile())]
    made += [saved(IMAGE, "JPEG", exif=damaged_exif()), saved(IMAGE, "JPEG", quality=10)]
    return made


def mutant(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    at, kind = dice.randrange(len(changed)), dice.randrange(6)
    if kind == 0:
        changed[at] ^= 1 << dice.randrange(8)
    elif kind == 1:
        for _ in range(dice.randint(1, 20)):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    elif kind == 2:
        del changed[at : at + dice.randint(1, 64)]
    elif kind == 3:
        changed[at:at] = dice.randbytes(dice.randint(1, 64))
    elif kind == 4:
        start = dice.randrange(min(len(changed), 200))
        changed[start : start + 4] = dice.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
    else:
        del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("count", [1_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_read_or_refused_and_nothing_else(count, capfd):
    dice, originals, read_, refused = random.Random(0), bases(), 0, 0
    assert len(originals) >= 40
    for i in range(count):
        data = mutant(originals[i % len(originals)], dice)
        try:
            assert decode(data, f"mutant-{i}.png").mode == "RGB"
            read_ += 1
        except DataError as error:
            message = str(error)
            assert message.startswith(f"mutant-{i}.png: ") and message.isprintable() and len(message) < 300
            refused += 1
    assert read_ > count // 10 and refused > count // 10
    capfd.readouterr()  # libtiff writes to the terminal by itself


def test_decoding_leaves_the_warnings_of_others_alone():
    import warnings

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        decode(saved(IMAGE, "JPEG", exif=damaged_exif()), "x")
        assert heard == []
        warnings.warn("mine", UserWarning, stacklevel=1)
        assert [str(warning.message) for warning in heard] == ["mine"]


def test_a_camera_jpeg_with_previews_is_read():
    file = io.BytesIO()
    IMAGE.save(file, "MPO", save_all=True, append_images=[IMAGE.resize((8, 6))])
    assert decode(file.getvalue(), "x.jpg").size == IMAGE.size
