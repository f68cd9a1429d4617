"""Video files frame by frame, through PyAV (extra `video`).

- A frame is turned as the file says it is to be shown; a slanted one is refused, and so is one of another size than the
  first, of a high dynamic range (PQ, HLG), or that a decoder had to guess at.
- Colours go to RGB by the matrix and range that the stream states, or else as BT.601; transparency is laid over white.
- Pixels that are not square, and interlaced frames, are taken as they are and noted.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pixelspace.data.container import kind
from pixelspace.data.decode import DECODER_ERRORS, MAX_PIXELS, check_size, shown
from pixelspace.errors import DataError, ResourceError

_DEMUXERS = {"mp4": "mov", "matroska": "matroska", "avi": "avi"}
_HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


class Frame(NamedTuple):
    """A decoded frame: its size as shown, when it is shown in `unit` seconds (None: not said), if decoding can begin at
    it, what it was coded as, and its pixels uint8 (H, W, 3), which are to be asked for before the next frame."""

    height: int
    width: int
    pts: int | None
    unit: float
    key: bool
    codec: str
    pixels: Callable[[], np.ndarray]


def _library() -> Any:
    try:
        import av.logging
    except ImportError as error:
        raise ResourceError("av is not installed; pip install 'pixelspace[video]'") from error
    av.logging.set_level(None)  # what libav has to say of a file is in the errors raised
    return av


def _no_other_file(url: str, flags: int, options: dict) -> Any:
    raise OSError("a video that wants another file")


def _over_white(rgba: np.ndarray) -> np.ndarray:
    colours, alpha = rgba[..., :3].astype(np.uint32), rgba[..., 3:].astype(np.uint32)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _pixels(frame: Any) -> np.ndarray:
    if any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8":
        rgb = _over_white(frame.to_ndarray(format="rgba"))
    else:
        rgb = frame.to_ndarray(format="rgb24")
    return np.rot90(rgb, frame.rotation // 90)


def _checked(frame: Any, stream: Any, notes: list[str]) -> Frame:
    if frame.rotation % 90:
        raise DataError(f"turned by {frame.rotation} degrees")
    if name := _HIGH_DYNAMIC_RANGE.get(frame.color_trc):
        raise DataError(f"a high dynamic range ({name})")
    if frame.is_corrupt:
        raise DataError("damaged: a frame misses what it is made from")
    for note, is_so in (
        ("pixels that are not square", (stream.sample_aspect_ratio or 1) != 1),
        ("interlaced frames", frame.interlaced_frame),
    ):
        if is_so and note not in notes:
            notes.append(note)
    turned = frame.rotation % 180 != 0
    height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
    unit, codec = float(frame.time_base or 0), stream.codec_context.codec.canonical_name
    return Frame(height, width, frame.pts, unit, bool(frame.key_frame), codec, partial(_pixels, frame))


def _decoded(av: Any, path: Path, seek: int | None, notes: list[str]) -> Iterator[Frame]:
    with path.open("rb") as file:
        demuxer = _DEMUXERS[kind(file.read(16))]
        file.seek(0)
        with av.open(file, format=demuxer, metadata_errors="replace", io_open=_no_other_file) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                raise DataError("only sound, no video" if container.streams.audio else "no video in it")
            stream = streams[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # each process has a core
            stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
            check_size(stream.codec_context.width, stream.codec_context.height)
            if seek is not None:
                container.seek(seek, stream=stream)
            for frame in container.decode(stream):
                yield _checked(frame, stream, notes)


def decoded(path: Path, seek: int | None, notes: list[str]) -> Iterator[Frame]:
    """The frames of a file in the order they are shown, from one at or before the time `seek` on (None: the first).
    What could not be minded is added to `notes`.

    Raises:
        DataError: with the bare reason; nothing else, whatever the file.
        ResourceError: PyAV is not installed.
    """
    av = _library()
    frames, number = _decoded(av, path, seek, notes), 0
    while True:
        try:
            if (frame := next(frames, None)) is None:
                return
        except (av.FFmpegError, *DECODER_ERRORS) as error:
            if isinstance(error, DataError):
                raise
            said = shown(str(getattr(error, "strerror", None) or error)[:200])
            raise DataError(f"damaged after {number:,} frames: {said}") from error
        yield frame
        number += 1
