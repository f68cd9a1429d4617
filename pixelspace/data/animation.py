"""Animated GIF, WebP and APNG frame by frame, read by the policy of `data.decode`."""

import io
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelspace.data.decode import DECODER_ERRORS, check_size, read, to_rgb, what_is_wrong
from pixelspace.data.video import Frame
from pixelspace.errors import DataError

SUFFIXES = (".gif", ".webp", ".apng")
_FORMATS = ("GIF", "WEBP", "PNG")


def _pixels(image: Image.Image, notes: list[str]) -> np.ndarray:
    return np.array(to_rgb(image, image.info.get("icc_profile"), notes))


def _with_alpha(data: bytes) -> bytes:
    """A WebP that says it has transparency, without which Pillow shows as black what its frames leave bare."""
    if data[:4] + data[8:16] != b"RIFFWEBPVP8X":
        return data
    return data[:20] + bytes([data[20] | 0x10]) + data[21:]


def _decoded(data: bytes, limit: int, notes: list[str]) -> Iterator[Frame]:
    with Image.open(io.BytesIO(_with_alpha(data)), formats=_FORMATS) as image:
        file: Any = image
        check_size(*file.size)
        if (count := getattr(file, "n_frames", 1)) > limit:
            raise DataError(f"{count:,} frames, more than {limit:,}")
        # A picture to stand for an APNG where it cannot be played is no frame of it, but Pillow's first.
        first, milliseconds = int(bool(file.info.get("default_image"))), 0
        for number in range(first, count):
            file.seek(number)
            file.load()
            codec, pixels = str(file.format), partial(_pixels, file, notes)
            yield Frame(file.height, file.width, milliseconds, 0.001, number == first, codec, pixels)
            milliseconds += round(file.info.get("duration", 0))


def decoded(path: Path, limit: int, notes: list[str]) -> Iterator[Frame]:
    """The frames of a file, from the first on, for each is drawn over those before it; a file of more than `limit` is
    refused. What could not be used is added to `notes`.

    Raises:
        DataError: with the bare reason; nothing else, whatever the bytes.
    """
    data = read(path)
    frames = _decoded(data, limit, notes)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are of metadata, which is not used
                if (frame := next(frames, None)) is None:
                    return
        except DECODER_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise DataError(what_is_wrong(data, error)) from error
        yield frame
