"""Clips out of files: every frame the one it is said to be, and one line for every file that is none."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pixelspace.data import clip_file
from pixelspace.data.clip_file import examine, frames
from pixelspace.errors import DataError
from tests.data.moving_pictures import CODINGS, animated, animation, film, motion, sound
from tests.data.odd_images import saved

ANIMATIONS = (".gif", ".webp", ".apng")


def whole(path: Path) -> np.ndarray:
    """All frames by PyAV's own loop, counted."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("coding", CODINGS)
def test_frames_from_anywhere_are_those_of_decoding_everything(tmp_path, coding):
    path = film(tmp_path / coding, motion(40), coding)
    found, every = examine(path), whole(path)
    assert found.frames == len(every) == 40 and found.keys
    for start in range(0, 36, 5):
        for numbers in (range(start, start + 1), range(start, 40, 3)):
            assert np.array_equal(np.stack(list(frames(path, numbers, found.keys))), every[numbers])


@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_sought_is_not_decoded_from_the_start(tmp_path, coding, monkeypatch):
    path = film(tmp_path / coding, motion(40), coding)
    keys, decoded, seen = examine(path).keys, clip_file._decoded, []

    def counting(*given):
        for frame in decoded(*given):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(clip_file, "_decoded", counting)
    list(frames(path, range(37, 38), keys))
    assert 0 < len(seen) < 25


def test_frames_are_the_picture_that_was_coded(tmp_path):
    clip = motion(20)
    path = film(tmp_path / "a.mp4", clip)
    got = np.stack(list(frames(path, range(20), ())))
    assert np.abs(got[..., 0].mean((1, 2)) - clip[..., 0].mean((1, 2))).max() < 6
    assert len({round(level) for level in got[..., 0].mean((1, 2))}) == 20


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_animations_without_loss_come_back_bit_for_bit(tmp_path, suffix):
    clip = motion(12)
    clip[..., 2] &= 0xC0  # few enough colours for a GIF
    path = animation(tmp_path / f"a{suffix}", clip)
    assert np.array_equal(np.stack(list(frames(path, range(12), ()))), clip)
    assert np.array_equal(np.stack(list(frames(path, range(5, 12, 3), ()))), clip[5::3])


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_time_and_size_are_told(tmp_path, suffix):
    found = examine(animation(tmp_path / f"a{suffix}", motion(10, 30, 20), 40))
    assert (found.height, found.width, found.frames, found.keys) == (20, 30, 10, ())
    assert found.seconds == pytest.approx(0.4)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_video_lasts_as_long_as_its_frames_are_shown(tmp_path, coding):
    found = examine(film(tmp_path / coding, motion(40), coding, rate=20))
    assert (found.height, found.width) == (48, 64) and found.seconds == pytest.approx(2, abs=0.002)
    assert found.codec == {"libx264": "h264", "libx265": "hevc", "libvpx": "vp8", "libvpx-vp9": "vp9"}.get(
        CODINGS[coding][0], CODINGS[coding][0]
    )


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
def test_transparency_is_laid_over_white(tmp_path, kind):
    pictures = []
    for i in range(3):
        picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        picture.paste((200, 0, 0, 255), (4 * i, 0, 4 * i + 4, 20))  # a WebP keeps no more than this part of it
        pictures.append(picture)
    path = tmp_path / "a.webp"
    path.write_bytes(animated(pictures, kind, disposal=2) if kind == "GIF" else animated(pictures, kind))
    first, _, last = frames(path, range(3), ())
    assert first[10, 0].tolist() == [200, 0, 0] and first[10, 9].tolist() == [255, 255, 255]
    assert last[10, 0].tolist() == [255, 255, 255] and last[10, 9].tolist() == [200, 0, 0]


def test_alpha_of_a_video_is_laid_over_white(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:8] = (200, 40, 90, 255)
    rgba[8:] = (200, 40, 90, 51)
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "argb"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode(None))
    first = next(frames(path, range(3), ()))
    assert first[0, 0].tolist() == [200, 40, 90]
    assert first[15, 0].tolist() == [round(255 * 0.8 + 0.2 * c) for c in (200, 40, 90)]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_is_turned_as_it_is_to_be_shown(tmp_path, degrees):
    clip = motion(10)
    straight, turned = film(tmp_path / "a.mp4", clip), film(tmp_path / "b.mp4", clip, rotation=degrees)
    found = examine(turned)
    assert (found.height, found.width) == ((48, 64) if degrees == 180 else (64, 48))
    want = np.rot90(next(frames(straight, range(1), ())), degrees // 90)
    assert np.array_equal(next(frames(turned, range(1), ())), want)


def test_the_matrix_that_a_stream_states_is_used(tmp_path):
    green = np.broadcast_to(np.array([40, 200, 90], np.uint8), (4, 48, 64, 3))
    plain = next(frames(film(tmp_path / "a.mp4", green), range(1), ()))[20, 20].astype(int)
    stated = next(frames(film(tmp_path / "b.mp4", green, colorspace=1), range(1), ()))[20, 20].astype(int)
    assert np.abs(plain - [40, 200, 90]).max() <= 3
    assert np.abs(stated - plain).max() > 8  # these are BT.601's numbers, said to be BT.709's


def test_odd_pixels_are_noted(tmp_path):
    from fractions import Fraction

    path = film(tmp_path / "a.mp4", motion(10), sample_aspect_ratio=Fraction(4, 3))
    assert examine(path).notes == ("pixels that are not square",)


# What is refused


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        examine(path)
    assert "\n" not in str(error.value) and str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"<!DOCTYPE html><html>404", "an HTML page"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\nhttp://example.com/a.ts", "not an MP4, MOV, WebM"),
        (b"ffconcat version 1.0\nfile /etc/passwd", "not an MP4, MOV, WebM"),
        (b"PK\x03\x04....", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom" + bytes(12), "cut short: the index .moov. .* is missing"),
        (saved(Image.new("RGB", (8, 8)), "GIF"), "a single picture"),
        (saved(Image.new("RGB", (8, 8)), "WEBP"), "a single picture"),
        (saved(Image.new("RGB", (8, 8)), "PNG"), "a single picture"),
    ],
)
def test_what_is_no_clip_is_called_what_it_is(tmp_path, data, reason):
    import re

    assert re.match(reason, refusal(tmp_path / "a.mp4", data))


def test_sound_alone_is_refused(tmp_path):
    assert refusal(tmp_path / "b.mp4", sound(tmp_path / "a.mp4").read_bytes()) == "only sound, no video"


@pytest.mark.parametrize("coding", ["h264.mp4", "vp9.webm", "open_gop.mkv", "mpeg4.avi", "hevc.mov"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_file_that_is_cut_short_is_called_so(tmp_path, coding, share):
    data = film(tmp_path / coding, motion(30), coding).read_bytes()
    assert refusal(tmp_path / f"cut_{coding}", data[: int(share * len(data))]).startswith("cut short")


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_an_animation_that_is_cut_short_is_refused(tmp_path, suffix):
    data = animation(tmp_path / f"a{suffix}", motion(8)).read_bytes()
    assert refusal(tmp_path / f"b{suffix}", data[: len(data) // 2]).startswith(("cut short", "damaged"))


@pytest.mark.parametrize("coding", CODINGS)
def test_damage_gives_one_line_or_none_and_libav_is_silent(tmp_path, coding, capfd):
    data = film(tmp_path / coding, motion(20), coding).read_bytes()
    capfd.readouterr()  # encoders talk
    rng, refused = np.random.default_rng(0), 0
    for _ in range(25):
        damaged = bytearray(data)
        for at in rng.integers(len(data) // 8, len(data), 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / f"bad_{coding}").write_bytes(damaged)
        try:
            examine(tmp_path / f"bad_{coding}")
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable()
    assert capfd.readouterr() == ("", "")
    assert refused or coding in ("all_keys.mov",)


def test_a_bomb_of_frames_is_refused(tmp_path):
    one = saved(Image.new("L", (4, 4)), "GIF")
    frame = one[13 + 3 * 2 ** ((one[10] & 7) + 1) : -1]
    bomb = one[:-1] + frame * 100_000 + b";"
    assert refusal(tmp_path / "a.gif", bomb) == "100,001 frames, more than 20,000"


def test_more_frames_than_allowed_are_counted_in_a_video(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_file, "MAX_FRAMES", 19)
    path = film(tmp_path / "a.webm", motion(20), "vp9.webm")
    assert refusal(path, path.read_bytes()) == "more than 19 frames, or 10 gigapixels, in all"


def test_a_video_too_large_is_refused_before_it_is_decoded(tmp_path):
    path = film(tmp_path / "a.avi", motion(4, 1040, 16), "mpeg4.avi")
    assert refusal(path, path.read_bytes()) == "1040x16 has a side over 20 times the other"


def test_a_film_of_high_dynamic_range_is_refused(tmp_path):
    path = film(tmp_path / "a.mp4", motion(4), color_trc=16)
    assert refusal(path, path.read_bytes()) == "a high dynamic range (PQ)"


def test_frames_that_a_file_lacks_are_missed(tmp_path):
    path = film(tmp_path / "a.mp4", motion(20))
    with pytest.raises(DataError, match="cut short: it has no frame 20"):
        list(frames(path, range(18, 24), ()))


def test_without_pyav_animations_are_read_and_videos_name_the_extra(tmp_path):
    film(tmp_path / "a.mp4", motion(4)), animation(tmp_path / "a.gif", motion(4))
    script = (
        "import sys; sys.modules['av'] = None\n"
        "from pathlib import Path\n"
        "from pixelspace.data.clip_file import examine\n"
        "from pixelspace.errors import ResourceError\n"
        f"root = Path({str(tmp_path)!r})\n"
        "print(examine(root / 'a.gif').frames)\n"
        "try: examine(root / 'a.mp4')\n"
        "except ResourceError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "4\nResourceError av is not installed; pip install 'pixelspace[video]'\n"
