"""A file that holds a clip: what is to be known of it, found out by decoding it once, and any of its frames again."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from pixelspace.data import animation, container, video
from pixelspace.data.video import Frame
from pixelspace.errors import DataError

SUFFIXES = (*container.SUFFIXES, *animation.SUFFIXES)
MAX_FRAMES, MAX_PIXELS = (
    20_000,
    10_000_000_000,
)  # of a file in all: 11 minutes of small frames, 3 of 1080p at 30 a second
_APART = 8  # frames at least between two at which decoding may begin

Key = tuple[int, int]
"""The number of a frame at which decoding can begin, and the time the file has for it."""


@dataclass(frozen=True, slots=True)
class Film:
    """A clip as it is shown: height, width, how many frames, for how long (0: not said) and what it is coded as.

    `keys` are some of the frames at which decoding can begin, ascending; none where it must begin at the first.
    """

    height: int
    width: int
    frames: int
    seconds: float
    codec: str
    keys: tuple[Key, ...]
    notes: tuple[str, ...]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _decoded(path: Path, what: str, seek: int | None, notes: list[str]) -> Iterator[Frame]:
    if what == "animation":
        return animation.decoded(path, MAX_FRAMES, notes)
    return video.decoded(path, seek, notes)


def _after(path: Path, what: str, key: Key) -> Iterator[Frame]:
    """The frames from a key on; none where seeking does not lead to it, or breaks what comes before it."""
    frames = _decoded(path, what, key[1], [])
    with suppress(DataError):
        for frame in frames:
            if frame.pts is None or frame.pts > key[1]:
                return
            if frame.pts == key[1]:
                break
        else:
            return
        yield frame
        yield from frames


def _works(path: Path, what: str, key: Key, pts: list[int]) -> bool:
    found = [frame.pts for frame in islice(_after(path, what, key), _APART)]
    return bool(found) and found == pts[key[0] : key[0] + _APART]


def _examined(path: Path) -> Film:
    head = _head(path)
    if not head:
        raise DataError("zero bytes")
    what = container.kind(head)
    if what != "animation":
        container.check_whole(path, what)
    notes, pts, keys = list[str](), list[int | None](), list[Key]()
    first, count, unit = None, 0, 0.0
    for frame in _decoded(path, what, None, notes):
        if first is None:
            first, unit = frame, frame.unit
            frame.pixels()
        if (frame.height, frame.width) != (first.height, first.width):
            raise DataError(f"frame {count} is {frame.width}x{frame.height}, the first {first.width}x{first.height}")
        if frame.key and frame.pts is not None and count - (keys[-1][0] if keys else 0) >= _APART:
            keys.append((count, frame.pts))
        pts.append(frame.pts)
        count += 1
        if count > MAX_FRAMES or count * first.height * first.width > MAX_PIXELS:
            raise DataError(f"more than {MAX_FRAMES:,} frames, or {MAX_PIXELS // 10**9} gigapixels, in all")
    if first is None or count == 1:
        raise DataError("a single picture" if count else "no frames")
    times = [time for time in pts if time is not None]
    if len(times) < count or any(b <= a for a, b in pairwise(times)):
        times, keys = [0], []
    seconds = (times[-1] - times[0]) * unit * count / (count - 1)
    working = tuple(key for key in keys if _works(path, what, key, times))
    return Film(first.height, first.width, count, seconds, first.codec, working, tuple(notes))


def examine(path: Path) -> Film:
    """What is to be known of a file, all of which is decoded.

    Raises:
        DataError: with the bare reason; nothing else, whatever the file.
        ResourceError: the package that it takes is not installed.
    """
    try:
        return _examined(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error


def _from(path: Path, start: int, keys: tuple[Key, ...]) -> Iterator[tuple[int, Frame]]:
    """Frames and their numbers, from one at or before `start` on."""
    what = container.kind(_head(path))
    key = max((key for key in keys if key[0] <= start), default=None)
    if key:
        yield from enumerate(_after(path, what, key), key[0])
    else:
        yield from enumerate(_decoded(path, what, None, []))


def frames(path: Path, numbers: range, keys: tuple[Key, ...]) -> Iterator[np.ndarray]:
    """The frames `numbers` of a file, ascending, uint8 (H, W, 3) each, with the `keys` found when it was examined.

    Raises:
        DataError: with the bare reason; nothing else, whatever the file.
    """
    got = 0
    try:
        for number, frame in _from(path, numbers.start, keys):
            if number in numbers:
                yield frame.pixels()
                got += 1
            if got == len(numbers):
                return
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    raise DataError(f"cut short: it has no frame {numbers[got]}")
